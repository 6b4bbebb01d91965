//! What this process remembers between requests: where conversations were answered, and what callers said of answers.
//!
//! Owns: conversations, what outcomes taught, how often answers were asked for again. Refuses to know: policies, prices,
//! prompt text, the ledger that keeps what was learned (`learn` does). Invariants: bounded: the older half is forgotten
//! when a store is full; a caller can speak only of requests of its own organisation; an outcome teaches once.

use crate::clock;
use exchange::{AccountPath, Conversation, Facts, Money, Offer, RequestId, Worth};
use ledger::{Answered, Outcome};
use router_policies::predict::correction::{Corrections, Observed, Scope, Surprise};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a provider is believed to hold a prefix that nobody reads.
const CACHE_MS: u64 = 5 * 60 * 1000;
/// How long the same request counts as made again.
const AGAIN_MS: u64 = 10 * 60 * 1000;
/// Entries of each store.
const ROOM: usize = 1 << 16;
/// Requests remembered of one run.
const RUN: usize = 64;
/// The labels that name a run: metadata `run_id`, or `x-tollgate-tag-run`.
const RUN_LABELS: [&str; 2] = ["run_id", "run"];

/// Workflows whose answers are counted.
const COUNTED: usize = 10_000;
/// The longest note that is kept, in characters.
const NOTE: usize = 2_000;

/// How often answers of one deployment to one workflow were asked for again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    calls: u64,
    retries: u64,
    escalations: u64,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            retries: self.retries + other.retries,
            escalations: self.escalations + other.escalations,
        }
    }

    fn permille(&self, of: u64) -> u16 {
        // A rate of few calls is no rate.
        if self.calls < 20 {
            return 0;
        }
        u16::try_from(of * 1000 / self.calls).unwrap_or(u16::MAX)
    }
}

/// One served request, as far as its outcome is concerned.
#[derive(Clone, Debug)]
struct Served {
    org: Arc<str>,
    workflow: Arc<str>,
    deployment: Arc<str>,
    believed_ppm: u32,
    worth: Worth,
}

/// Who answers a request, and what was expected of the answer.
pub(crate) struct Answer<'a> {
    pub(crate) workflow: &'a Arc<str>,
    pub(crate) deployment: &'a Arc<str>,
    /// P(success) before outcomes had their word.
    pub(crate) believed_ppm: u32,
    pub(crate) worth: Worth,
}

/// What a caller says of an answer.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutcomeForm {
    #[serde(default)]
    pub(crate) request_id: Option<String>,
    #[serde(default)]
    pub(crate) workflow_run_id: Option<String>,
    pub(crate) success: bool,
    /// Dollars that it was worth, a number or a text; left out: what the policy says.
    #[serde(default)]
    value: Option<serde_json::Value>,
    #[serde(default)]
    note: Option<String>,
}

impl OutcomeForm {
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.request_id.is_some() == self.workflow_run_id.is_some() {
            return Err("an outcome is of one `request_id` or of one `workflow_run_id`".into());
        }
        if let Some(value) = &self.value
            && self.stated().is_none()
        {
            return Err(format!(
                "`value` is {value}, which is no amount of dollars such as 1.50"
            ));
        }
        if self.note.as_ref().is_some_and(|note| note.chars().count() > NOTE) {
            return Err(format!("`note` is longer than {NOTE} characters"));
        }
        Ok(())
    }

    fn stated(&self) -> Option<Money> {
        match self.value.as_ref()? {
            serde_json::Value::String(text) => Money::parse_dollars(text.trim()).ok(),
            serde_json::Value::Number(number) => Money::parse_dollars(&number.to_string()).ok(),
            _ => None,
        }
    }

    fn of(&self, request: RequestId, served: &Served) -> Outcome {
        let stated = self.stated();
        let by_policy = if self.success {
            served.worth.value_per_success
        } else {
            Money::ZERO.minus(served.worth.failure_cost)
        };
        Outcome {
            request,
            told_us: clock::unix_us(),
            org: served.org.clone(),
            workflow: served.workflow.clone(),
            deployment: served.deployment.clone(),
            success: self.success,
            value: stated.unwrap_or(by_policy),
            stated: stated.is_some(),
            believed_ppm: served.believed_ppm,
            note: self.note.clone(),
        }
    }

    /// The outcome of a request that this process does not remember.
    pub(crate) fn elsewhere(&self, request: RequestId, org: &Arc<str>, answer: &Answer<'_>) -> Outcome {
        let served = Served {
            org: org.clone(),
            workflow: answer.workflow.clone(),
            deployment: answer.deployment.clone(),
            believed_ppm: answer.believed_ppm,
            worth: answer.worth,
        };
        self.of(request, &served)
    }
}

