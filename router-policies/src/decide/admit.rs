//! Who may serve at all: grants, floors, teams, capabilities, data, money. The first reason against counts.

use super::Ruling;
use crate::policy::{Capability, Deployment, Policy};
use exchange::{BackendClass, Facts, LatencyTier, Profile, Score, Verdict};
use std::sync::Arc;

/// The label by which a caller says of what class its data is.
const DATA_CLASS: &str = "data_class";

impl Ruling<'_> {
    /// `Chosen`, or the first reason against.
    pub(super) fn admit(&self, index: usize) -> Verdict {
        let deployment = &self.policy.deployments()[index];
        let facts = self.ask.facts;
        let Some(offer) = self.ask.offers.get(index) else {
            return Verdict::Unavailable;
        };
        let grants = self.ask.grants;
        let grants_model = grants.allows_model(&facts.model) || grants.allows_model(&deployment.model);
        if !grants_model || !grants.allows_class(deployment.class) {
            Verdict::NotGranted
        } else if self.is_forbidden(index, deployment) {
            Verdict::Forbidden
        } else if self.is_routed && !self.reaches_floor(deployment.class) {
            Verdict::BelowFloor
        } else if !is_capable(deployment, facts) {
            Verdict::MissingCapability
        } else if !self.is_in_region(deployment) {
            Verdict::WrongRegion
        } else if !self.may_read_data(deployment) {
            Verdict::WrongDataClass
        } else if deployment
            .context_tokens
            .is_some_and(|context| facts.input_tokens >= context)
        {
            Verdict::ContextTooSmall
        } else if !offer.available {
            Verdict::Unavailable
        } else {
            match offer.minimum {
                None => Verdict::Unpriced,
                Some(minimum) if minimum > self.ask.envelope.granted => Verdict::Unaffordable,
                Some(_) => Verdict::Chosen,
            }
        }
    }

    fn is_forbidden(&self, index: usize, deployment: &Deployment) -> bool {
        let is_batch = deployment.class == BackendClass::Batch;
        is_batch && self.ask.profile.latency != LatencyTier::Batch
            || self.route.is_some_and(|route| route.never[index])
            || self.team.is_some_and(|team| !team.allowed[index])
    }

    fn reaches_floor(&self, class: BackendClass) -> bool {
        let value = self.ask.profile.value;
        let org = self.policy.document.floors.get(&value);
        let team = self.team.and_then(|team| team.floors.get(&value));
        let own = self
            .workflow
            .map(|workflow| &workflow.floor)
            .filter(|floor| !floor.is_empty());
        [org, team, own]
            .into_iter()
            .flatten()
            .all(|classes| classes.contains(&class))
    }

    fn is_in_region(&self, deployment: &Deployment) -> bool {
        let fits = |regions: &[Arc<str>]| {
            regions.is_empty()
                || deployment
                    .region
                    .as_ref()
                    .is_some_and(|region| regions.contains(region))
        };
        self.workflow.is_none_or(|workflow| fits(&workflow.regions))
            && self.team.is_none_or(|team| fits(&team.regions))
    }

    /// The workflow's class of data, or else the one that the caller declares.
    fn may_read_data(&self, deployment: &Deployment) -> bool {
        let own = self.workflow.and_then(|workflow| workflow.data_class.as_deref());
        let declared = || self.ask.facts.label(DATA_CLASS);
        own.or_else(declared)
            .is_none_or(|class| deployment.data_classes.iter().any(|known| **known == *class))
    }

    /// `Chosen`, or the service level that would be missed.
    pub(super) fn service_level(&self, score: &Score) -> Verdict {
        if !self.is_routed {
            return Verdict::Chosen;
        }
        self.policy.service_level(self.ask.profile, score)
    }
}

impl Policy {
    /// `Chosen`, or the service level of the profile's tiers that these terms miss.
    pub(crate) fn service_level(&self, profile: &Profile, score: &Score) -> Verdict {
        let service = self.service[profile.latency as usize];
        let deadline = profile.deadline_ms.into_iter().chain(service.total_ms).min();
        let least = self.levels[profile.value as usize].min_success;
        let first_is_late = service
            .first_token_ms
            .is_some_and(|limit| u64::from(score.first_token_ms) > limit);
        if first_is_late || deadline.is_some_and(|limit| u64::from(score.latency_ms) > limit) {
            Verdict::TooSlow
        } else if f64::from(score.success_ppm) < least * 1e6 {
            Verdict::BelowServiceLevel
        } else {
            Verdict::Chosen
        }
    }
}

pub(crate) fn is_capable(deployment: &Deployment, facts: &Facts) -> bool {
    let can = |capability| deployment.capabilities.contains(&capability);
    (facts.tools == 0 || can(Capability::Tools))
        && (facts.images == 0 || can(Capability::Images))
        && (!facts.structured_output || can(Capability::StructuredOutput))
}
