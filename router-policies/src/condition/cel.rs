//! Conditions written in CEL. The `cel` crate parses; what conditions usually say is then checked against the types
//! of the variables and compiled to a closed form that is evaluated in nanoseconds. The rest (arithmetic, macros such
//! as `labels.exists(…)`) runs in the crate's interpreter.
//!
//! Owns: the way from text to [`Test`]. Invariants: both ways of evaluation agree (a property test holds them against
//! each other); an unknown variable or a comparison of unlike things is told at load and never at run time.

use super::{
    BUDGET_LEFT, Comparison, Flag, Glob, LABELS, Number, NumberFact, Part, Scene, Test, Text, TextFact,
};
use crate::document::{Mistakes, nearest};
use ::cel::common::ast::SourceInfo;
use ::cel::common::ast::operators;
use ::cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};
use ::cel::{Context, Env, ExecutionError, Program, Value};
use exchange::{AccountPath, LatencyTier, ValueTier};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Longer expressions belong in several rules; the parser's own recursion is bounded by this too.
const LONGEST: usize = 2000;

/// What a condition looks like.
const EXAMPLE: &str = "for example: team == 'legal' && input_tokens > 8000";

static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Functions that conditions may call, beyond operators.
const FUNCTIONS: [&str; 12] = [
    "size",
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "glob",
    "has",
    "int",
    "double",
    "string",
    "max",
    "min",
];

/// The names a text speaks of.
pub(crate) struct Names(Program);

impl Names {
    pub(crate) fn in_text(text: &str) -> Option<Self> {
        parse(text).ok().map(Self)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.references().has_variable(name)
    }
}

fn parse(text: &str) -> Result<Program, (String, Option<usize>)> {
    if text.len() > LONGEST {
        return Err((
            format!("is longer than {LONGEST} characters; split it into rules"),
            None,
        ));
    }
    // The parser recurses once for each parenthesis.
    let mut depth = 0_i32;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth > 32 {
            return Err(("is nested more than 32 deep".into(), None));
        }
    }
    Program::compile(text).map_err(|errors| match errors.errors.first() {
        Some(error) => {
            let column = usize::try_from(error.pos.1).ok().filter(|column| *column > 0);
            let problem = error.msg.lines().next().unwrap_or_default();
            let problem = problem.split(" expecting {").next().unwrap_or(problem);
            (format!("is not CEL: {problem}"), column)
        }
        None => ("is not CEL".into(), None),
    })
}

/// Compiles an expression; what is wrong with it goes to `mistakes`.
pub(crate) fn compile(text: &str, path: &str, mistakes: &mut Mistakes<'_>) -> Test {
    let program = match parse(text) {
        Ok(program) => program,
        Err((problem, column)) => {
            let place = column.map_or(String::new(), |column| format!(", at its character {column}"));
            mistakes.hinted(path, format!("`{text}` {problem}{place}"), EXAMPLE);
            return Test::Constant(false);
        }
    };
    let compiler = Compiler {
        info: program.source_info(),
    };
    match compiler.test(program.expression()) {
        Ok(test) => test,
        Err(Stop::Wrong(wrong)) => {
            let place = wrong
                .at
                .map_or(String::new(), |at| format!(", at its character {}", at + 1));
            let hint = wrong.hint.or(Some(EXAMPLE.into()));
            mistakes.add(path, format!("{}{place}", wrong.problem)).hint = hint;
            Test::Constant(false)
        }
        Err(Stop::General) => general(text, program, path, mistakes),
    }
}

