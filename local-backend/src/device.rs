//! Where models run: the flags for it, and the speed of made-up models on a card.

use crate::bench::check;
use anyhow::{Context, bail};
use clap::Args;
use engine::backend::{BLOCK_TOKENS, Backend, Draw, Output, Row, Want};
use engine::model::cuda::{Capacity, Model, SyntheticModel};
use engine::model::{CudaSettings, Device, Kernels, Place, Precision, find};
use kernels::cuda::Ops;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Flags of every command that runs a model.
#[derive(Args, Clone, Debug)]
pub(crate) struct Flags {
    /// cpu, cuda, or auto: a card if one can be used.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Which card.
    #[arg(long, default_value_t = 0)]
    cuda_device: u32,
    /// Where NVIDIA's compiler (libnvrtc) and cuBLASLt lie, if the system does not find them: what `deploy/fetch-nvrtc.sh` prints.
    #[arg(long)]
    cuda_root: Option<PathBuf>,
    /// On a card: make answers independent of what shares a step, to the bit, at a cost in speed.
    #[arg(long)]
    invariant: bool,
    /// On a card: auto takes the kernels made for its generation if they agree, at this start, with the plain ones; plain never
    /// does.
    #[arg(long, default_value = "auto")]
    cuda_kernels: Kernels,
}

impl Flags {
    /// Finds the device; with `auto` and none to be used, says why on standard error.
    ///
    /// # Errors
    /// A card was asked for and none can be used.
    pub(crate) fn find(&self, threads: usize) -> anyhow::Result<Place> {
        let threads = match threads {
            0 => crate::cores(None),
            threads => threads,
        };
        let precision = if self.invariant {
            Precision::Invariant
        } else {
            Precision::Fast
        };
        let settings = CudaSettings {
            ordinal: self.cuda_device,
            root: self.cuda_root.clone(),
            precision,
            choice: self.cuda_kernels,
            ..CudaSettings::default()
        };
        let (place, reason) = find(self.device, threads, &settings)?;
        if let Some(reason) = reason {
            writeln!(std::io::stderr(), "on the CPU, since {reason}")?;
        }
        if let Place::Cuda { choice, .. } = &place {
            writeln!(std::io::stderr(), "{}", choice.why)?;
        }
        Ok(place)
    }
}

/// Prompt, and tokens generated.
const PROMPT: usize = 512;
const GENERATE: usize = 128;
const BATCHES: [usize; 4] = [1, 8, 32, 128];
/// The best of so many, since other work on the machine only ever slows a run down.
const ROUNDS: usize = 3;

/// What follows the measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    /// A verdict on each promise.
    Check,
}

/// Size of the multiply whose rate is the peak.
const PEAK: usize = 8192;

/// Tokens of a prompt that is checked: as many as a step takes.
const CHECKED_PROMPT: usize = 1024;

/// Measures a made-up model: one line of JSON, and the verdict if asked for.
pub(crate) fn synthetic(name: &str, flags: &Flags, then: Then) -> anyhow::Result<()> {
    let shape: SyntheticModel = name.parse()?;
    let place = flags.find(1)?;
    let Place::Cuda {
        driver,
        precision,
        capacity,
        choice,
    } = place.clone()
    else {
        bail!(
            "made-up models are made on a card: --device cuda (no card was found, or --device cpu was given)"
        );
    };
    let facts = driver.facts();
    let ops = Ops::new(driver.clone(), precision).with_ways(choice.ways);
    // First, while all memory is free.
    let before = match then {
        Then::Nothing => None,
        Then::Check => Some((
            check::likeness(&shape, &place, crate::cores(None))?,
            check::gemm_peak(&ops, PEAK, 10)?,
        )),
    };
    let mut model = shape
        .make(ops, capacity)
        .with_context(|| format!("making {name}"))?;
    let batches: Vec<usize> = BATCHES
        .into_iter()
        .filter(|batch| *batch <= Capacity::default().sequences)
        .collect();
    let most = batches.last().copied().unwrap_or(1);
    let blocks = (most * GENERATE.div_ceil(BLOCK_TOKENS)).max(CHECKED_PROMPT / BLOCK_TOKENS);
    model.allocate(blocks.min(model.blocks_that_fit()))?;
    let prompt = prompt_speed(&mut model, PROMPT);
    let mut rates = serde_json::Map::new();
    let mut by_batch = std::collections::BTreeMap::new();
    let limit = facts.bandwidth as f64 / model.bytes_per_token() as f64;
    for batch in batches {
        let Some(rate) = decode_speed(&mut model, batch) else {
            continue;
        };
        by_batch.insert(batch, rate);
        let mut entry = serde_json::json!({ "tokens_per_second": tenth(rate) });
        if facts.bandwidth > 0 {
            // Weights are read once a step, whatever its size.
            entry["percent_of_bandwidth"] = tenth(rate / batch as f64 / limit * 100.0).into();
        }
        rates.insert(batch.to_string(), entry);
    }
    let line = serde_json::json!({
        "model": model.info().name, "device": facts.name, "has_gemm_library": facts.has_gemm,
        "bytes_per_token": model.bytes_per_token(), "bandwidth_bytes_per_second": facts.bandwidth,
        "tokens_per_second_limit_at_batch_1": tenth(limit),
        "pp512": tenth(prompt), "tg128_by_batch": rates,
    });
    writeln!(std::io::stdout(), "{line}")?;
    let Some((likeness, peak)) = before else {
        return Ok(());
    };
    let rate = |batch: usize| by_batch.get(&batch).copied().unwrap_or(0.0);
    let measured = check::Measured {
        likeness,
        batch_1: rate(1),
        limit,
        batch_32: rate(32),
        prompt: prompt_speed(&mut model, CHECKED_PROMPT),
        operations: model.operations_per_token(),
        peak,
    };
    let (lines, is_kept) = check::verdict(&measured);
    write!(std::io::stdout(), "{lines}")?;
    anyhow::ensure!(is_kept, "not every promise is kept on {}", facts.name);
    Ok(())
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Tokens per second of a prompt.
fn prompt_speed(model: &mut Model, prompt: usize) -> f64 {
    let blocks: Vec<u32> = (0..prompt.div_ceil(BLOCK_TOKENS) as u32).collect();
    let tokens: Vec<u32> = (0..prompt as u32)
        .map(|token| token * 7 % model.info().vocabulary as u32)
        .collect();
    let mut best = 0.0f64;
    for _ in 0..ROUNDS {
        let row = Row {
            tokens: &tokens,
            first: 0,
            blocks: &blocks,
            wants: Want::Token(Draw::default()),
        };
        let started = Instant::now();
        model.step(&[row], &AtomicBool::new(false), &mut Output::default());
        best = best.max(prompt as f64 / started.elapsed().as_secs_f64());
    }
    best
}

/// Tokens per second of so many sequences at once; none where there is no room for them.
fn decode_speed(model: &mut Model, batch: usize) -> Option<f64> {
    let mut best = None;
    // The first round also loads kernels and records the graph.
    for _ in 0..=ROUNDS {
        let started = Instant::now();
        model.generate(batch, GENERATE).ok()?;
        let rate = (batch * GENERATE) as f64 / started.elapsed().as_secs_f64();
        best = Some(best.map_or(rate, |best: f64| best.max(rate)));
    }
    best
}
