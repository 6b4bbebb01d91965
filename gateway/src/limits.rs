//! Rate limits of accounts: who is on a request's path, what it may do now, and what it is told of it.
//!
//! Owns: the tree of limited accounts, the pass of a running request, the fall from shared limits to a node's own part of
//! them and back. Refuses to know: how a limit is counted (crate `limits`), how it is shared (`share`). Invariants: a pass
//! gives back what it did not use, however the request ends; without a store, or while it is away, nothing here waits.

mod headers;
mod tree;

pub(crate) use headers::write;

use crate::clock;
use crate::share::{Ask, Away, Lefts, Ruling, Share};
use crate::telemetry::ShareMeters;
use arc_swap::ArcSwap;
use exchange::{AccountPath, Facts, Refusal, RefusalKind};
use ledger::{Limited, Rates};
use limits::{Book, Dimension, Exceeded, Path, Rule, Standing, SubjectId};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tree::Tree;

/// Output tokens expected of a request that names no limit.
const USUAL_OUTPUT: u64 = 500;
/// How often what requests used is told to the store.
const SETTLE_EVERY: Duration = Duration::from_millis(25);
/// How often a node says that it lives, in turns of the above; and how often a store that is away is tried.
const HEARTBEAT: u32 = 40;
const RETRY: u32 = 10;
/// What a caller is told to wait where nobody knows how long it takes.
const A_MOMENT: Duration = Duration::from_secs(1);

/// The tokens that a request is expected to use, and that are held for it.
pub(crate) fn expected_tokens(facts: &Facts) -> u64 {
    let output = facts
        .max_output_tokens
        .map_or(USUAL_OUTPUT, |limit| limit.min(USUAL_OUTPUT));
    facts.input_tokens.saturating_add(output)
}

#[derive(Debug)]
pub(crate) struct RateLimits {
    /// Those of the configuration, which go before those of the store.
    configured: BTreeMap<AccountPath, Rule>,
    /// Every account that was ever limited here; locked while limits change.
    known: Mutex<BTreeMap<AccountPath, SubjectId>>,
    tree: ArcSwap<Tree>,
    book: Mutex<Book>,
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    share: Share,
    /// The store answers.
    up: AtomicBool,
    /// What is to be told to it: by subject, tokens used beyond what was held.
    pending: Mutex<BTreeMap<SubjectId, i64>>,
    meters: ShareMeters,
}

/// A request may not pass now.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    pub(crate) standing: Standing,
}

/// A request that was let in. Dropping it lets it out.
#[derive(Debug)]
#[must_use]
pub(crate) struct Pass {
    held: Option<(Arc<RateLimits>, Path)>,
    expected: u64,
    used: u64,
    /// What is left to the caller.
    pub(crate) standing: Standing,
}

impl Pass {
    /// What the request used in the end; nothing, if this is never said.
    pub(crate) fn used(&mut self, tokens: u64) {
        self.used = tokens;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some((limits, path)) = self.held.take() {
            limits.leave(&path, self.expected, self.used);
        }
    }
}

impl RateLimits {
    pub(crate) fn new(rules: &[(AccountPath, Rule)], share: Option<(Share, ShareMeters)>) -> Self {
        let shared = share.map(|(share, meters)| Shared {
            share,
            up: AtomicBool::new(false),
            pending: Mutex::default(),
            meters,
        });
        let limits = Self {
            configured: rules.iter().cloned().collect(),
            known: Mutex::default(),
            tree: ArcSwap::default(),
            book: Mutex::default(),
            shared,
        };
        limits.adopt(&watch::Sender::new(Arc::default()).subscribe());
        limits
    }

    /// The rule of the configuration for this very account.
    pub(crate) fn configured(&self, account: &AccountPath) -> Option<Rule> {
        self.configured.get(account).copied()
    }

    /// Puts the limits of the store in force, as they are now. Requests that run go on under those they were let in by.
    pub(crate) fn adopt(&self, stored: &watch::Receiver<Arc<Limited>>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = stored.borrow().clone();
        let mut rules: BTreeMap<&AccountPath, Rule> = stored
            .iter()
            .map(|(account, rates)| (account, rule(*rates)))
            .collect();
        rules.extend(self.configured.iter().map(|(account, rule)| (account, *rule)));
        let now_us = clock::monotonic_us();
        let fresh = rules.iter().filter(|(account, _)| !known.contains_key(**account));
        let fresh: Vec<(AccountPath, Arc<str>, Rule)> = fresh
            .map(|(account, rule)| (AccountPath::clone(account), account.to_string().into(), *rule))
            .collect();
        {
            let mut book = self.book();
            for (account, name, rule) in fresh {
                known.insert(account, book.add(name, rule, now_us));
            }
            for (account, id) in &*known {
                let rule = rules.get(account).copied().unwrap_or_default();
                if book.rule(*id) != rule {
                    book.change(*id, rule, now_us);
                }
            }
        }
        let limited = known.iter().filter(|(account, _)| rules.contains_key(account));
        let tree = Tree::grow(limited.map(|(account, id)| (account, *id)));
        self.tree.store(Arc::new(tree));
    }

