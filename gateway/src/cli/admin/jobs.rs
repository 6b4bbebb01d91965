//! `tollgate jobs` and `tollgate audit batch`.

use super::{Access, Column, Desk, escaped, text};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::io::Write;
use ureq::http::Method;

#[derive(Subcommand)]
pub(in crate::cli) enum JobsCommand {
    /// Jobs, the latest first.
    List {
        /// Rows at most.
        #[arg(long, default_value_t = 100)]
        rows: usize,
    },
    /// One job: its items by state, and its money.
    Show { id: String },
    /// Cancel what is not answered; what is, is kept and billed.
    Cancel { id: String },
    /// Answer by the synchronous tier what waits for a batch or is in one; what the batch answers all the same is billed.
    Rescue { id: String },
}

/// How far back.
#[derive(Args)]
pub(in crate::cli) struct Since {
    /// Such as 30d or 12w.
    #[arg(long, default_value = "30d")]
    since: String,
}

const COLUMNS: [Column; 10] = [
    ("job", |job| text(&job["id"])),
    ("account", |job| text(&job["account"])),
    ("state", |job| text(&job["state"])),
    ("items", |job| text(&job["items"])),
    ("done", |job| text(&job["done"])),
    ("rescued", |job| text(&job["rescued"])),
    ("missed", |job| text(&job["missed"])),
    ("cost $", |job| text(&job["charge_dollars"])),
    ("held $", |job| text(&job["held_dollars"])),
    ("saved $", |job| text(&job["saved_dollars"])),
];

const WAITABLE: [Column; 9] = [
    ("account", |row| text(&row["account"])),
    ("model", |row| {
        format!("{}/{}", text(&row["provider"]), text(&row["model"]))
    }),
    ("evidence", |row| text(&row["evidence"])),
    ("requests", |row| text(&row["requests"])),
    ("cost $", |row| text(&row["charge_dollars"])),
    ("left on the table $", |row| text(&row["left_dollars"])),
    ("now ms", |row| text(&row["latency_ms"])),
    ("as a batch ms", |row| text(&row["batch_ms"])),
    ("first read ms", |row| text(&row["first_read_ms"])),
];

fn line(job: &Value) -> String {
    let states = job["by_state"].as_object().into_iter().flatten();
    let states: Vec<String> = states.map(|(state, count)| format!("{count} {state}")).collect();
    format!(
        "{} is {}: {} of {} items done ({}); ${} spent, ${} held, ${} saved",
        text(&job["id"]),
        text(&job["state"]),
        text(&job["done"]),
        text(&job["items"]),
        states.join(", "),
        text(&job["charge_dollars"]),
        text(&job["held_dollars"]),
        text(&job["saved_dollars"])
    )
}

pub(in crate::cli) fn run(command: JobsCommand, access: Access, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut desk = Desk::new(access, out)?;
    let (method, path) = match command {
        JobsCommand::List { rows } => {
            let page = desk.call(Method::GET, &format!("jobs?limit={}", rows.clamp(1, 500)), None)?;
            return desk.show(page["data"].as_array().map_or(&[][..], Vec::as_slice), &COLUMNS);
        }
        JobsCommand::Show { id } => (Method::GET, format!("jobs/{}", escaped(&id))),
        JobsCommand::Cancel { id } => (Method::POST, format!("jobs/{}/cancel", escaped(&id))),
        JobsCommand::Rescue { id } => (Method::POST, format!("jobs/{}/rescue", escaped(&id))),
    };
    let job = desk.call(method, &path, None)?;
    desk.tell(&job, line)
}

pub(in crate::cli) fn audit(since: &Since, access: Access, out: &mut dyn Write) -> anyhow::Result<()> {
    let (number, unit) = since.since.split_at(since.since.len().saturating_sub(1));
    let factor = match unit {
        "d" => 1,
        "w" => 7,
        _ => anyhow::bail!("`{}` is no time: write it as 30d or 12w", since.since),
    };
    let days: i64 = number
        .parse()
        .map_err(|_| anyhow::anyhow!("`{}` is no time: write it as 30d or 12w", since.since))?;
    let mut desk = Desk::new(access, out)?;
    let told = desk.call(
        Method::GET,
        &format!("audit/batch?days={}", days.saturating_mul(factor)),
        None,
    )?;
    desk.show(told["data"].as_array().map_or(&[][..], Vec::as_slice), &WAITABLE)
}
