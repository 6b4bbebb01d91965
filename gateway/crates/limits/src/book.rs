//! All subjects with limits, and admission against every one on a path at once.

use crate::bucket::Bucket;
use smallvec::SmallVec;
use std::sync::Arc;

/// What a subject (an account, a deployment) may do. What is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub requests_per_minute: Option<u32>,
    /// Tokens read and generated, together.
    pub tokens_per_minute: Option<u32>,
    /// Requests running at once.
    pub concurrency: Option<u32>,
}

impl Rule {
    pub const fn is_empty(&self) -> bool {
        self.requests_per_minute.is_none() && self.tokens_per_minute.is_none() && self.concurrency.is_none()
    }

    /// A node's part of it where `nodes` share it: at least 1, so that no node is shut out.
    fn share(self, nodes: u32) -> Self {
        let part = |limit: u32| (limit / nodes.max(1)).max(1);
        Self {
            requests_per_minute: self.requests_per_minute.map(part),
            tokens_per_minute: self.tokens_per_minute.map(part),
            concurrency: self.concurrency.map(part),
        }
    }
}

/// A subject in a [`Book`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectId(pub u32);

/// The subjects that a request must fit, all of them.
pub type Path = SmallVec<[SubjectId; 4]>;

/// What ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    Requests,
    Tokens,
    Concurrency,
}

impl Dimension {
    pub const ALL: [Self; 3] = [Self::Requests, Self::Tokens, Self::Concurrency];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
        }
    }
}

/// Why a request cannot pass now: of all that is in its way, what keeps it waiting longest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub subject: Arc<str>,
    pub dimension: Dimension,
    pub limit: u32,
    /// 0 for concurrency: nobody knows when a request ends.
    pub wait_us: u64,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (subject, limit) = (&self.subject, self.limit);
        match self.dimension {
            Dimension::Requests => write!(f, "the limit of {subject} is reached: {limit} requests a minute"),
            Dimension::Tokens => write!(f, "the limit of {subject} is reached: {limit} tokens a minute"),
            Dimension::Concurrency => {
                write!(f, "the limit of {subject} is reached: {limit} requests at once")
            }
        }
    }
}

impl std::error::Error for Exceeded {}

/// How much of a rate is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub limit: u32,
    pub remaining: u64,
    /// Until it is whole again.
    pub reset_us: u64,
}

/// What is left to a caller: for each rate, of the subject on its path that has least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub requests: Option<Left>,
    pub tokens: Option<Left>,
}

impl Standing {
    pub const fn is_empty(&self) -> bool {
        self.requests.is_none() && self.tokens.is_none()
    }

    /// Takes in what another subject has left.
    pub fn narrow(&mut self, requests: Option<Left>, tokens: Option<Left>) {
        let least = |mine: Option<Left>, other: Option<Left>| match (mine, other) {
            (Some(mine), Some(other)) if other.remaining < mine.remaining => Some(other),
            (mine, other) => mine.or(other),
        };
        self.requests = least(self.requests, requests);
        self.tokens = least(self.tokens, tokens);
    }
}

#[derive(Clone, Debug)]
struct Subject {
    name: Arc<str>,
    rule: Rule,
    /// The node's part of the rule.
    concurrency: Option<u32>,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    running: u32,
}

/// Every subject. Not shared: whoever owns it serialises access.
#[derive(Clone, Debug)]
pub struct Book {
    subjects: Vec<Subject>,
    nodes: u32,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            subjects: Vec::new(),
            nodes: 1,
        }
    }
}

impl Book {
    /// Adds a subject, with all it may use there to be used.
    pub fn add(&mut self, name: Arc<str>, rule: Rule, now_us: i64) -> SubjectId {
        let part = rule.share(self.nodes);
        self.subjects.push(Subject {
            name,
            rule,
            concurrency: part.concurrency,
            requests: part.requests_per_minute.map(|rate| Bucket::new(rate, now_us)),
            tokens: part.tokens_per_minute.map(|rate| Bucket::new(rate, now_us)),
            running: 0,
        });
        SubjectId(u32::try_from(self.subjects.len() - 1).unwrap_or(u32::MAX))
    }

    /// Gives a subject another rule. A rate that it had stays as full in proportion; one that is new is full.
    pub fn change(&mut self, id: SubjectId, rule: Rule, now_us: i64) {
        let part = rule.share(self.nodes);
        let subject = &mut self.subjects[id.0 as usize];
        subject.refill(now_us);
        let at = |bucket: &Option<Bucket>, rate: Option<u32>| {
            let rate = rate?;
            Some(
                bucket
                    .as_ref()
                    .map_or_else(|| Bucket::new(rate, now_us), |bucket| bucket.at_rate(rate)),
            )
        };
        subject.requests = at(&subject.requests, part.requests_per_minute);
        subject.tokens = at(&subject.tokens, part.tokens_per_minute);
        subject.concurrency = part.concurrency;
        subject.rule = rule;
    }

    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    pub fn ids(&self) -> impl Iterator<Item = SubjectId> + use<> {
        let count = u32::try_from(self.subjects.len()).unwrap_or(u32::MAX);
        (0..count).map(SubjectId)
    }

    pub fn name(&self, id: SubjectId) -> &Arc<str> {
        &self.subjects[id.0 as usize].name
    }

