//! A pack's way: built and uploaded, made a batch, watched, fetched, settled. Each step is written down before the next,
//! and each may be taken by another node than the one before.
//!
//! The one step that cannot be undone is the making of the batch: `creating` is written before it, and whoever finds a
//! pack in that state looks for its batch at the provider before making another.

use super::admit::{admit, batched, holder, way};
use super::remote::{Found, Outcome, Remote, RemoteError, Sent, Standing, Wanted};
use super::surface;
use super::take::INPUTS;
use crate::clock;
use crate::fleet::Deployment;
use crate::gateway::Gateway;
use crate::rules::Rules;
use ::batch::{Flight, Verdict, Way, watch};
use bytes::Bytes;
use exchange::{
    AccountPath, AttemptOutcome, AttemptRecord, BackendClass, Charge, Dialect, Ending, Money, Origin, Phase,
    Record, RequestId, ServiceTier, Timings, Usage,
};
use ledger::{ItemEnd, Job, Pack, StoreError, StoredItem};
use router_policies::Situation;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// How long a node may work on a pack before another takes over.
pub(super) const LEASE_US: i64 = 60_000_000;
/// How often an item is sent to a batch before the synchronous tier has its turn.
const TRIES: i64 = 3;
const BACK_OFF_US: i64 = 1_000_000;
/// A batch that was given up is asked about for so long, and so many times less often than one that is waited for. No
/// provider works on a batch for longer.
const DRAIN_US: i64 = 50 * 3_600_000_000;
const DRAIN_POLLS: i64 = 4;
const LONGEST_BACK_OFF_US: i64 = 60_000_000;
/// Items that are settled together.
const CHUNK: usize = 200;

/// Why a step was not taken; what was written down stands.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("another node has taken the pack over")]
    TakenOver,
    #[error("the deployment {0} is gone from the policy, or its provider has no batch API any more")]
    NoDeployment(String),
}

/// A pack and all that is needed to work on it.
struct Work<'a> {
    gateway: &'a Arc<Gateway>,
    rules: Arc<Rules>,
    pack: Pack,
    jobs: HashMap<String, Option<Job>>,
}

/// Takes the next steps of a pack that this node has claimed.
pub(super) async fn work(gateway: &Arc<Gateway>, pack: Pack) {
    let mut work = Work {
        gateway,
        rules: gateway.rules.now(),
        pack,
        jobs: HashMap::new(),
    };
    let done = Box::pin(work.step()).await;
    let failed = match done {
        Ok(()) => Ok(()),
        Err(WorkError::TakenOver) => Ok(()),
        Err(WorkError::NoDeployment(deployment)) => {
            tracing::warn!(
                deployment,
                pack = work.pack.id,
                "a pack's deployment is gone: its items are called for one by one"
            );
            work.rescue("its deployment is gone").await
        }
        Err(WorkError::Remote(error)) => work.troubled(error).await,
        Err(error) => Err(error),
    };
    if let Err(error) = failed {
        tracing::warn!(%error, pack = work.pack.id, "a pack could not be worked on; it is tried again");
    }
    gateway.batch.changed.notify_waiters();
}

/// How an item of a pack is called at the provider.
fn wire_id(pack: &str, item: &StoredItem) -> String {
    let digest = Sha256::digest(format!("{}|{}", item.job, item.number).as_bytes());
    let short: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{pack}_{short}")
}

/// The ledger's request of an item in a pack: the same whoever settles it, and however often.
fn request_id(pack: &Pack, item: &StoredItem) -> RequestId {
    let digest = Sha256::digest(format!("{}|{}|{}", pack.id, item.job, item.number).as_bytes());
    let mut random = [0; 10];
    random.copy_from_slice(&digest[..10]);
    RequestId::new(u64::try_from(pack.created_us / 1000).unwrap_or(0), random)
}

