//! `batchcrash`: kills gateways at random moments while they carry batches, and then compares three books: what the jobs
//! say, what the ledger says, and what the fake provider was really given, answered and billed.

#![allow(clippy::print_stdout, reason = "a program's output")]

use clap::Parser;
use std::path::PathBuf;
use tests::crashes::{Plan, Provider, run};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    #[arg(long, default_value_t = 200)]
    kills: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the binaries are.
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
    /// SQLite instead of Postgres: for one node.
    #[arg(long)]
    sqlite: bool,
    #[arg(long, value_enum, default_value = "mixed")]
    provider: Provider,
}

fn main() {
    let arguments = Arguments::parse();
    let plan = Plan {
        nodes: arguments.nodes,
        kills: arguments.kills,
        seed: arguments.seed,
        binary: arguments.bin.join("tollgate"),
        postgres: !arguments.sqlite,
        provider: arguments.provider,
    };
    print!("{}", run(&plan));
}