    pub fn rule(&self, id: SubjectId) -> Rule {
        self.subjects[id.0 as usize].rule
    }

    /// Requests of this node running on the subject.
    pub fn running(&self, id: SubjectId) -> u32 {
        self.subjects[id.0 as usize].running
    }

    /// From now on the limits are shared by so many nodes, each of which has an equal part.
    pub fn share_among(&mut self, nodes: u32) {
        let nodes = nodes.max(1);
        if nodes == self.nodes {
            return;
        }
        self.nodes = nodes;
        for subject in &mut self.subjects {
            let part = subject.rule.share(nodes);
            let at = |bucket: &mut Option<Bucket>, rate: Option<u32>| {
                if let (Some(bucket), Some(rate)) = (bucket.as_mut(), rate) {
                    *bucket = bucket.at_rate(rate);
                }
            };
            at(&mut subject.requests, part.requests_per_minute);
            at(&mut subject.tokens, part.tokens_per_minute);
            subject.concurrency = part.concurrency;
        }
    }

    /// Admits a request that is expected to use `tokens`, on every subject of the path or on none.
    ///
    /// # Errors
    /// What it has to wait for. Nothing was taken.
    pub fn admit(&mut self, path: &[SubjectId], tokens: u64, now_us: i64) -> Result<Standing, Exceeded> {
        let mut worst: Option<Exceeded> = None;
        for id in path {
            let subject = &mut self.subjects[id.0 as usize];
            subject.refill(now_us);
            if let Some((dimension, limit, wait_us)) = subject.in_the_way(tokens)
                && worst.as_ref().is_none_or(|worst| wait_us >= worst.wait_us)
            {
                worst = Some(Exceeded {
                    subject: subject.name.clone(),
                    dimension,
                    limit,
                    wait_us,
                });
            }
        }
        match worst {
            Some(exceeded) => Err(exceeded),
            None => Ok(self.enter(path, tokens, now_us)),
        }
    }

    /// Counts a request in although somebody else admitted it, and says what is left here.
    pub fn enter(&mut self, path: &[SubjectId], tokens: u64, now_us: i64) -> Standing {
        let mut standing = Standing::default();
        for id in path {
            let subject = &mut self.subjects[id.0 as usize];
            subject.refill(now_us);
            subject.running += 1;
            if let Some(requests) = &mut subject.requests {
                requests.take(1);
            }
            if let Some(bucket) = &mut subject.tokens {
                bucket.take(tokens);
            }
            standing.narrow(left(subject.requests.as_ref()), left(subject.tokens.as_ref()));
        }
        standing
    }

    /// Takes back an entry that somebody else then refused.
    pub fn undo(&mut self, path: &[SubjectId], tokens: u64) {
        self.leave(path, tokens, 0);
        for id in path {
            if let Some(requests) = &mut self.subjects[id.0 as usize].requests {
                requests.give_back(1);
            }
        }
    }

    /// Nothing is owed any more: what was let through by somebody else's leave is not held against a node's own part.
    pub fn forgive(&mut self) {
        for subject in &mut self.subjects {
            for bucket in [&mut subject.requests, &mut subject.tokens].into_iter().flatten() {
                bucket.forgive();
            }
        }
    }

    /// What is left to a caller on the path.
    pub fn standing(&mut self, path: &[SubjectId], now_us: i64) -> Standing {
        let mut standing = Standing::default();
        for id in path {
            let subject = &mut self.subjects[id.0 as usize];
            subject.refill(now_us);
            standing.narrow(left(subject.requests.as_ref()), left(subject.tokens.as_ref()));
        }
        standing
    }

    /// A request is over: it was admitted for `expected` tokens and used `used`.
    pub fn leave(&mut self, path: &[SubjectId], expected: u64, used: u64) {
        for id in path {
            let subject = &mut self.subjects[id.0 as usize];
            subject.running = subject.running.saturating_sub(1);
            if let Some(bucket) = &mut subject.tokens {
                if used > expected {
                    bucket.take(used - expected);
                } else {
                    bucket.give_back(expected - used);
                }
            }
        }
    }
}

impl Subject {
    fn refill(&mut self, now_us: i64) {
        if let Some(requests) = &mut self.requests {
            requests.refill(now_us);
        }
        if let Some(tokens) = &mut self.tokens {
            tokens.refill(now_us);
        }
    }

    /// What keeps a request out longest.
    fn in_the_way(&self, tokens: u64) -> Option<(Dimension, u32, u64)> {
        let full = self.concurrency.filter(|limit| self.running >= *limit);
        let concurrency = full.map(|limit| (Dimension::Concurrency, limit, 0));
        let rate = |dimension, bucket: Option<&Bucket>, units| {
            let bucket = bucket?;
            let wait_us = bucket.wait_us(units);
            (wait_us > 0).then_some((dimension, bucket.rate(), wait_us))
        };
        let found = [
            concurrency,
            rate(Dimension::Requests, self.requests.as_ref(), 1),
            rate(Dimension::Tokens, self.tokens.as_ref(), tokens),
        ];
        found.into_iter().flatten().max_by_key(|(.., wait_us)| *wait_us)
    }
}

fn left(bucket: Option<&Bucket>) -> Option<Left> {
    bucket.map(|bucket| Left {
        limit: bucket.rate(),
        remaining: bucket.remaining(),
        reset_us: bucket.reset_us(),
    })
}
