//! The ruling: which deployments to try, in which order, with how much thinking, and why the others are not among
//! them.
//!
//! Owns: the order of the plan and the trace. Refuses to know: the clock, sockets, prices (offers carry numbers).
//! Invariants: total and deterministic; every deployment of the policy has exactly one line in the trace; a
//! deployment below a floor is never in the plan of a routed request, whatever the budget.

mod admit;
mod refusal;
mod score;
mod think;

pub(crate) use admit::is_capable;

use crate::estimates::Estimates;
use crate::policy::{CompiledRoute, Name, NamedModels, Policy, Situation, Team, Workflow};
use exchange::{
    AccountPath, Candidate, Conversation, Decision, Envelope, Facts, Grants, Money, Offer, Plan, Profile,
    Reason, RefusalKind, Score, ThinkingNote, Trace, TraceEntry, Verdict,
};
use std::sync::Arc;

/// Everything a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub facts: &'a Facts,
    pub account: &'a AccountPath,
    pub profile: &'a Profile,
    pub grants: &'a Grants,
    /// One per deployment, in the policy's order.
    pub offers: &'a [Offer],
    /// Where the conversation was answered last, if this is one.
    pub conversation: Option<&'a Conversation>,
    /// What is believed beyond the policy's priors.
    pub estimates: &'a Estimates,
    pub envelope: Envelope,
    /// Seconds since the epoch, for conditions that speak of time.
    pub unix_s: i64,
    /// Decides percentage splits and exploration.
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

/// Where the members of a plan come from, in the order of trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The caller named the model.
    Named,
    /// A step of `prefer`.
    Preferred(usize),
    Allowed,
    /// A step of `fallback`.
    Fallback(usize),
}

/// A deployment in question.
#[derive(Clone, Copy, Debug)]
struct Contender {
    index: usize,
    rank: Rank,
    verdict: Verdict,
    score: Option<Score>,
    thinking_note: ThinkingNote,
}

/// What rules one request.
struct Ruling<'a> {
    policy: &'a Policy,
    ask: &'a Ask<'a>,
    route: Option<&'a CompiledRoute>,
    /// The route chooses, and the caller did not.
    is_routed: bool,
    substituted: bool,
    team: Option<&'a Team>,
    workflow: Option<&'a Workflow>,
    /// The conversation's deployment.
    home: Option<usize>,
    /// How many thousandths a dollar weighs.
    price_weight: i64,
    /// What an escalation ends at.
    dearest: Money,
}

impl Policy {
    /// Rules on one request. Pure: the same question gets the same answer.
    ///
    /// # Errors
    /// [`NoRoute`] with the reason that would have to change for the request to be served.
    pub fn decide(&self, ask: &Ask<'_>) -> Result<Decision, NoRoute> {
        let ruling = Ruling::new(self, ask)?;
        let mut contenders = ruling.contenders();
        for contender in &mut contenders {
            ruling.weigh(contender);
        }
        ruling.drop_misses(&mut contenders);
        let reason = ruling.order(&mut contenders);
        ruling.conclude(contenders, reason)
    }

    /// Deployments that could come into question for a model name, by position: what must be quoted before deciding.
    pub fn plausible(&self, model: &str) -> impl Iterator<Item = usize> {
        let is_open = self.document.named_models != NamedModels::Honour
            || self
                .teams
                .values()
                .any(|team| team.named_models != NamedModels::Honour)
            || self.routes.iter().any(|route| route.names_a_model);
        let named: Option<&[usize]> = match self.names.get(model) {
            Some(Name::Virtual) => None,
            _ if is_open => None,
            Some(Name::Deployments(found)) => Some(found),
            None => Some(&[]),
        };
        (0..self.deployments().len()).filter(move |index| named.is_none_or(|named| named.contains(index)))
    }
}

