//! A long, unfriendly day for local-backend: many clients who ask, hang up, send nonsense, read slowly and ask for too
//! much, with a lull now and then in which nobody does. Memory, slots and blocks are read each second. Says at the end whether
//! it crashed, leaked, or was unfair, with the figures; exits with 1 if it was.
//!
//! `cargo build --release -p tests -p local-backend --bins && target/release/soak --seconds 1800 --samples soak.csv`

#![allow(clippy::print_stdout, reason = "its report")]

use clap::Parser;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::load::process::resident_kib;
use tests::soak::{Sample, blocks_each, memory, second_half};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, default_value_t = 32)]
    clients: u64,
    #[arg(long, default_value = ".run/models/smollm2-135m-instruct-q4_1.gguf")]
    model: PathBuf,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write what was held each second, as CSV.
    #[arg(long)]
    samples: Option<PathBuf>,
}

const TENANTS: [(&str, u32); 2] = [("light", 1), ("heavy", 3)];
const SLOTS: usize = 6;
/// What RSS may grow by in the second half, in share and in KiB: whichever is more.
const GROWTH: (f64, f64) = (0.02, 8192.0);
/// What blocks for each running request may grow by in the second half, as a share of their mean.
const MORE_BLOCKS: f64 = 0.1;
/// Seconds from which growth says something: before that, blocks of the cache are still touched for the first time.
const SETTLED: f64 = 240.0;
/// Between two lulls, and how long the last request of one may take.
const LULL: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(30));
const PATIENCE: Duration = Duration::from_secs(60);

/// What clients did, and what came of it.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
    left: AtomicU64,
    slow: AtomicU64,
    bad: AtomicU64,
    wrong: AtomicU64,
    /// Nobody asks.
    lull: AtomicBool,
    over: AtomicBool,
}

/// What was seen of the server.
#[derive(Default)]
struct Seen {
    samples: Vec<Sample>,
    /// What was held at the end of each lull.
    idle: Vec<Sample>,
    /// Seconds without health.
    sick: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % count
    }
}

