//! What this process remembers between requests: where conversations were answered, and what callers said of answers.
//!
//! Owns: conversations, outcomes, retries. Refuses to know: policies, prices, prompt text. Invariants: bounded: the
//! older half is forgotten when a store is full; a caller can speak only of requests of its own organisation.

use crate::clock;
use exchange::{AccountPath, Conversation, Facts, RequestId};
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

/// What is known of answers of one deployment to one workflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) successes: u32,
    pub(crate) failures: u32,
    pub(crate) calls: u32,
    pub(crate) retries: u32,
}

impl Tally {
    pub(crate) fn retry_permille(&self) -> u16 {
        // A rate of few calls is no rate.
        if self.calls < 20 {
            return 0;
        }
        u16::try_from(u64::from(self.retries) * 1000 / u64::from(self.calls)).unwrap_or(u16::MAX)
    }
}

/// One served request, as far as its outcome is concerned.
#[derive(Clone, Debug)]
struct Served {
    org: Arc<str>,
    workflow: Arc<str>,
    deployment: Arc<str>,
    told: bool,
}

/// An outcome as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Told {
    pub(crate) org: Arc<str>,
    pub(crate) workflow: Arc<str>,
    pub(crate) deployment: Arc<str>,
    pub(crate) success: bool,
    /// The first outcome told of its request.
    pub(crate) is_new: bool,
}

/// What a caller says of an answer.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutcomeForm {
    #[serde(default)]
    pub(crate) request_id: Option<String>,
    #[serde(default)]
    pub(crate) workflow_run_id: Option<String>,
    pub(crate) success: bool,
    /// Dollars; kept in the log only.
    #[serde(default)]
    pub(crate) value: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) note: Option<String>,
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

/// By deployment.
pub(crate) type Tallies = HashMap<Arc<str>, Tally>;

#[derive(Default)]
struct Said {
    requests: Bounded<RequestId, Served>,
    runs: Bounded<(Arc<str>, Box<str>), Vec<RequestId>>,
    /// The same request within a run: when, and where it went.
    again: Bounded<u64, (u64, Arc<str>)>,
    /// By organisation and workflow, then by deployment.
    tallies: HashMap<(Arc<str>, Arc<str>), Tallies>,
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
        (workflow, deployment): (&Arc<str>, &Arc<str>),
    ) {
        let mut said = locked(&self.said);
        tally(&mut said, (&account.org, workflow), deployment).calls += 1;
        let served = Served {
            org: account.org.clone(),
            workflow: workflow.clone(),
            deployment: deployment.clone(),
            told: false,
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
            tally(&mut said, (&account.org, workflow), &retried).retries += 1;
        }
        said.again.put(canonical, (now, deployment.clone()));
    }

    /// Takes an outcome. Returns what it is about; what was told before counts once.
    pub(crate) fn outcome(&self, org: &Arc<str>, form: &OutcomeForm) -> Vec<Told> {
        let mut said = locked(&self.said);
        let mut about: Vec<RequestId> = Vec::new();
        about.extend(
            form.request_id
                .as_deref()
                .and_then(|id| uuid::Uuid::parse_str(id).ok())
                .map(RequestId),
        );
        if let Some(run) = &form.workflow_run_id {
            let key = (org.clone(), run.as_str().into());
            about.extend(said.runs.get(&key).into_iter().flatten().copied());
        }
        let mut found = Vec::new();
        for request in about {
            let Some(served) = said
                .requests
                .get_mut(&request)
                .filter(|served| served.org == *org)
            else {
                continue;
            };
            let told = Told {
                org: org.clone(),
                workflow: served.workflow.clone(),
                deployment: served.deployment.clone(),
                success: form.success,
                is_new: !std::mem::replace(&mut served.told, true),
            };
            if told.is_new {
                count(&mut said, &told);
            }
            found.push(told);
        }
        found
    }

    /// An outcome told by a header of the run's next request.
    pub(crate) fn outcome_of_run(&self, org: &Arc<str>, facts: &Facts, success: bool) -> Vec<Told> {
        let Some(run) = run_of(facts) else {
            return Vec::new();
        };
        let form = OutcomeForm {
            request_id: None,
            workflow_run_id: Some(run.into()),
            success,
            value: None,
            note: None,
        };
        self.outcome(org, &form)
    }

    /// Counts what was told to a process before this one.
    pub(crate) fn recall(&self, told: &Told) {
        count(&mut locked(&self.said), told);
    }

    /// What is known of an organisation's workflow, by deployment.
    pub(crate) fn tallies(&self, org: &Arc<str>, workflow: &Arc<str>) -> Tallies {
        locked(&self.said)
            .tallies
            .get(&(org.clone(), workflow.clone()))
            .cloned()
            .unwrap_or_default()
    }
}

fn count(said: &mut Said, told: &Told) {
    let tally = tally(said, (&told.org, &told.workflow), &told.deployment);
    if told.success {
        tally.successes += 1;
    } else {
        tally.failures += 1;
    }
}

fn tally<'a>(
    said: &'a mut Said,
    (org, workflow): (&Arc<str>, &Arc<str>),
    deployment: &Arc<str>,
) -> &'a mut Tally {
    let by_deployment = said.tallies.entry((org.clone(), workflow.clone())).or_default();
    by_deployment.entry(deployment.clone()).or_default()
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
            value: None,
            note: None,
        }
    }

    #[test]
    fn an_outcome_counts_once_and_only_for_its_own_organisation() {
        let memory = Memory::default();
        let (workflow, deployment): (Arc<str>, Arc<str>) = ("w".into(), "d".into());
        let (first, second) = (RequestId::new(1, [1; 10]), RequestId::new(2, [2; 10]));
        for request in [first, second] {
            let asked = (&account("acme"), &facts(1, Some("run-1")));
            memory.served(request, asked, (&workflow, &deployment));
        }
        let (acme, other): (Arc<str>, Arc<str>) = ("acme".into(), "other".into());
        assert_eq!(memory.outcome(&other, &form(Some(first), None, true)), []);
        assert_eq!(memory.outcome(&acme, &form(Some(first), None, false)).len(), 1);
        let run = memory.outcome(&acme, &form(None, Some("run-1"), true));
        assert_eq!(
            run.iter().map(|told| told.is_new).collect::<Vec<_>>(),
            [false, true]
        );
        let tally = memory.tallies(&acme, &workflow)[&deployment];
        assert_eq!((tally.successes, tally.failures, tally.calls), (1, 1, 2));
        assert_eq!(tally.retries, 1, "the same request twice in a run is a retry");
        assert!(memory.tallies(&other, &workflow).is_empty());
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