/// A map of bounded size: what was not touched while it filled up is forgotten.
#[derive(Debug)]
struct Bounded<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.young.get_mut(key).or_else(|| self.old.get_mut(key))
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= ROOM {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

/// By organisation and workflow, then by deployment.
type Tallies = HashMap<(Arc<str>, Arc<str>), HashMap<Arc<str>, Tally>>;

#[derive(Default)]
struct Said {
    requests: Bounded<RequestId, Served>,
    runs: Bounded<(Arc<str>, Box<str>), Vec<RequestId>>,
    /// The same request within a run: when, and where it went.
    again: Bounded<u64, (u64, Arc<str>)>,
    learned: Corrections,
    /// Requests whose outcome has been learned from.
    taught: Bounded<RequestId, ()>,
    /// Counted since the last time that counts were taken away to be kept.
    fresh: Tallies,
    /// Counts that are kept, of all nodes.
    kept: Tallies,
}

/// The stores.
#[derive(Default)]
pub(crate) struct Memory {
    conversations: Mutex<Bounded<u64, (u64, Conversation)>>,
    said: Mutex<Said>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key_of(account: &AccountPath, facts: &Facts) -> u64 {
    let mut hasher = DefaultHasher::new();
    let workflow = facts.workflow.as_deref();
    (
        &account.org,
        &account.team,
        &account.key,
        workflow,
        facts.prefix_hash,
    )
        .hash(&mut hasher);
    hasher.finish()
}

fn run_of(facts: &Facts) -> Option<&str> {
    RUN_LABELS.iter().find_map(|name| facts.label(name))
}

impl Memory {
    /// Where this conversation was answered last, while the provider may still hold its prefix.
    pub(crate) fn conversation(&self, account: &AccountPath, facts: &Facts) -> Option<Conversation> {
        // A first turn is no conversation yet, whatever began in the same words.
        if facts.turns < 2 {
            return None;
        }
        let conversations = locked(&self.conversations);
        let (at_ms, conversation) = conversations.get(&key_of(account, facts))?;
        (clock::monotonic_ms().saturating_sub(*at_ms) < CACHE_MS).then(|| conversation.clone())
    }

    pub(crate) fn answered(&self, account: &AccountPath, facts: &Facts, conversation: Conversation) {
        let entry = (clock::monotonic_ms(), conversation);
        locked(&self.conversations).put(key_of(account, facts), entry);
    }

    /// Remembers who served a request of a workflow, so that its outcome can be told, and counts it against whoever
    /// served the same request of the same run before.
    pub(crate) fn served(
        &self,
        request: RequestId,
        (account, facts): (&AccountPath, &Facts),
        answer: &Answer<'_>,
    ) {
        let (workflow, deployment) = (answer.workflow, answer.deployment);
        let mut said = locked(&self.said);
        count(&mut said.fresh, (&account.org, workflow), deployment, |tally| {
            tally.calls += 1
        });
        let served = Served {
            org: account.org.clone(),
            workflow: workflow.clone(),
            deployment: deployment.clone(),
            believed_ppm: answer.believed_ppm,
            worth: answer.worth,
        };
        said.requests.put(request, served);
        let Some(run) = run_of(facts) else {
            return;
        };
        let run_key = (account.org.clone(), Box::from(run));
        match said.runs.get_mut(&run_key) {
            Some(members) if members.len() < RUN => members.push(request),
            Some(_) => {}
            None => said.runs.put(run_key, vec![request]),
        }
        let mut hasher = DefaultHasher::new();
        (key_of(account, facts), run, facts.turns, facts.body_bytes).hash(&mut hasher);
        let (canonical, now) = (hasher.finish(), clock::monotonic_ms());
        let before = said.again.get(&canonical).cloned();
        if let Some((_, retried)) = before.filter(|(at, _)| now.saturating_sub(*at) < AGAIN_MS) {
            let is_elsewhere = retried != *deployment;
            count(&mut said.fresh, (&account.org, workflow), &retried, |tally| {
                tally.retries += u64::from(!is_elsewhere);
                tally.escalations += u64::from(is_elsewhere);
            });
        }
        said.again.put(canonical, (now, deployment.clone()));
    }

    /// The outcomes that a caller tells, of requests that this process remembers.
    pub(crate) fn told(&self, org: &Arc<str>, form: &OutcomeForm) -> Vec<Outcome> {
        let said = locked(&self.said);
        let mut about: Vec<RequestId> = Vec::new();
        about.extend(form.request_id.as_deref().and_then(request_id));
        if let Some(run) = &form.workflow_run_id {
            let key = (org.clone(), run.as_str().into());
            about.extend(said.runs.get(&key).into_iter().flatten().copied());
        }
        let known = about
            .into_iter()
            .filter_map(|request| Some((request, said.requests.get(&request)?)));
        known
            .filter(|(_, served)| served.org == *org)
            .map(|(request, served)| form.of(request, served))
            .collect()
    }

    /// An outcome told by a header of the run's next request.
    pub(crate) fn told_of_run(&self, org: &Arc<str>, facts: &Facts, success: bool) -> Vec<Outcome> {
        let Some(run) = run_of(facts) else {
            return Vec::new();
        };
        let form = OutcomeForm {
            workflow_run_id: Some(run.into()),
            success,
            ..OutcomeForm::default()
        };
        self.told(org, &form)
    }

    /// Learns from outcomes, each once.
    pub(crate) fn learn<'o>(&self, outcomes: impl IntoIterator<Item = &'o Outcome>) {
        let mut said = locked(&self.said);
        for outcome in outcomes {
            if said.taught.get(&outcome.request).is_some() {
                continue;
            }
            said.taught.put(outcome.request, ());
            let observed = Observed {
                believed: outcome.believed_ppm as f32 / 1e6,
                success: outcome.success,
                weight: 1.0,
            };
            let scope = scope(&outcome.org, &outcome.workflow);
            said.learned.observe(&scope, &outcome.deployment, observed);
        }
    }

    /// What outcomes said of each deployment in an organisation's workflow. How often answers were asked for again goes
    /// into the offers.
    pub(crate) fn learned<'d>(
        &self,
        (org, workflow): (&Arc<str>, &Arc<str>),
        deployments: impl Iterator<Item = &'d Arc<str>>,
        offers: &mut [Offer],
    ) -> Vec<Option<Surprise>> {
        let said = locked(&self.said);
        let scope = scope(org, workflow);
        let key = (org.clone(), workflow.clone());
        let (fresh, kept) = (said.fresh.get(&key), said.kept.get(&key));
        let of = |tallies: Option<&HashMap<Arc<str>, Tally>>, deployment| {
            tallies
                .and_then(|tallies| tallies.get(deployment))
                .copied()
                .unwrap_or_default()
        };
        let mut surprises = Vec::new();
        for (index, deployment) in deployments.enumerate() {
            let tally = of(fresh, deployment).plus(of(kept, deployment));
            if let Some(offer) = offers.get_mut(index) {
                offer.retry_permille = tally.permille(tally.retries);
                offer.escalation_permille = tally.permille(tally.escalations);
            }
            if let Some(surprise) = said.learned.surprise(&scope, deployment) {
                surprises.resize(index, None);
                surprises.push(Some(surprise));
            }
        }
        surprises
    }

    /// Takes the counts that have not been kept yet.
    pub(crate) fn take_answered(&self) -> Vec<Answered> {
        let fresh = std::mem::take(&mut locked(&self.said).fresh);
        let flat = fresh.into_iter().flat_map(|((org, workflow), by_deployment)| {
            by_deployment
                .into_iter()
                .map(move |(deployment, tally)| Answered {
                    org: org.clone(),
                    workflow: workflow.clone(),
                    deployment,
                    calls: tally.calls,
                    retries: tally.retries,
                    escalations: tally.escalations,
                })
        });
        flat.collect()
    }

    /// Counts that were taken and are kept now.
    pub(crate) fn add_kept(&self, answered: &[Answered]) {
        add(&mut locked(&self.said).kept, answered);
    }

    /// Counts that were taken and could not be kept.
    pub(crate) fn give_back(&self, answered: &[Answered]) {
        add(&mut locked(&self.said).fresh, answered);
    }

    /// All that is kept, in place of what was known of it.
    pub(crate) fn set_kept(&self, answered: &[Answered]) {
        let mut kept = Tallies::default();
        add(&mut kept, answered);
        locked(&self.said).kept = kept;
    }
}

