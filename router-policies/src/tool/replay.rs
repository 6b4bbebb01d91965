//! `policy replay`: recorded decisions made again under another policy.

use super::records::{FromLedger, Source};
use super::{Format, Verdict, json};
use crate::{Recorded, Replaying};
use anyhow::{Context, bail};
use clap::Args;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Replay {
    /// Records, one JSON object a line, as the gateway writes them.
    #[arg(long, required_unless_present = "from_ledger", conflicts_with = "from_ledger")]
    records: Option<PathBuf>,
    #[command(flatten)]
    ledger: FromLedger,
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
    pub(super) fn reads_a_ledger(&self) -> bool {
        self.records.is_none()
    }

    pub(super) fn run(
        &self,
        format: Format,
        source: Option<&dyn Source>,
        out: &mut impl Write,
    ) -> anyhow::Result<Verdict> {
        let policy = super::policy(&self.policy, &self.team)?;
        let mut replaying = Replaying::new(&policy, self.show);
        let mut count = 0_u64;
        let mut each = |record: Recorded| {
            count += 1;
            replaying.add(&record);
            Ok(())
        };
        let from = match &self.records {
            Some(file) => read(file, &mut each).map(|()| file.display().to_string())?,
            None => self
                .ledger
                .each(source, &mut each)
                .map(|()| "the ledger".into())?,
        };
        if count == 0 {
            bail!(
                "{from} holds no records; the gateway keeps them where `records` or `store.decisions` of its configuration says"
            );
        }
        let replayed = replaying.done();
        match format {
            Format::Json => json(&replayed, out)?,
            Format::Text => {
                writeln!(out, "policy {}", replayed.policy_version)?;
                write!(out, "{}", replayed.summary.text())?;
                let side = |side: &crate::Side| match (&side.deployment, side.refused) {
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
}

fn read(file: &Path, each: &mut dyn FnMut(Recorded) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let shown = file.display();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read {shown}"))?;
    let lines = std::io::BufReader::with_capacity(1 << 20, opened).lines();
    for (number, line) in lines.enumerate() {
        let line = line.with_context(|| format!("cannot read {shown}"))?;
        if !line.trim().is_empty() {
            let record = serde_json::from_str(&line);
            each(record.with_context(|| format!("{shown}:{}: not a record", number + 1))?)?;
        }
    }
    Ok(())
}
