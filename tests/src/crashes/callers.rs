//! Callers that go on making batches while nodes come and go.

use super::{ANTHROPIC, GEMINI, KEY, Up};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What makes items of Gemini's go by file: a few of them are more than is sent within the call.
const PADDING: usize = 400_000;

/// One caller.
pub(super) struct Caller {
    up: Up,
    stop: Arc<AtomicBool>,
    kinds: &'static [[&'static str; 3]],
    dice: u64,
}

impl Caller {
    pub(super) fn new(
        (up, stop): (Up, Arc<AtomicBool>),
        kinds: &'static [[&'static str; 3]],
        seed: u64,
    ) -> Self {
        Self {
            up,
            stop,
            kinds,
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn roll(&mut self, end: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % end
    }

    /// Until it is told to stop; the ids of the batches that a node said it had taken.
    pub(super) fn run(mut self) -> Vec<String> {
        let mut taken = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100 + self.roll(200)));
            let found: Vec<String> = self.up.lock().unwrap().iter().flatten().cloned().collect();
            if found.is_empty() {
                continue;
            }
            let address = &found[self.roll(found.len() as u64) as usize];
            if let Some(id) = self.batch(address) {
                taken.push(id);
            }
        }
        taken
    }

    /// A few items of one kind. `None`: the node went away in the middle, and nobody knows.
    fn batch(&mut self, address: &str) -> Option<String> {
        let kind = self.kinds[self.roll(self.kinds.len() as u64) as usize];
        let model = kind[self.roll(kind.len() as u64) as usize];
        let name = self.roll(u64::MAX);
        if kind == ANTHROPIC {
            let item = |number: u64| {
                let message = json!([{"role": "user", "content": format!("{name:x} {number}")}]);
                let params = json!({"model": model, "messages": message, "max_tokens": 20});
                json!({"custom_id": format!("r{number}"), "params": params})
            };
            let requests: Vec<Value> = (0..2 + self.roll(6)).map(item).collect();
            let ask = json!({ "requests": requests }).to_string();
            let batch = post(address, "/v1/messages/batches", ("application/json", &ask))?;
            return batch["id"].as_str().map(str::to_owned);
        }
        let mut lines = String::new();
        let is_large = kind == GEMINI && self.roll(8) == 0;
        let padding = "x".repeat(if is_large { PADDING } else { 0 });
        for number in 0..2 + self.roll(6) {
            let system = json!({"role": "system", "content": format!("brief {padding}")});
            let message = json!([system, {"role": "user", "content": format!("{name:x} {number}")}]);
            let body = json!({"model": model, "messages": message, "max_tokens": 20});
            let line = json!({"custom_id": format!("r{number}"), "method": "POST", "url": "/v1/chat/completions", "body": body});
            lines.push_str(&format!("{line}\n"));
        }
        let form = format!(
            "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\ncontent-disposition: form-data; \
             name=\"file\"; filename=\"r.jsonl\"\r\n\r\n{lines}\r\n--b--\r\n"
        );
        let file = post(address, "/v1/files", ("multipart/form-data; boundary=b", &form))?;
        let ask = json!({"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "2h"});
        let batch = post(address, "/v1/batches", ("application/json", &ask.to_string()))?;
        batch["id"].as_str().map(str::to_owned)
    }
}

fn post(address: &str, path: &str, (kind, body): (&str, &str)) -> Option<Value> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {KEY}\r\ncontent-type: {kind}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    exchange(address, &(head + body))
}

pub(super) fn get(address: &str, path: &str) -> Option<Value> {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"),
    )
}

/// One call on a connection of its own; `None` where it broke or was not answered with 200.
fn exchange(address: &str, text: &str) -> Option<Value> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    connection.write_all(text.as_bytes()).ok()?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).ok()?;
    let at = memchr::memmem::find(&answer, b"\r\n\r\n")?;
    if !answer.starts_with(b"HTTP/1.1 200") {
        return None;
    }
    serde_json::from_slice(&answer[at + 4..]).ok()
}
