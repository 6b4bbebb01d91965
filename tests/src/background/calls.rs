//! Interactive callers: requests of seeded lengths, made at seeded moments or as fast as answers come.

use super::stack::{INTERACTIVE_KEY, MODEL, Stack};
use crate::storm::dice::Dice;
use anyhow::Context;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longer than any answer.
const SILENCE: Duration = Duration::from_secs(60);

/// What a caller saw, in seconds.
pub(super) struct Answer {
    /// From the moment it was due.
    pub(super) first_token: f64,
    /// Between two tokens, on average.
    pub(super) gap: f64,
}

/// A schedule: when each request is due after the start, and its body.
pub(super) struct Arrivals(Vec<(Duration, Value)>);

impl Arrivals {
    /// A Poisson process of `rate` requests a second, given how many there are: each comes at any moment as likely.
    pub(super) fn new(seed: u64, rate: f64, lasting: Duration) -> Self {
        let mut dice = Dice::new(seed);
        let count = (rate * lasting.as_secs_f64()).round() as usize;
        let mut moment = || lasting.mul_f64(dice.roll(1 << 30) as f64 / f64::from(1 << 30));
        let mut moments: Vec<Duration> = (0..count).map(|_| moment()).collect();
        moments.sort_unstable();
        Self(moments.into_iter().map(|at| (at, body(&mut dice))).collect())
    }
}

/// A request as both kinds make it: a prompt of 40 to 240 tokens or so, and 16 to 48 of output. It begins with a number that
/// no other one has, so that nothing is found in the cache: eight digits, which are eight tokens.
pub(super) fn body(dice: &mut Dice) -> Value {
    const WORDS: [&str; 16] = [
        "river", "stone", "market", "window", "garden", "letter", "winter", "engine", "music", "paper",
        "story", "island", "bridge", "doctor", "kitchen", "morning",
    ];
    let count = 30 + dice.roll(150);
    static MADE: AtomicUsize = AtomicUsize::new(10_000_000);
    let mut text = MADE.fetch_add(7_919, Ordering::Relaxed).to_string();
    for _ in 0..count {
        text.push(' ');
        text.push_str(WORDS[dice.roll(WORDS.len() as u64) as usize]);
    }
    json!({ "model": MODEL, "max_tokens": 16 + dice.roll(33), "temperature": 0, "ignore_eos": true,
        "messages": [{ "role": "user", "content": text }] })
}

/// Makes the scheduled requests, each on a connection of its own, and waits for the last answer.
pub(super) fn open(stack: &Stack, arrivals: &Arrivals) -> anyhow::Result<Vec<Answer>> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let mut waiting = Vec::with_capacity(arrivals.0.len());
        for (due, body) in &arrivals.0 {
            let due = began + *due;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            waiting.push(scope.spawn(move || call(stack, body, due)));
        }
        let joined = waiting
            .into_iter()
            .map(|one| one.join().expect("a caller does not panic"));
        joined.collect()
    })
}

/// Calls that never pause; how many were answered.
pub(super) fn closed(stack: &Stack, callers: u32, (seed, lasting): (u64, Duration)) -> anyhow::Result<usize> {
    let (count, until) = (AtomicUsize::new(0), Instant::now() + lasting);
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for caller in 0..callers {
            let count = &count;
            running.push(scope.spawn(move || {
                let mut dice = Dice::new(seed * 1000 + u64::from(caller));
                while Instant::now() < until {
                    call(stack, &body(&mut dice), Instant::now())?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            }));
        }
        running
            .into_iter()
            .try_for_each(|one| one.join().expect("a caller does not panic"))
    })?;
    Ok(count.into_inner())
}

/// One streamed call.
fn call(stack: &Stack, body: &Value, due: Instant) -> anyhow::Result<Answer> {
    let mut body = body.clone();
    body["stream"] = true.into();
    // As many as may be: it does not end by itself.
    let tokens = body["max_tokens"].as_u64().unwrap_or(1);
    let body = body.to_string();
    let mut stream = TcpStream::connect(stack.gateway.as_str())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {INTERACTIVE_KEY}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let (mut bytes, mut piece, mut first, mut last) = (Vec::new(), [0; 8192], None, due);
    loop {
        let read = stream
            .read(&mut piece)
            .context("an interactive answer broke off")?;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..read]);
        last = Instant::now();
        if first.is_none() && has_text(&bytes) {
            first = Some(last);
        }
    }
    let told = || {
        String::from_utf8_lossy(&bytes)
            .chars()
            .take(600)
            .collect::<String>()
    };
    let first = first.with_context(|| format!("an interactive request was not answered: {}", told()))?;
    let tokens = tokens.saturating_sub(1).max(1);
    Ok(Answer {
        first_token: first.duration_since(due).as_secs_f64(),
        gap: last.duration_since(first).as_secs_f64() / tokens as f64,
    })
}

/// Whether a piece of text is there; the first event has an empty one.
fn has_text(bytes: &[u8]) -> bool {
    const LEAD: &[u8] = b"\"content\":\"";
    memchr::memmem::find_iter(bytes, LEAD)
        .any(|at| bytes.get(at + LEAD.len()).is_some_and(|next| *next != b'"'))
}
