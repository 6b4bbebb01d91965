//! Taking a job: its items stored as they come, its money held, and then it runs.

use super::admit::{admit, item};
use super::{Desk, store_error};
use crate::clock;
use crate::refuse::denied;
use bytes::Bytes;
use exchange::{AccountPath, Money, Refusal, RefusalKind, Surface};
use ledger::{Ask, Denied, Job, JobKind, NewItem};
use std::collections::HashSet;
use std::time::Duration;

/// Items and bytes that are held in memory before they go to the store.
const CHUNK_ITEMS: usize = 500;
const CHUNK_BYTES: usize = 4 << 20;
/// OpenAI's cap on the texts in a batch of embeddings.
pub(super) const INPUTS: u64 = 50_000;
/// Mistakes that are told at once.
const MISTAKES: usize = 10;

/// A job that is being received.
pub(super) struct Taking {
    pub(super) job: Job,
    surface: Surface,
    /// Texts to embed; OpenAI bounds their sum.
    inputs: u64,
    waiting: Vec<NewItem>,
    waiting_bytes: usize,
    ids: HashSet<Box<str>>,
    /// Of items.
    pub(super) count: i64,
    pub(super) bytes: i64,
    mistakes: Vec<String>,
    counted: usize,
    /// No job of the same idempotency key was there.
    pub(super) is_first: bool,
}

/// A fresh id: a prefix and 32 hexadecimal digits.
pub(super) fn fresh(prefix: &str) -> String {
    format!("{prefix}{}", clock::new_request(clock::unix_us()).0)
}

/// A job of the caller's, not stored yet.
pub(super) fn blank(desk: &Desk, (id, kind): (String, JobKind), surface: Surface) -> Job {
    let now = clock::unix_us();
    let keep = i64::try_from(desk.gateway.config.batch.keep.as_micros()).unwrap_or(i64::MAX / 4);
    Job {
        id,
        kind,
        account: AccountPath {
            workflow: desk.workflow.clone(),
            ..(*desk.who.account).clone()
        },
        key_hash: desk.key_hash.clone(),
        dialect: surface.dialect().as_str().into(),
        // A file's is that of its first line.
        endpoint: if kind == JobKind::File {
            String::new()
        } else {
            surface.endpoint().into()
        },
        state: "receiving".into(),
        input: String::new(),
        name: String::new(),
        metadata: "null".into(),
        webhook: String::new(),
        idempotency: String::new(),
        total: 0,
        bytes: 0,
        created_us: now,
        deadline_us: now.saturating_add(24 * 3_600_000_000),
        cancelled_us: 0,
        ended_us: 0,
        expires_us: now.saturating_add(keep),
        problem: String::new(),
        read_us: 0,
    }
}

impl Taking {
    /// Stores the job and begins to receive its items.
    pub(super) async fn begin(desk: &Desk, job: Job, surface: Surface) -> Result<Self, Refusal> {
        let is_first = desk
            .jobs()
            .create(&job)
            .await
            .map_err(|error| store_error(&error))?;
        Ok(Self {
            job,
            surface,
            inputs: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
            ids: HashSet::new(),
            count: 0,
            bytes: 0,
            mistakes: Vec::new(),
            counted: 0,
            is_first,
        })
    }

    /// Something is wrong at a place; up to ten are told together.
    pub(super) fn mistake(&mut self, at: &str, problem: &str) {
        self.counted += 1;
        if self.mistakes.len() < MISTAKES {
            self.mistakes.push(format!("{at}: {problem}"));
        }
    }

    /// All items are for one endpoint: the first one's. False: this one is for another.
    pub(super) fn agrees(&mut self, surface: Surface) -> bool {
        if self.job.endpoint.is_empty() {
            self.job.endpoint = surface.endpoint().into();
            self.surface = surface;
        }
        self.surface == surface
    }

    /// Enough is wrong to stop reading.
    pub(super) fn is_hopeless(&self) -> bool {
        self.counted >= MISTAKES
    }

    /// One more item. `at`: where it stands, for whoever made a mistake in it.
    pub(super) async fn push(
        &mut self,
        desk: &Desk,
        (custom_id, body): (String, Bytes),
        at: &str,
    ) -> Result<(), Refusal> {
        self.count += 1;
        self.bytes += i64::try_from(body.len()).unwrap_or(i64::MAX);
        if custom_id.is_empty() || custom_id.len() > 512 {
            self.mistake(at, "`custom_id` is missing, or longer than 512 bytes");
            return Ok(());
        }
        if !self.ids.insert(custom_id.as_str().into()) {
            self.mistake(at, &format!("`custom_id` {custom_id} is used twice"));
            return Ok(());
        }
        let size = body.len();
        let when = (self.job.created_us, self.job.deadline_us);
        let workflow = self.job.account.workflow.as_deref();
        let read = admit(&desk.gateway, &desk.who, (self.surface, body, workflow));
        if let Ok(admitted) = &read {
            self.inputs += u64::from(admitted.request.inputs());
            if self.inputs > INPUTS {
                self.mistake(at, &format!("a batch has at most {INPUTS} texts to embed"));
                return Ok(());
            }
        }
        let kind = self.job.kind;
        match read.and_then(|admitted| item(&desk.gateway, (&admitted, kind), (self.count, custom_id), when))
        {
            Ok(item) => {
                self.waiting.push(item);
                self.waiting_bytes += size;
            }
            Err(refusal) => {
                let hint = refusal.hint.as_ref().map(|hint| format!(" ({hint})"));
                self.mistake(at, &(refusal.message + &hint.unwrap_or_default()));
            }
        }
        if self.waiting.len() >= CHUNK_ITEMS || self.waiting_bytes >= CHUNK_BYTES {
            self.store(desk).await?;
        }
        Ok(())
    }

