//! The batch tier: work that may wait is taken as jobs, and had by its deadline in the cheapest way there is.
//!
//! Owns: the job surfaces (OpenAI's files and batches, Anthropic's message batches, `/v1/jobs`), the runner that packs,
//! submits, watches, rescues and settles, and what providers' batch APIs look like. Refuses to know: SQL (the ledger keeps
//! jobs), how an answer is priced or routed (the pipeline's stages do), when waiting must end (the `batch` crate judges).
//! Invariants: contents leave this process sealed or not at all; whatever is done at a provider is first written down, so
//! that any node can go on from there; an item is charged once, by the row that ends it.

mod admit;
mod anthropic;
mod defer;
mod errand;
mod files;
mod openai;
mod pack;
mod remote;
mod requests;
mod results;
mod runner;
mod take;
mod vault;
mod webhook;

pub(crate) use defer::{DEFER, defer};
pub(crate) use runner::run;

use crate::accept::{authenticate, dialect_of, key_hash};
use crate::client::{Client, Gone};
use crate::gateway::Gateway;
use crate::refuse::refuse;
use crate::understand;
use ::batch::Completions;
use exchange::{Dialect, Refusal, RefusalKind, RequestId, Surface};
use ledger::{Job, JobKind, Jobs, Labels, Principal, StoreError};
use pingora_http::ResponseHeader;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use vault::Vault;

/// What is believed of a provider's batches before any was seen: half take longer than this.
const PRIOR_US: i64 = 2 * 3_600_000_000;

/// Completion times and the ages of what runs.
type Times = Arc<(Completions, Vec<i64>)>;

/// The batch tier's state in this process; everything that matters is in the store.
pub(crate) struct Batch {
    pub(crate) jobs: Jobs,
    vault: Vault,
    /// The runner is to look now.
    wake: Notify,
    /// Some job has changed.
    changed: Notify,
    times: Mutex<HashMap<(String, String), Times>>,
    /// Of a thousand flex calls lately, so many had room.
    flex_room: AtomicU32,
}

impl Batch {
    pub(crate) fn new(jobs: Jobs, config: &crate::config::batch::Batch) -> anyhow::Result<Self> {
        Ok(Self {
            jobs,
            vault: Vault::new(config.content_key.as_ref(), config.keep)?,
            wake: Notify::new(),
            changed: Notify::new(),
            times: Mutex::new(HashMap::new()),
            flex_room: AtomicU32::new(500),
        })
    }

    /// How long a provider's batches of a model take, as last looked up.
    fn times(&self, provider: &str, model: &str) -> Times {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let found = times.get(&(provider.to_owned(), model.to_owned())).cloned();
        found.unwrap_or_else(|| Arc::new((Completions::new(PRIOR_US), Vec::new())))
    }

    /// Looks up how long they take now.
    async fn learn(&self, provider: &str, model: &str) -> Result<Times, StoreError> {
        let (running, took) = self.jobs.times(provider, model).await?;
        let mut times = Completions::new(PRIOR_US);
        took.iter().rev().for_each(|took| times.ended(*took));
        let times = Arc::new((times, running));
        let key = (provider.to_owned(), model.to_owned());
        self.times
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, times.clone());
        Ok(times)
    }

    /// The runner is to look now.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    fn flex_room(&self) -> f64 {
        f64::from(self.flex_room.load(Ordering::Relaxed)) / 1000.0
    }

    /// A running mean; two at once lose one of them, which a mean does not feel.
    fn flex_seen(&self, had_room: bool) {
        let before = self.flex_room.load(Ordering::Relaxed);
        let seen = if had_room { 1000 } else { 0 };
        self.flex_room.store((before * 15 + seen) / 16, Ordering::Relaxed);
    }
}

/// On whose behalf jobs are made and looked at.
#[derive(Clone)]
struct Desk {
    gateway: Arc<Gateway>,
    who: Arc<Principal>,
    key_hash: String,
    /// The workflow that the caller declared, else its key's.
    workflow: Option<Arc<str>>,
    /// The labels that the caller declared.
    labels: Labels,
}

/// A caller at one of the job surfaces.
struct Visit<'a> {
    desk: Desk,
    client: &'a mut Client,
}

/// What is answered.
enum Reply {
    Json(u16, Value),
    /// The answer has been written, or there is nobody to write to.
    Written,
}