impl<'a> Ruling<'a> {
    fn new(policy: &'a Policy, ask: &'a Ask<'a>) -> Result<Self, NoRoute> {
        let team = ask.account.team.as_ref().and_then(|team| policy.teams.get(team));
        let is_virtual = policy.is_virtual(&ask.facts.model);
        let mode = team.map_or(policy.document.named_models, |team| team.named_models);
        let explicit = policy.route(ask, is_virtual);
        let (route, substituted) = match mode {
            _ if is_virtual => (explicit, false),
            NamedModels::Honour => (explicit, explicit.is_some()),
            NamedModels::Refuse if explicit.is_none() => return Err(refusal::named_model(policy, ask)),
            NamedModels::Refuse | NamedModels::Substitute => (policy.route(ask, true), true),
        };
        let home = ask.conversation.and_then(|one| policy.position(&one.deployment));
        Ok(Self {
            policy,
            ask,
            route,
            is_routed: is_virtual || substituted,
            substituted,
            team,
            workflow: policy.workflow(ask.profile),
            home,
            price_weight: policy.price_weight(ask.envelope),
            dearest: ask
                .offers
                .iter()
                .filter_map(|offer| offer.expected)
                .max()
                .unwrap_or_default(),
        })
    }

    /// The deployments in question, each once.
    fn contenders(&self) -> Vec<Contender> {
        let contender = |index, rank| Contender {
            index,
            rank,
            verdict: Verdict::Chosen,
            score: None,
            thinking_note: ThinkingNote::Untouched,
        };
        let mut found = Vec::with_capacity(self.policy.deployments().len());
        match self.route {
            Some(route) => {
                for (step, members) in route.prefer.iter().enumerate() {
                    found.extend(
                        members
                            .iter()
                            .map(|index| contender(*index, Rank::Preferred(step))),
                    );
                }
                found.extend(route.allow.iter().map(|index| contender(*index, Rank::Allowed)));
                for (step, members) in route.fallback.iter().enumerate() {
                    found.extend(
                        members
                            .iter()
                            .map(|index| contender(*index, Rank::Fallback(step))),
                    );
                }
                // A canary may be known to no other part of the route.
                for (to, _) in &route.split {
                    if !found.iter().any(|one| one.index == *to) {
                        found.push(contender(*to, Rank::Fallback(usize::MAX)));
                    }
                }
            }
            None if self.is_routed => {
                let all = 0..self.policy.deployments().len();
                found.extend(all.map(|index| contender(index, Rank::Allowed)));
            }
            None => {
                if let Some(Name::Deployments(named)) = self.policy.names.get(&*self.ask.facts.model) {
                    found.extend(named.iter().map(|index| contender(*index, Rank::Named)));
                }
            }
        }
        found
    }

    fn weigh(&self, contender: &mut Contender) {
        contender.verdict = self.admit(contender.index);
        if contender.verdict == Verdict::Chosen {
            let (score, note) = self.score(contender.index);
            contender.verdict = self.service_level(&score);
            contender.score = Some(score);
            contender.thinking_note = note;
        }
    }

    /// A service level that is missed rules a deployment out only where another one meets it: late is better than
    /// never.
    fn drop_misses(&self, contenders: &mut [Contender]) {
        let met = contenders.iter().any(|one| one.verdict == Verdict::Chosen);
        if !met {
            for one in contenders {
                if matches!(one.verdict, Verdict::TooSlow | Verdict::BelowServiceLevel) {
                    one.verdict = Verdict::Chosen;
                }
            }
        }
    }

