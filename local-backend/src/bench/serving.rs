//! Speed with a server: waves of clients who each ask for one streamed answer, if asked beside llama.cpp's `llama-server`,
//! in turns on the same file with the same threads.
//!
//! Both servers keep their defaults, the prefix cache among them: prompts differ from their first word on, so that only the
//! template's own beginning can be found there. llama-server gets a slot for each client and room for every sequence.

use super::{Arguments, best, median};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// For a server to become healthy, and for an answer's next bytes.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a chat template may add to a prompt, in tokens.
const TEMPLATE: usize = 64;
const WORDS: &str = "under grey clouds seven slow boats carried salt and timber past old stone mills while gulls turned above \
                     wet roofs and someone counted bells until night came down over quiet fields";

/// A server under test; ended when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// This program's own `serve`, with its defaults.
    fn ours(model: &Path, threads: usize) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--threads",
                &threads.to_string(),
            ])
            .arg("--model")
            .arg(model)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let address = line.trim().rsplit('/').next().unwrap_or_default().to_owned();
        Self { child, address }.healthy()
    }

    fn theirs(program: &Path, (model, threads): (&Path, usize), wave: Wave) -> anyhow::Result<Self> {
        // Free a moment ago; nobody else is expected to take it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let each = (wave.prompt + TEMPLATE + wave.generate).next_multiple_of(256);
        let threads = threads.to_string();
        let child = Command::new(program)
            .arg("-m")
            .arg(model)
            .args(["-t", &threads, "-tb", &threads, "-np", &wave.clients.to_string()])
            .args(["-c", &(wave.clients * each).to_string(), "--host", "127.0.0.1"])
            .args([
                "--port",
                &address.port().to_string(),
                "--no-webui",
                "--log-disable",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} cannot be run", program.display()))?;
        let address = address.to_string();
        Self { child, address }.healthy()
    }

    fn healthy(mut self) -> anyhow::Result<Self> {
        let started = Instant::now();
        while !self.is_healthy() {
            if let Some(status) = self.child.try_wait()? {
                bail!("a server ended before it was healthy ({status})");
            }
            ensure!(started.elapsed() < PATIENCE, "a server does not become healthy");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(self)
    }

    fn is_healthy(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&self.address)?;
            write!(
                stream,
                "GET /health HTTP/1.1\r\nhost: local\r\nconnection: close\r\n\r\n"
            )?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        ask().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
    }
}

/// What is asked at once.
#[derive(Clone, Copy)]
struct Wave {
    clients: usize,
    /// Tokens of each prompt, about, and of each answer.
    prompt: usize,
    generate: usize,
}

/// One answer.
struct Answer {
    first: Duration,
    prompt: u64,
    output: u64,
}

/// One wave: tokens of output per second, and the median time to the first token in milliseconds.
struct Rate {
    output: f64,
    first_ms: f64,
    prompt: f64,
}

fn prompt(salt: usize, tokens: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let chosen = (0..tokens.saturating_sub(4)).map(|at| words[(at * 7 + salt) % words.len()]);
    format!("{salt} is the note: {}", chosen.collect::<Vec<_>>().join(" "))
}

