//! Whether a card keeps what is promised of it: tokens equal to the CPU's on the same file, and shares of the card's own limits. One
//! line for each promise; the program fails where one is not kept.

use anyhow::Context;
use engine::backend::{BLOCK_TOKENS, Backend, Output, Row, StepEnd, Want};
use engine::model::cuda::SyntheticModel;
use engine::model::{KvKind, Place, Use, load_on};
use engine::sample::likeliest;
use kernels::cuda::{
    Activations, Buffer, CudaError, Emit, Form, Matrix, Norm, Ops, Place as Region, Scratch, Then,
};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// The card may be so many times as far from exact as the CPU is, and a rounding to bf16 on top: both round activations, but not in
/// the same places.
const TIMES: f64 = 1.5;
const ROUNDING: f64 = 1.0 / 512.0;
/// Other tokens are excused where the CPU's logits are nearer to each other than so many times what is allowed.
const TIE: f64 = 4.0;
/// Prompts of several sequences, long enough for every kernel, and tokens generated after them.
const PROMPTS: [usize; 4] = [300, 150, 40, 1];
const GENERATE: usize = 16;

/// What a comparison found. Distances are roots of mean squares, as a share of that of the exact logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Likeness {
    /// Tokens compared.
    tokens: usize,
    equal: usize,
    /// Between the CPU's logits of its own and of the card's token, where these are not the same.
    gaps: Vec<f64>,
    /// From exact, on the mean over tokens: the CPU, the card.
    cpu: f64,
    card: f64,
}

