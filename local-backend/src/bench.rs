//! Speed without a server: prompts of so many tokens, and tokens one by one for one sequence and for several at once; if
//! asked, beside llama.cpp's `llama-bench` on the same file, in turns. With `--clients`, speed with a server.

pub(crate) mod check;
mod peer;
mod perplexity;
mod serving;

use crate::device;
use clap::{Args, ValueEnum};
use engine::backend::{BLOCK_TOKENS, Backend, Draw, Output, Row, Want};
use engine::model::{KvKind, Place, Progress, Use, load_watched};
use kernels::{Isa, Pool};
use peer::Peer;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A GGUF file, or a folder with safetensors.
    #[arg(long, required_unless_present = "synthetic")]
    model: Option<PathBuf>,
    /// Instead of a file: llama-8b, qwen3-8b or smollm2-135m with weights made up on a card; -q4 or -q8 after the name quantizes
    /// them, else they are bf16.
    #[arg(long, conflicts_with = "model")]
    synthetic: Option<String>,
    /// With --synthetic: whether a card keeps what is promised, a line for each; fails where it does not.
    #[arg(long, requires = "synthetic")]
    check: bool,
    /// Left out: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 128)]
    generate: usize,
    /// Sequences that generate at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    batch: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Go without the processor's better instructions.
    #[arg(long)]
    isa: Option<Instructions>,
    /// How keys and values are kept: f16, bf16, f32 or int8. Left out: as suits the weights.
    #[arg(long)]
    kv_cache: Option<KvKind>,
    /// Multiply floats, as a reference for what rounding does.
    #[arg(long)]
    exact: bool,
    /// llama.cpp's `llama-bench`, to be measured in turns.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Instead of steps: the server, with so many clients at once who each stream one answer of --generate tokens to a prompt
    /// of about --prompt tokens.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["synthetic", "perplexity", "peer"])]
    clients: Vec<usize>,
    /// llama.cpp's `llama-server`, to be measured in turns.
    #[arg(long, requires = "clients")]
    peer_server: Option<PathBuf>,
    /// One line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Instead of speed: the perplexity of this text, as llama.cpp's `llama-perplexity` takes it.
    #[arg(long)]
    perplexity: Option<PathBuf>,
    #[command(flatten)]
    device: device::Flags,
}

#[derive(Clone, Copy, ValueEnum)]
enum Instructions {
    Plain,
    Avx2,
    Avx512,
}

impl From<Instructions> for Isa {
    fn from(instructions: Instructions) -> Self {
        match instructions {
            Instructions::Plain => Self::Plain,
            Instructions::Avx2 => Self::Avx2,
            Instructions::Avx512 => Self::Avx512,
        }
    }
}

