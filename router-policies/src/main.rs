//! `policy`: check, test, explain, compare and replay routing policies before they ship.

mod tool;

use clap::{Parser, Subcommand};
use router_policies::eval;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Check, test, explain, compare and replay routing policies before they ship.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Report every mistake of a policy by line and column, then what lint finds; exits 1 on errors.
    Check(tool::check::Check),
    /// Run cases against a policy and tell which rules no case reaches; exits 1 when a case does not hold.
    Test(tool::test::Test),
    /// Show one decision: each candidate, its score terms, and why it lost.
    Explain(tool::explain::Explain),
    /// Show what changes between two policies; exits 1 on a downgrade of valuable work that nobody approved.
    Diff { old: PathBuf, new: PathBuf },
    /// Rule again on recorded traffic: money, refusals, class shifts, expected success, and what flips.
    Replay(tool::replay::Replay),
    /// Predict on recorded prompts which model is worth choosing, and compare with what happened.
    Eval(eval::EvalArguments),
    /// Learn how likely models are to be right, from recorded outcomes.
    Train(eval::TrainArguments),
    /// Print the JSON schema of the policy document.
    Schema,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = if arguments.json {
        tool::Format::Json
    } else {
        tool::Format::Text
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let ran = match arguments.command {
        Command::Check(check) => check.run(format, &mut out),
        Command::Test(test) => test.run(format, &mut out),
        Command::Explain(explain) => explain.run(format, &mut out),
        Command::Diff { old, new } => tool::diff(&old, &new, format, &mut out),
        Command::Replay(replay) => replay.run(format, &mut out),
        Command::Eval(arguments) => eval::eval(&arguments, &mut out).map(|()| tool::Verdict::Good),
        Command::Train(arguments) => eval::train(&arguments, &mut out).map(|()| tool::Verdict::Good),
        Command::Schema => tool::schema(&mut out),
    };
    let ended = out.flush();
    match (ran, ended) {
        (Ok(tool::Verdict::Good), Ok(())) => ExitCode::SUCCESS,
        (Ok(_), _) => ExitCode::FAILURE,
        (Err(error), _) => {
            let _ = writeln!(std::io::stderr(), "policy: {error:#}");
            ExitCode::from(2)
        }
    }
}