/// The process under test; killed when dropped.
struct Server {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(model: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut tenants = String::new();
        for (name, weight) in TENANTS {
            let key = folder.path().join(name);
            std::fs::write(&key, name)?;
            tenants.push_str(&format!(
                "  {name}: {{weight: {weight}, keys: [\"file:{}\"]}}\n",
                key.display()
            ));
        }
        let settings = format!(
            "models: [{{path: \"{}\", name: m, kv_tokens: 8192}}]\nslots: {SLOTS}\nqueue: 64\nmax_body_bytes: 300000\ntenants:\n{tenants}",
            model.canonicalize()?.display()
        );
        let path = folder.path().join("local.yaml");
        std::fs::write(&path, settings)?;
        let binary = std::env::current_exe()?.with_file_name("local-backend");
        let mut child = Command::new(binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().ok_or_else(|| anyhow::anyhow!("no output"))?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
        let address = line.trim().rsplit('/').next().unwrap_or_default().to_owned();
        let server = Self {
            child,
            address,
            _folder: folder,
        };
        let started = Instant::now();
        while server.get("/health").is_none_or(|(status, _)| status != 200) {
            anyhow::ensure!(started.elapsed() < PATIENCE, "it does not become healthy");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        self.get_as(path, "")
    }

    fn get_as(&self, path: &str, key: &str) -> Option<(u16, String)> {
        let mut stream = connect(&self.address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: local\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        )
        .ok()?;
        read_all(&mut stream)
    }

    fn metric(&self, name: &str) -> f64 {
        sum(&self.metrics(), name).unwrap_or(0.0)
    }

    /// What each tenant was served: prompt tokens that were computed, and output tokens twice.
    fn served(&self, tenant: &str) -> f64 {
        let key = TENANTS[0].0;
        let text = self
            .get_as("/slots", key)
            .map(|(_, text)| text)
            .unwrap_or_default();
        let body: Value = text
            .split_once("\r\n\r\n")
            .and_then(|(_, body)| serde_json::from_str(body).ok())
            .unwrap_or_default();
        let shares = body["models"][0]["tenants"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let own = shares.iter().filter(|share| share["tenant"] == tenant);
        own.filter_map(|share| share["served_tokens"].as_f64()).sum()
    }

    /// What it holds now; blocks are infinite where it does not say.
    fn sample(&self, at: Duration) -> Sample {
        let text = self.metrics();
        let read = |name| sum(&text, name);
        Sample {
            at: at.as_secs_f64(),
            rss_kib: resident_kib(self.child.id()) as f64,
            running: read("num_requests_running").unwrap_or(0.0),
            blocks: read("kv_blocks_used").unwrap_or(f64::INFINITY),
        }
    }

    fn metrics(&self) -> String {
        self.get("/metrics").map(|(_, text)| text).unwrap_or_default()
    }

    fn is_clean(&self) -> bool {
        let text = self.metrics();
        ["num_requests_running", "num_requests_waiting", "kv_blocks_used"]
            .iter()
            .all(|name| sum(&text, name) == Some(0.0))
    }

    /// Waits until nothing is held, for a while.
    fn settle(&self, patience: Duration) {
        let started = Instant::now();
        while !self.is_clean() && started.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The sum of a metric over its labels; none where it is not told.
fn sum(metrics: &str, name: &str) -> Option<f64> {
    let lead = format!("local_{name}{{");
    let lines = metrics.lines().filter(|line| line.starts_with(&lead));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.reduce(|sum, value| sum + value)
}

fn connect(address: &str) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

fn read_all(stream: &mut TcpStream) -> Option<(u16, String)> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text))
}

struct Client<'a> {
    server: &'a str,
    tenant: usize,
    random: Random,
    tally: &'a Tally,
    number: u64,
}

impl Client<'_> {
    fn run(&mut self) {
        while !self.tally.over.load(Ordering::Relaxed) {
            if self.tally.lull.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            self.number += 1;
            let happened = match self.random.below(100) {
                0..60 => self.ask(),
                60..75 => self.leave(),
                75..85 => self.nonsense(),
                85..90 => self.too_much(),
                _ => self.read_slowly(),
            };
            // Nothing at all came back: the server is gone, or silent for a minute.
            if happened.is_none() && !self.tally.over.load(Ordering::Relaxed) {
                self.tally.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn body(&mut self) -> Value {
        // A beginning that many share, and an end that none does.
        let shared = "You are a careful assistant. ".repeat(self.random.below(8) as usize);
        let words = self.random.below(60) as usize + 1;
        let said = format!(
            "{}{} {}",
            "tell me more ".repeat(words),
            self.number,
            self.random.below(1 << 40)
        );
        let mut body = json!({ "model": "m", "max_tokens": 4 + self.random.below(28), "stream": self.random.below(3) > 0,
            "stream_options": { "include_usage": true }, "temperature": self.random.below(15) as f64 / 10.0,
            "messages": [{ "role": "system", "content": shared }, { "role": "user", "content": said }] });
        match self.random.below(12) {
            0 => body["n"] = 2.into(),
            1 => {
                body["logprobs"] = true.into();
                body["top_logprobs"] = 2.into();
            }
            2 => {
                let schema = json!({ "type": "object", "properties": { "a": { "type": "integer", "maximum": 9, "minimum": 0 } }, "required": ["a"], "additionalProperties": false });
                body["response_format"] =
                    json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
            }
            3 => body["stop"] = json!(["the", "\n\n"]),
            4 => body["repetition_penalty"] = 1.2.into(),
            _ => {}
        }
        body
    }

    fn send(&self, body: &[u8]) -> Option<TcpStream> {
        let mut stream = connect(self.server)?;
        let key = TENANTS[self.tenant].0;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: local\r\nconnection: close\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        // A refusal may come before all is sent.
        let _ = stream.write_all(body);
        Some(stream)
    }

    fn ask(&mut self) -> Option<()> {
        let body = self.body().to_string();
        let (status, text) = read_all(&mut self.send(body.as_bytes())?)?;
        match status {
            200 if text.contains("\"usage\":{") => {
                self.tally.answered.fetch_add(1, Ordering::Relaxed);
            }
            429 => {
                self.tally.refused.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => {
                println!(
                    "an answer that should not be: {}",
                    text.chars().take(600).collect::<String>()
                );
                self.tally.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
        Some(())
    }

    /// Hangs up at some moment.
    fn leave(&mut self) -> Option<()> {
        let body = self.body().to_string();
        let stream = self.send(body.as_bytes())?;
        std::thread::sleep(Duration::from_millis(self.random.below(400)));
        drop(stream);
        self.tally.left.fetch_add(1, Ordering::Relaxed);
        Some(())
    }

    /// Must be refused, as what it is.
    fn nonsense(&mut self) -> Option<()> {
        let wrong: [&[u8]; 8] = [
            b"{",
            b"[1, 2]",
            b"\xff\xfe\x00",
            br#"{"model": "m", "messages": []}"#,
            br#"{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}"#,
            br#"{"model": "m", "messages": [{"role": "user", "content": 5}]}"#,
            br#"{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"}"#,
            br#"{"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "none"}}}}"#,
        ];
        let body = wrong[self.random.below(wrong.len() as u64) as usize];
        self.expect(body, |status| (400..500).contains(&status))
    }

    /// More than the model reads, or than the server takes.
    fn too_much(&mut self) -> Option<()> {
        let words = if self.random.below(2) == 0 { 20_000 } else { 90_000 };
        let body =
            json!({ "model": "m", "messages": [{ "role": "user", "content": "word ".repeat(words) }] })
                .to_string();
        self.expect(body.as_bytes(), |status| status == 400 || status == 413)
    }

    fn expect(&self, body: &[u8], is_right: impl Fn(u16) -> bool) -> Option<()> {
        let mut stream = self.send(body)?;
        // A large body that is refused early may end in a reset instead of an answer.
        match read_all(&mut stream) {
            Some((status, _)) if is_right(status) => self.tally.bad.fetch_add(1, Ordering::Relaxed),
            None if body.len() > 300_000 => self.tally.bad.fetch_add(1, Ordering::Relaxed),
            other => {
                println!("bad input was answered with {other:?}");
                self.tally.wrong.fetch_add(1, Ordering::Relaxed)
            }
        };
        Some(())
    }

    /// A few bytes at a time, for a while.
    fn read_slowly(&mut self) -> Option<()> {
        let mut body = self.body();
        body["stream"] = true.into();
        let mut stream = self.send(body.to_string().as_bytes())?;
        let mut bytes = [0; 16];
        for _ in 0..self.random.below(60) {
            match stream.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self.tally.slow.fetch_add(1, Ordering::Relaxed);
        Some(())
    }
}

/// What is held each second and at the end of each lull, and whether it stayed healthy.
fn watch(server: &Server, tally: &Tally) -> Seen {
    let (mut seen, started) = (Seen::default(), Instant::now());
    let mut next_lull = LULL.0;
    while !tally.over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_secs(1));
        seen.samples.push(server.sample(started.elapsed()));
        seen.sick += u64::from(server.get("/health").is_none_or(|(status, _)| status != 200));
        if started.elapsed() > next_lull {
            tally.lull.store(true, Ordering::Relaxed);
            server.settle(LULL.1);
            seen.idle.push(server.sample(started.elapsed()));
            tally.lull.store(false, Ordering::Relaxed);
            next_lull += LULL.0;
        }
    }
    seen
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let server = Server::start(&arguments.model)?;
    let tally = Tally::default();
    let mut seen = std::thread::scope(|scope| {
        for number in 0..arguments.clients {
            let (server, tally) = (&server, &tally);
            let random = Random(arguments.seed.wrapping_mul(1000) + number);
            scope.spawn(move || {
                let tenant = (number % 2) as usize;
                let server = server.address.as_str();
                let mut client = Client {
                    server,
                    tenant,
                    random,
                    tally,
                    number: number << 32,
                };
                client.run();
            });
        }
        let watcher = scope.spawn(|| watch(&server, &tally));
        std::thread::sleep(Duration::from_secs(arguments.seconds));
        tally.over.store(true, Ordering::Relaxed);
        watcher.join()
    })
    .map_err(|_| anyhow::anyhow!("nothing can be read of the server any more"))?;
    server.settle(LULL.1);
    seen.idle
        .push(server.sample(Duration::from_secs(arguments.seconds)));
    if let Some(path) = &arguments.samples {
        std::fs::write(path, csv(&seen.samples))?;
    }
    report(&server, &tally, &seen)
}

fn csv(samples: &[Sample]) -> String {
    let line = |sample: &Sample| {
        let Sample {
            at,
            rss_kib,
            running,
            blocks,
        } = sample;
        format!("{at:.1},{rss_kib},{running},{blocks}\n")
    };
    let lines: String = samples.iter().map(line).collect();
    format!("seconds,rss_kib,running,blocks\n{lines}")
}

fn report(server: &Server, tally: &Tally, seen: &Seen) -> anyhow::Result<()> {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let half = second_half(&seen.samples);
    let (memory, blocks) = (memory(half), blocks_each(half));
    let left: Vec<f64> = seen.idle.iter().map(|sample| sample.blocks).collect();
    let ratio = server.served(TENANTS[1].0) / server.served(TENANTS[0].0).max(1.0);
    let (is_clean, mean_ms) = (
        server.is_clean(),
        server.metric("step_seconds_sum") / server.metric("step_seconds_count").max(1.0) * 1e3,
    );
    let two = |value: f64| (value * 100.0).round() / 100.0;
    let shown = json!({
        "answered": read(&tally.answered), "refused": read(&tally.refused), "left": read(&tally.left), "slow": read(&tally.slow),
        "bad_input": read(&tally.bad), "wrong": read(&tally.wrong), "unhealthy_seconds": seen.sick,
        "rss_mib": { "mean": two(memory.mean / 1024.0), "growth": two(memory.growth / 1024.0), "error": two(memory.error / 1024.0),
            "per_hour": two(memory.per_hour() / 1024.0) },
        "blocks_for_each_running": { "mean": two(blocks.mean), "growth": two(blocks.growth), "error": two(blocks.error) },
        "seconds_of_second_half": memory.span.round(), "blocks_held_while_idle": left,
        "nothing_left_behind": is_clean, "share_heavy_to_light": two(ratio), "mean_step_ms": mean_ms,
        "cancelled": server.metric("cancelled_total"), "preempted": server.metric("num_preemptions_total"),
    });
    println!("{shown}");
    let is_settled = seen.samples.last().is_some_and(|last| last.at >= SETTLED);
    let leaks = is_settled && memory.rises(GROWTH.1.max(memory.mean * GROWTH.0));
    let keeps = is_settled && blocks.rises(blocks.mean * MORE_BLOCKS);
    // Few answers say nothing about shares.
    let unfair = read(&tally.answered) > 500 && !(2.7..=3.3).contains(&ratio);
    anyhow::ensure!(
        !leaks,
        "its memory grows by {:.1} MiB an hour",
        memory.per_hour() / 1024.0
    );
    anyhow::ensure!(
        !keeps,
        "blocks for each running request grew by {:.2} from {:.2}",
        blocks.growth,
        blocks.mean
    );
    anyhow::ensure!(
        left.iter().all(|blocks| *blocks == 0.0),
        "blocks are held while nobody asks: {left:?}"
    );
    anyhow::ensure!(!unfair, "the shares of weights 1 and 3 are 1 to {ratio:.2}");
    anyhow::ensure!(is_clean, "requests, slots or blocks were left behind");
    anyhow::ensure!(
        read(&tally.wrong) == 0 && seen.sick == 0,
        "wrong answers or an unhealthy server: see above"
    );
    Ok(())
}