/// Serves the job surfaces.
pub(crate) async fn answer(gateway: &Arc<Gateway>, client: &mut Client, id: RequestId) {
    let dialect = dialect_of(client);
    let replied = match enter(gateway, client).await {
        Ok(mut visit) => Box::pin(route(&mut visit)).await,
        Err(refusal) => Err(refusal),
    };
    match replied {
        Ok(Reply::Json(status, value)) => {
            if write_json(client, status, &value).await.is_err() {
                client.reusable = false;
            }
        }
        Ok(Reply::Written) => {}
        Err(refusal) => {
            refuse(client, dialect, &refusal, id).await;
        }
    }
}

async fn enter<'a>(gateway: &Arc<Gateway>, client: &'a mut Client) -> Result<Visit<'a>, Refusal> {
    let who = authenticate(gateway, client).await?;
    let key_hash = key_hash(gateway, client)?.to_hex();
    let desk = Desk {
        gateway: gateway.clone(),
        workflow: declared(client, &who),
        labels: understand::declared(client, &gateway.config.label_headers)?,
        who,
        key_hash,
    };
    Ok(Visit { desk, client })
}

async fn route(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let method = visit.client.session.req_header().method.as_str().to_owned();
    let path = visit.client.path().to_owned();
    let path = path.strip_prefix("/v1").unwrap_or(&path);
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method.as_str(), &parts[..]) {
        ("POST", ["files"]) => files::upload(visit).await,
        ("GET", ["files"]) => files::list(visit).await,
        ("GET", ["files", id]) => files::show(visit, id).await,
        ("GET", ["files", id, "content"]) => files::content(visit, id).await,
        ("DELETE", ["files", id]) => files::delete(visit, id).await,
        ("POST", ["batches"]) => openai::create(visit).await,
        ("GET", ["batches"]) => openai::list(visit).await,
        ("GET", ["batches", id]) => openai::show(visit, id).await,
        ("POST", ["batches", id, "cancel"]) => openai::cancel(visit, id).await,
        ("POST", ["messages", "batches"]) => anthropic::create(visit).await,
        ("GET", ["messages", "batches"]) => anthropic::list(visit).await,
        ("GET", ["messages", "batches", id]) => anthropic::show(visit, id).await,
        ("DELETE", ["messages", "batches", id]) => anthropic::delete(visit, id).await,
        ("GET", ["messages", "batches", id, "results"]) => anthropic::results(visit, id).await,
        ("POST", ["messages", "batches", id, "cancel"]) => anthropic::cancel(visit, id).await,
        ("POST", ["jobs"]) => requests::create(visit).await,
        ("GET", ["jobs"]) => requests::list(visit).await,
        ("GET", ["jobs", id]) => requests::show(visit, id).await,
        ("POST", ["jobs", id, "cancel"]) => requests::cancel(visit, id).await,
        _ => {
            let message = format!("{method} {path} is nothing that can be done with jobs");
            Err(Refusal::new(RefusalKind::RouteNotFound, message))
        }
    }
}

/// The workflow whose work a caller says it is.
fn declared(client: &Client, who: &Principal) -> Option<Arc<str>> {
    let said = client.header("x-tollgate-workflow").map(Arc::from);
    said.or_else(|| who.account.workflow.clone())
}

impl Desk {
    fn jobs(&self) -> &Jobs {
        &self.gateway.batch.jobs
    }

    /// The labels in a job's metadata: its texts, as in that of a request. What it says under the name of one of the
    /// operator's headers does not count.
    fn labels_in(&self, metadata: &Value) -> Labels {
        let listed = &self.gateway.config.label_headers;
        let pairs = metadata.as_object().into_iter().flatten();
        let texts = pairs.filter_map(|(key, value)| Some((key.to_lowercase(), value.as_str()?)));
        let short = texts.filter(|(key, value)| key.len() + value.len() <= LABEL_BYTES);
        let own = short.filter(|(key, _)| !listed.iter().any(|name| name.as_str() == key));
        own.map(|(key, value)| (key.into(), value.into()))
            .take(LABELS)
            .collect()
    }

