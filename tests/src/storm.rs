//! The storm: real gateway processes that share a store, callers that leave, providers that fail and lie, nodes killed and
//! stores stopped in the middle; then the ledger is compared with what the provider really served.
//!
//! The provider is the truth: its log says which requests reached it and how many tokens it made for each. Every caller
//! has a key of its own among many, so that a row of the ledger and an entry of the provider can be told to belong
//! together whatever was killed in between.

pub mod audit;
pub mod callers;
pub mod crowd;
pub mod dice;
pub mod nodes;
pub mod store;
pub mod trouble;

/// Nano-dollars for each token that a fake model reads: $1 per million.
pub const INPUT_NANOS: i64 = 1_000;
/// And for each that it writes: $4 per million.
pub const OUTPUT_NANOS: i64 = 4_000;
/// What each model says it has read.
pub const INPUT_TOKENS: i64 = 100;

/// What a request with so many tokens of output costs.
pub const fn cost(output: i64) -> i64 {
    INPUT_TOKENS * INPUT_NANOS + output * OUTPUT_NANOS
}

/// A model and how often it is asked for, in percent.
pub type Mix = &'static [(&'static str, u32)];

/// Quick, slow and long answers; silence about usage, lies about it; errors, and streams that break.
pub const STORMY: Mix = &[
    ("fake-in100-n20", 30),
    ("fake-in100-n60-gap2", 25),
    ("fake-in100-n400-gap1", 15),
    ("fake-in100-n30-ttft40", 10),
    ("fake-in100-n20-nousage", 6),
    ("fake-in100-n20-badusage", 2),
    ("fake-in100-n40-cut15", 6),
    ("fake-in100-n20-500", 3),
    ("fake-in100-n20-429", 3),
];

/// One model, each answer of which costs the same.
pub const EVEN: Mix = &[("fake-in100-n50", 100)];

/// The team's name.
pub fn team(number: usize) -> String {
    format!("team{number}")
}

/// The key of caller `number`; it is in the configuration by its hash.
pub fn key(number: usize) -> String {
    format!("tg_storm_key_{number:08}_0123456789abcdef")
}
