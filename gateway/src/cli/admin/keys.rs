//! `tollgate keys`.

use super::{Access, Column, Desk, Listing, Rates, because, escaped, form, text};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Write;
use ureq::http::Method;

#[derive(Subcommand)]
pub(in crate::cli) enum KeysCommand {
    /// List keys, the latest first.
    List(Listing),
    /// Show a key.
    Show { id: String },
    /// Make a key; its secret is printed once.
    Create {
        /// Unique in its account.
        name: String,
        /// Whose it is, such as acme/search. Left out, for admin and finance: the whole installation's.
        #[arg(long)]
        account: Option<String>,
        /// caller, admin, finance or team_owner.
        #[arg(long, default_value = "caller")]
        role: String,
        #[command(flatten)]
        grants: Grants,
        #[command(flatten)]
        rates: Rates,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Change what a key may do; what is not given stays.
    Change {
        id: String,
        #[command(flatten)]
        grants: Grants,
        #[command(flatten)]
        rates: Rates,
        /// Switch it off.
        #[arg(long, conflicts_with = "enable")]
        disable: bool,
        /// Switch it on.
        #[arg(long)]
        enable: bool,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Give a key another secret, printed once; the old one works for a while.
    Rotate {
        id: String,
        /// Seconds for which the old secret works.
        #[arg(long, default_value_t = 3_600)]
        overlap_s: u32,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Revoke a key for good.
    Revoke {
        id: String,
        /// For the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(clap::Args)]
pub(in crate::cli) struct Grants {
    /// A model it may use; may end in `*`. Any number of times.
    #[arg(long = "model")]
    models: Vec<String>,
    /// A backend class it may reach: frontier, cheap, local, batch. Any number of times.
    #[arg(long = "class")]
    classes: Vec<String>,
    /// Where it may be used: 10.0.0.0/8, 2001:db8::/32 or one address. Any number of times.
    #[arg(long = "network")]
    networks: Vec<String>,
    /// When it ends, such as 2027-01-01T00:00:00Z.
    #[arg(long)]
    expires_at: Option<String>,
}

const COLUMNS: [Column; 9] = [
    ("id", |key| text(&key["id"])),
    ("account", |key| text(&key["account"])),
    ("name", |key| text(&key["name"])),
    ("role", |key| text(&key["role"])),
    ("models", |key| text(&key["models"])),
    ("networks", |key| text(&key["networks"])),
    ("limits", |key| super::rates(&key["rate_limits"])),
    ("expires", |key| text(&key["expires_at"])),
    ("state", state),
];

fn state(key: &Value) -> String {
    let is = |field: &str| key[field] == true;
    let secrets = key["secrets"].as_array().map_or(0, Vec::len);
    match (is("revoked"), is("disabled"), key["source"] == "config") {
        (true, ..) => "revoked".to_owned(),
        (_, true, _) => "off".to_owned(),
        (.., true) => "on, by configuration".to_owned(),
        _ if secrets > 1 => format!("on, {secrets} secrets"),
        _ => "on".to_owned(),
    }
}

fn made(answer: &Value) -> String {
    let key = &answer["key"];
    format!(
        "secret:  {}\nid:      {}\naccount: {}\nname:    {}\nThe secret is not shown again.",
        text(&answer["secret"]),
        text(&key["id"]),
        text(&key["account"]),
        text(&key["name"])
    )
}

pub(in crate::cli) fn run(command: KeysCommand, access: Access, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut desk = Desk::new(access, out)?;
    let path = |id: &str| format!("keys/{}", escaped(id));
    match command {
        KeysCommand::List(listing) => {
            let keys = desk.list("keys", &listing)?;
            desk.show(&keys, &COLUMNS)
        }
        KeysCommand::Show { id } => {
            let key = desk.call(Method::GET, &path(&id), None)?;
            desk.show(&[key], &COLUMNS)
        }
        KeysCommand::Create {
            name,
            account,
            role,
            grants,
            rates,
            reason,
        } => {
            let body = form([
                ("name", json!(name)),
                ("account", json!(account)),
                ("role", json!(role)),
                ("models", json!(grants.models)),
                ("classes", json!(grants.classes)),
                ("networks", json!(grants.networks)),
                ("expires_at", json!(grants.expires_at)),
                ("rate_limits", rates.form()),
                ("reason", json!(reason)),
            ]);
            let answer = desk.call(Method::POST, "keys", Some(&body))?;
            desk.tell(&answer, made)
        }
        KeysCommand::Change {
            id,
            grants,
            rates,
            disable,
            enable,
            reason,
        } => {
            let body = form([
                ("models", json!(grants.models)),
                ("classes", json!(grants.classes)),
                ("networks", json!(grants.networks)),
                ("expires_at", json!(grants.expires_at)),
                ("rate_limits", rates.form()),
                ("disabled", json!((disable || enable).then_some(disable))),
                ("reason", json!(reason)),
            ]);
            let key = desk.call(Method::PATCH, &path(&id), Some(&body))?;
            desk.show(&[key], &COLUMNS)
        }
        KeysCommand::Rotate {
            id,
            overlap_s,
            reason,
        } => {
            let body = form([("overlap_s", json!(overlap_s)), ("reason", json!(reason))]);
            let answer = desk.call(Method::POST, &format!("{}/rotate", path(&id)), Some(&body))?;
            desk.tell(&answer, made)
        }
        KeysCommand::Revoke { id, reason } => {
            let path = path(&id) + &because(reason.as_deref());
            let answer = desk.call(Method::DELETE, &path, None)?;
            desk.tell(&answer, |_| format!("{id} is revoked"))
        }
    }
}
