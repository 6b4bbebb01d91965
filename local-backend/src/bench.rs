//! Speed without a server: a prompt of 512 tokens, and 128 tokens one by one.

use engine::backend::{BLOCK_TOKENS, Backend, Row};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

const PROMPT: usize = 512;
const GENERATE: usize = 128;
/// The best of so many, since other work on the machine only ever slows a run down.
const ROUNDS: usize = 3;

pub(crate) fn run(path: &Path, threads: usize) -> anyhow::Result<()> {
    let loaded = engine::model::load(path, threads)?;
    let mut backend = loaded.backend;
    let blocks: Vec<u32> = (0..PROMPT.div_ceil(BLOCK_TOKENS) as u32).collect();
    backend.allocate(blocks.len())?;
    let tokens: Vec<u32> = (0..PROMPT as u32)
        .map(|token| token * 7 % backend.info().vocabulary as u32)
        .collect();
    let (mut prompt, mut generate) = (0.0f64, 0.0f64);
    for _ in 0..ROUNDS {
        prompt = prompt.max(PROMPT as f64 / timed(|| step(&mut *backend, &tokens, 0, &blocks)));
        let one_by_one = || (0..GENERATE).for_each(|at| step(&mut *backend, &tokens[at..=at], at, &blocks));
        generate = generate.max(GENERATE as f64 / timed(one_by_one));
    }
    let line = serde_json::json!({
        "model": backend.info().name, "bytes": backend.info().bytes, "threads": threads,
        "pp512": (prompt * 10.0).round() / 10.0, "tg128": (generate * 10.0).round() / 10.0,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

fn step(backend: &mut dyn Backend, tokens: &[u32], first: usize, blocks: &[u32]) {
    let row = Row {
        tokens,
        first,
        blocks,
        wants_logits: true,
    };
    backend.step(&[row], &AtomicBool::new(false), &mut Vec::new());
}