    /// Brings the usable contenders to the front in the order of trying, and says why the first is the first.
    fn order(&self, contenders: &mut [Contender]) -> Reason {
        let first_rank = contenders.first().map(|one| one.rank);
        let utility = |one: &Contender| one.score.map_or(Money::MAX, |score| score.utility);
        contenders.sort_by(|a, b| {
            let usable = |one: &Contender| one.verdict == Verdict::Chosen;
            usable(b)
                .cmp(&usable(a))
                .then(a.rank.cmp(&b.rank))
                .then_with(|| utility(b).cmp(&utility(a)))
                .then(a.index.cmp(&b.index))
        });
        let count = contenders
            .iter()
            .take_while(|one| one.verdict == Verdict::Chosen)
            .count();
        let usable = &mut contenders[..count];
        let Some(first) = usable.first().copied() else {
            return Reason::Fallback;
        };
        let mut draw = Draw::new(self.ask.seed);
        if let Some(position) = self.split(draw.next(), usable) {
            usable[..=position].rotate_right(1);
            return Reason::Split;
        }
        let is_pin = self.route.is_some_and(|route| route.is_pin);
        if !is_pin && let Some(position) = self.explore(&mut draw, usable) {
            usable[..=position].rotate_right(1);
            return Reason::Explored;
        }
        match first.rank {
            Rank::Named => Reason::Named,
            Rank::Allowed if self.stays_for_its_cache(usable) => Reason::Sticky,
            Rank::Allowed if first_rank.is_some_and(|rank| rank < Rank::Allowed) => Reason::Fallback,
            Rank::Allowed => Reason::Objective,
            Rank::Preferred(_) if is_pin => Reason::Pinned,
            Rank::Preferred(_) => match self.home_in_reach(usable) {
                Some(0) if self.stays_for_its_cache(usable) => Reason::Sticky,
                Some(position) if position > 0 => {
                    usable[..=position].rotate_right(1);
                    Reason::Sticky
                }
                _ if Some(first.rank) == first_rank => Reason::Preferred,
                _ => Reason::Fallback,
            },
            Rank::Fallback(_) => Reason::Fallback,
        }
    }

    /// The best is the conversation's deployment, and would not be without what its cache saves.
    fn stays_for_its_cache(&self, usable: &[Contender]) -> bool {
        let [first, second, ..] = usable else { return false };
        let (Some(own), Some(other)) = (first.score, second.score) else {
            return false;
        };
        let saved = self
            .ask
            .offers
            .get(first.index)
            .map_or(Money::ZERO, |offer| offer.cache_saving);
        self.home == Some(first.index)
            && first.rank == second.rank
            && own.utility.minus(score::weighted(saved, self.price_weight)) < other.utility
    }

    /// The conversation's deployment, where staying there is worth at least as much as what is preferred to it.
    fn home_in_reach(&self, usable: &[Contender]) -> Option<usize> {
        let home = self.home?;
        let position = usable.iter().position(|one| one.index == home)?;
        let own = usable[position];
        let saved = self
            .ask
            .offers
            .get(home)
            .is_some_and(|offer| !offer.cache_saving.is_zero());
        let is_worth_it = own.score?.utility >= usable.first()?.score?.utility;
        (saved && is_worth_it && !matches!(own.rank, Rank::Fallback(_))).then_some(position)
    }

    /// The position of the canary whose share the draw fell into.
    fn split(&self, draw: f64, usable: &[Contender]) -> Option<usize> {
        let mut from = 0.0;
        for (to, percent) in &self.route?.split {
            if (from..from + percent).contains(&(draw * 100.0)) {
                return usable.iter().position(|one| one.index == *to);
            }
            from += percent;
        }
        None
    }

    /// Another allowed deployment to learn about. Conversations stay where they are.
    fn explore(&self, draw: &mut Draw, usable: &[Contender]) -> Option<usize> {
        let share = self.policy.document.objective.explore;
        let reach = usable
            .iter()
            .take_while(|one| matches!(one.rank, Rank::Preferred(_) | Rank::Allowed));
        let others = reach.count().saturating_sub(1);
        if !self.is_routed || self.home.is_some() || others == 0 || draw.next() >= share {
            return None;
        }
        Some(1 + ((draw.next() * others as f64) as usize).min(others - 1))
    }