    /// Keeps up with the limits of the store until `stop`.
    pub(crate) async fn follow(
        self: Arc<Self>,
        mut stored: watch::Receiver<Arc<Limited>>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            stored.mark_unchanged();
            self.adopt(&stored);
            tokio::select! {
                changed = stored.changed() => if changed.is_err() { return },
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Lets a request in, if every account on its path lets it.
    ///
    /// # Errors
    /// What it has to wait for.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        account: &AccountPath,
        facts: &Facts,
    ) -> Result<Pass, Refused> {
        let path = self.tree.load().path(account);
        if path.is_empty() {
            return Ok(Pass {
                held: None,
                expected: 0,
                used: 0,
                standing: Standing::default(),
            });
        }
        let expected = expected_tokens(facts);
        let standing = match &self.shared {
            Some(shared) if shared.up.load(Ordering::Relaxed) => {
                match self.admit_shared(shared, &path, expected).await {
                    Ok(ruled) => ruled?,
                    Err(away) => {
                        self.fall_back(shared, &away);
                        self.admit_alone(&path, expected)?
                    }
                }
            }
            _ => self.admit_alone(&path, expected)?,
        };
        Ok(Pass {
            held: Some((self.clone(), path)),
            expected,
            used: 0,
            standing,
        })
    }

    fn admit_alone(&self, path: &Path, expected: u64) -> Result<Standing, Refused> {
        let now_us = clock::monotonic_us();
        let mut book = self.book();
        book.admit(path, expected, now_us).map_err(|exceeded| Refused {
            refusal: refusal(&exceeded),
            standing: book.standing(path, now_us),
        })
    }

    /// Asks the store. The request is counted in here first, so that the store is told of it too.
    async fn admit_shared(
        &self,
        shared: &Shared,
        path: &Path,
        expected: u64,
    ) -> Result<Result<Standing, Refused>, Away> {
        let tokens = i64::try_from(expected).unwrap_or(i64::MAX);
        let subjects: SmallVec<[(Arc<str>, Rule, u32); 4]> = {
            let mut book = self.book();
            book.enter(path, expected, clock::monotonic_us());
            let subject = |id: &SubjectId| (book.name(*id).clone(), book.rule(*id), book.running(*id));
            path.iter().map(subject).collect()
        };
        // A caller that leaves while the store is asked leaves here too.
        let mut entered = Entered {
            limits: self,
            path,
            expected,
            stays: false,
        };
        let asks: SmallVec<[Ask<'_>; 4]> = subjects
            .iter()
            .map(|(name, rule, running)| Ask {
                name,
                rule: *rule,
                requests: 1,
                tokens,
                running: *running,
            })
            .collect();
        match shared.share.admit(&asks).await? {
            Ruling::Admitted(lefts) => {
                entered.stays = true;
                Ok(Ok(tightest(&lefts)))
            }
            Ruling::Refused {
                index,
                dimension,
                wait_us,
            } => {
                let (name, rule, _) = &subjects[index];
                Ok(Err(refused(name, *rule, dimension, wait_us)))
            }
        }
    }

    fn leave(&self, path: &Path, expected: u64, used: u64) {
        self.book().leave(path, expected, used);
        let Some(shared) = &self.shared else {
            return;
        };
        if !shared.up.load(Ordering::Relaxed) {
            return;
        }
        let beyond = i64::try_from(used)
            .unwrap_or(i64::MAX)
            .saturating_sub(i64::try_from(expected).unwrap_or(i64::MAX));
        let mut pending = shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for id in path {
            let sum = pending.entry(*id).or_default();
            *sum = sum.saturating_add(beyond);
        }
    }

    /// From now on a node lets through its own part of the limits.
    fn fall_back(&self, shared: &Shared, away: &Away) {
        shared.meters.failed();
        if shared.up.swap(false, Ordering::Relaxed) {
            tracing::warn!(error = %away, "rate limits are not shared: each node lets through its part of them");
            self.book().forgive();
        }
    }

    /// Keeps the store up to date with what this node does, and this node with how many there are. `nodes` is told their
    /// number when it changes. Ends when `stop` does.
    pub(crate) async fn keep_shared(self: Arc<Self>, nodes: impl Fn(u32), mut stop: watch::Receiver<bool>) {
        let Some(shared) = &self.shared else {
            return;
        };
        let mut known = 1;
        for turn in 0u32.. {
            let is_up = shared.up.load(Ordering::Relaxed);
            let kept = if turn % if is_up { HEARTBEAT } else { RETRY } == 0 {
                shared.share.heartbeat().await.map(Some)
            } else if is_up {
                self.tell(shared).await.map(|()| None)
            } else {
                Ok(None)
            };
            match kept {
                Err(away) => self.fall_back(shared, &away),
                Ok(Some(count)) => {
                    if !shared.up.swap(true, Ordering::Relaxed) {
                        tracing::info!(nodes = count, "rate limits are shared");
                    }
                    if count != known {
                        known = count;
                        self.book().share_among(count);
                        nodes(count);
                    }
                }
                Ok(None) => {}
            }
            let shared_by = if shared.up.load(Ordering::Relaxed) {
                known
            } else {
                0
            };
            shared.meters.standing(shared_by, known);
            tokio::select! {
                () = sleep(SETTLE_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        let _ = self.tell(shared).await;
    }

    /// Tells the store what requests used that have ended since the last time.
    async fn tell(&self, shared: &Shared) -> Result<(), Away> {
        let pending = std::mem::take(&mut *shared.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if pending.is_empty() {
            return Ok(());
        }
        let subjects: Vec<(Arc<str>, Rule, u32, i64)> = {
            let book = self.book();
            let subject = |(id, beyond): (SubjectId, i64)| {
                (book.name(id).clone(), book.rule(id), book.running(id), beyond)
            };
            pending.into_iter().map(subject).collect()
        };
        let asks: Vec<Ask<'_>> = subjects
            .iter()
            .map(|(name, rule, running, beyond)| Ask {
                name,
                rule: *rule,
                requests: 0,
                tokens: *beyond,
                running: *running,
            })
            .collect();
        shared.share.settle(&asks).await
    }

    #[cfg(test)]
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
            .as_ref()
            .is_some_and(|shared| shared.up.load(Ordering::Relaxed))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry that is undone unless it is said to stay.
struct Entered<'a> {
    limits: &'a RateLimits,
    path: &'a Path,
    expected: u64,
    stays: bool,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.stays {
            self.limits.book().undo(self.path, self.expected);
        }
    }
}

/// What the store's refusal comes to.
fn refused(name: &Arc<str>, rule: Rule, dimension: Dimension, wait_us: u64) -> Refused {
    let limit = match dimension {
        Dimension::Requests => rule.requests_per_minute,
        Dimension::Tokens => rule.tokens_per_minute,
        Dimension::Concurrency => rule.concurrency,
    };
    let left = limits::Left {
        limit: limit.unwrap_or_default(),
        remaining: 0,
        reset_us: wait_us,
    };
    let mut standing = Standing::default();
    match dimension {
        Dimension::Requests => standing.requests = Some(left),
        Dimension::Tokens => standing.tokens = Some(left),
        Dimension::Concurrency => {}
    }
    let refusal = refusal(&Exceeded {
        subject: name.clone(),
        dimension,
        limit: left.limit,
        wait_us,
    });
    Refused { refusal, standing }
}

fn rule(rates: Rates) -> Rule {
    Rule {
        requests_per_minute: rates.requests_per_minute,
        tokens_per_minute: rates.tokens_per_minute,
        concurrency: rates.concurrency,
    }
}

fn tightest(lefts: &[Lefts]) -> Standing {
    let mut standing = Standing::default();
    for (requests, tokens) in lefts {
        standing.narrow(*requests, *tokens);
    }
    standing
}

fn refusal(exceeded: &Exceeded) -> Refusal {
    let wait = if exceeded.wait_us == 0 {
        A_MOMENT
    } else {
        Duration::from_micros(exceeded.wait_us)
    };
    Refusal::new(RefusalKind::RateLimited, exceeded.to_string())
        .hint("retry later; the limit is `rate_limits` of that account, in the gateway's configuration or its admin API")
        .retry_after(Some(wait))
}