pub(crate) fn request_id(text: &str) -> Option<RequestId> {
    uuid::Uuid::parse_str(text).ok().map(RequestId)
}

fn scope(org: &str, workflow: &str) -> Scope {
    Scope {
        tenant: org.into(),
        workflow: workflow.into(),
    }
}

fn add(tallies: &mut Tallies, answered: &[Answered]) {
    for one in answered {
        let more = Tally {
            calls: one.calls,
            retries: one.retries,
            escalations: one.escalations,
        };
        count(tallies, (&one.org, &one.workflow), &one.deployment, |tally| {
            *tally = tally.plus(more);
        });
    }
}

/// Names are the callers' to choose, so that there may be no end of them.
fn count(
    tallies: &mut Tallies,
    (org, workflow): (&Arc<str>, &Arc<str>),
    deployment: &Arc<str>,
    change: impl FnOnce(&mut Tally),
) {
    let key = (org.clone(), workflow.clone());
    if tallies.len() < COUNTED || tallies.contains_key(&key) {
        let by_deployment = tallies.entry(key).or_default();
        change(by_deployment.entry(deployment.clone()).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use exchange::{Dialect, Surface};

    fn facts(turns: u32, run: Option<&str>) -> Facts {
        let body = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}]}"#;
        let mut facts = dialect::read_request(Dialect::OpenaiChat, body.into())
            .unwrap()
            .facts;
        assert_eq!(facts.surface, Surface::ChatCompletions);
        facts.turns = turns;
        facts.labels.extend(run.map(|run| ("run_id".into(), run.into())));
        facts
    }

    fn account(org: &str) -> AccountPath {
        AccountPath {
            org: org.into(),
            team: None,
            workflow: None,
            key: None,
        }
    }

    fn form(request: Option<RequestId>, run: Option<&str>, success: bool) -> OutcomeForm {
        OutcomeForm {
            request_id: request.map(|id| id.to_string()),
            workflow_run_id: run.map(Into::into),
            success,
            ..OutcomeForm::default()
        }
    }

    fn answer<'a>(workflow: &'a Arc<str>, deployment: &'a Arc<str>) -> Answer<'a> {
        Answer {
            workflow,
            deployment,
            believed_ppm: 800_000,
            worth: Worth {
                value_per_success: Money::from_dollars(3),
                failure_cost: Money::from_dollars(2),
                ..Worth::default()
            },
        }
    }

    #[test]
    fn an_outcome_teaches_once_and_only_for_its_own_organisation() {
        let memory = Memory::default();
        let (workflow, mini, big): (Arc<str>, Arc<str>, Arc<str>) = ("w".into(), "mini".into(), "big".into());
        let (acme, other): (Arc<str>, Arc<str>) = ("acme".into(), "other".into());
        let known = |org: &Arc<str>| {
            let mut offers = vec![Offer::default(); 2];
            let surprises = memory.learned((org, &workflow), [&mini, &big].into_iter(), &mut offers);
            (surprises, offers)
        };
        let mut requests = Vec::new();
        for (number, deployment) in (1..=30).map(|number| (number, if number == 30 { &big } else { &mini })) {
            let request = RequestId::new(number, [1; 10]);
            let asked = (&account("acme"), &facts(1, Some("run-1")));
            memory.served(request, asked, &answer(&workflow, deployment));
            requests.push(request);
        }
        assert_eq!(memory.told(&other, &form(Some(requests[0]), None, true)), []);
        let failed = memory.told(&acme, &form(Some(requests[0]), None, false));
        assert_eq!((failed.len(), failed[0].value), (1, Money::from_dollars(-2)));
        memory.learn(&failed);
        memory.learn(&failed);
        let (surprises, offers) = known(&acme);
        let [Some(surprise)] = surprises.as_slice() else {
            panic!("{surprises:?}")
        };
        assert!((surprise.outcomes() - 1.0).abs() < 0.01);
        assert!(surprise.correct((0.8, 0.1)).0 < 0.8);
        // The same request 28 times more of mini, then once of another.
        assert_eq!(
            (offers[0].retry_permille, offers[0].escalation_permille),
            (965, 34)
        );
        assert_eq!(known(&other).0, []);
        let run = memory.told(&acme, &form(None, Some("run-1"), true));
        assert_eq!((run.len(), run[0].value), (30, Money::from_dollars(3)));
        // Counts survive being taken away and kept, or not kept.
        let taken = memory.take_answered();
        assert_eq!(known(&acme).1[0].retry_permille, 0);
        memory.give_back(&taken);
        let again = memory.take_answered();
        memory.add_kept(&again);
        assert_eq!(known(&acme).1[0].retry_permille, 965);
        memory.set_kept(&again);
        assert_eq!(known(&acme).1[0].retry_permille, 965);
    }

    #[test]
    fn an_outcomes_value_is_money_and_its_note_is_bounded() {
        let read = |text: &str| serde_json::from_str::<OutcomeForm>(text).unwrap();
        let stated = |value: &str| {
            read(&format!(
                r#"{{"request_id": "x", "success": true, "value": {value}}}"#
            ))
        };
        assert_eq!(stated("1.5").stated(), Some(Money::from_nanos(1_500_000_000)));
        assert_eq!(stated("\"0.02\"").stated(), Some(Money::from_nanos(20_000_000)));
        assert!(stated("\"much\"").check().unwrap_err().contains("dollars"));
        assert!(
            read(r#"{"success": true}"#)
                .check()
                .unwrap_err()
                .contains("request_id")
        );
        let long = OutcomeForm {
            note: Some("x".repeat(NOTE + 1)),
            ..stated("1")
        };
        assert!(long.check().unwrap_err().contains("note"));
    }

    #[test]
    fn a_conversation_is_found_from_its_second_turn_and_by_its_own_key() {
        let memory = Memory::default();
        let home = Conversation {
            deployment: "d".into(),
            cached_tokens: 5000,
            thinking: None,
        };
        memory.answered(&account("acme"), &facts(1, None), home.clone());
        assert_eq!(memory.conversation(&account("acme"), &facts(1, None)), None);
        assert_eq!(memory.conversation(&account("acme"), &facts(2, None)), Some(home));
        assert_eq!(memory.conversation(&account("other"), &facts(2, None)), None);
    }

    #[test]
    fn a_full_store_forgets_its_older_half() {
        let mut store = Bounded::default();
        for key in 0..3 * ROOM {
            store.put(key, key);
        }
        assert!(store.get(&(3 * ROOM - 1)).is_some() && store.get(&0).is_none());
        assert!(store.young.len() + store.old.len() <= 2 * ROOM);
    }
}
