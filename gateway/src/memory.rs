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

#[derive(Default)]
struct Said {
    requests: Bounded<RequestId, Served>,
    runs: Bounded<(Arc<str>, Box<str>), Vec<RequestId>>,
    /// The same request within a run: when, and where it went.
    again: Bounded<u64, (u64, Arc<str>)>,
    tallies: HashMap<Arc<str>, HashMap<Arc<str>, Tally>>,
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
        tally(&mut said, workflow, deployment).calls += 1;
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
            tally(&mut said, workflow, &retried).retries += 1;
        }
        said.again.put(canonical, (now, deployment.clone()));
    }

    /// Takes an outcome. Returns how many requests it is about; what was told before counts once.
    pub(crate) fn outcome(&self, org: &Arc<str>, form: &OutcomeForm) -> usize {
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
        let mut found = 0;
        for request in about {
            let Some(served) = said
                .requests
                .get_mut(&request)
                .filter(|served| served.org == *org)
            else {
                continue;
            };
            found += 1;
            if std::mem::replace(&mut served.told, true) {
                continue;
            }
            let (workflow, deployment) = (served.workflow.clone(), served.deployment.clone());
            let tally = tally(&mut said, &workflow, &deployment);
            if form.success {
                tally.successes += 1;
            } else {
                tally.failures += 1;
            }
        }
        found
    }

    /// An outcome told by a header of the run's next request.
    pub(crate) fn outcome_of_run(&self, org: &Arc<str>, facts: &Facts, success: bool) {
        let Some(run) = run_of(facts) else { return };
        let form = OutcomeForm {
            request_id: None,
            workflow_run_id: Some(run.into()),
            success,
            value: None,
            note: None,
        };
        self.outcome(org, &form);
    }

    /// What is known of a workflow, by deployment.
    pub(crate) fn tallies(&self, workflow: &str) -> HashMap<Arc<str>, Tally> {
        locked(&self.said)
            .tallies
            .get(workflow)
            .cloned()
            .unwrap_or_default()
    }
}

fn tally<'a>(said: &'a mut Said, workflow: &Arc<str>, deployment: &Arc<str>) -> &'a mut Tally {
    let by_deployment = said.tallies.entry(workflow.clone()).or_default();
    by_deployment.entry(deployment.clone()).or_default()
}