    fn conclude(self, contenders: Vec<Contender>, reason: Reason) -> Result<Decision, NoRoute> {
        let mut plan = Vec::with_capacity(contenders.len());
        let mut trace = Trace {
            route: self.route.map(|route| route.name.clone()),
            notes: self.notes(),
            entries: Vec::with_capacity(self.policy.deployments().len()),
        };
        let mut seen = vec![false; self.policy.deployments().len()];
        for one in &contenders {
            let mut verdict = one.verdict;
            if verdict == Verdict::Chosen {
                if !plan.is_empty() {
                    verdict = Verdict::Fallback;
                }
                plan.push(self.candidate(one));
            }
            seen[one.index] = true;
            trace.entries.push(self.entry(one.index, verdict, one.score));
        }
        let elsewhere = if self.is_routed || self.route.is_some() {
            Verdict::NotPreferred
        } else {
            Verdict::WrongModel
        };
        for index in (0..seen.len()).filter(|index| !seen[*index]) {
            trace.entries.push(self.entry(index, elsewhere, None));
        }
        let Some(plan) = Plan::new(plan) else {
            return Err(refusal::no_route(&self, contenders.is_empty(), trace));
        };
        let answers = match self.policy.names.get(&*self.ask.facts.model) {
            Some(Name::Deployments(named)) => named.contains(&plan.first().index),
            _ => false,
        };
        Ok(Decision {
            plan,
            ceiling: self.ask.envelope.granted.plus(self.ask.envelope.remaining),
            deadline_ms: self.ask.profile.deadline_ms,
            policy_version: self.policy.version().clone(),
            seed: self.ask.seed,
            reason,
            substituted: self.substituted && !answers,
            trace,
        })
    }

    fn notes(&self) -> Vec<Arc<str>> {
        let mut notes = Vec::new();
        if self.price_weight != 1000 {
            let weight = self.price_weight as f64 / 1000.0;
            notes.push(format!("the budget is thin: a dollar weighs {weight:.2}").into());
        }
        let estimates = self.ask.estimates;
        let least = self.policy.document.objective.familiarity;
        if estimates.is_predicted()
            && estimates.familiarity < least
            && self.policy.predicts(self.ask.profile, self.ask.facts)
        {
            let familiarity = estimates.familiarity;
            let note = format!(
                "the prompt is unfamiliar ({familiarity:.2} of {least}): decided as if nothing were predicted"
            );
            notes.push(note.into());
        }
        notes
    }

    fn candidate(&self, one: &Contender) -> Candidate {
        let deployment = &self.policy.deployments()[one.index];
        Candidate {
            index: one.index,
            deployment: deployment.id.clone(),
            provider: deployment.provider.clone(),
            model: deployment.model.clone(),
            class: deployment.class,
            thinking: one.score.and_then(|score| score.thinking),
            thinking_note: one.thinking_note,
        }
    }

    fn entry(&self, index: usize, verdict: Verdict, score: Option<Score>) -> TraceEntry {
        TraceEntry {
            deployment: self.policy.deployments()[index].id.clone(),
            verdict,
            expected: self.ask.offers.get(index).and_then(|offer| offer.expected),
            score,
        }
    }
}

impl Policy {
    /// The first route that holds. One without a condition on the model speaks of virtual models only.
    fn route(&self, ask: &Ask<'_>, is_virtual: bool) -> Option<&CompiledRoute> {
        let situation = Situation {
            facts: ask.facts,
            account: ask.account,
            unix_s: ask.unix_s,
            budget_left: ask.envelope.remaining,
        };
        let mut scene = situation.scene(ask.profile.workflow.as_deref());
        scene.task = ask.profile.task.as_deref();
        scene.value = ask.profile.value;
        scene.latency = ask.profile.latency;
        scene.deadline_ms = ask.profile.deadline_ms;
        let mut routes = self.routes.iter();
        routes.find(|route| (is_virtual || route.names_a_model) && route.test.holds(&scene))
    }

    /// How many thousandths a dollar weighs, by what is left of the budget.
    fn price_weight(&self, envelope: Envelope) -> i64 {
        let Some(thin) = &self.document.objective.thin_budget else {
            return 1000;
        };
        let (left, below) = (envelope.remaining.nanos().max(0), thin.below.0.nanos());
        if left >= below || below <= 0 {
            return 1000;
        }
        let missing = (below - left) as f64 / below as f64;
        (1000.0 * (1.0 + (thin.price_weight - 1.0) * missing)).round() as i64
    }
}

/// Uniform numbers from a seed (SplitMix64), the same on every machine.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// In 0 … 1, without 1.
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
