//! `tollgate budgets`.

use super::{Access, Column, Desk, Listing, because, escaped, form, text};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::io::Write;
use ureq::http::Method;

#[derive(Subcommand)]
pub(in crate::cli) enum BudgetsCommand {
    /// List budgets as they stand.
    List(Listing),
    /// Show a budget as it stands.
    Show { id: String },
    /// Make a budget.
    Create {
        account: String,
        /// US dollars, such as 250.00.
        #[arg(long)]
        limit: String,
        /// day, week, month, quarter or total.
        #[arg(long)]
        per: String,
        /// An IANA time zone.
        #[arg(long)]
        zone: Option<String>,
        /// Refuse nothing, raise alerts.
        #[arg(long)]
        soft: bool,
        /// Percent of the limit at which an alert is raised. Any number of times.
        #[arg(long = "alert")]
        alerts: Vec<u16>,
        /// A model that counts; may end in `*`. Any number of times.
        #[arg(long = "model")]
        models: Vec<String>,
        /// A backend class that counts. Any number of times.
        #[arg(long = "class")]
        classes: Vec<String>,
        /// A label that a request must carry to count, as name=value. Any number of times.
        #[arg(long = "tag", value_parser = tag)]
        tags: Vec<(String, String)>,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Change a budget's limit or its alerts.
    Change {
        id: String,
        /// US dollars.
        #[arg(long)]
        limit: Option<String>,
        /// Percent of the limit at which an alert is raised, in place of those that are. Any number of times.
        #[arg(long = "alert")]
        alerts: Vec<u16>,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Give a budget more for a while.
    Increase {
        id: String,
        /// US dollars.
        #[arg(long)]
        amount: String,
        /// Such as 2026-12-01T00:00:00Z.
        #[arg(long)]
        until: String,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// End an increase.
    EndIncrease {
        id: String,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Retire a budget.
    Retire {
        id: String,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
}

fn tag(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=');
    let (name, value) = parts.ok_or_else(|| format!("`{text}` is not name=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

const COLUMNS: [Column; 7] = [
    ("id", |budget| text(&budget["id"])),
    ("limit", |budget| text(&budget["standing"]["limit_dollars"])),
    ("spent", |budget| text(&budget["standing"]["spent_dollars"])),
    ("left", |budget| text(&budget["standing"]["remaining_dollars"])),
    ("resets", |budget| text(&budget["standing"]["resets_at"])),
    ("increased", |budget| match &budget["increase"] {
        Value::Null => "-".to_owned(),
        increase => format!(
            "{} until {}",
            text(&increase["amount_dollars"]),
            text(&increase["until"])
        ),
    }),
    ("source", |budget| text(&budget["source"])),
];

pub(in crate::cli) fn run(
    command: BudgetsCommand,
    access: Access,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut desk = Desk::new(access, out)?;
    let path = |id: &str| format!("budgets/{}", escaped(id));
    let budget = match command {
        BudgetsCommand::List(listing) => {
            let budgets = desk.list("budgets", &listing)?;
            return desk.show(&budgets, &COLUMNS);
        }
        BudgetsCommand::Show { id } => desk.call(Method::GET, &path(&id), None)?,
        create @ BudgetsCommand::Create { .. } => desk.call(Method::POST, "budgets", Some(&new(create)))?,
        BudgetsCommand::Change {
            id,
            limit,
            alerts,
            reason,
        } => {
            let body = form([
                ("limit_dollars", json!(limit)),
                ("alerts_percent", json!(alerts)),
                ("reason", json!(reason)),
            ]);
            desk.call(Method::PATCH, &path(&id), Some(&body))?
        }
        BudgetsCommand::Increase {
            id,
            amount,
            until,
            reason,
        } => {
            let body = form([
                ("amount_dollars", json!(amount)),
                ("until", json!(until)),
                ("reason", json!(reason)),
            ]);
            desk.call(Method::POST, &format!("{}/increase", path(&id)), Some(&body))?
        }
        BudgetsCommand::EndIncrease { id, reason } => {
            let path = format!("{}/increase{}", path(&id), because(reason.as_deref()));
            let done = desk.call(Method::DELETE, &path, None)?;
            return desk.tell(&done, |_| format!("the increase of `{id}` has ended"));
        }
        BudgetsCommand::Retire { id, reason } => {
            let path = path(&id) + &because(reason.as_deref());
            let done = desk.call(Method::DELETE, &path, None)?;
            return desk.tell(&done, |_| format!("`{id}` is retired"));
        }
    };
    desk.show(&[budget], &COLUMNS)
}

fn new(command: BudgetsCommand) -> Value {
    let BudgetsCommand::Create {
        account,
        limit,
        per,
        zone,
        soft,
        alerts,
        models,
        classes,
        tags,
        reason,
    } = command
    else {
        return Value::Null;
    };
    let tags: Map<String, Value> = tags
        .into_iter()
        .map(|(name, value)| (name, json!(value)))
        .collect();
    form([
        ("account", json!(account)),
        ("limit_dollars", json!(limit)),
        ("per", json!(per)),
        ("zone", json!(zone)),
        ("enforcement", json!(soft.then_some("soft"))),
        ("alerts_percent", json!(alerts)),
        ("models", json!(models)),
        ("classes", json!(classes)),
        ("tags", Value::Object(tags)),
        ("reason", json!(reason)),
    ])
}
