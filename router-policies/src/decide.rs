//! The ruling: which deployments to try, in which order, and why the others are not among them.

use crate::document::nearest;
use crate::matcher::Scene;
use crate::policy::{Capability, Deployment, Policy, Preference, Route};
use exchange::{
    AccountPath, BackendClass, Candidate, Decision, Envelope, Facts, Grants, LatencyTier, Offer, Plan,
    Profile, RefusalKind, Trace, TraceEntry, Verdict,
};

/// Everything a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub facts: &'a Facts,
    pub account: &'a AccountPath,
    pub profile: &'a Profile,
    pub grants: &'a Grants,
    /// One per deployment, in the policy's order.
    pub offers: &'a [Offer],
    pub envelope: Envelope,
    pub seed: u64,
}

/// No deployment may serve this request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NoRoute {
    pub kind: RefusalKind,
    pub message: String,
    pub hint: Option<String>,
    pub trace: Trace,
}

impl Policy {
    /// Rules on one request. Pure: the same question gets the same answer.
    ///
    /// # Errors
    /// [`NoRoute`] with the reason that would have to change for the request to be served.
    pub fn decide(&self, ask: &Ask<'_>) -> Result<Decision, NoRoute> {
        let route = self.route(ask);
        let order = match route {
            Some(route) => self.preferred(route, ask),
            None => self.named(&ask.facts.model),
        };
        let mut trace = Trace {
            route: route.map(|route| route.name.clone()),
            entries: Vec::new(),
        };
        let mut plan = Vec::with_capacity(order.len());
        for index in &order {
            let verdict = self.judge(*index, route, ask);
            let verdict = match verdict {
                Verdict::Chosen if plan.is_empty() => Verdict::Chosen,
                Verdict::Chosen => Verdict::Fallback,
                against => against,
            };
            if matches!(verdict, Verdict::Chosen | Verdict::Fallback) {
                plan.push(self.candidate(*index, ask.profile));
            }
            trace.entries.push(self.entry(*index, verdict, ask));
        }
        let elsewhere = if route.is_some() {
            Verdict::NotPreferred
        } else {
            Verdict::WrongModel
        };
        for index in (0..self.deployments().len()).filter(|index| !order.contains(index)) {
            trace.entries.push(self.entry(index, elsewhere, ask));
        }
        match Plan::new(plan) {
            Some(plan) => Ok(Decision {
                plan,
                ceiling: ask.envelope.granted.plus(ask.envelope.remaining),
                deadline_ms: ask.facts.deadline_ms,
                policy_version: self.version().clone(),
                seed: ask.seed,
                trace,
            }),
            None => Err(self.no_route(ask, &order, trace)),
        }
    }

    /// Deployments that could come into question for a model name, by position: what must be quoted before deciding.
    pub fn plausible(&self, model: &str) -> impl Iterator<Item = usize> {
        let any = self.virtual_models().iter().any(|name| **name == *model)
            || self
                .document
                .routes
                .iter()
                .any(|route| route.when.names_a_model());
        let deployments = self.deployments().iter().enumerate();
        deployments
            .filter(move |(_, one)| any || one.answers_to(model))
            .map(|(index, _)| index)
    }

    /// The first route that holds. One without a condition on the model speaks of virtual models only.
    fn route(&self, ask: &Ask<'_>) -> Option<&Route> {
        let is_virtual = self
            .virtual_models()
            .iter()
            .any(|name| **name == *ask.facts.model);
        let mut scene = Scene::new(ask.facts, ask.account);
        scene.workflow = ask.profile.workflow.as_deref();
        scene.value = ask.profile.value;
        scene.latency = ask.profile.latency;
        self.document
            .routes
            .iter()
            .find(|route| (is_virtual || route.when.names_a_model()) && route.when.holds(&scene))
    }

    fn preferred(&self, route: &Route, ask: &Ask<'_>) -> Vec<usize> {
        let mut order = Vec::new();
        for preference in &route.prefer {
            let mut step: Vec<usize> = match preference {
                Preference::Deployment(id) => self.positions(|deployment| deployment.id == *id),
                Preference::Class { class } => self.positions(|deployment| deployment.class == *class),
            };
            step.sort_by_key(|index| ask.offers.get(*index).and_then(|offer| offer.expected));
            step.retain(|index| !order.contains(index));
            order.append(&mut step);
        }
        order
    }

    fn named(&self, model: &str) -> Vec<usize> {
        self.positions(|deployment| deployment.answers_to(model))
    }

    fn positions(&self, wanted: impl Fn(&Deployment) -> bool) -> Vec<usize> {
        let found = self.deployments().iter().enumerate();
        found
            .filter(|(_, deployment)| wanted(deployment))
            .map(|(index, _)| index)
            .collect()
    }

