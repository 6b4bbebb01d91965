//! A day of the batch tier on a virtual clock: requests come, the product's own core decides, simulated providers answer.
//!
//! Owns: the traffic, the providers and their futures, the sums. Every decision (which way, when a pool goes, how it is
//! cut, when waiting ends) is `batch`'s, the crate that the gateway runs: the one product crate that this package knows.
//! What will happen is a function of seed, provider and minute, so that the oracle can be asked about the same future.

mod future;
mod oracle;
mod run;
mod traffic;

pub use run::{Day, run};

use batch::SECOND;

pub(crate) const MINUTE: i64 = 60 * SECOND;
pub(crate) const HOUR: i64 = 60 * MINUTE;

/// Which provider's batches stand still, from 10:00 to 13:00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    None,
    Openai,
    Anthropic,
}

impl Stall {
    pub fn parse(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "none" => Self::None,
            "openai" => Self::Openai,
            "anthropic" => Self::Anthropic,
            other => anyhow::bail!("no such provider: {other}; it is openai, anthropic or none"),
        })
    }
}

/// What kind of day.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub requests: u32,
    pub seed: u64,
    pub stall: Stall,
}
