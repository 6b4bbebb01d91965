//! Records that a gateway keeps in its ledger: how they are asked for, and `policy records`, which writes them as a file.
//!
//! Refuses to know: SQL and the gateway's configuration; whoever runs the commands brings a [`Source`] or none.

use super::Verdict;
use crate::Recorded;
use anyhow::Context;
use clap::Args;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Which records of which ledger.
#[derive(Args, Clone, Debug)]
pub struct FromLedger {
    /// Records that a gateway keeps in its ledger, where `store.decisions` of its configuration is true.
    #[arg(long)]
    pub from_ledger: bool,
    /// The gateway's configuration, which says where its ledger is.
    #[arg(long, default_value = "tollgate.yaml", requires = "from_ledger")]
    pub config: PathBuf,
    /// The ledger, in place of a configuration: an SQLite file, or env:NAME or file:PATH that holds a postgres:// URL.
    #[arg(long, requires = "from_ledger", conflicts_with = "config")]
    pub store: Option<String>,
    /// The first day, in UTC, such as 2026-11-01.
    #[arg(long, requires = "from_ledger")]
    pub since: Option<String>,
    /// The day after the last, in UTC.
    #[arg(long, requires = "from_ledger")]
    pub until: Option<String>,
}

/// Who can read a ledger.
pub trait Source {
    /// Hands every record to `each`.
    ///
    /// # Errors
    /// The ledger cannot be read, or what `each` returns.
    fn each(
        &self,
        which: &FromLedger,
        each: &mut dyn FnMut(Recorded) -> anyhow::Result<()>,
    ) -> anyhow::Result<()>;
}

impl FromLedger {
    pub(super) fn each(
        &self,
        source: Option<&dyn Source>,
        each: &mut dyn FnMut(Recorded) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let source = source.context("this program knows no ledger: run the same as `tollgate policy …`")?;
        source.each(self, each)
    }
}

/// Write records as a file.
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    ledger: FromLedger,
    /// The file, a JSON object a line.
    #[arg(long)]
    out: PathBuf,
}

impl Export {
    pub(super) fn run(&self, source: Option<&dyn Source>, out: &mut impl Write) -> anyhow::Result<Verdict> {
        let shown = self.out.display();
        let file = std::fs::File::create(&self.out).with_context(|| format!("cannot write {shown}"))?;
        let (mut file, mut count) = (BufWriter::new(file), 0_u64);
        self.ledger.each(source, &mut |record| {
            count += 1;
            serde_json::to_writer(&mut file, &record)?;
            file.write_all(b"\n")?;
            Ok(())
        })?;
        file.flush().with_context(|| format!("cannot write {shown}"))?;
        writeln!(out, "{shown}: {count} records")?;
        Ok(Verdict::Good)
    }
}
