//! `policy`: check a policy, test it against cases, explain a ruling.

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use router_policies::{Cases, Policy, PolicyDocument, eval};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Check and test routing policies before they ship.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read a policy and report the first mistake by line, path and the key that was probably meant.
    Check { policy: PathBuf },
    /// Run cases against a policy; exits 1 when one does not hold.
    Test { policy: PathBuf, cases: PathBuf },
    /// Predict on recorded prompts which model is worth choosing, and compare with what happened.
    Eval(eval::EvalArguments),
    /// Learn how likely models are to be right, from recorded outcomes.
    Train(eval::TrainArguments),
    /// Print the JSON schema of the policy document.
    Schema,
}

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match Arguments::parse().command {
        Command::Check { policy } => {
            let read = read_policy(&policy)?;
            writeln!(
                out,
                "{}: ok, version {}, {} deployments",
                policy.display(),
                read.version(),
                read.deployments().len()
            )?;
        }
        Command::Test { policy, cases } => {
            let read = read_policy(&policy)?;
            let text = std::fs::read_to_string(&cases)
                .with_context(|| format!("cannot read {}", cases.display()))?;
            let cases = Cases::parse(&text, &cases.display().to_string())?;
            let failures = cases.run(&read);
            for failure in &failures {
                writeln!(out, "FAIL {failure}")?;
            }
            writeln!(out, "{} cases, {} failures", cases.0.len(), failures.len())?;
            if !failures.is_empty() {
                bail!("the policy does not do what the cases expect");
            }
        }
        Command::Eval(arguments) => eval::eval(&arguments, &mut out)?,
        Command::Train(arguments) => eval::train(&arguments, &mut out)?,
        Command::Schema => {
            let schema = schemars::schema_for!(PolicyDocument);
            writeln!(out, "{}", serde_json::to_string_pretty(&schema)?)?;
        }
    }
    Ok(())
}

fn read_policy(path: &Path) -> anyhow::Result<Policy> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Policy::parse(&text, &path.display().to_string())?)
}