    /// A job of the caller's own team.
    async fn job(&self, id: &str, kind: JobKind) -> Result<Job, Refusal> {
        let found = self.jobs().job(id).await.map_err(|error| store_error(&error))?;
        let own = found.filter(|job| {
            let (theirs, ours) = (&job.account, &self.who.account);
            job.kind == kind && theirs.org == ours.org && theirs.team == ours.team
        });
        own.ok_or_else(|| {
            let message = format!("there is no {} `{id}`", kind.as_str());
            let mut refusal = Refusal::new(RefusalKind::InvalidRequest, message).status(404);
            refusal.param = Some("id".into());
            refusal
        })
    }

    /// Answers of a job are being read; that they were is not worth failing for.
    async fn was_read(&self, job: &Job) {
        if job.ended_us == 0 || job.read_us > 0 {
            return;
        }
        if let Err(error) = self.jobs().read(&job.id).await {
            tracing::warn!(%error, job = job.id, "when a job was first read could not be written down");
        }
    }

    /// Gives a job up, and wakes whoever is to see to it; false where it has ended, or was given up before.
    async fn cancel(&self, job: &Job) -> Result<bool, Refusal> {
        let cancelled = self.jobs().cancel(&job.id).await;
        let cancelled = cancelled.map_err(|error| store_error(&error))?;
        self.gateway.batch.wake();
        Ok(cancelled)
    }
}

impl Visit<'_> {
    /// A query parameter.
    fn query(&self, name: &str) -> Option<String> {
        let query = self.client.session.req_header().uri.query()?.to_owned();
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    }

    /// The caller's jobs of a kind, the latest first, and whether there may be more: `after` names the query parameter
    /// with the last one seen.
    async fn list(&self, after: &str, kind: JobKind) -> Result<(Vec<Job>, bool), Refusal> {
        let limit = self
            .query("limit")
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(20);
        let limit = i64::min(limit, 100).max(1);
        let before = match self.query(after) {
            Some(id) => self.desk.job(&id, kind).await?.created_us,
            None => i64::MAX,
        };
        let account = &self.desk.who.account;
        let found = self.desk.jobs().jobs_of(account, kind, (before, limit)).await;
        let found = found.map_err(|error| store_error(&error))?;
        let may_be_more = i64::try_from(found.len()).unwrap_or(0) == limit;
        Ok((found, may_be_more))
    }

    /// A body that is small enough to be held whole, as JSON.
    async fn json(&mut self) -> Result<Option<Value>, Refusal> {
        let limits = &self.desk.gateway.config.limits;
        match self
            .client
            .read_body(limits.body_bytes, limits.body_timeout)
            .await
        {
            Ok(body) => serde_json::from_slice(&body).map(Some).map_err(|error| {
                Refusal::new(
                    RefusalKind::InvalidRequest,
                    format!("the body is not JSON: {error}"),
                )
            }),
            Err(Some(refusal)) => Err(refusal),
            Err(None) => Ok(None),
        }
    }
}

/// More labels than this are not kept of a job's metadata, nor values that are longer, in bytes: those are content.
const LABELS: usize = 16;
const LABEL_BYTES: usize = 512;

/// What the items of a job are requests for.
fn surface(job: &Job) -> Surface {
    // Files of before there was more than one have no endpoint.
    Surface::of_endpoint(&job.endpoint).unwrap_or(Surface::ChatCompletions)
}

/// The endpoints of OpenAI's that can be batched here.
const BATCHED: &str = "/v1/chat/completions, /v1/embeddings, /v1/completions and /v1/responses can";

/// The endpoint that a line or a batch of OpenAI's shape names.
fn openai_surface(endpoint: &str) -> Option<Surface> {
    Surface::of_endpoint(endpoint).filter(|one| one.dialect() == Dialect::OpenaiChat)
}

/// Whatever is wrong with the store is not the caller's fault, nor the caller's to know.
fn store_error(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the store of jobs cannot be used");
    Refusal::new(
        RefusalKind::StoreUnavailable,
        "the gateway cannot reach its store of jobs",
    )
    .retry_after(Some(Duration::from_secs(5)))
}

async fn write_json(client: &mut Client, status: u16, value: &Value) -> Result<(), Gone> {
    let mut head = ResponseHeader::build(status, Some(2)).map_err(|_| Gone)?;
    head.insert_header("content-type", "application/json")
        .map_err(|_| Gone)?;
    client.answer(head, value.to_string().into()).await
}

/// Seconds since the epoch, or null for what has not come to pass.
fn seconds(us: i64) -> Value {
    if us > 0 {
        (us / 1_000_000).into()
    } else {
        Value::Null
    }
}
