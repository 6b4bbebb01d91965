//! Perplexity of a text as llama.cpp's `llama-perplexity -c 512` takes it: windows of 512 tokens that do not overlap, of
//! which the second half counts.

use anyhow::Context;
use engine::backend::{BLOCK_TOKENS, Backend, Output, Row, Want};
use engine::text::Tokenizer;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const WINDOW: usize = 512;
/// Logits asked for at a time.
const AT_ONCE: usize = 32;

pub(super) fn run(backend: &mut dyn Backend, tokenizer: &Tokenizer, path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let first = backend.info().bos.filter(|_| backend.info().add_bos);
    let mut tokens: Vec<u32> = first.into_iter().collect();
    tokens.extend(tokenizer.encode(&text, false));
    anyhow::ensure!(
        tokens.len() >= 2 * WINDOW,
        "{} has {} tokens; at least {} are needed",
        path.display(),
        tokens.len(),
        2 * WINDOW
    );
    backend.allocate(WINDOW / BLOCK_TOKENS)?;
    let (mut sum, mut squares, mut count) = (0.0f64, 0.0f64, 0u32);
    for window in tokens.chunks_exact(WINDOW) {
        let mut window = window.to_vec();
        if let Some(first) = first {
            window[0] = first;
        }
        for surprise in surprises(backend, &window) {
            (sum, squares, count) = (sum + surprise, squares + surprise * surprise, count + 1);
        }
    }
    let mean = sum / f64::from(count);
    let deviation = ((squares / f64::from(count) - mean * mean) / f64::from(count - 1)).sqrt();
    let perplexity = mean.exp();
    writeln!(
        std::io::stdout(),
        "perplexity {perplexity:.4} ± {:.4} over {count} of {} tokens",
        deviation * perplexity,
        tokens.len()
    )?;
    Ok(())
}

/// Minus the log-probability of each token of the second half.
fn surprises(backend: &mut dyn Backend, window: &[u32]) -> Vec<f64> {
    let blocks: Vec<u32> = (0..(WINDOW / BLOCK_TOKENS) as u32).collect();
    let abort = AtomicBool::new(false);
    let (mut output, mut out) = (Output::default(), Vec::new());
    let half = WINDOW / 2;
    let row = |range: std::ops::Range<usize>, wants| Row {
        first: range.start,
        tokens: &window[range],
        blocks: &blocks,
        wants,
    };
    backend.step(&[row(0..half, Want::Nothing)], &abort, &mut output);
    for start in (half..WINDOW - 1).step_by(AT_ONCE) {
        let end = (start + AT_ONCE).min(WINDOW - 1);
        // Rows of one token: logits come after each.
        let rows: Vec<Row<'_>> = (start..end).map(|at| row(at..at + 1, Want::Logits)).collect();
        backend.step(&rows, &abort, &mut output);
        let vocabulary = backend.info().vocabulary;
        for (logits, next) in output
            .logits
            .chunks_exact(vocabulary)
            .zip(&window[start + 1..=end])
        {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            out.push(total.ln() - f64::from(logits[*next as usize] - largest));
        }
    }
    out
}
