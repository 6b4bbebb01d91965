//! `background`: batch items on our own engine beside interactive callers. Finds the engine's capacity, offers 70 % of it
//! as interactive load, in turns without and with a batch that never runs dry, all through the gateway and with the real
//! model. Prints times to the first token and what the batch made of what was left.
//!
//! `cargo run --release -p tests --bin background` (the binaries of gateway and local-backend lie beside it)

#![allow(clippy::print_stdout, reason = "a program's output")]

use clap::Parser;
use std::path::PathBuf;
use tests::background::{self, Plan};

#[derive(Parser)]
struct Arguments {
    /// Pairs of turns, one without and one with the batch.
    #[arg(long, default_value_t = 6)]
    rounds: u32,
    /// Of each turn.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Interactive load, in percent of capacity.
    #[arg(long, default_value_t = 70)]
    load: u32,
    /// Interactive callers at once while capacity is found. With many, capacity is that of full batches, which 70 % of the
    /// load does not fill: more of the engine's time is then taken than 70 %.
    #[arg(long, default_value_t = 4)]
    callers: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value = ".run/models/smollm2-135m-instruct-q4_1.gguf")]
    model: PathBuf,
    /// Turns are added to those of earlier runs in this file, and the table is made of all.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Fail where the time to the first token rises by 10 % or the batch uses less than 80 % of what is left.
    #[arg(long)]
    check: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let plan = Plan {
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        load: f64::from(arguments.load) / 100.0,
        callers: arguments.callers,
        seed: arguments.seed,
        model: arguments.model,
        keep: arguments.keep,
    };
    let outcome = background::run(&plan)?;
    print!("{}", outcome.table());
    if arguments.check {
        anyhow::ensure!(
            outcome.rise() < 0.10,
            "the time to the first token rises too much"
        );
        anyhow::ensure!(outcome.used() >= 0.80, "the batch leaves too much unused");
    }
    Ok(())
}
