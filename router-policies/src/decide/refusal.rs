//! Why nobody may serve a request, in words for the caller.

use super::{Ask, NoRoute, Ruling};
use crate::document::nearest;
use crate::policy::Policy;
use exchange::{RefusalKind, Trace, Verdict};

/// The policy refuses requests that name a model.
pub(super) fn named_model(policy: &Policy, ask: &Ask<'_>) -> NoRoute {
    let names: Vec<&str> = policy.virtual_models().iter().map(|name| &**name).collect();
    NoRoute {
        kind: RefusalKind::PermissionDenied,
        message: format!(
            "the policy chooses models itself, and `{}` names one",
            ask.facts.model
        ),
        hint: Some(format!("ask for {}", names.join(" or "))),
        trace: Trace::default(),
    }
}

pub(super) fn no_route(ruling: &Ruling<'_>, is_unknown: bool, trace: Trace) -> NoRoute {
    let model = &ruling.ask.facts.model;
    if is_unknown && ruling.route.is_none() {
        let known = ruling.policy.names.keys().map(|name| &**name);
        let hint = nearest(model, known).map_or_else(
            || "GET /v1/models lists the models".into(),
            |name| format!("did you mean `{name}`?"),
        );
        return NoRoute {
            kind: RefusalKind::ModelNotFound,
            message: format!("the model `{model}` does not exist here"),
            hint: Some(hint),
            trace,
        };
    }
    let (kind, message, hint) = explain(&trace, model);
    NoRoute {
        kind,
        message,
        hint: Some(hint.into()),
        trace,
    }
}

/// The reason nearest to being mended speaks for all: a request that only lacked money says so, even where another
/// deployment could not have served it at all.
fn explain(trace: &Trace, model: &str) -> (RefusalKind, String, &'static str) {
    let reasons: [(Verdict, RefusalKind, String, &'static str); 9] = [
        (
            Verdict::Unaffordable,
            RefusalKind::BudgetExceeded,
            format!("the budget does not cover the first tokens of any deployment for `{model}`"),
            "raise the budget, shorten the input or choose a cheaper model",
        ),
        (
            Verdict::Unavailable,
            RefusalKind::NoDeployment,
            format!("every deployment for `{model}` is down or full"),
            "retry shortly",
        ),
        (
            Verdict::Unpriced,
            RefusalKind::ModelUnpriced,
            format!("no price is known for `{model}`, so its cost cannot be held against a budget"),
            "add it under `prices` in the gateway's configuration",
        ),
        (
            Verdict::ContextTooSmall,
            RefusalKind::ContextTooLong,
            format!("the input is longer than any deployment for `{model}` can read"),
            "shorten the conversation",
        ),
        (
            Verdict::MissingCapability,
            RefusalKind::InvalidRequest,
            format!("no deployment for `{model}` can do what the request asks for"),
            "tools, images and structured output need a deployment that lists them",
        ),
        (
            Verdict::NotGranted,
            RefusalKind::PermissionDenied,
            format!("this key may not use `{model}`"),
            "ask for a key whose grants include the model",
        ),
        (
            Verdict::WrongDataClass,
            RefusalKind::PermissionDenied,
            format!("no deployment for `{model}` may read data of this class"),
            "see `data_class` and `data_classes` in the policy",
        ),
        (
            Verdict::WrongRegion,
            RefusalKind::PermissionDenied,
            format!("no deployment for `{model}` is in a region where this may run"),
            "see `regions` in the policy",
        ),
        (
            Verdict::BelowFloor,
            RefusalKind::NoDeployment,
            format!("the policy allows no deployment for `{model}` at this value tier"),
            "see `floors` and `routes` in the policy",
        ),
    ];
    let has = |verdict: Verdict| trace.entries.iter().any(|entry| entry.verdict == verdict);
    let found = reasons.into_iter().find(|(verdict, ..)| has(*verdict));
    found.map_or_else(
        || {
            (
                RefusalKind::NoDeployment,
                format!("the policy forbids every deployment for `{model}`"),
                "see `routes` and `teams` in the policy",
            )
        },
        |(_, kind, message, hint)| (kind, message, hint),
    )
}
