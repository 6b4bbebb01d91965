//! The engine with the real model, and a gateway before it, on free ports in a fresh folder.

use super::calls::body;
use crate::fake::sha256_hex;
use crate::storm::dice::Dice;
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(super) const MODEL: &str = "m";
pub(super) const INTERACTIVE_KEY: &str = "tg_a_key_for_interactive_callers_0123456789";
const BATCH_KEY: &str = "tg_a_key_for_a_nightly_batch_0123456789abc";
/// More than a turn can do.
const ITEMS: usize = 2000;
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
listen: [{address: "127.0.0.1:0"}]
providers:
  lo: {dialect: openai_chat, base_url: "http://LOCAL/v1", credential: "file:credential"}
accounts:
  acme:
    budgets: [{limit_dollars: "1000000", per: total}]
    teams:
      front: {keys: {callers: {hash: "sha256:FRONT"}}}
      night: {keys: {batches: {hash: "sha256:NIGHT"}}}
prices:
  - {model: m, input_per_mtok: "0.1", output_per_mtok: "0.1"}
batch: {content_key: "file:content", gather_ms: 100, cancel_ms: 500}
log: {filter: "error"}
policy: policy.yaml
"#;

const POLICY: &str = r#"
version: 1
deployments:
  - {id: local, provider: lo, model: m, class: local, context_tokens: 8192, max_in_flight: 256}
routes:
  - {name: all, prefer: [local]}
"#;

/// The running processes; they end when it is dropped.
pub(super) struct Stack {
    children: Vec<Child>,
    engine: String,
    pub(super) gateway: String,
    _folder: TempDir,
}

/// What the engine has done since it was started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) interactive: f64,
    pub(super) background: f64,
    /// Seconds of each class.
    pub(super) busy: [f64; 2],
}