fn size(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

impl Likeness {
    fn allowed(&self) -> f64 {
        TIMES * self.cpu + ROUNDING
    }

    fn tied(&self) -> usize {
        self.gaps
            .iter()
            .filter(|gap| **gap <= TIE * self.allowed())
            .count()
    }

    fn is_kept(&self) -> bool {
        // NaN is not within anything.
        self.tokens > 0 && self.equal + self.tied() == self.tokens && self.card <= self.allowed()
    }

    fn take(&mut self, exact: &[f32], cpu: &[f32], card: &[f32]) {
        let all = size(exact.iter().copied()).max(f64::MIN_POSITIVE);
        let from = |other: &[f32]| size(exact.iter().zip(other).map(|(exact, other)| exact - other)) / all;
        let (before, tokens) = (self.tokens as f64, self.tokens as f64 + 1.0);
        self.cpu = (self.cpu * before + from(cpu)) / tokens;
        self.card = (self.card * before + from(card)) / tokens;
        let (theirs, ours) = (likeliest(cpu) as usize, likeliest(card) as usize);
        self.tokens += 1;
        if theirs == ours {
            self.equal += 1;
        } else {
            let each = all / (exact.len() as f64).sqrt();
            self.gaps.push(f64::from(cpu[theirs] - cpu[ours]) / each);
        }
    }
}

/// The same steps on the CPU with floats, on the CPU as it serves, and on the card; each goes on with the CPU's tokens.
fn compare(backends: &mut [Box<dyn Backend>; 3]) -> anyhow::Result<Likeness> {
    let blocks = |tokens: usize| tokens.div_ceil(BLOCK_TOKENS);
    let per = blocks(PROMPTS[0] + GENERATE);
    for backend in &mut *backends {
        backend.allocate(per * PROMPTS.len())?;
    }
    let vocabulary = backends[0].info().vocabulary;
    let token = |at: usize, sequence: usize| ((at * 37 + sequence * 101 + 5) % vocabulary) as u32;
    let mut next: Vec<Vec<u32>> = (0..PROMPTS.len())
        .map(|sequence| (0..PROMPTS[sequence]).map(|at| token(at, sequence)).collect())
        .collect();
    let tables: Vec<Vec<u32>> = (0..PROMPTS.len())
        .map(|sequence| {
            (sequence * per..(sequence + 1) * per)
                .map(|block| block as u32)
                .collect()
        })
        .collect();
    let mut done = [0; PROMPTS.len()];
    let mut likeness = Likeness::default();
    for _ in 0..=GENERATE {
        let rows: Vec<Row<'_>> = (0..PROMPTS.len())
            .map(|sequence| Row {
                tokens: &next[sequence],
                first: done[sequence],
                blocks: &tables[sequence],
                wants: Want::Logits,
            })
            .collect();
        let mut outputs = [const {
            Output {
                logits: Vec::new(),
                tokens: Vec::new(),
            }
        }; 3];
        for (backend, output) in backends.iter_mut().zip(&mut outputs) {
            let end = backend.step(&rows, &AtomicBool::new(false), output);
            anyhow::ensure!(end == StepEnd::Done, "a step did not end");
        }
        let mut chosen = Vec::new();
        for row in 0..PROMPTS.len() {
            let [exact, cpu, card] = outputs
                .each_ref()
                .map(|output| &output.logits[row * vocabulary..(row + 1) * vocabulary]);
            likeness.take(exact, cpu, card);
            chosen.push(likeliest(cpu));
        }
        for (sequence, token) in chosen.into_iter().enumerate() {
            done[sequence] += next[sequence].len();
            next[sequence] = vec![token];
        }
    }
    Ok(likeness)
}

/// The shape's widths in a small file, on the CPU and on the card.
pub(crate) fn likeness(shape: &SyntheticModel, card: &Place, threads: usize) -> anyhow::Result<Likeness> {
    let folder = tempfile::tempdir().context("a folder for a small model")?;
    let path = folder.path().join("small.gguf");
    shape
        .small()
        .write(&path)
        .with_context(|| format!("writing {}", path.display()))?;
    let exact = Place::Cpu {
        threads,
        weights: Use::AsFloats,
        kv: Some(KvKind::F32),
    };
    let mut backends = [
        load_on(&path, &exact)?.backend,
        load_on(&path, &Place::cpu(threads))?.backend,
        load_on(&path, card)?.backend,
    ];
    compare(&mut backends)
}

/// Floating-point operations a second of the best large bf16 multiply of so many rows, columns and tokens that the card was seen
/// to do.
///
/// # Errors
/// There is no room, or the card refuses.
pub(crate) fn gemm_peak(ops: &Ops, size: usize, rounds: usize) -> Result<f64, CudaError> {
    let driver = ops.driver();
    let matrix = Matrix::synthetic(ops, (size, size), None, 1)?;
    let x = Buffer::from_slice(driver, &vec![0.5f32; size * size])?;
    let mut halves = Activations::new(driver, size * size)?;
    let as_it_is = Norm {
        x: &x,
        weight: None,
        columns: size,
        tokens: size,
        epsilon: 0.0,
    };
    ops.norm(&as_it_is, Emit::All, Form::Bf16, &mut halves)?;
    let mut out = Buffer::new(driver, size * size)?;
    let mut scratch = Scratch::new(ops, 0)?;
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        driver.synchronize()?;
        let started = Instant::now();
        let place = Region {
            offset: 0,
            stride: size,
            then: Then::Replace,
        };
        ops.multiply(&matrix, &halves, (&mut out, place), &mut scratch)?;
        driver.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (size as f64).powi(3) / best)
}

/// What was measured; rates in tokens per second.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) likeness: Likeness,
    pub(crate) batch_1: f64,
    /// By the bytes a token reads and the data sheet's bandwidth; 0: unknown.
    pub(crate) limit: f64,
    pub(crate) batch_32: f64,
    pub(crate) prompt: f64,
    /// Floating-point operations of a prompt's token.
    pub(crate) operations: f64,
    /// Operations a second.
    pub(crate) peak: f64,
}