fn ask(address: &str, (salt, wave): (usize, Wave)) -> anyhow::Result<Answer> {
    let body = json!({ "stream": true, "stream_options": { "include_usage": true }, "temperature": 0, "max_tokens": wave.generate,
        "ignore_eos": true, "messages": [{ "role": "user", "content": prompt(salt, wave.prompt) }] })
    .to_string();
    let started = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: local\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all((head + &body).as_bytes())?;
    let (mut first, mut usage) = (None, Value::Null);
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let Some(event) = line.strip_prefix("data: ").filter(|event| *event != "[DONE]") else {
            continue;
        };
        let event: Value = serde_json::from_str(event).context("an event that is no JSON")?;
        let text = event["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or_default();
        if !text.is_empty() && first.is_none() {
            first = Some(started.elapsed());
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    let count = |name: &str| {
        usage[name]
            .as_u64()
            .with_context(|| format!("an answer without `{name}`"))
    };
    Ok(Answer {
        first: first.context("an answer without text")?,
        prompt: count("prompt_tokens")?,
        output: count("completion_tokens")?,
    })
}

/// Every client of a wave at the same moment; salts begin with `salt`.
fn measure(server: &Server, salt: usize, wave: Wave) -> anyhow::Result<Rate> {
    let start = Barrier::new(wave.clients + 1);
    let (answers, took) = std::thread::scope(|scope| {
        let client = |number: usize| {
            let (start, address) = (&start, server.address.as_str());
            scope.spawn(move || {
                start.wait();
                ask(address, (salt + number, wave))
            })
        };
        let clients: Vec<_> = (0..wave.clients).map(client).collect();
        start.wait();
        let started = Instant::now();
        let answers: Vec<_> = clients
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        (answers, started.elapsed())
    });
    let answers = answers
        .into_iter()
        .map(|answer| answer.unwrap_or_else(|_| bail!("a client broke")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let firsts: Vec<f64> = answers
        .iter()
        .map(|answer| answer.first.as_secs_f64() * 1e3)
        .collect();
    let sum = |of: fn(&Answer) -> u64| answers.iter().map(of).sum::<u64>() as f64;
    Ok(Rate {
        output: sum(|answer| answer.output) / took.as_secs_f64(),
        first_ms: median(&firsts),
        prompt: sum(|answer| answer.prompt) / wave.clients as f64,
    })
}

/// Measures and prints a table, or one line of JSON with every round.
///
/// # Errors
/// A server does not start, or does not answer as it must.
pub(super) fn run(arguments: &Arguments, model: &Path, threads: usize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if !arguments.json {
        writeln!(
            out,
            "| clients | | ours, best | median | llama-server, best | median | ratio, best | median |\n\
             | --: | --- | --: | --: | --: | --: | --: | --: |"
        )?;
    }
    for clients in arguments.clients.iter().copied() {
        ensure!(clients > 0, "--clients must be at least 1");
        let wave = Wave {
            clients,
            prompt: arguments.prompt,
            generate: arguments.generate,
        };
        let mut servers = vec![Server::ours(model, threads)?];
        if let Some(program) = &arguments.peer_server {
            servers.push(Server::theirs(program, (model, threads), wave)?);
        }
        let mut rates: Vec<Vec<Rate>> = servers.iter().map(|_| Vec::new()).collect();
        for server in &servers {
            // The first step of a server touches its memory for the first time.
            measure(
                server,
                9_000_000,
                Wave {
                    clients: 1,
                    generate: 4,
                    ..wave
                },
            )?;
        }
        for round in 0..arguments.rounds {
            for (server, rates) in servers.iter().zip(&mut rates) {
                rates.push(measure(server, (round + 1) * 10_000, wave)?);
            }
        }
        if arguments.json {
            let one = |rate: &Rate| json!({ "output_tokens_per_second": rate.output, "first_token_ms": rate.first_ms, "prompt_tokens": rate.prompt });
            let of = |rates: Option<&Vec<Rate>>| rates.map(|rates| rates.iter().map(one).collect::<Vec<_>>());
            let line = json!({ "clients": clients, "threads": threads, "ours": of(rates.first()), "llama_server": of(rates.get(1)) });
            writeln!(out, "{line}")?;
        } else {
            write!(out, "{}", lines(clients, &rates))?;
        }
    }
    Ok(())
}

/// Two lines of the table: more output is better, and a nearer first token.
fn lines(clients: usize, rates: &[Vec<Rate>]) -> String {
    let of = |at: usize, read: fn(&Rate) -> f64| -> Vec<f64> {
        rates
            .get(at)
            .map_or_else(Vec::new, |rates| rates.iter().map(read).collect())
    };
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let line = |name: &str, read: fn(&Rate) -> f64, best: &dyn Fn(&[f64]) -> f64| {
        let (ours, theirs) = (of(0, read), of(1, read));
        let told = if theirs.is_empty() {
            "– | – | – | –".to_owned()
        } else {
            let ratios = (best(&ours) / best(&theirs), median(&ours) / median(&theirs));
            format!(
                "{:.1} | {:.1} | {:.2} | {:.2}",
                best(&theirs),
                median(&theirs),
                ratios.0,
                ratios.1
            )
        };
        format!(
            "| {clients} | {name} | {:.1} | {:.1} | {told} |\n",
            best(&ours),
            median(&ours)
        )
    };
    line("output tok/s", |rate| rate.output, &best)
        + &line("first token p50, ms", |rate| rate.first_ms, &least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_most_tokens_and_the_nearest_first() {
        let rate = |output, first_ms| Rate {
            output,
            first_ms,
            prompt: 60.0,
        };
        let rates = [
            vec![rate(300.0, 90.0), rate(400.0, 100.0), rate(200.0, 110.0)],
            vec![rate(100.0, 400.0), rate(160.0, 500.0), rate(150.0, 450.0)],
        ];
        let expected = "| 32 | output tok/s | 400.0 | 300.0 | 160.0 | 150.0 | 2.50 | 2.00 |\n\
                        | 32 | first token p50, ms | 90.0 | 100.0 | 400.0 | 450.0 | 0.23 | 0.22 |\n";
        assert_eq!(lines(32, &rates), expected);
        assert!(lines(8, &rates[..1]).contains("| 8 | output tok/s | 400.0 | 300.0 | – |"));
    }

    #[test]
    fn prompts_of_a_wave_share_no_beginning() {
        assert_ne!(prompt(1, 40)[..4], prompt(2, 40)[..4]);
        assert!((40..60).contains(&prompt(12, 48).split(' ').count()));
    }
}
