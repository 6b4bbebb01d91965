//! Rate limits: requests and tokens a minute and requests at once, on any number of subjects.
//!
//! Owns: buckets, admission against a whole path of subjects, the true-up of tokens, a node's part of limits that nodes
//! share. Refuses to know: the clock, sockets, threads, who the subjects are. Invariants: a request that is refused has
//! changed nothing; over any `t` minutes a subject lets through no more than `(1 + t)` times its rate, and what a request
//! used beyond what was expected of it is waited for by those after it.

mod book;
mod bucket;

pub use book::{Book, Dimension, Exceeded, Left, Path, Rule, Standing, SubjectId};
pub use bucket::Bucket;