    async fn store(&mut self, desk: &Desk) -> Result<(), Refusal> {
        if self.counted == 0 && !self.waiting.is_empty() {
            let stored = desk.jobs().add_items(&self.job.id, &self.waiting).await;
            stored.map_err(|error| store_error(&error))?;
        }
        self.waiting.clear();
        self.waiting_bytes = 0;
        Ok(())
    }

    /// All items are there.
    ///
    /// # Errors
    /// What is wrong with them; then nothing of the job stays.
    pub(super) async fn finish(mut self, desk: &Desk, state: &str) -> Result<Job, Refusal> {
        self.store(desk).await?;
        if self.count == 0 && self.counted == 0 {
            self.mistake("the body", "holds no request");
        }
        if self.counted > 0 {
            let more = self.counted - self.mistakes.len();
            let mut message = self.mistakes.join("; ");
            if more > 0 {
                message.push_str(&format!("; and {more} more"));
            }
            self.abandon(desk, &message).await;
            return Err(Refusal::new(RefusalKind::InvalidRequest, message));
        }
        let stored = desk
            .jobs()
            .received(
                &self.job.id,
                (state, &self.job.endpoint),
                (self.count, self.bytes),
            )
            .await;
        stored.map_err(|error| store_error(&error))?;
        self.job.total = self.count;
        self.job.bytes = self.bytes;
        self.job.state = state.into();
        Ok(self.job)
    }

    /// Whoever sent it has gone, or sent nonsense.
    pub(super) async fn abandon(&self, desk: &Desk, why: &str) {
        let failed = desk.jobs().fail(&self.job.id, why).await;
        if let Err(error) = failed.and(desk.jobs().delete_file(&self.job.id).await) {
            tracing::warn!(%error, job = self.job.id, "an abandoned job could not be deleted; it expires");
        }
    }
}

/// Holds a job's money and lets it run on the items of `file`, which may be the job itself.
///
/// # Errors
/// The budget does not pay for it, or for any of its items where jobs are trimmed.
pub(super) async fn start(desk: &Desk, mut job: Job, file: &str) -> Result<Job, Refusal> {
    match held(desk, &job, file).await {
        Ok(upto) => {
            let started = desk.jobs().start(&job, file, upto).await;
            if !started.map_err(|error| store_error(&error))? {
                let problem = "the job took too long to begin and was given up";
                return Err(Refusal::new(RefusalKind::StoreUnavailable, problem).hint("send it again"));
            }
            job.state = "running".into();
            desk.gateway.batch.wake.notify_one();
            Ok(job)
        }
        Err(refusal) => {
            if let Err(error) = desk.jobs().fail(&job.id, &refusal.message).await {
                tracing::warn!(%error, job = job.id, "a refused job could not be marked as such");
            }
            Err(refusal)
        }
    }
}

/// Holds what the items need; returns up to which of them that goes.
async fn held(desk: &Desk, job: &Job, file: &str) -> Result<i64, Refusal> {
    let (mut upto, trims) = (i64::MAX, desk.gateway.config.batch.trims);
    // Others may take money between two looks.
    for _ in 0..4 {
        let needs = desk
            .jobs()
            .needs(file, upto)
            .await
            .map_err(|error| store_error(&error))?;
        let needs: Vec<_> = needs.into_iter().filter(|need| !need.amount.is_zero()).collect();
        let ask = Ask {
            want: Money::ZERO,
            least: Money::ZERO,
            workflow: job.account.workflow.as_ref(),
            labels: &[],
            patience: desk.gateway.config.limits.budget_wait.min(Duration::from_secs(5)),
            now_unix_us: clock::unix_us(),
        };
        let refused = match desk.gateway.ledger.escrow(&desk.who, job, &needs, ask).await {
            Ok(()) => return Ok(upto),
            Err(refused) => refused,
        };
        let Denied::Budget { balance, .. } = &refused else {
            return Err(denied(&refused, clock::unix_us()));
        };
        let left = balance.remaining().max(Money::ZERO);
        upto = desk
            .jobs()
            .affordable(file, left)
            .await
            .map_err(|error| store_error(&error))?;
        if !trims || upto == 0 {
            let refusal = denied(&refused, clock::unix_us());
            let pays = format!("; the budget pays for {upto} of the job's items");
            return Err(Refusal {
                message: refusal.message.clone() + &pays,
                ..refusal
            });
        }
    }
    Err(Refusal::new(
        RefusalKind::BudgetExceeded,
        "others were spending the budget that the job needs",
    )
    .should_retry(true))
}
