//! `tollgate export`: what was billed, for other tools.

use crate::clock;
use crate::config::Config;
use crate::focus::{Focus, write_csv, write_parquet};
use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use ledger::Database;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use time::{Date, Month};

#[derive(Subcommand)]
pub(crate) enum ExportCommand {
    /// Cost and usage in the FinOps Foundation's FOCUS format, version 1.2: a row for each day, account, model and price.
    Focus {
        /// The month in UTC, such as 2026-11.
        #[arg(long)]
        month: String,
        /// The file to write. Left out: standard output.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Left out: by the file's ending.
        #[arg(long)]
        format: Option<Format>,
        #[arg(long, default_value = "tollgate.yaml")]
        config: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Csv,
    Parquet,
}

pub(super) fn run(command: ExportCommand, out: &mut (impl Write + Send)) -> anyhow::Result<()> {
    let ExportCommand::Focus {
        month,
        out: path,
        format,
        config,
    } = command;
    let period = period(&month)?;
    let config = Config::load(&config)?;
    if let Database::Sqlite(file) = &config.database {
        anyhow::ensure!(
            file.exists(),
            "there is no ledger at {}; see `store` in the configuration",
            file.display()
        );
    }
    let focus = gather(&config.database, period)?;
    let by_ending = path
        .as_deref()
        .and_then(Path::extension)
        .filter(|ending| *ending == "parquet");
    let format = format.unwrap_or(if by_ending.is_some() {
        Format::Parquet
    } else {
        Format::Csv
    });
    match path {
        None => write(&focus, format, out),
        Some(path) => {
            let file =
                File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
            write(&focus, format, BufWriter::new(file))?;
            writeln!(
                out,
                "{}: {} rows, {}",
                path.display(),
                focus.len(),
                focus.billed()
            )?;
            Ok(())
        }
    }
}

fn write(focus: &Focus, format: Format, out: impl Write + Send) -> anyhow::Result<()> {
    match format {
        Format::Csv => write_csv(focus, out),
        Format::Parquet => write_parquet(focus, out),
    }
}

/// Reads the period's charges, and holds their sum against what the requests themselves say they cost.
fn gather(database: &Database, period: Range<i64>) -> anyhow::Result<Focus> {
    let is_over = period.end <= clock::unix_us();
    let mut focus = Focus::new(period.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let total = runtime.block_on(ledger::billed(database, period, |call| focus.add(call)))?;
    // A month that is not over may grow between the two readings.
    anyhow::ensure!(
        !is_over || focus.billed() == total,
        "the rows sum to {}, but the ledger to {total}; nothing was written",
        focus.billed()
    );
    Ok(focus)
}

fn period(month: &str) -> anyhow::Result<Range<i64>> {
    let malformed = || format!("`--month {month}` is not a month such as 2026-11");
    let (year, number) = month.split_once('-').with_context(malformed)?;
    let year: i32 = year
        .parse()
        .ok()
        .filter(|year| (1970..10_000).contains(year))
        .with_context(malformed)?;
    let first = |year, month: u8| {
        let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, 1).ok()?;
        Some(date.midnight().assume_utc().unix_timestamp() * 1_000_000)
    };
    let number: u8 = number.parse().ok().with_context(malformed)?;
    let start = first(year, number).with_context(malformed)?;
    let end = if number == 12 {
        first(year + 1, 1)
    } else {
        first(year, number + 1)
    };
    Ok(start..end.with_context(malformed)?)
}

/// The beginning of a day in UTC, such as 2026-11-25, in microseconds since the epoch.
pub(super) fn day(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
    let date = Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()?;
    Some(date.midnight().assume_utc().unix_timestamp() * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_read() {
        assert_eq!(
            period("2026-11").unwrap(),
            1_793_491_200_000_000..1_796_083_200_000_000
        );
        assert_eq!(period("2026-12").unwrap().end, period("2027-01").unwrap().start);
        for bad in [
            "2026", "2026-13", "2026-00", "11-2026", "2026-1x", "", "-", "99999-01",
        ] {
            assert!(period(bad).unwrap_err().to_string().contains("2026-11"), "{bad}");
        }
    }

    #[test]
    fn a_ledger_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("t.yaml");
        std::fs::write(&config, "policy: p.yaml\n").unwrap();
        let command = ExportCommand::Focus {
            month: "2026-11".into(),
            out: None,
            format: None,
            config,
        };
        let error = run(command, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("there is no ledger at"), "{error}");
        assert!(
            !folder.path().join("tollgate.db").exists(),
            "an export makes no ledger"
        );
    }
}