    /// `Chosen`, or the first reason against.
    fn judge(&self, index: usize, route: Option<&Route>, ask: &Ask<'_>) -> Verdict {
        let deployment = &self.deployments()[index];
        let Some(offer) = ask.offers.get(index) else {
            return Verdict::Unavailable;
        };
        let granted = ask.grants.allows_model(&ask.facts.model) || ask.grants.allows_model(&deployment.model);
        if !granted {
            Verdict::NotGranted
        } else if deployment.class == BackendClass::Batch && ask.profile.latency != LatencyTier::Batch {
            Verdict::Forbidden
        } else if route.is_some() && !self.is_good_enough(deployment.class, ask.profile.value) {
            Verdict::BelowFloor
        } else if !is_capable(deployment, ask.facts) {
            Verdict::MissingCapability
        } else if deployment
            .context_tokens
            .is_some_and(|context| ask.facts.input_tokens >= context)
        {
            Verdict::ContextTooSmall
        } else if !offer.available {
            Verdict::Unavailable
        } else {
            match offer.minimum {
                None => Verdict::Unpriced,
                Some(minimum) if minimum > ask.envelope.granted => Verdict::Unaffordable,
                Some(_) => Verdict::Chosen,
            }
        }
    }

    fn candidate(&self, index: usize, profile: &Profile) -> Candidate {
        let deployment = &self.deployments()[index];
        let thinks = deployment.capabilities.contains(&Capability::Thinking);
        Candidate {
            index,
            deployment: deployment.id.clone(),
            provider: deployment.provider.clone(),
            model: deployment.model.clone(),
            class: deployment.class,
            thinking: profile.thinking.filter(|_| thinks),
        }
    }

    fn entry(&self, index: usize, verdict: Verdict, ask: &Ask<'_>) -> TraceEntry {
        let expected = ask.offers.get(index).and_then(|offer| offer.expected);
        TraceEntry {
            deployment: self.deployments()[index].id.clone(),
            verdict,
            expected,
        }
    }

    fn no_route(&self, ask: &Ask<'_>, order: &[usize], trace: Trace) -> NoRoute {
        let model = &ask.facts.model;
        if order.is_empty() {
            let known = self
                .virtual_models()
                .iter()
                .chain(self.deployments().iter().map(|known| &known.model));
            let hint = nearest(model, known.map(|name| &**name)).map_or_else(
                || "GET /v1/models lists the models".into(),
                |name| format!("did you mean `{name}`?"),
            );
            let message = format!("the model `{model}` does not exist here");
            return NoRoute {
                kind: RefusalKind::ModelNotFound,
                message,
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
}

fn is_capable(deployment: &Deployment, facts: &Facts) -> bool {
    let can = |capability| deployment.capabilities.contains(&capability);
    (facts.tools == 0 || can(Capability::Tools))
        && (facts.images == 0 || can(Capability::Images))
        && (!facts.structured_output || can(Capability::StructuredOutput))
}

/// The reason nearest to being mended speaks for all: a request that only lacked money says so, even where another
/// deployment could not have served it at all.
fn explain(trace: &Trace, model: &str) -> (RefusalKind, String, &'static str) {
    let has = |verdict| trace.entries.iter().any(|entry| entry.verdict == verdict);
    if has(Verdict::Unaffordable) {
        let message = format!("the budget does not cover the first tokens of any deployment for `{model}`");
        (
            RefusalKind::BudgetExceeded,
            message,
            "raise the budget, shorten the input or choose a cheaper model",
        )
    } else if has(Verdict::Unavailable) {
        let message = format!("every deployment for `{model}` is down or full");
        (RefusalKind::NoDeployment, message, "retry shortly")
    } else if has(Verdict::Unpriced) {
        let message = format!("no price is known for `{model}`, so its cost cannot be held against a budget");
        (
            RefusalKind::ModelUnpriced,
            message,
            "add it under `prices` in the gateway's configuration",
        )
    } else if has(Verdict::ContextTooSmall) {
        let message = format!("the input is longer than any deployment for `{model}` can read");
        (RefusalKind::ContextTooLong, message, "shorten the conversation")
    } else if has(Verdict::MissingCapability) {
        let message = format!("no deployment for `{model}` can do what the request asks for");
        (
            RefusalKind::InvalidRequest,
            message,
            "tools, images and structured output need a deployment that lists them",
        )
    } else if has(Verdict::NotGranted) {
        let message = format!("this key may not use `{model}`");
        (
            RefusalKind::PermissionDenied,
            message,
            "ask for a key whose grants include the model",
        )
    } else {
        let message = format!("the policy allows no deployment for `{model}` at this value tier");
        (
            RefusalKind::NoDeployment,
            message,
            "see `floors` and `routes` in the policy",
        )
    }
}
