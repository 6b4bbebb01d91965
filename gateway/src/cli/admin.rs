//! Commands that administer a running gateway over its admin API.

pub(super) mod audit;
pub(super) mod budgets;
pub(super) mod jobs;
pub(super) mod keys;
mod table;
pub(super) mod teams;

use crate::admin::Problem;
use crate::config::Config;
use crate::fetch;
use anyhow::Context;
use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;
use table::Table;
use ureq::http::{Method, Request, StatusCode};

const WITHIN: Duration = Duration::from_secs(30);
/// What need not be written as `%20` in a path or a query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Which gateway, and who asks.
#[derive(Args)]
pub(super) struct Access {
    /// The admin listener, such as http://127.0.0.1:8081. Left out: the one of the configuration.
    #[arg(long, env = "TOLLGATE_ADMIN_URL", global = true)]
    url: Option<String>,
    /// An admin key; better given in the environment. Left out: the one of the configuration.
    #[arg(long, env = "TOLLGATE_ADMIN_KEY", hide_env_values = true, global = true)]
    admin_key: Option<String>,
    /// A PEM file with the authorities to trust instead of the system's, for an admin listener with TLS.
    #[arg(long, env = "TOLLGATE_ADMIN_CA_FILE", global = true)]
    ca_file: Option<PathBuf>,
    /// The configuration to take both from.
    #[arg(long, default_value = "tollgate.yaml", global = true)]
    config: PathBuf,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// Part of a list.
#[derive(Args)]
pub(super) struct Listing {
    /// This account and all below it.
    #[arg(long)]
    account: Option<String>,
    /// Rows at most.
    #[arg(long, default_value_t = 100)]
    rows: usize,
}

/// Limits to be set; what is not given stays.
#[derive(Args)]
pub(super) struct Rates {
    /// Requests a minute, of all under it together; `none` for any number.
    #[arg(long, value_parser = limit, value_name = "NUMBER|none")]
    requests_per_minute: Option<Value>,
    /// Tokens a minute, read and generated; `none` for any number.
    #[arg(long, value_parser = limit, value_name = "NUMBER|none")]
    tokens_per_minute: Option<Value>,
    /// Requests running at once; `none` for any number.
    #[arg(long, value_parser = limit, value_name = "NUMBER|none")]
    concurrency: Option<Value>,
}

fn limit(text: &str) -> Result<Value, String> {
    if text == "none" {
        return Ok(Value::Null);
    }
    let number = text.parse::<u32>().ok().filter(|number| *number > 0);
    number
        .map(Value::from)
        .ok_or_else(|| format!("`{text}` is no limit: write a number from 1 on, or `none` for any number"))
}

impl Rates {
    /// As a form; `null` where nothing was given.
    fn form(&self) -> Value {
        let all = [
            ("requests_per_minute", &self.requests_per_minute),
            ("tokens_per_minute", &self.tokens_per_minute),
            ("concurrency", &self.concurrency),
        ];
        let given = all
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        let form: Map<_, _> = given.collect();
        if form.is_empty() {
            Value::Null
        } else {
            Value::Object(form)
        }
    }
}

/// Limits as people read them.
fn rates(limits: &Value) -> String {
    let all = [
        ("requests_per_minute", "requests/min"),
        ("tokens_per_minute", "tokens/min"),
        ("concurrency", "at once"),
    ];
    let set: Vec<String> = all
        .iter()
        .filter(|(name, _)| limits[name].is_u64())
        .map(|(name, unit)| format!("{} {unit}", limits[name]))
        .collect();
    if set.is_empty() {
        "-".to_owned()
    } else {
        set.join(", ")
    }
}

/// A column of a table: its name, and its text for a row.
type Column = (&'static str, fn(&Value) -> String);

/// A gateway to talk to.
pub(super) struct Desk<'a> {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    json: bool,
    out: &'a mut dyn Write,
}

impl<'a> Desk<'a> {
    pub(super) fn new(access: Access, out: &'a mut dyn Write) -> anyhow::Result<Self> {
        let (mut url, mut key) = (access.url, access.admin_key);
        // Whoever names a gateway does not want to send it this configuration's key.
        if url.is_none() {
            let config = Config::load(&access.config).context(
                "which gateway? give --url (or TOLLGATE_ADMIN_URL), or --config, whose admin listener is used",
            )?;
            let mut address = config.admin.address;
            if address.ip().is_unspecified() {
                address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
            let scheme = if config.admin.tls.is_some() {
                "https"
            } else {
                "http"
            };
            url = Some(format!("{scheme}://{address}"));
            key = key.or_else(|| config.admin.key.map(|key| key.expose().to_owned()));
        }
        Ok(Self {
            agent: match &access.ca_file {
                Some(file) => fetch::agent_trusting(file, WITHIN)?,
                None => fetch::agent(WITHIN),
            },
            url: url.unwrap_or_default().trim_end_matches('/').to_owned(),
            key,
            json: access.json,
            out,
        })
    }

    /// One call; `Value::Null` where there is nothing to answer.
    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let uri = format!("{}/admin/v1/{path}", self.url);
        let mut request = Request::builder().method(method.clone()).uri(&uri);
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if method == Method::POST {
            // A retry by whatever is in between makes nothing twice.
            request = request.header("idempotency-key", uuid::Uuid::new_v4().to_string());
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.header("content-type", "application/json").body(body)?;
        let reached = || format!("{} cannot be reached; is the gateway running?", self.url);
        let mut answer = self.agent.run(request).with_context(reached)?;
        let text = answer
            .body_mut()
            .with_config()
            .limit(fetch::LONGEST)
            .read_to_string();
        let text = text.with_context(reached)?;
        if !answer.status().is_success() {
            return Err(match serde_json::from_str::<Problem>(&text) {
                Ok(problem) => problem.into(),
                Err(_) => anyhow::anyhow!("{uri} answered {}: {text}", answer.status()),
            });
        }
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{uri} did not answer as the admin API does"))
    }

    /// Rows of a list, page after page.
    fn list(&self, path: &str, listing: &Listing) -> anyhow::Result<Vec<Value>> {
        let (mut all, mut cursor) = (Vec::new(), None::<String>);
        while all.len() < listing.rows {
            let mut query = format!("{path}?limit={}", (listing.rows - all.len()).min(500));
            if let Some(account) = &listing.account {
                query.push_str(&format!("&account={}", escaped(account)));
            }
            if let Some(cursor) = &cursor {
                query.push_str(&format!("&cursor={}", escaped(cursor)));
            }
            let page = self.call(Method::GET, &query, None)?;
            all.extend(page["data"].as_array().cloned().unwrap_or_default());
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        Ok(all)
    }

    /// Prints rows: as JSON, or the columns of a table, each with how its text is made.
    fn show(&mut self, rows: &[Value], columns: &[Column]) -> anyhow::Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(rows)?;
            writeln!(self.out, "{text}")?;
            return Ok(());
        }
        let mut table = Table::new(columns.iter().map(|(name, _)| *name));
        for row in rows {
            table.row(columns.iter().map(|(_, text)| text(row)));
        }
        write!(self.out, "{table}")?;
        Ok(())
    }

    /// Prints one thing: as JSON, or a line that says what was done.
    fn tell(&mut self, value: &Value, line: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(value)?;
            writeln!(self.out, "{text}")?;
        } else {
            writeln!(self.out, "{}", line(value))?;
        }
        Ok(())
    }
}

/// As part of a path or a query.
fn escaped(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// The reason as a query, for what has no body.
fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!("?reason={}", escaped(reason)))
}

/// A form without what was not given.
fn form<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let given = fields
        .into_iter()
        .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
    Value::Object(
        given
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<Map<_, _>>(),
    )
}

/// A field as people read it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(list) if list.is_empty() => "any".to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