/// A line for each promise, and whether all are kept.
pub(crate) fn verdict(measured: &Measured) -> (String, bool) {
    let likeness = &measured.likeness;
    let decode = measured.batch_1 / measured.limit * 100.0;
    let growth = measured.batch_32 / measured.batch_1;
    let prefill = measured.prompt * measured.operations / measured.peak * 100.0;
    let lines = [
        (
            format!(
                "tokens equal to the CPU's: {} of {}, {} between logits too near to tell; from exact the CPU is {:.4} of the logits' \
                 size, the card {:.4} (at most {:.4})",
                likeness.equal,
                likeness.tokens,
                likeness.tied(),
                likeness.cpu,
                likeness.card,
                likeness.allowed()
            ),
            measured.likeness.is_kept(),
        ),
        (
            format!(
                "batch 1: {decode:.0} % of the bandwidth limit of {:.0} tok/s (at least 70 %)",
                measured.limit
            ),
            decode.is_finite() && decode >= 70.0,
        ),
        (
            format!("batch 32 ÷ batch 1: {growth:.1} (at least 8)"),
            growth.is_finite() && growth >= 8.0,
        ),
        (
            format!(
                "prefill: {prefill:.0} % of the GEMM peak of {:.0} TFLOP/s measured here (at least 50 %)",
                measured.peak / 1e12
            ),
            prefill.is_finite() && prefill >= 50.0,
        ),
    ];
    let mut out = String::new();
    for (line, is_kept) in &lines {
        out += &format!("{} {line}\n", if *is_kept { "kept    " } else { "not kept" });
    }
    (out, lines.iter().all(|(_, is_kept)| *is_kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::model::cuda::Capacity;
    use kernels::cuda::{Choice, Order, Precision, Simt, Way, Ways};

    fn shim(way: Way) -> Place {
        let folder = std::env::temp_dir().join("tollgate-simt");
        let driver = Simt::build(&folder, Order::Forwards).unwrap_or_else(|error| panic!("{error}"));
        Place::Cuda {
            choice: Choice {
                ways: Ways {
                    multiply: way,
                    attend: way,
                },
                why: String::new(),
            },
            driver,
            precision: Precision::Fast,
            capacity: Capacity {
                tokens: 512,
                sequences: 4,
                ..Capacity::default()
            },
        }
    }

    #[test]
    fn the_shim_answers_as_the_cpu_does() {
        for way in [Way::Plain, Way::Hopper] {
            let likeness = likeness(&SyntheticModel::tiny(), &shim(way), 1).unwrap();
            assert_eq!(likeness.tokens, PROMPTS.len() * (GENERATE + 1));
            assert!(likeness.is_kept(), "{way:?}: {likeness:?}");
        }
    }

    #[test]
    fn a_peak_is_measured() {
        let Place::Cuda { driver, .. } = shim(Way::Plain) else {
            panic!("a device")
        };
        assert!(gemm_peak(&Ops::new(driver, Precision::Fast), 64, 1).unwrap() > 0.0);
    }

    #[test]
    fn other_answers_are_not_like() {
        let mut likeness = Likeness::default();
        likeness.take(&[1.0, 0.0], &[1.0, 0.001], &[1.0, 0.0]);
        assert!(likeness.is_kept(), "{likeness:?}");
        likeness.take(&[1.0, 0.999], &[1.0, 0.999], &[0.999, 1.0]);
        assert_eq!((likeness.tied(), likeness.is_kept()), (1, true), "{likeness:?}");
        let mut wrong = likeness.clone();
        wrong.take(&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]);
        assert!(!wrong.is_kept(), "{wrong:?}");
        likeness.take(&[1.0, 0.0], &[1.0, 0.0], &[f32::NAN, 0.0]);
        assert!(!likeness.is_kept(), "{likeness:?}");
    }

    #[test]
    fn every_promise_has_a_line() {
        let mut measured = Measured {
            likeness: Likeness {
                tokens: 68,
                equal: 68,
                ..Likeness::default()
            },
            batch_1: 75.0,
            limit: 100.0,
            batch_32: 601.0,
            prompt: 100.0,
            operations: 6e12,
            peak: 1e15,
        };
        let (lines, is_kept) = verdict(&measured);
        assert!(is_kept && lines.lines().count() == 4, "{lines}");
        assert!(
            lines.contains("batch 1: 75 %") && lines.contains("prefill: 60 %"),
            "{lines}"
        );
        measured.limit = 0.0;
        let (lines, is_kept) = verdict(&measured);
        assert!(!is_kept && lines.contains("not kept batch 1"), "{lines}");
    }
}