impl Work<'_> {
    async fn step(&mut self) -> Result<(), WorkError> {
        match self.pack.state.as_str() {
            "packed" => self.send(Vec::new()).await,
            "creating" => self.find_again().await,
            "draining" => self.drain().await,
            _ => self.look().await,
        }
    }

    fn deployment(&self) -> Result<&Deployment, WorkError> {
        let found = self
            .rules
            .fleet
            .iter()
            .find(|one| *one.id == *self.pack.deployment);
        found.ok_or_else(|| WorkError::NoDeployment(self.pack.deployment.clone()))
    }

    fn remote(&self) -> Result<Remote<'_>, WorkError> {
        let upstream = &self.deployment()?.upstream;
        let api = upstream.settings.batch;
        let api = api.ok_or_else(|| WorkError::NoDeployment(self.pack.deployment.clone()))?;
        Ok(Remote::new(upstream, api, &self.pack.model))
    }

    /// What the provider is told of it: its id, and what its items are for.
    fn name(&self) -> (&str, &str) {
        (&self.pack.id, &self.pack.endpoint)
    }

    async fn save(&mut self, state: &str, next_us: i64, lease_us: i64) -> Result<(), WorkError> {
        self.pack.state = state.into();
        if self
            .gateway
            .batch
            .jobs
            .save(&self.pack, next_us, lease_us)
            .await?
        {
            Ok(())
        } else {
            Err(WorkError::TakenOver)
        }
    }

    fn poll_us(&self) -> i64 {
        i64::try_from(self.gateway.config.batch.poll.as_micros()).unwrap_or(LONGEST_BACK_OFF_US)
    }

    /// Uploads the items and makes the batch. `sent`: the items if they have been built already.
    async fn send(&mut self, mut sent: Vec<Sent>) -> Result<(), WorkError> {
        if sent.is_empty() {
            sent = self.build().await?;
        }
        if sent.is_empty() {
            return self.save("void", 0, 0).await;
        }
        if self.pack.file.is_empty() {
            let uploaded = self.remote()?.upload(self.name(), &sent).await;
            self.pack.file = uploaded?;
            self.save("packed", 0, LEASE_US).await?;
        }
        self.save("creating", 0, LEASE_US).await?;
        let made = self.remote()?.create(self.name(), &self.pack.file, &sent).await;
        self.pack.remote = made?;
        self.taken().await
    }

    /// The provider has it.
    async fn taken(&mut self) -> Result<(), WorkError> {
        self.gateway.batch.jobs.submitted(&self.pack.id).await?;
        self.pack.tries = 0;
        self.save("submitted", self.poll_us(), 0).await
    }

    /// Whoever was making the batch has not said that it did.
    async fn find_again(&mut self) -> Result<(), WorkError> {
        let known = self.gateway.batch.jobs.known(&self.pack.provider).await?;
        let wanted = Wanted {
            pack: &self.pack.id,
            since_unix_s: self.pack.created_us / 1_000_000,
            items: self.pack.items,
            known: &known,
        };
        let found = self.remote()?.find(&wanted).await?;
        match found {
            Found::It(remote) => {
                self.pack.remote = remote;
                self.taken().await
            }
            Found::Perhaps => self.save("creating", self.poll_us(), 0).await,
            Found::Nothing => {
                let sent = self.build().await?;
                self.send(sent).await
            }
        }
    }

    /// The items as they go over the wire. Those that can no longer be sent end here.
    async fn build(&mut self) -> Result<Vec<Sent>, WorkError> {
        let items = self.gateway.batch.jobs.items_of(&self.pack.id).await?;
        let (mut sent, mut ends) = (Vec::with_capacity(items.len()), Vec::new());
        let mut inputs = 0;
        for item in &items {
            match self.encode(item).await? {
                // What is too much for one batch of embeddings goes with the next.
                Ok((_, more)) if inputs + u64::from(more) > INPUTS && !sent.is_empty() => {
                    ends.push(ItemEnd::free(item, "queued"));
                }
                Ok((body, more)) => {
                    inputs += u64::from(more);
                    sent.push(Sent {
                        custom_id: wire_id(&self.pack.id, item),
                        body,
                    });
                }
                Err(problem) => ends.push(ItemEnd {
                    status: 400,
                    problem,
                    ..ItemEnd::free(item, "errored")
                }),
            }
        }
        self.gateway.batch.jobs.settle(&ends).await?;
        self.pack.items = i64::try_from(sent.len()).unwrap_or(i64::MAX);
        Ok(sent)
    }

    async fn job(&mut self, id: &str) -> Result<Option<Job>, WorkError> {
        if let Some(known) = self.jobs.get(id) {
            return Ok(known.clone());
        }
        let job = self.gateway.batch.jobs.job(id).await?;
        self.jobs.insert(id.to_owned(), job.clone());
        Ok(job)
    }

    async fn encode(&mut self, item: &StoredItem) -> Result<Result<(Bytes, u32), String>, WorkError> {
        let Some(job) = self.job(&item.job).await? else {
            return Ok(Err("its job is gone".into()));
        };
        Ok(self.encode_of(&job, item))
    }

    /// The body, and the texts to embed in it.
    fn encode_of(&self, job: &Job, item: &StoredItem) -> Result<(Bytes, u32), String> {
        let deployment = self.deployment().map_err(|error| error.to_string())?;
        let who = holder(self.gateway, &job.key_hash).ok_or("the key that made the job is no longer good")?;
        let body = open(self.gateway, item.input.as_deref())?;
        let workflow = job.account.workflow.as_deref();
        let admitted =
            admit(self.gateway, &who, (surface(job), body, workflow)).map_err(|refusal| refusal.message)?;
        let body = batched(&admitted, deployment, &self.pack.model)?;
        Ok((body, admitted.request.inputs()))
    }

    /// Asks how the batch stands, and judges whether to go on waiting.
    async fn look(&mut self) -> Result<(), WorkError> {
        let standing = self.remote()?.standing(&self.pack.remote).await?;
        self.pack.tries = 0;
        match standing {
            Standing::Ended(places) => {
                self.save("ended", 0, 10 * LEASE_US).await?;
                // How long it took counts for the next choice.
                let batch = &self.gateway.batch;
                batch.learn(&self.pack.provider, &self.pack.model).await?;
                self.fetch(&places).await
            }
            Standing::Failed(problem) => {
                tracing::warn!(pack = self.pack.id, problem, "a provider failed a batch");
                self.rescue(&problem).await
            }
            Standing::Running => self.judge().await,
        }
    }

    async fn judge(&mut self) -> Result<(), WorkError> {
        let batch = &self.gateway.batch;
        let times = batch.learn(&self.pack.provider, &self.pack.model).await?;
        let config = &self.gateway.config.batch;
        let whole = self.pack.deadline_us - self.pack.created_us;
        let cancel_us = i64::try_from(config.cancel.as_micros())
            .unwrap_or(i64::MAX)
            .min(whole / 4);
        let flight = Flight {
            submitted_us: self.pack.submitted_us,
            deadline_us: self.pack.deadline_us,
            open: usize::try_from(self.pack.items).unwrap_or(usize::MAX),
            cancel_us,
            cancelling: self.pack.cancelling,
        };
        let verdict = watch(
            &flight,
            (&times.0, &times.1),
            &config.rescue,
            config.give_up,
            self.pack.now_us,
        );
        let unwanted = batch.jobs.unwanted(&self.pack.id).await?;
        let is_unwanted = unwanted > 0 && unwanted * 2 >= self.pack.items && !self.pack.cancelling;
        match verdict {
            Verdict::Rescue => self.rescue("it would have come too late").await,
            Verdict::Cancel => self.cancel().await,
            Verdict::Wait { .. } if is_unwanted => self.cancel().await,
            Verdict::Wait { until_us } => {
                let next = (until_us - self.pack.now_us).clamp(0, self.poll_us());
                self.save("submitted", next, 0).await
            }
        }
    }

    async fn cancel(&mut self) -> Result<(), WorkError> {
        self.remote()?.cancel(&self.pack.remote).await?;
        self.pack.cancelling = true;
        self.save("submitted", self.poll_us().min(BACK_OFF_US), 0).await
    }

    /// What is open is called for one by one, and the pack is no longer waited for. What the provider has not been told
    /// to stop, it is.
    async fn rescue(&mut self, why: &str) -> Result<(), WorkError> {
        if !self.pack.remote.is_empty()
            && !self.pack.cancelling
            && let Ok(remote) = self.remote()
            && let Err(error) = remote.cancel(&self.pack.remote).await
        {
            tracing::warn!(%error, pack = self.pack.id, "a batch that is given up could not be cancelled");
        }
        let items = self.gateway.batch.jobs.items_of(&self.pack.id).await?;
        let mut ends = Vec::with_capacity(items.len());
        for item in &items {
            ends.push(match self.is_cancelling(&item.job).await? {
                true => ItemEnd::free(item, "cancelled"),
                false => rescued(item, why),
            });
        }
        self.gateway.batch.jobs.settle(&ends).await?;
        self.pack.problem = why.into();
        // A provider may go on with what it was told to stop, and bills what it answers.
        if self.pack.remote.is_empty() || self.remote().is_err() {
            self.save("void", 0, 0).await?;
        } else {
            self.save("draining", self.poll_us(), 0).await?;
        }
        self.gateway.batch.wake.notify_one();
        Ok(())
    }

    /// The end of a batch that is no longer waited for: what it answered all the same is charged, and marked as such.
    async fn drain(&mut self) -> Result<(), WorkError> {
        let standing = self.remote()?.standing(&self.pack.remote).await?;
        let places = match standing {
            Standing::Ended(places) => places,
            Standing::Running if self.pack.now_us - self.pack.created_us < DRAIN_US => {
                let next = self.poll_us().saturating_mul(DRAIN_POLLS);
                return self.save("draining", next.min(LONGEST_BACK_OFF_US), 0).await;
            }
            Standing::Running => {
                tracing::warn!(pack = self.pack.id, "a batch that was given up never ended");
                return self.save("void", 0, 0).await;
            }
            Standing::Failed(_) => return self.save("void", 0, 0).await,
        };
        self.save("draining", 0, 10 * LEASE_US).await?;
        let mut answers = HashMap::new();
        let found = |custom_id: &str, outcome: Outcome| {
            if let Outcome::Answered(200, body) = outcome {
                answers.insert(custom_id.to_owned(), body);
            }
        };
        self.remote()?.results(&places, found).await?;
        let left = if answers.is_empty() {
            Vec::new()
        } else {
            self.gateway.batch.jobs.left(&self.pack).await?
        };
        for item in &left {
            if let Some(body) = answers.remove(&wire_id(&self.pack.id, item)) {
                self.stray(item, body).await?;
            }
        }
        if !answers.is_empty() {
            let count = answers.len();
            tracing::error!(
                pack = self.pack.id,
                count,
                "answers were billed whose items are gone"
            );
        }
        self.save("void", 0, 0).await
    }

    async fn stray(&mut self, item: &StoredItem, body: Bytes) -> Result<(), WorkError> {
        let Some(job) = self.job(&item.job).await? else {
            return Ok(());
        };
        let record = match self.answered(&job, item, body) {
            Ok(end) => end.record,
            Err(problem) => {
                tracing::error!(
                    job = job.id,
                    problem,
                    "an answer that was billed cannot be priced"
                );
                None
            }
        };
        let Some(mut record) = record else { return Ok(()) };
        record.ending = Ending::ClientGone;
        for attempt in &mut record.attempts {
            attempt.outcome = AttemptOutcome::Cancelled;
        }
        let charge = record.total();
        if self.gateway.batch.jobs.stray(item, &record).await? {
            tracing::warn!(job = job.id, item.number, %charge, "a batch answered an item after it was given up");
        }
        Ok(())
    }

    async fn is_cancelling(&mut self, job: &str) -> Result<bool, WorkError> {
        Ok(self.job(job).await?.is_none_or(|job| job.state == "cancelling"))
    }

    /// Brings home what the provider answered; each item ends once, with its money.
    async fn fetch(&mut self, places: &[String]) -> Result<(), WorkError> {
        let items = self.gateway.batch.jobs.items_of(&self.pack.id).await?;
        let by_id: HashMap<String, usize> = items
            .iter()
            .enumerate()
            .map(|(at, item)| (wire_id(&self.pack.id, item), at))
            .collect();
        let mut outcomes: Vec<Option<Outcome>> = items.iter().map(|_| None).collect();
        let found = |custom_id: &str, outcome: Outcome| {
            if let Some(at) = by_id.get(custom_id) {
                outcomes[*at] = Some(outcome);
            }
        };
        self.remote()?.results(places, found).await?;
        let mut ends = Vec::with_capacity(CHUNK);
        for (item, outcome) in items.iter().zip(outcomes) {
            ends.push(self.end(item, outcome.unwrap_or(Outcome::Expired)).await?);
            if ends.len() == CHUNK {
                self.gateway.batch.jobs.settle(&ends).await?;
                ends.clear();
            }
        }
        self.gateway.batch.jobs.settle(&ends).await?;
        self.save("settled", 0, 0).await?;
        self.gateway.batch.wake.notify_one();
        Ok(())
    }

    /// What a result means for its item.
    async fn end(&mut self, item: &StoredItem, outcome: Outcome) -> Result<ItemEnd, WorkError> {
        let Some(job) = self.job(&item.job).await? else {
            return Ok(ItemEnd::free(item, "cancelled"));
        };
        let unwanted = job.state == "cancelling";
        Ok(match outcome {
            Outcome::Answered(200, body) => match self.answered(&job, item, body) {
                Ok(end) => end,
                Err(problem) => ItemEnd {
                    status: 502,
                    problem,
                    ..ItemEnd::free(item, "errored")
                },
            },
            Outcome::Answered(status, _)
                if (status == 429 || status >= 500) && item.tries < TRIES && !unwanted =>
            {
                self.again(&job, item, &format!("the provider answered {status}"))?
            }
            Outcome::Answered(status, body) => {
                let dialect = surface(&job).dialect();
                let from = self.deployment()?.upstream.settings.dialect;
                let told = if dialect == from {
                    body
                } else {
                    translated(from, dialect, (status, &body))
                };
                ItemEnd {
                    status: i64::from(status),
                    problem: "the provider refused it".into(),
                    output: seal(self.gateway, &told),
                    request: Some(request_id(&self.pack, item)),
                    ..ItemEnd::free(item, "errored")
                }
            }
            Outcome::Expired | Outcome::Cancelled if unwanted => ItemEnd::free(item, "cancelled"),
            Outcome::Expired | Outcome::Cancelled => self.again(&job, item, "its batch ended without it")?,
        })
    }

    /// Back to the queue, for the next batch while slack lasts, else for the synchronous tier.
    fn again(&self, job: &Job, item: &StoredItem, why: &str) -> Result<ItemEnd, WorkError> {
        let now = clock::unix_us();
        if item.deadline_us <= now {
            return Ok(ItemEnd {
                problem: why.into(),
                ..ItemEnd::free(item, "expired")
            });
        }
        let body = open(self.gateway, item.input.as_deref()).unwrap_or_default();
        let deployment = self.deployment()?;
        let next = dialect::read_surface(surface(job), body).map_or(Way::Standard, |request| {
            way(self.gateway, deployment, &request, (now, item.deadline_us))
        });
        if next == Way::Batch && item.tries < TRIES {
            return Ok(ItemEnd {
                problem: why.into(),
                later_us: BACK_OFF_US,
                ..ItemEnd::free(item, "queued")
            });
        }
        Ok(ItemEnd {
            way: Some(if next == Way::Batch { Way::Standard } else { next }.as_str()),
            ..rescued(item, why)
        })
    }

    /// An answer, in the caller's dialect and with its price.
    fn answered(&self, job: &Job, item: &StoredItem, body: Bytes) -> Result<ItemEnd, String> {
        let deployment = self.deployment().map_err(|error| error.to_string())?;
        let input = open(self.gateway, item.input.as_deref())?;
        let mut request = dialect::read_surface(surface(job), input).map_err(|error| error.message)?;
        request.received_unix_s = clock::unix_us() / 1_000_000;
        let from = deployment.upstream.settings.dialect;
        let (out, progress) =
            dialect::read_answer(&request, from, body).map_err(|error| error.to_string())?;
        let counted =
            || meter::counted_usage(request.facts.input_tokens, progress.output_bytes, progress.deltas);
        let usage = progress.usage.unwrap_or_else(counted);
        let price = deployment.price.load();
        // A batch is billed as one, whatever word its answers use for the tier.
        let charge = price.charge(&usage, ServiceTier::Batch);
        let standard = price.charge(&usage, ServiceTier::Standard).total;
        let (total, id) = (charge.total, request_id(&self.pack, item));
        let record = self.record(job, &request, (deployment, usage, charge), id);
        Ok(ItemEnd {
            status: 200,
            output: seal(self.gateway, &out),
            charge: total,
            saved: standard.minus(total),
            request: Some(id),
            record: Some(record),
            ..ItemEnd::free(item, "succeeded")
        })
    }

    fn record(
        &self,
        job: &Job,
        request: &dialect::Request,
        (deployment, usage, charge): (&Deployment, Usage, Charge),
        id: RequestId,
    ) -> Record {
        let policy = &self.rules.policy;
        let profile = policy.classify(&Situation {
            facts: &request.facts,
            account: &job.account,
            unix_s: self.pack.submitted_us / 1_000_000,
            budget_left: Money::MAX,
        });
        let account = AccountPath {
            workflow: profile.workflow.clone().or_else(|| job.account.workflow.clone()),
            ..job.account.clone()
        };
        let micros = |us: i64| u64::try_from(us).unwrap_or(0);
        let now = clock::unix_us();
        let class = policy.deployments().iter().find(|one| one.id == deployment.id);
        let attempt = AttemptRecord {
            number: 1,
            deployment: deployment.id.clone(),
            provider: deployment.upstream.settings.name.clone(),
            model: deployment.model.clone(),
            class: class.map_or(BackendClass::Batch, |one| one.class),
            outcome: AttemptOutcome::Answered,
            status: 200,
            usage,
            charge,
            started_unix_us: self.pack.created_us,
            duration_us: micros(now - self.pack.created_us),
        };
        Record {
            request: id,
            started_unix_us: self.pack.created_us,
            account: Some(Arc::new(account)),
            dialect: request.dialect,
            surface: request.facts.surface,
            origin: Origin::Batch,
            model_asked: request.facts.model.clone(),
            stream: false,
            value: profile.value,
            latency: profile.latency,
            thinking: None,
            policy_version: policy.version().clone(),
            ending: Ending::Completed,
            phase: Phase::Stream,
            refusal: None,
            status: 200,
            timings: Timings {
                total_us: micros(now - self.pack.created_us),
                ..Timings::default()
            },
            attempts: [attempt].into_iter().collect(),
        }
    }

    /// The provider could not be reached, or does not want the pack.
    async fn troubled(&mut self, error: RemoteError) -> Result<(), WorkError> {
        tracing::warn!(%error, pack = self.pack.id, state = self.pack.state, "a provider's batch API failed");
        if self.pack.state == "draining" {
            let is_over = error.is_final() || self.pack.now_us - self.pack.created_us >= DRAIN_US;
            let state = if is_over { "void" } else { "draining" };
            return self.save(state, LONGEST_BACK_OFF_US, 0).await;
        }
        if error.is_final() {
            return self.rescue(&error.to_string()).await;
        }
        self.pack.tries += 1;
        self.pack.problem = error.to_string();
        let back_off = BACK_OFF_US << self.pack.tries.clamp(0, 6);
        let rescue = self
            .gateway
            .config
            .batch
            .rescue
            .needs_us(usize::try_from(self.pack.items).unwrap_or(0));
        if self.pack.now_us + back_off + rescue >= self.pack.deadline_us {
            return self.rescue("its provider cannot be reached").await;
        }
        let state = self.pack.state.clone();
        self.save(&state, back_off.min(LONGEST_BACK_OFF_US), 0).await
    }
}

/// An item that the synchronous tier is to answer.
fn rescued(item: &StoredItem, why: &str) -> ItemEnd {
    ItemEnd {
        way: Some(Way::Standard.as_str()),
        rescue: true,
        problem: why.into(),
        ..ItemEnd::free(item, "queued")
    }
}

/// What an item holds.
pub(super) fn open(gateway: &Gateway, sealed: Option<&[u8]>) -> Result<Bytes, String> {
    let sealed = sealed.ok_or("its contents are gone")?;
    gateway
        .batch
        .vault
        .open(sealed)
        .map_err(|error| error.to_string())
}

pub(super) fn seal(gateway: &Gateway, plain: &[u8]) -> Option<Vec<u8>> {
    match gateway.batch.vault.seal(plain) {
        Ok(sealed) => Some(sealed),
        Err(error) => {
            tracing::error!(%error, "an answer could not be sealed");
            None
        }
    }
}

fn translated(from: Dialect, to: Dialect, (status, body): (u16, &[u8])) -> Bytes {
    let told = dialect::upstream_error(from, status, body);
    let refusal = exchange::Refusal::new(told.kind, told.message).status(status);
    dialect::error_body(to, &refusal, "")
}