impl Work {
    pub(super) fn since(self, before: &Self) -> Self {
        Self {
            interactive: self.interactive - before.interactive,
            background: self.background - before.background,
            busy: [self.busy[0] - before.busy[0], self.busy[1] - before.busy[1]],
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Stack {
    pub(super) fn start(model: &Path) -> anyhow::Result<Self> {
        let model = model
            .canonicalize()
            .context("the model is missing: run deploy/fetch-model.sh")?;
        let folder = tempfile::tempdir()?;
        let own = folder.path().to_owned();
        let write = |name: &str, text: &str| std::fs::write(own.join(name), text);
        let settings = format!("models: [{{path: \"{}\", name: {MODEL}}}]\n", model.display());
        write("local.yaml", &settings)?;
        let mut stack = Self {
            children: Vec::new(),
            engine: String::new(),
            gateway: String::new(),
            _folder: folder,
        };
        let path = |name: &str| own.join(name).display().to_string();
        stack.engine = stack.spawn(
            "local-backend",
            &[
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--config",
                &path("local.yaml"),
            ],
        )?;
        write("credential", "no-credential-is-asked-for")?;
        write("content", "the content key of a measurement")?;
        write("policy.yaml", POLICY)?;
        let config = CONFIG
            .replace("LOCAL", &stack.engine)
            .replace("FRONT", &sha256_hex(INTERACTIVE_KEY.as_bytes()))
            .replace("NIGHT", &sha256_hex(BATCH_KEY.as_bytes()));
        write("tollgate.yaml", &config)?;
        stack.gateway = stack.spawn("tollgate", &["serve", "--config", &path("tollgate.yaml")])?;
        let started = Instant::now();
        while stack.metrics().is_err() {
            ensure!(started.elapsed() < PATIENCE, "the engine does not become ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(stack)
    }

    /// Starts a binary that lies beside this one, and reads its address.
    fn spawn(&mut self, name: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let binary = std::env::current_exe()?.with_file_name(name);
        let mut child = Command::new(&binary)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started: build it first", binary.display()))?;
        let out = child.stdout.take().context("no output")?;
        self.children.push(child);
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.strip_prefix("listening on http://")?.to_owned()));
        // Whatever else it prints must not find a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        address.with_context(|| format!("{name} did not start"))
    }

    fn metrics(&self) -> anyhow::Result<String> {
        call(&self.engine, "GET /metrics", ("", ""))
    }

    pub(super) fn work(&self) -> anyhow::Result<Work> {
        let standing: Value = serde_json::from_str(&call(&self.engine, "GET /slots", ("", ""))?)?;
        let list = |name: &str| {
            standing["models"][0][name]
                .as_array()
                .cloned()
                .unwrap_or_default()
        };
        let (shares, slots) = (list("tenants"), list("slots"));
        let served = |class: &str| -> f64 {
            let own = shares.iter().filter(|share| share["class"] == class);
            let counted: f64 = own.filter_map(|share| share["served_tokens"].as_f64()).sum();
            // A prompt counts when it is let in; what of it is not computed yet is no work done.
            let reading = slots
                .iter()
                .filter(|slot| slot["class"] == class && slot["phase"] == "prefill");
            let ahead =
                |slot: &Value| Some(slot["prompt_tokens"].as_f64()? - slot["computed_tokens"].as_f64()?);
            counted - reading.filter_map(ahead).sum::<f64>()
        };
        let text = self.metrics()?;
        let seconds = |used: &str| -> anyhow::Result<f64> {
            let is_it = |line: &&str| line.starts_with("local_engine_seconds_total{") && line.contains(used);
            let line = text.lines().find(is_it).context("a metric is missing")?;
            Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
        };
        Ok(Work {
            interactive: served("foreground"),
            background: served("background"),
            busy: [seconds("use=\"foreground\"")?, seconds("use=\"background\"")?],
        })
    }

    /// Waits until the engine has nothing to do.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let text = self.metrics()?;
            let is_idle = |name: &str| {
                text.lines()
                    .any(|line| line.starts_with(name) && line.ends_with(" 0"))
            };
            if is_idle("local_num_requests_running{") && is_idle("local_num_requests_waiting{") {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "the engine does not become idle");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Begins a batch, and waits until its items run.
    pub(super) fn batch(&self) -> anyhow::Result<String> {
        let mut dice = Dice::new(crate::fake::log::unix_ns());
        let mut lines = String::new();
        for number in 0..ITEMS {
            let line = json!({ "custom_id": format!("r{number}"), "method": "POST", "url": "/v1/chat/completions", "body": body(&mut dice) });
            lines.push_str(&format!("{line}\n"));
        }
        let form = format!(
            "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\ncontent-disposition: form-data; \
             name=\"file\"; filename=\"r.jsonl\"\r\n\r\n{lines}\r\n--b--\r\n"
        );
        let file = self.post("/v1/files", ("multipart/form-data; boundary=b", &form))?;
        let ask = json!({ "input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h" });
        let before = self.work()?.background;
        let batch = self.post("/v1/batches", ("application/json", &ask.to_string()))?;
        let started = Instant::now();
        while self.work()?.background < before + 3000.0 {
            ensure!(started.elapsed() < PATIENCE, "the batch does not begin");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(batch["id"].as_str().context("a batch has an id")?.to_owned())
    }

    pub(super) fn cancel(&self, batch: &str) -> anyhow::Result<()> {
        self.post(&format!("/v1/batches/{batch}/cancel"), ("application/json", "{}"))?;
        Ok(())
    }

    fn post(&self, path: &str, body: (&str, &str)) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&call(
            &self.gateway,
            &format!("POST {path}"),
            body,
        )?)?)
    }
}

/// One call on a connection of its own; the answer's body.
fn call(address: &str, line: &str, (kind, body): (&str, &str)) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "{line} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {BATCH_KEY}\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    if !head.contains(" 200 ") {
        bail!("{line} was answered with {text}");
    }
    Ok(body.to_owned())
}
