//! Which rules are never reached because an earlier one takes all they would.
//!
//! Invariant: what is told to be unreachable is; what cannot be proved is left alone.

use crate::condition::{Comparison, Number, Test, Text};
use crate::policy::Policy;

/// (list, position of the unreachable rule, position of the one that takes its requests).
pub(super) fn unreachable(policy: &Policy) -> Vec<(&'static str, usize, usize)> {
    let mut found = Vec::new();
    let lists: [(&'static str, Vec<&Test>); 4] = [
        ("workflows", policy.tests.workflows.iter().collect()),
        ("value", policy.tests.value.iter().collect()),
        ("latency", policy.tests.latency.iter().collect()),
        ("thinking", policy.tests.thinking.iter().collect()),
    ];
    for (list, tests) in lists {
        found.extend(
            covered(&tests, |_, _| true)
                .into_iter()
                .map(|(later, earlier)| (list, later, earlier)),
        );
    }
    let routes: Vec<&Test> = policy.routes.iter().map(|route| &route.test).collect();
    // A route that does not speak of models leaves named ones to a later route that does.
    let may = |later: usize, earlier: usize| {
        !policy.routes[later].names_a_model || policy.routes[earlier].names_a_model
    };
    found.extend(
        covered(&routes, may)
            .into_iter()
            .map(|(later, earlier)| ("routes", later, earlier)),
    );
    found
}

fn covered(tests: &[&Test], may: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for later in 1..tests.len() {
        if let Some(earlier) =
            (0..later).find(|earlier| may(later, *earlier) && covers(tests[*earlier], tests[later]))
        {
            found.push((later, earlier));
        }
    }
    found
}

/// `wide` holds whenever `narrow` does.
fn covers(wide: &Test, narrow: &Test) -> bool {
    if wide == narrow || *wide == Test::Constant(true) || *narrow == Test::Constant(false) {
        return true;
    }
    if let Test::All(parts) = wide {
        return parts.iter().all(|part| covers(part, narrow));
    }
    if let Test::Any(choices) = narrow {
        return !choices.is_empty() && choices.iter().all(|choice| covers(wide, choice));
    }
    if let Test::Any(choices) = wide
        && choices.iter().any(|choice| covers(choice, narrow))
    {
        return true;
    }
    if let Test::All(parts) = narrow {
        return parts.iter().any(|part| covers(wide, part));
    }
    implied(wide, narrow)
}

/// `wide` follows from `narrow`, for two tests of one thing.
fn implied(wide: &Test, narrow: &Test) -> bool {
    if let Some((text, options)) = options(narrow) {
        return match wide {
            Test::Glob(other, glob) => other == text && options.iter().all(|option| glob.matches(option)),
            Test::OneOf(other, wanted) => {
                other == text
                    && options
                        .iter()
                        .all(|option| wanted.iter().any(|one| **one == **option))
            }
            Test::Texts(other, comparison, Text::Literal(wanted)) => {
                let holds = |option: &&str| match comparison {
                    Comparison::Equal => **option == **wanted,
                    Comparison::NotEqual => **option != **wanted,
                    _ => false,
                };
                other == text && options.iter().all(|option| holds(&&**option))
            }
            _ => false,
        };
    }
    match (wide, narrow) {
        // A pattern that, read as a text, fits another pattern fits all that this one fits.
        (Test::Glob(text, glob), Test::Glob(other, narrower)) => {
            text == other && glob.matches(narrower.pattern())
        }
        (
            Test::Numbers(Number::Fact(fact), wide, Number::Whole(from)),
            Test::Numbers(Number::Fact(other), narrow, Number::Whole(to)),
        ) => fact == other && numbers((*wide, *from), (*narrow, *to)),
        _ => false,
    }
}

/// The texts that a test allows, where it allows only certain ones.
fn options(test: &Test) -> Option<(&Text, Vec<&str>)> {
    match test {
        Test::Texts(text, Comparison::Equal, Text::Literal(wanted)) => Some((text, vec![wanted])),
        Test::OneOf(text, wanted) => Some((text, wanted.iter().map(|one| &**one).collect())),
        _ => None,
    }
}

fn numbers((wide, from): (Comparison, i64), (narrow, to): (Comparison, i64)) -> bool {
    use Comparison::{Equal, Less, LessOrEqual, More, MoreOrEqual};
    // The bounds, both ends included, that each comparison stands for.
    let range = |comparison, number: i64| match comparison {
        Equal => Some((number, number)),
        Less => Some((i64::MIN, number.saturating_sub(1))),
        LessOrEqual => Some((i64::MIN, number)),
        More => Some((number.saturating_add(1), i64::MAX)),
        MoreOrEqual => Some((number, i64::MAX)),
        Comparison::NotEqual => None,
    };
    match (range(wide, from), range(narrow, to)) {
        (Some(wide), Some(narrow)) => wide.0 <= narrow.0 && narrow.1 <= wide.1,
        _ => false,
    }
}
