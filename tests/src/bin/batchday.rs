//! `batchday`: a day of mixed traffic through the batch tier's core on a virtual clock, against an oracle that knows the
//! future. Prints a table; with `--check` it fails where the day is worse than it must be.

#![allow(clippy::print_stdout, reason = "a program's output")]

use clap::Parser;
use tests::batchday::{self, Day, Setup};

#[derive(Parser)]
struct Arguments {
    /// Requests of the day.
    #[arg(long, default_value_t = 100_000)]
    requests: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The provider whose batches stand still for three hours: `openai`, `anthropic` or `none`.
    #[arg(long, default_value = "openai")]
    stall: String,
    /// Fail where a promise is broken: 95 % of deferrable tokens at a discount, no deadline missed, the saving within two
    /// points of the oracle's.
    #[arg(long)]
    check: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let setup = Setup {
        requests: arguments.requests,
        seed: arguments.seed,
        stall: batchday::Stall::parse(&arguments.stall)?,
    };
    let day = batchday::run(&setup);
    print!("{}", day.table());
    if arguments.check {
        check(&day)?;
    }
    Ok(())
}

fn check(day: &Day) -> anyhow::Result<()> {
    anyhow::ensure!(day.missed == 0, "{} deadlines were missed", day.missed);
    anyhow::ensure!(
        day.discounted() >= 0.95,
        "only {:.1} % of deferrable tokens at a discount",
        100.0 * day.discounted()
    );
    let gap = day.oracle_saving() - day.saving();
    anyhow::ensure!(
        gap <= 0.02,
        "the saving is {:.2} points below the oracle's",
        100.0 * gap
    );
    Ok(())
}