/// One kind of work and what it reached, in tokens per second.
struct Test {
    name: String,
    /// Sequences at once; 0: a prompt.
    batch: usize,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Test {
    fn new(name: String, batch: usize) -> Self {
        Self {
            name,
            batch,
            ours: Vec::new(),
            theirs: Vec::new(),
        }
    }
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(name) = &arguments.synthetic {
        let then = if arguments.check {
            device::Then::Check
        } else {
            device::Then::Nothing
        };
        return device::synthetic(name, &arguments.device, then);
    }
    let path = arguments.model.clone().unwrap_or_default();
    anyhow::ensure!(
        arguments.prompt > 0 && arguments.generate > 0 && arguments.rounds > 0,
        "--prompt, --generate and --rounds must be at least 1"
    );
    let threads = crate::cores(arguments.threads);
    if !arguments.clients.is_empty() {
        return serving::run(arguments, &path, threads);
    }
    let isa = arguments.isa.map_or(Isa::best(), Isa::from).limit();
    let weights = if arguments.exact {
        Use::AsFloats
    } else {
        Use::AsStored
    };
    let place = match arguments.device.find(threads)? {
        Place::Cpu { threads, .. } => Place::Cpu {
            threads,
            weights,
            kv: None,
        },
        card => card,
    };
    let place = place.keeping(arguments.kv_cache).map_err(anyhow::Error::msg)?;
    let progress = Arc::new(Progress::default());
    let shown = path.display().to_string();
    let loaded = crate::progress::told(&shown, &progress, || load_watched(&path, &place, &progress))?;
    let mut backend = loaded.backend;
    anyhow::ensure!(
        backend.info().generates,
        "{} only embeds; there is no text to generate",
        backend.info().name
    );
    if let Some(text) = &arguments.perplexity {
        return perplexity::run(&mut *backend, &loaded.tokenizer, text);
    }
    let most = arguments.batch.iter().copied().max().unwrap_or(1).max(1);
    let blocks = |tokens: usize| tokens.div_ceil(BLOCK_TOKENS);
    backend.allocate(blocks(arguments.prompt).max(most * blocks(arguments.generate)))?;
    let bandwidth = kernels::read_bandwidth(&mut Pool::new(threads))?;
    let peer = arguments.peer.as_deref().map(|program| Peer {
        program,
        model: &path,
        threads,
    });
    let mut tests = vec![Test::new(format!("pp{}", arguments.prompt), 0)];
    for batch in &arguments.batch {
        let name = match batch {
            1 => format!("tg{}", arguments.generate),
            batch => format!("tg{} × {batch}", arguments.generate),
        };
        tests.push(Test::new(name, *batch));
    }
    for _ in 0..arguments.rounds {
        for test in &mut tests {
            test.ours.push(measure(&mut *backend, test.batch, arguments));
            if let Some(peer) = peer.as_ref().filter(|_| test.batch < 2) {
                let (prompt, generate) = match test.batch {
                    0 => (arguments.prompt, 0),
                    _ => (0, arguments.generate),
                };
                test.theirs.push(peer.measure(prompt, generate)?);
            }
        }
    }
    let mut out = std::io::stdout().lock();
    let info = backend.info();
    if arguments.json {
        let rates = |rates: &[f64]| serde_json::json!({ "best": best(rates), "median": median(rates) });
        let of = |test: &Test| serde_json::json!({ "test": test.name, "tokens_per_second": rates(&test.ours), "llama_cpp": rates(&test.theirs) });
        let line = serde_json::json!({
            "model": info.name, "bytes": info.bytes, "threads": threads, "isa": format!("{isa:?}"),
            "bytes_per_second": bandwidth, "tests": tests.iter().map(of).collect::<Vec<_>>(),
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{}: {} MB of weights, {threads} threads, {isa:?}, memory {:.1} GB/s\n",
        info.name,
        info.bytes / 1_000_000,
        bandwidth / 1e9
    )?;
    write!(out, "{}", table(&tests, info.bytes as f64 / bandwidth))?;
    Ok(())
}

/// `floor`: seconds that reading every weight once takes.
fn table(tests: &[Test], floor: f64) -> String {
    let head = "| test | tok/s, best | median | of the memory limit | llama.cpp, best | median | ratio, best | median |\n\
                | --- | --: | --: | --: | --: | --: | --: | --: |\n";
    let mut out = head.to_owned();
    for test in tests {
        let limit = match test.batch {
            0 => "–".to_owned(),
            batch => format!("{:.0} %", best(&test.ours) / batch as f64 * floor * 100.0),
        };
        let theirs = if test.theirs.is_empty() {
            "– | – | – | –".to_owned()
        } else {
            format!(
                "{:.1} | {:.1} | {:.2} | {:.2}",
                best(&test.theirs),
                median(&test.theirs),
                best(&test.ours) / best(&test.theirs),
                median(&test.ours) / median(&test.theirs)
            )
        };
        let (best, median) = (best(&test.ours), median(&test.ours));
        out += &format!(
            "| {} | {best:.1} | {median:.1} | {limit} | {theirs} |\n",
            test.name
        );
    }
    out
}

/// Tokens per second of one run.
fn measure(backend: &mut dyn Backend, batch: usize, arguments: &Arguments) -> f64 {
    let mut output = Output::default();
    let vocabulary = backend.info().vocabulary as u32;
    let token = |at: usize, sequence: usize| (at as u32 * 7 + sequence as u32 * 31) % vocabulary;
    let started = Instant::now();
    if batch == 0 {
        let tokens: Vec<u32> = (0..arguments.prompt).map(|at| token(at, 0)).collect();
        let blocks: Vec<u32> = (0..arguments.prompt.div_ceil(BLOCK_TOKENS) as u32).collect();
        step(backend, (&[(&tokens, &blocks)], 0), &mut output);
        return arguments.prompt as f64 / started.elapsed().as_secs_f64();
    }
    let each = arguments.generate.div_ceil(BLOCK_TOKENS) as u32;
    let blocks: Vec<Vec<u32>> = (0..batch as u32)
        .map(|sequence| (sequence * each..(sequence + 1) * each).collect())
        .collect();
    for at in 0..arguments.generate {
        let tokens: Vec<[u32; 1]> = (0..batch).map(|sequence| [token(at, sequence)]).collect();
        let rows: Vec<Part<'_>> = tokens
            .iter()
            .zip(&blocks)
            .map(|(tokens, blocks)| (tokens.as_slice(), blocks.as_slice()))
            .collect();
        step(backend, (&rows, at), &mut output);
    }
    (arguments.generate * batch) as f64 / started.elapsed().as_secs_f64()
}

/// The tokens and the blocks of one sequence.
type Part<'a> = (&'a [u32], &'a [u32]);

fn step(backend: &mut dyn Backend, (rows, first): (&[Part<'_>], usize), output: &mut Output) {
    // As a request would have it.
    let wants = if backend.info().draws {
        Want::Token(Draw::default())
    } else {
        Want::Logits
    };
    let rows: Vec<Row<'_>> = rows
        .iter()
        .map(|(tokens, blocks)| Row {
            tokens,
            first,
            blocks,
            wants,
        })
        .collect();
    backend.step(&rows, &AtomicBool::new(false), output);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_ratios_and_shares() {
        let mut test = Test::new("tg128".into(), 1);
        (test.ours, test.theirs) = (vec![90.0, 100.0, 80.0], vec![50.0, 40.0, 45.0]);
        let table = table(&[test], 0.005);
        assert!(
            table.ends_with("| tg128 | 100.0 | 90.0 | 50 % | 50.0 | 45.0 | 2.00 | 2.00 |\n"),
            "{table}"
        );
    }
}