/// Checks what the typed compiler could not: names, and that it comes to true or false.
fn general(text: &str, program: Program, path: &str, mistakes: &mut Mistakes<'_>) -> Test {
    let references = program.references();
    for name in references.functions() {
        let is_operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_operator && !FUNCTIONS.contains(&name) {
            mistakes.unknown(path, ("function", name), FUNCTIONS.iter().copied());
            return Test::Constant(false);
        }
    }
    let facts = crate::cases::Given::default().facts();
    let account = AccountPath {
        org: "acme".into(),
        team: None,
        workflow: None,
        key: None,
    };
    let scene = Scene {
        facts: &facts,
        account: &account,
        workflow: None,
        task: None,
        value: ValueTier::Standard,
        latency: LatencyTier::Standard,
        deadline_ms: None,
        unix_s: 0,
        budget_left: 0,
    };
    let outcome = execute(&program, &scene);
    let problem = match outcome {
        Ok(Value::Bool(_)) | Err(ExecutionError::NoSuchKey(_)) => None,
        Ok(_) => Some("comes to something other than true or false".to_owned()),
        Err(ExecutionError::UndeclaredReference(name)) => {
            let known: Vec<&str> = names().collect();
            mistakes.unknown(path, ("variable", &name), known.into_iter());
            return Test::Constant(false);
        }
        Err(error) => Some(format!("cannot be evaluated: {error}")),
    };
    if let Some(problem) = problem {
        mistakes.hinted(
            path,
            format!("`{text}` {problem}"),
            "compare with ==, <, in, or combine with &&, ||",
        );
        return Test::Constant(false);
    }
    Test::General(Arc::new(General {
        text: text.into(),
        program,
    }))
}

/// An expression for the interpreter.
#[derive(Debug)]
pub(crate) struct General {
    pub(crate) text: Arc<str>,
    program: Program,
}

impl General {
    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Option<Self> {
        Some(Self {
            text: text.into(),
            program: parse(text).ok()?,
        })
    }

    pub(crate) fn value(&self, scene: &Scene<'_>) -> Option<bool> {
        match execute(&self.program, scene) {
            Ok(Value::Bool(value)) => Some(value),
            _ => None,
        }
    }
}

fn execute(program: &Program, scene: &Scene<'_>) -> Result<Value, ExecutionError> {
    let mut context = Context::with_env(STANDARD.clone());
    // The name is no overload of the standard library, so this cannot fail.
    let _ = context.add_function(
        "glob",
        |::cel::extractors::This(text): ::cel::extractors::This<Arc<String>>, pattern: Arc<String>| {
            Glob::new(&pattern).matches(&text)
        },
    );
    let references = program.references();
    for (fact, name, _) in TextFact::ALL {
        if references.has_variable(name) {
            context.add_variable_from_value(*name, scene.text(*fact).into_owned());
        }
    }
    for (fact, name, _) in NumberFact::ALL {
        if references.has_variable(name) {
            context.add_variable_from_value(*name, scene.number(*fact));
        }
    }
    for (flag, name, _) in Flag::ALL {
        if references.has_variable(name) {
            context.add_variable_from_value(*name, scene.flag(*flag));
        }
    }
    if references.has_variable(BUDGET_LEFT) {
        context.add_variable_from_value(BUDGET_LEFT, scene.budget_left());
    }
    if references.has_variable(LABELS) {
        let labels = scene.facts.labels.iter();
        let labels: HashMap<String, String> = labels
            .rev()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        context.add_variable_from_value(LABELS, labels);
    }
    program.execute(&context)
}

/// Every variable a condition may use.
pub(crate) fn names() -> impl Iterator<Item = &'static str> + Clone {
    let texts = TextFact::ALL.iter().map(|(_, name, _)| *name);
    let numbers = NumberFact::ALL.iter().map(|(_, name, _)| *name);
    let flags = Flag::ALL.iter().map(|(_, name, _)| *name);
    texts.chain(numbers).chain(flags).chain([BUDGET_LEFT, LABELS])
}

/// Why an expression has no closed form.
enum Stop {
    Wrong(Wrong),
    General,
}

struct Wrong {
    problem: String,
    hint: Option<String>,
    /// Offset within the expression.
    at: Option<usize>,
}

/// A value within an expression.
enum Term {
    Test(Test),
    Text(Text),
    Number(Number),
    Texts(Vec<Arc<str>>),
}

impl Term {
    fn kind(&self) -> &'static str {
        match self {
            Self::Test(_) => "true or false",
            Self::Text(_) => "text",
            Self::Number(_) => "a number",
            Self::Texts(_) => "a list of texts",
        }
    }
}

struct Compiler<'a> {
    info: &'a SourceInfo,
}

