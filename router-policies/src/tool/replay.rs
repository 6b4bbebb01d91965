//! `policy replay`: recorded decisions made again under another policy.

use super::{Format, Verdict, json};
use anyhow::{Context, bail};
use clap::Args;
use router_policies::{Recorded, replay};
use std::io::{BufRead, Write};
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct Replay {
    /// Records, one JSON object a line, as the gateway writes them.
    #[arg(long)]
    records: PathBuf,
    /// The policy to try.
    #[arg(long)]
    policy: PathBuf,
    /// Files with the layers of teams that keep their own.
    #[arg(long)]
    team: Vec<PathBuf>,
    /// How many of the requests that flip to show.
    #[arg(long, default_value_t = 20)]
    show: usize,
}

impl Replay {
    pub(crate) fn run(&self, format: Format, out: &mut impl Write) -> anyhow::Result<Verdict> {
        let policy = super::policy(&self.policy, &self.team)?;
        let records = self.read()?;
        let replayed = replay(&records, &policy, self.show);
        match format {
            Format::Json => json(&replayed, out)?,
            Format::Text => {
                writeln!(out, "policy {}", replayed.policy_version)?;
                write!(out, "{}", replayed.summary.text())?;
                let side = |side: &router_policies::Side| match (&side.deployment, side.refused) {
                    (Some(id), _) => {
                        let thinking = side
                            .thinking
                            .map_or(String::new(), |level| format!(", thinks {level}"));
                        format!("{id}{thinking} {}", side.money)
                    }
                    (None, Some(kind)) => format!("refused: {kind}"),
                    (None, None) => "-".into(),
                };
                if !replayed.flips.is_empty() {
                    writeln!(out, "\nthe first {} that flip:", replayed.flips.len())?;
                }
                for flip in &replayed.flips {
                    let why = flip.why.map_or(String::new(), |why| format!("  ({why})"));
                    let workflow = flip.workflow.as_deref().unwrap_or("-");
                    writeln!(
                        out,
                        "  {} {workflow}: {} -> {}{why}",
                        flip.id,
                        side(&flip.was),
                        side(&flip.is)
                    )?;
                }
            }
        }
        Ok(Verdict::Good)
    }

    fn read(&self) -> anyhow::Result<Vec<Recorded>> {
        let shown = self.records.display();
        let file = std::fs::File::open(&self.records).with_context(|| format!("cannot read {shown}"))?;
        let mut records = Vec::new();
        for (number, line) in std::io::BufReader::with_capacity(1 << 20, file)
            .lines()
            .enumerate()
        {
            let line = line.with_context(|| format!("cannot read {shown}"))?;
            if line.trim().is_empty() {
                continue;
            }
            let read = serde_json::from_str(&line);
            records.push(read.with_context(|| format!("{shown}:{}: not a record", number + 1))?);
        }
        if records.is_empty() {
            bail!(
                "{shown} holds no records; the gateway writes them where `records` of its configuration says"
            );
        }
        Ok(records)
    }
}
