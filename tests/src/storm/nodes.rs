//! Gateway processes: started, killed without warning, started again with the journal they left.

use super::{INPUT_NANOS, Mix, OUTPUT_NANOS, key, team};
use crate::fake::sha256_hex;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the nodes' configuration says.
pub struct Plan<'a> {
    pub binary: PathBuf,
    pub folder: &'a Path,
    pub provider: String,
    pub store: String,
    pub teams: usize,
    pub keys: usize,
    /// Nano-dollars for each team.
    pub limit: i64,
    pub mix: Mix,
    pub budget_wait_ms: u64,
    /// Where rate limits are shared; every team has some then, none of which is ever reached.
    pub redis: Option<String>,
    /// By how much the clocks of neighbouring nodes differ.
    pub skew_ms: i64,
}

/// The process, while there is one, its address, and its output, which stays open so that it may go on printing.
type State = (
    Option<Child>,
    Option<SocketAddr>,
    Option<Lines<BufReader<ChildStdout>>>,
);

/// One node. Its address is none while it is down.
pub struct Node {
    folder: PathBuf,
    binary: PathBuf,
    /// Its clock is so far ahead.
    clock_offset_ms: i64,
    state: Mutex<State>,
}

impl Node {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.state().1
    }

    /// Starts the process and waits for its address; false if it ended instead, as it does while the store is away.
    pub fn start(&self) -> bool {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.folder.join("log"))
            .unwrap();
        let mut child = Command::new(&self.binary)
            .args(["serve", "--config"])
            .arg(self.folder.join("tollgate.yaml"))
            .env("TOLLGATE_CLOCK_OFFSET_MS", self.clock_offset_ms.to_string())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.binary.display()));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on http://")?.parse().ok());
        if address.is_none() {
            let _ = child.wait();
            return false;
        }
        *self.state() = (Some(child), address, Some(lines));
        true
    }

    /// `kill -9`.
    pub fn kill(&self) {
        let child = {
            let mut state = self.state();
            state.1 = None;
            state.0.take()
        };
        if let Some(mut child) = child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for the end; true if it ended well.
    pub fn stop(&self) -> bool {
        let child = {
            let mut state = self.state();
            state.1 = None;
            state.0.take()
        };
        let Some(mut child) = child else { return true };
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        child.wait().is_ok_and(|status| status.success())
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes the configuration of `count` nodes; none is started.
pub fn prepare(plan: &Plan<'_>, count: usize) -> Vec<Node> {
    let text = configuration(plan);
    let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
    (0..count)
        .map(|number| {
            let folder = plan.folder.join(format!("node{number}"));
            std::fs::create_dir_all(&folder).unwrap();
            write(folder.join("tollgate.yaml"), &text);
            write(folder.join("policy.yaml"), &policy(plan.mix));
            write(folder.join("credential"), "sk-fake-credential");
            Node {
                folder,
                binary: plan.binary.clone(),
                clock_offset_ms: plan.skew_ms * (number as i64 - count as i64 / 2),
                state: Mutex::new((None, None, None)),
            }
        })
        .collect()
}

fn policy(mix: Mix) -> String {
    let mut text = String::from("version: 1\ndeployments:\n");
    for (model, _) in mix {
        let _ = writeln!(
            text,
            "  - {{id: {model}, provider: fake, model: {model}, class: cheap, max_in_flight: 20000}}"
        );
    }
    let _ = writeln!(text, "routes:\n  - {{name: all, prefer: [{}]}}", mix[0].0);
    text
}

fn configuration(plan: &Plan<'_>) -> String {
    let Plan { provider, store, .. } = plan;
    let redis = plan
        .redis
        .as_deref()
        .map_or("null".into(), |url| format!("\"{url}\""));
    let mut text = format!(
        r#"listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
limits: {{budget_wait_ms: {}, drain_s: 60}}
store: {{journal: journal, {store}}}
redis: {{url: {redis}}}
log: {{filter: "warn,ledger=info"}}
providers:
  fake: {{dialect: openai_chat, base_url: "{provider}", credential: "file:credential", breaker: {{failures: 1000000, open_ms: 1}}}}
accounts:
  storm:
    budgets: [{{limit_dollars: "1000000", per: month}}]
    teams:
"#,
        plan.budget_wait_ms
    );
    let mut rates = "";
    if plan.redis.is_some() {
        rates = "        rate_limits: {requests_per_minute: 10000000, tokens_per_minute: 4000000000, concurrency: 100000}\n";
    }
    let dollars = format!("{}.{:09}", plan.limit / 1_000_000_000, plan.limit % 1_000_000_000);
    for number in 0..plan.teams {
        let _ = writeln!(
            text,
            "      {}:\n        budgets: [{{limit_dollars: \"{dollars}\", per: total, alerts_percent: [50, 90]}}]\n{rates}        keys:",
            team(number)
        );
        for caller in (number..plan.keys).step_by(plan.teams) {
            let hash = sha256_hex(key(caller).as_bytes());
            let _ = writeln!(text, "          k{caller}: {{hash: \"sha256:{hash}\"}}");
        }
    }
    text.push_str("prices:\n");
    let dollars = |nanos: i64| format!("{}.{:03}", nanos / 1000, nanos % 1000);
    for (model, _) in plan.mix {
        let (input, output) = (dollars(INPUT_NANOS), dollars(OUTPUT_NANOS));
        let _ = writeln!(
            text,
            "  - {{model: {model}, input_per_mtok: \"{input}\", output_per_mtok: \"{output}\"}}"
        );
    }
    text
}
