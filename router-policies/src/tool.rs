//! The commands of `policy`: reading files, writing text or JSON. Exit status 0: good; 1: the policy is not; 2: the
//! command could not run.
//!
//! Two programs have them: `policy`, which knows files alone, and `tollgate policy`, which knows the gateway's ledger too.

mod check;
mod explain;
mod records;
mod replay;
mod test;

pub use records::{FromLedger, Source};

use crate::eval;
use crate::{Policy, PolicyDocument};
use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Report every mistake of a policy by line and column, then what lint finds; exits 1 on errors.
    Check(check::Check),
    /// Run cases against a policy and tell which rules no case reaches; exits 1 when a case does not hold.
    Test(test::Test),
    /// Show one decision: each candidate, its score terms, and why it lost.
    Explain(explain::Explain),
    /// Show what changes between two policies; exits 1 on a downgrade of valuable work that nobody approved.
    Diff { old: PathBuf, new: PathBuf },
    /// Rule again on recorded traffic: money, refusals, class shifts, expected success, and what flips.
    Replay(replay::Replay),
    /// Write what a ledger keeps of decisions and outcomes as a file, for `replay --records` and `train --from`.
    Records(records::Export),
    /// Predict on recorded prompts which model is worth choosing, and compare with what happened.
    Eval(Box<eval::EvalArguments>),
    /// Learn how likely models are to be right, from recorded outcomes.
    Train(Box<eval::TrainArguments>),
    /// Print the JSON schema of the policy document.
    Schema,
}

impl Command {
    /// It reads a ledger, which is the gateway's.
    pub fn reads_a_ledger(&self) -> bool {
        match self {
            Self::Replay(replay) => replay.reads_a_ledger(),
            Self::Records(_) => true,
            _ => false,
        }
    }

    /// `source`: where the ledger's records come from, for who has one.
    ///
    /// # Errors
    /// The command could not run.
    pub fn run(
        self,
        format: Format,
        source: Option<&dyn Source>,
        out: &mut impl Write,
    ) -> anyhow::Result<Verdict> {
        match self {
            Self::Check(check) => check.run(format, out),
            Self::Test(test) => test.run(format, out),
            Self::Explain(explain) => explain.run(format, out),
            Self::Diff { old, new } => diff(&old, &new, format, out),
            Self::Replay(replay) => replay.run(format, source, out),
            Self::Records(export) => export.run(source, out),
            Self::Eval(arguments) => eval::eval(&arguments, out).map(|()| Verdict::Good),
            Self::Train(arguments) => eval::train(&arguments, out).map(|()| Verdict::Good),
            Self::Schema => schema(out),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    Bad,
}

impl Verdict {
    pub(crate) fn good_if(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

pub(crate) fn policy(path: &Path, teams: &[PathBuf]) -> anyhow::Result<Policy> {
    let (text, file) = (read(path)?, path.display().to_string());
    let layers = teams
        .iter()
        .map(|team| Ok((read(team)?, team.display().to_string())));
    let layers: Vec<(String, String)> = layers.collect::<anyhow::Result<_>>()?;
    let layers: Vec<(&str, &str)> = layers
        .iter()
        .map(|(text, file)| (text.as_str(), file.as_str()))
        .collect();
    Ok(Policy::parse_layers((&text, &file), &layers)?)
}

pub(crate) fn json(value: &impl Serialize, out: &mut impl Write) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

fn schema(out: &mut impl Write) -> anyhow::Result<Verdict> {
    json(&schemars::schema_for!(PolicyDocument), out)?;
    Ok(Verdict::Good)
}

fn diff(old: &Path, new: &Path, format: Format, out: &mut impl Write) -> anyhow::Result<Verdict> {
    let diff = crate::diff(&policy(old, &[])?, &policy(new, &[])?);
    match format {
        Format::Json => json(&diff, out)?,
        Format::Text => write!(out, "{}", diff.text())?,
    }
    Ok(Verdict::good_if(!diff.needs_approval()))
}
