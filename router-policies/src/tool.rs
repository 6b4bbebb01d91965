//! The commands of `policy`: reading files, writing text or JSON. Exit status 0: good; 1: the policy is not; 2: the
//! command could not run.

pub(crate) mod check;
pub(crate) mod explain;
pub(crate) mod replay;
pub(crate) mod test;

use anyhow::Context;
use router_policies::{Policy, PolicyDocument};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
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

pub(crate) fn schema(out: &mut impl Write) -> anyhow::Result<Verdict> {
    json(&schemars::schema_for!(PolicyDocument), out)?;
    Ok(Verdict::Good)
}

pub(crate) fn diff(old: &Path, new: &Path, format: Format, out: &mut impl Write) -> anyhow::Result<Verdict> {
    let diff = router_policies::diff(&policy(old, &[])?, &policy(new, &[])?);
    match format {
        Format::Json => json(&diff, out)?,
        Format::Text => write!(out, "{}", diff.text())?,
    }
    Ok(Verdict::good_if(!diff.needs_approval()))
}
