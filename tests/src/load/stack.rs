//! The processes of a load run: the fake provider, the floor and the gateway, on free ports in a fresh folder.

use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use tempfile::TempDir;

const KEY: &str = "tg_a_key_for_load_runs_0123456789abcdef";

/// Keys, budgets at every level, limits and metrics are on; the price is known, so that every answer is charged.
const POLICY: &str = r#"
version: 1
deployments:
  - {id: whole, provider: whole, model: fake-n8, class: cheap, max_in_flight: 4000}
  - {id: folded, provider: streaming, model: fake-n8-x1, class: cheap, max_in_flight: 4000}
  - {id: paced, provider: streaming, model: fake-gap100-n60-stamp, class: cheap, max_in_flight: 4000}
routes:
  - {name: all, prefer: [whole]}
"#;

const CONFIG: &str = r#"
listen: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
providers:
  whole: {dialect: openai_chat, base_url: "http://FAKE/v1", credential: "file:credential", streams: false}
  streaming: {dialect: openai_chat, base_url: "http://FAKE/v1", credential: "file:credential"}
accounts:
  acme:
    budgets: [{limit_dollars: "1000000", per: month}, {limit_dollars: "1000000", per: day}]
    teams:
      load:
        budgets: [{limit_dollars: "1000000", per: month}]
        keys:
          generator: {hash: "sha256:HASH", budgets: [{limit_dollars: "1000000", per: day}]}
prices:
  - {model: fake-n8, input_per_mtok: "0.15", output_per_mtok: "0.60"}
  - {model: fake-n8-x1, input_per_mtok: "0.15", output_per_mtok: "0.60"}
  - {model: fake-gap100-n60-stamp, input_per_mtok: "0.15", output_per_mtok: "0.60"}
"#;

/// Something that answers as a provider does.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: &'static str,
    pub address: SocketAddr,
    /// The process whose cost is told; `None` for the provider itself.
    pub pid: Option<u32>,
}

/// The running processes; they end when it is dropped.
pub struct Stack {
    children: Vec<Child>,
    /// Kept open, so that a process may go on printing.
    _outputs: Vec<Lines<BufReader<ChildStdout>>>,
    _folder: TempDir,
    /// The provider itself, the floor, the gateway.
    pub targets: [Target; 3],
}

impl Stack {
    /// Starts everything from the binaries in `folder`.
    pub fn start(binaries: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the gateway's files");
        let (mut children, mut outputs) = (Vec::new(), Vec::new());
        let mut start = |name: &str, arguments: &[&str]| {
            let mut child = Command::new(binaries.join(name))
                .args(arguments)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let address = lines
                .by_ref()
                .map_while(Result::ok)
                .find_map(|line| line.strip_prefix("listening on http://")?.parse().ok());
            let pid = child.id();
            children.push(child);
            outputs.push(lines);
            (
                address.unwrap_or_else(|| panic!("{name} did not start")),
                Some(pid),
            )
        };
        let (fake, _): (SocketAddr, _) = start("fake-provider", &["--quiet"]);
        let (floor, floor_pid) = start("floor", &["--upstream", &format!("http://{fake}")]);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("credential", "sk-fake-credential");
        write("policy.yaml", POLICY);
        let hash = crate::fake::sha256_hex(KEY.as_bytes());
        write(
            "tollgate.yaml",
            &CONFIG.replace("FAKE", &fake.to_string()).replace("HASH", &hash),
        );
        let config = folder.path().join("tollgate.yaml");
        let (gateway, gateway_pid) = start("tollgate", &["serve", "--config", config.to_str().unwrap()]);
        let target = |name, address, pid| Target { name, address, pid };
        Self {
            children,
            _outputs: outputs,
            _folder: folder,
            targets: [
                target("direct", fake, None),
                target("floor", floor, floor_pid),
                target("gateway", gateway, gateway_pid),
            ],
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

/// A whole request for `model`, its body `bytes` long: a system prompt, and turns until it is full.
pub fn request(model: &str, bytes: usize, stream: bool) -> Vec<u8> {
    let open = format!(
        r#"{{"model":"{model}","stream":{stream},"max_tokens":256,"temperature":0.2,"messages":[{{"role":"system","content":"You answer briefly."}}"#
    );
    let (mut body, close) = (open, r#"]}"#);
    let (lead, tail) = (r#",{"role":"user","content":""#, r#""}"#);
    while body.len() + close.len() + lead.len() + tail.len() + 8 < bytes {
        let room = bytes - body.len() - close.len() - lead.len() - tail.len();
        let text: String = "The quick brown fox said \\\"no\\\" and jumped.\\n "
            .chars()
            .cycle()
            .take(room.min(2000))
            .collect();
        body.push_str(lead);
        // An escape must not be cut in two.
        body.push_str(text.trim_end_matches('\\'));
        body.push_str(tail);
    }
    body.push_str(close);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         user-agent: OpenAI/Python 1.109.1\r\naccept: application/json\r\naccept-encoding: gzip, deflate\r\n\
         x-stainless-lang: python\r\nx-stainless-retry-count: 0\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}
