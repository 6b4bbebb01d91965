//! `tollgate policy`: the commands of `policy`, with the gateway's ledger for records.

use crate::config::{Config, Secret};
use anyhow::Context;
use ledger::{Database, StoredDecision};
use router_policies::tool::{Command, Format, FromLedger, Source, Verdict};
use router_policies::{Recorded, RecordedOutcome};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

/// A policy that is not good ends the program as `policy` would: with 1, and 2 where the command could not run.
pub(super) fn run(command: Command, format: Format) -> u8 {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let ran = command.run(format, Some(&Ledgers), &mut out);
    let ended = out.flush();
    match (ran, ended) {
        (Ok(Verdict::Good), Ok(())) => 0,
        (Ok(_), _) => 1,
        (Err(error), _) => {
            let _ = writeln!(std::io::stderr(), "tollgate policy: {error:#}");
            2
        }
    }
}

struct Ledgers;

impl Source for Ledgers {
    fn each(
        &self,
        which: &FromLedger,
        each: &mut dyn FnMut(Recorded) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (database, span) = (database(which)?, span(which)?);
        if let Database::Sqlite(file) = &database {
            anyhow::ensure!(file.exists(), "there is no ledger at {}", file.display());
        }
        let (mut failed, mut unread, mut first) = (None, 0_u64, None);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(ledger::decisions(&database, span, |stored| {
            match recorded(stored) {
                Ok(record) if failed.is_none() => failed = each(record).err(),
                Ok(_) => {}
                Err(error) => {
                    unread += 1;
                    first.get_or_insert(error);
                }
            }
        }))?;
        if let Some(error) = first {
            let told = "records cannot be read, as if another version had written them";
            writeln!(std::io::stderr(), "{unread} {told}; the first: {error}")?;
        }
        failed.map_or(Ok(()), Err)
    }
}

fn recorded(stored: StoredDecision) -> serde_json::Result<Recorded> {
    let mut record: Recorded = serde_json::from_str(&stored.decision)?;
    record.id = stored.request.to_string();
    record.charged = stored.charged;
    record.latency_ms = stored.answered.then_some(stored.total_us.unsigned_abs() / 1000);
    record.outcome = stored.outcome.map(|told| RecordedOutcome {
        workflow: told.workflow.into(),
        deployment: told.deployment.into(),
        success: told.success,
    });
    Ok(record)
}

fn database(which: &FromLedger) -> anyhow::Result<Database> {
    let Some(store) = &which.store else {
        return Ok(Config::load(&which.config)?.database);
    };
    let is_reference = store.starts_with("env:") || store.starts_with("file:");
    let place = if is_reference {
        let secret = Secret::resolve(store, Path::new("."));
        secret
            .map_err(|error| anyhow::anyhow!("--store {store}: {error}"))?
            .expose()
            .to_owned()
    } else {
        store.clone()
    };
    let is_url = place.starts_with("postgres://") || place.starts_with("postgresql://");
    Ok(if is_url {
        Database::Postgres {
            url: place,
            connections: 3,
        }
    } else {
        Database::Sqlite(place.into())
    })
}

/// Days in UTC as microseconds since the epoch.
fn span(which: &FromLedger) -> anyhow::Result<Range<i64>> {
    let day = |text: &Option<String>, name: &str, open: i64| match text {
        None => Ok(open),
        Some(text) => super::export::day(text)
            .with_context(|| format!("`--{name} {text}` is not a day such as 2026-11-25")),
    };
    Ok(day(&which.since, "since", i64::MIN)?..day(&which.until, "until", i64::MAX)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn which() -> FromLedger {
        FromLedger {
            from_ledger: true,
            config: "tollgate.yaml".into(),
            store: None,
            since: None,
            until: None,
        }
    }

    #[test]
    fn a_store_is_a_file_or_a_url_and_a_span_is_days() {
        let with = |store: &str| FromLedger {
            store: Some(store.into()),
            ..which()
        };
        assert_eq!(database(&with("a.db")).unwrap(), Database::Sqlite("a.db".into()));
        assert!(matches!(
            database(&with("postgres://u@h/d")).unwrap(),
            Database::Postgres { .. }
        ));
        assert!(
            database(&with("env:NOT_SET_ANYWHERE"))
                .unwrap_err()
                .to_string()
                .contains("NOT_SET")
        );
        assert_eq!(span(&which()).unwrap(), i64::MIN..i64::MAX);
        let since = |text: &str| {
            span(&FromLedger {
                since: Some(text.into()),
                ..which()
            })
        };
        assert_eq!(since("2026-11-01").unwrap().start, 1_793_491_200_000_000);
        assert!(since("yesterday").unwrap_err().to_string().contains("2026-11-25"));
        let missing = Ledgers.each(&with("not-there.db"), &mut |_| Ok(()));
        assert!(missing.unwrap_err().to_string().contains("there is no ledger"));
    }
}
