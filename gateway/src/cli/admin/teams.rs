//! `tollgate teams`: organisations, teams and workflows.

use super::{Access, Column, Desk, Listing, Rates, escaped, form, rates, text};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::Write;
use ureq::http::Method;

#[derive(Subcommand)]
pub(in crate::cli) enum TeamsCommand {
    /// List organisations, teams and workflows.
    List(Listing),
    /// Make an organisation (acme), a team (acme/search) or a workflow (acme/search/nightly).
    Create {
        account: String,
        #[command(flatten)]
        wishes: Wishes,
    },
    /// Change an account; what is not given stays.
    Change {
        account: String,
        #[command(flatten)]
        wishes: Wishes,
    },
    /// Switch off: no key under it is accepted.
    Disable {
        account: String,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Switch on again.
    Enable {
        account: String,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
}

/// How an account is to be.
#[derive(Args)]
pub(in crate::cli) struct Wishes {
    /// For people.
    #[arg(long)]
    title: Option<String>,
    #[command(flatten)]
    rates: Rates,
    /// For the audit trail.
    #[arg(long)]
    reason: Option<String>,
}

impl Wishes {
    /// `account`: of one that is to be made.
    fn form(&self, account: Option<&str>) -> Value {
        form([
            ("account", json!(account)),
            ("title", json!(self.title)),
            ("rate_limits", self.rates.form()),
            ("reason", json!(self.reason)),
        ])
    }
}

const COLUMNS: [Column; 6] = [
    ("account", |one| text(&one["account"])),
    ("level", |one| text(&one["level"])),
    ("title", |one| text(&one["title"])),
    ("limits", |one| rates(&one["rate_limits"])),
    ("state", |one| {
        if one["disabled"] == true { "off" } else { "on" }.to_owned()
    }),
    ("source", |one| text(&one["source"])),
];

pub(in crate::cli) fn run(command: TeamsCommand, access: Access, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut desk = Desk::new(access, out)?;
    match command {
        TeamsCommand::List(listing) => {
            let accounts = desk.list("accounts", &listing)?;
            desk.show(&accounts, &COLUMNS)
        }
        TeamsCommand::Create { account, wishes } => {
            let body = wishes.form(Some(&account));
            let made = desk.call(Method::POST, "accounts", Some(&body))?;
            desk.tell(&made, |made| format!("{} is made", text(&made["account"])))
        }
        TeamsCommand::Change { account, wishes } => {
            let changed = change(&mut desk, &account, &wishes.form(None))?;
            desk.show(&[changed], &COLUMNS)
        }
        TeamsCommand::Disable { account, reason } => switch(
            &mut desk,
            &account,
            &json!({ "disabled": true, "reason": reason }),
        ),
        TeamsCommand::Enable { account, reason } => switch(
            &mut desk,
            &account,
            &json!({ "disabled": false, "reason": reason }),
        ),
    }
}

/// The account as it is then.
fn change(desk: &mut Desk<'_>, account: &str, body: &Value) -> anyhow::Result<Value> {
    let path = format!("accounts/{}", escaped(account));
    desk.call(Method::PATCH, &path, Some(body))
}

fn switch(desk: &mut Desk<'_>, account: &str, body: &Value) -> anyhow::Result<()> {
    let changed = change(desk, account, body)?;
    desk.tell(&changed, |changed| {
        let state = if changed["disabled"] == true { "off" } else { "on" };
        format!("{account} is switched {state}")
    })
}