impl Compiler<'_> {
    fn test(&self, node: &IdedExpr) -> Result<Test, Stop> {
        match self.term(node)? {
            Term::Test(test) => Ok(test),
            other => Err(self.wrong(
                node,
                format!("{} stands where true or false is needed", other.kind()),
            )),
        }
    }

    fn wrong(&self, node: &IdedExpr, problem: String) -> Stop {
        let at = self.info.offset_for(node.id).map(|(start, _)| start as usize);
        Stop::Wrong(Wrong {
            problem,
            hint: None,
            at,
        })
    }

    fn term(&self, node: &IdedExpr) -> Result<Term, Stop> {
        match &node.expr {
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(value) => Term::Test(Test::Constant(*value.inner())),
                LiteralValue::Int(value) => Term::Number(Number::Whole(*value.inner())),
                LiteralValue::UInt(value) => Term::Number(Number::Whole(
                    i64::try_from(*value.inner()).map_err(|_| Stop::General)?,
                )),
                LiteralValue::Double(value) => Term::Number(Number::Broken(*value.inner())),
                LiteralValue::String(value) => Term::Text(Text::Literal(value.inner().into())),
                LiteralValue::Bytes(_) | LiteralValue::Null => return Err(Stop::General),
            }),
            Expr::Ident(name) => self.variable(node, name),
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(name) if name == LABELS && select.test => {
                    Ok(Term::Test(Test::HasLabel(select.field.as_str().into())))
                }
                Expr::Ident(name) if name == LABELS => {
                    Ok(Term::Text(Text::Label(select.field.as_str().into())))
                }
                Expr::Ident(name) if names().any(|known| known == name) => {
                    Err(self.wrong(node, format!("`{name}` has no fields")))
                }
                _ => Err(Stop::General),
            },
            Expr::List(list) => {
                let items = list.elements.iter().map(|item| match self.term(item)? {
                    Term::Text(Text::Literal(text)) => Ok(text),
                    _ => Err(Stop::General),
                });
                Ok(Term::Texts(items.collect::<Result<_, Stop>>()?))
            }
            Expr::Call(call) => self.call(node, call),
            _ => Err(Stop::General),
        }
    }

    fn variable(&self, node: &IdedExpr, name: &str) -> Result<Term, Stop> {
        if let Some(fact) = TextFact::called(name) {
            return Ok(Term::Text(Text::Fact(fact)));
        }
        if let Some(fact) = NumberFact::called(name) {
            return Ok(Term::Number(Number::Fact(fact)));
        }
        if let Some(flag) = Flag::called(name) {
            return Ok(Term::Test(Test::Flag(flag)));
        }
        match name {
            BUDGET_LEFT => Ok(Term::Number(Number::BudgetLeft)),
            LABELS => Err(Stop::General),
            _ => {
                let Stop::Wrong(mut wrong) = self.wrong(node, format!("no variable is called `{name}`"))
                else {
                    return Err(Stop::General);
                };
                wrong.hint = Some(match nearest(name, names()) {
                    Some(best) => format!("did you mean `{best}`?"),
                    None => format!("known here: {}", names().collect::<Vec<_>>().join(", ")),
                });
                Err(Stop::Wrong(wrong))
            }
        }
    }

    fn call(&self, node: &IdedExpr, call: &CallExpr) -> Result<Term, Stop> {
        let comparison = match call.func_name.as_str() {
            operators::EQUALS => Some(Comparison::Equal),
            operators::NOT_EQUALS => Some(Comparison::NotEqual),
            operators::LESS => Some(Comparison::Less),
            operators::LESS_EQUALS => Some(Comparison::LessOrEqual),
            operators::GREATER => Some(Comparison::More),
            operators::GREATER_EQUALS => Some(Comparison::MoreOrEqual),
            _ => None,
        };
        match (
            call.func_name.as_str(),
            call.target.as_deref(),
            call.args.as_slice(),
        ) {
            (_, None, [left, right]) if comparison.is_some() => {
                self.compare(node, comparison.unwrap_or(Comparison::Equal), (left, right))
            }
            (operators::LOGICAL_NOT, None, [inner]) => Ok(Term::Test(Test::Not(Box::new(self.test(inner)?)))),
            (operators::LOGICAL_AND, None, sides) => {
                let tests = sides
                    .iter()
                    .map(|side| self.test(side))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(Term::Test(Test::All(flat(tests, true))))
            }
            (operators::LOGICAL_OR, None, sides) => {
                let tests = sides
                    .iter()
                    .map(|side| self.test(side))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(Term::Test(Test::Any(flat(tests, false))))
            }
            (operators::NEGATE, None, [inner]) => match self.term(inner)? {
                Term::Number(Number::Whole(value)) => Ok(Term::Number(Number::Whole(value.saturating_neg()))),
                Term::Number(Number::Broken(value)) => Ok(Term::Number(Number::Broken(-value))),
                _ => Err(Stop::General),
            },
            (operators::IN, None, [item, list]) => match (self.term(item)?, &list.expr) {
                (Term::Text(Text::Literal(name)), Expr::Ident(map)) if map == LABELS => {
                    Ok(Term::Test(Test::HasLabel(name)))
                }
                (Term::Text(text), _) => match self.term(list)? {
                    Term::Texts(options) => Ok(Term::Test(Test::OneOf(text, options))),
                    other => Err(self.wrong(list, format!("`in` needs a list, not {}", other.kind()))),
                },
                _ => Err(Stop::General),
            },
            (operators::INDEX, None, [map, key]) => match (&map.expr, self.term(key)?) {
                (Expr::Ident(name), Term::Text(Text::Literal(key))) if name == LABELS => {
                    Ok(Term::Text(Text::Label(key)))
                }
                _ => Err(Stop::General),
            },
            (name, Some(target), [argument]) => self.method(node, name, (target, argument)),
            _ => Err(Stop::General),
        }
    }

    fn compare(
        &self,
        node: &IdedExpr,
        comparison: Comparison,
        (left, right): (&IdedExpr, &IdedExpr),
    ) -> Result<Term, Stop> {
        let test = match (self.term(left)?, self.term(right)?) {
            (Term::Number(left), Term::Number(right)) => Test::Numbers(left, comparison, right),
            (Term::Text(left), Term::Text(right)) => Test::Texts(left, comparison, right),
            (Term::Test(left), Term::Test(Test::Constant(right))) if comparison == Comparison::Equal => {
                if right {
                    left
                } else {
                    Test::Not(Box::new(left))
                }
            }
            (Term::Test(_), Term::Test(_)) => return Err(Stop::General),
            (left, right) => {
                let problem = format!("compares {} with {}", left.kind(), right.kind());
                return Err(self.wrong(node, problem));
            }
        };
        Ok(Term::Test(test))
    }

    fn method(
        &self,
        node: &IdedExpr,
        name: &str,
        (target, argument): (&IdedExpr, &IdedExpr),
    ) -> Result<Term, Stop> {
        let part = match name {
            "startsWith" => Some(Part::Start),
            "endsWith" => Some(Part::End),
            "contains" => Some(Part::Anywhere),
            "matches" | "glob" => None,
            _ => return Err(Stop::General),
        };
        let text = match self.term(target)? {
            Term::Text(text) => text,
            other => return Err(self.wrong(target, format!("`{name}` is for text, not {}", other.kind()))),
        };
        let wanted = match self.term(argument)? {
            Term::Text(Text::Literal(wanted)) => wanted,
            Term::Text(_) => return Err(Stop::General),
            other => return Err(self.wrong(argument, format!("`{name}` needs text, not {}", other.kind()))),
        };
        let test = match part {
            Some(part) => Test::Has(text, part, wanted),
            None if name == "glob" => Test::Glob(text, Glob::new(&wanted)),
            None => {
                let pattern = regex::RegexBuilder::new(&wanted).size_limit(1 << 20).build();
                let pattern = pattern.map_err(|_| {
                    self.wrong(
                        node,
                        format!("`{wanted}` is not a regular expression, or is too large"),
                    )
                })?;
                Test::Pattern(text, Arc::new(pattern))
            }
        };
        Ok(Term::Test(test))
    }
}

/// `a && (b && c)` is one list of three.
fn flat(tests: Vec<Test>, all: bool) -> Vec<Test> {
    let mut flat = Vec::with_capacity(tests.len());
    for test in tests {
        match test {
            Test::All(inner) if all => flat.extend(inner),
            Test::Any(inner) if !all => flat.extend(inner),
            other => flat.push(other),
        }
    }
    flat
}
