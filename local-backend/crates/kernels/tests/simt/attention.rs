//! Attention over the paged cache: both kernels, with every architecture's extras, against plain code in f64.

use super::{Random, driver, limits, near, ops};
use half::f16;
use kernels::Pairs;
use kernels::cuda::{
    Batch, Buffer, HeadShape, KvPages, Ops, Order, Precision, QkvExtras, Singles, Span, Steps, Workspace,
};

/// Attention of a batch over a cache, with every trick of the architectures, against plain code.
struct Case {
    shape: HeadShape,
    window: usize,
    pairs: Pairs,
    /// Positions there before, and tokens of the step, of each sequence.
    sequences: &'static [(usize, usize)],
}

/// Everything a plain computation needs.
struct Plain {
    qkv: Vec<Vec<f32>>,
    bias: Vec<f32>,
    norms: [Vec<f32>; 2],
    angles: Vec<[f32; 2]>,
}

impl Plain {
    fn new(case: &Case) -> Self {
        let mut random = Random(case.shape.dim as u64 + case.window as u64);
        let qkv = case
            .sequences
            .iter()
            .map(|(before, now)| random.floats((before + now) * case.shape.qkv()))
            .collect();
        let half = case.shape.dim / 2;
        let angles = (0..320 * half)
            .map(|at| {
                let angle = (at / half) as f32 * 10_000f32.powf(-((at % half) as f32) / half as f32);
                [angle.cos(), angle.sin()]
            })
            .collect();
        Self {
            qkv,
            bias: random.floats(case.shape.qkv()),
            norms: [random.floats(case.shape.dim), random.floats(case.shape.dim)],
            angles,
        }
    }

    /// One head after bias, norm and rotation, rounded to f16 as the cache does.
    fn head(&self, case: &Case, (sequence, position): (usize, usize), head: usize) -> Vec<f64> {
        let (shape, dim) = (case.shape, case.shape.dim);
        let at = position * shape.qkv() + head * dim;
        let mut x: Vec<f64> = (0..dim)
            .map(|column| {
                f64::from(self.qkv[sequence][at + column]) + f64::from(self.bias[head * dim + column])
            })
            .collect();
        let is_value = head >= shape.heads + shape.kv_heads;
        if !is_value {
            let weight = &self.norms[usize::from(head >= shape.heads)];
            let square: f64 = x.iter().map(|value| value * value).sum();
            let factor = 1.0 / (square / dim as f64 + 1e-6).sqrt();
            for (x, weight) in x.iter_mut().zip(weight) {
                *x *= factor * f64::from(*weight);
            }
            for pair in 0..dim / 2 {
                let (left, right) = match case.pairs {
                    Pairs::Neighbours => (2 * pair, 2 * pair + 1),
                    Pairs::Halves => (pair, pair + dim / 2),
                };
                let [cosine, sine] = self.angles[position * dim / 2 + pair].map(f64::from);
                (x[left], x[right]) = (
                    x[left] * cosine - x[right] * sine,
                    x[left] * sine + x[right] * cosine,
                );
            }
        }
        x.iter().map(|value| f16::from_f64(*value).to_f64()).collect()
    }

    fn attended(&self, case: &Case, sequence: usize, position: usize) -> Vec<f64> {
        let shape = case.shape;
        let first = if case.window > 0 {
            (position + 1).saturating_sub(case.window)
        } else {
            0
        };
        (0..shape.heads)
            .flat_map(|head| {
                let query = self.head(case, (sequence, position), head);
                let shared = shape.heads + head / (shape.heads / shape.kv_heads);
                let weights: Vec<f64> = (first..=position)
                    .map(|seen| {
                        let key = self.head(case, (sequence, seen), shared);
                        (key.iter()
                            .zip(&query)
                            .map(|(key, query)| key * query)
                            .sum::<f64>()
                            * scale(shape))
                        .exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                let mut out = vec![0.0; shape.dim];
                for (seen, weight) in (first..=position).zip(&weights) {
                    let value = self.head(case, (sequence, seen), shared + shape.kv_heads);
                    for (out, value) in out.iter_mut().zip(value) {
                        *out += weight / total * value;
                    }
                }
                out
            })
            .collect()
    }
}

fn scale(shape: HeadShape) -> f64 {
    1.0 / (shape.dim as f64).sqrt()
}

/// The device's side: the cache filled with what was before, then one step.
struct Device {
    ops: Ops,
    pages: KvPages,
    work: Workspace,
    batch: Batch,
    buffers: [Buffer<f32>; 3],
    angles: Buffer<[f32; 2]>,
}

impl Device {
    fn new(case: &Case, plain: &Plain, ops: Ops) -> Self {
        let limits = limits(100);
        let on = |floats: &[f32]| Buffer::from_slice(driver(&ops), floats).unwrap();
        Self {
            pages: KvPages::new(driver(&ops), case.shape, limits.blocks).unwrap(),
            work: Workspace::new(
                driver(&ops),
                case.shape,
                (limits.tokens, limits.tokens),
                limits.positions,
            )
            .unwrap(),
            batch: Batch::new(driver(&ops), limits).unwrap(),
            buffers: [on(&plain.bias), on(&plain.norms[0]), on(&plain.norms[1])],
            angles: Buffer::from_slice(driver(&ops), &plain.angles).unwrap(),
            ops,
        }
    }

    /// Positions `from..to` of each sequence in one step; the attention of each token, by sequences.
    fn step(
        &mut self,
        case: &Case,
        plain: &Plain,
        ranges: &[std::ops::Range<usize>],
        singles: Singles,
    ) -> Vec<Vec<f32>> {
        // Blocks of a sequence lie apart and backwards.
        let tables: Vec<Vec<u32>> = (0..ranges.len())
            .map(|sequence| (0..15).map(|block| (63 - sequence - 4 * block) as u32).collect())
            .collect();
        let used: Vec<usize> = (0..ranges.len())
            .filter(|sequence| !ranges[*sequence].is_empty())
            .collect();
        let steps: Vec<Steps<'_>> = used
            .iter()
            .map(|sequence| Steps {
                tokens: &[1; 300][..ranges[*sequence].len()],
                first: ranges[*sequence].start,
                blocks: &tables[*sequence],
                wants_logits: true,
            })
            .collect();
        if steps.is_empty() {
            return vec![Vec::new(); ranges.len()];
        }
        self.batch.write(&steps, singles).unwrap();
        // As `Batch` orders them: single tokens first.
        let is_single = |sequence: &usize| ranges[*sequence].len() == 1 || singles == Singles::All;
        let (first, rest): (Vec<usize>, Vec<usize>) = used.iter().partition(|sequence| is_single(sequence));
        let order: Vec<usize> = first.into_iter().chain(rest).collect();
        let width = case.shape.qkv();
        let qkv: Vec<f32> = order
            .iter()
            .flat_map(|sequence| {
                let range = &ranges[*sequence];
                plain.qkv[*sequence][range.start * width..range.end * width]
                    .iter()
                    .copied()
            })
            .collect();
        let qkv = Buffer::from_slice(driver(&self.ops), &qkv).unwrap();
        let extras = QkvExtras {
            bias: Some(&self.buffers[0]),
            q_norm: Some(&self.buffers[1]),
            k_norm: Some(&self.buffers[2]),
            angles: &self.angles,
            pairs: case.pairs,
            epsilon: 1e-6,
        };
        self.ops
            .rope_store(&qkv, &extras, &self.batch, (&mut self.pages, &mut self.work))
            .unwrap();
        let span = Span {
            window: case.window,
            scale: scale(case.shape) as f32,
        };
        let len = self.batch.count() * case.shape.heads * case.shape.dim;
        let mut out = Buffer::new(driver(&self.ops), len).unwrap();
        self.ops
            .attend(&self.batch, &span, (&self.pages, &mut self.work), &mut out)
            .unwrap();
        let all = out.read(len).unwrap();
        let (mut at, mut by_sequence) = (0, vec![Vec::new(); ranges.len()]);
        for sequence in order {
            let end = at + ranges[sequence].len() * case.shape.heads * case.shape.dim;
            by_sequence[sequence] = all[at..end].to_vec();
            at = end;
        }
        by_sequence
    }
}

fn attention(case: &Case, order: Order) {
    let plain = Plain::new(case);
    let mut device = Device::new(case, &plain, ops(order, Precision::Fast));
    let before: Vec<_> = case.sequences.iter().map(|(before, _)| 0..*before).collect();
    device.step(case, &plain, &before, Singles::Lone);
    let now: Vec<_> = case
        .sequences
        .iter()
        .map(|(before, now)| *before..before + now)
        .collect();
    let got = device.step(case, &plain, &now, Singles::Lone);
    for (sequence, range) in now.into_iter().enumerate() {
        let expected: Vec<f64> = range
            .flat_map(|position| plain.attended(case, sequence, position))
            .collect();
        near(
            &got[sequence],
            &expected,
            2e-3,
            &format!("{:?}, sequence {sequence}", case.shape),
        );
    }
}

fn shape(heads: usize, kv_heads: usize, dim: usize) -> HeadShape {
    HeadShape { heads, kv_heads, dim }
}

#[test]
fn attention_with_heads_of_64() {
    let case = Case {
        shape: shape(6, 2, 64),
        window: 0,
        pairs: Pairs::Neighbours,
        sequences: &[(0, 1), (5, 1), (150, 1), (0, 70), (15, 20)],
    };
    attention(&case, Order::Backwards);
}

#[test]
fn attention_with_heads_of_128_in_a_window() {
    let case = Case {
        shape: shape(6, 1, 128),
        window: 40,
        pairs: Pairs::Halves,
        sequences: &[(30, 1), (139, 1), (64, 9)],
    };
    attention(&case, Order::Mixed);
}

#[test]
fn attention_with_heads_of_256_and_many_on_one_key() {
    let case = Case {
        shape: shape(9, 1, 256),
        window: 0,
        pairs: Pairs::Halves,
        sequences: &[(20, 1), (0, 33)],
    };
    attention(&case, Order::Forwards);
}

#[test]
fn single_queries_do_not_depend_on_how_a_prompt_is_cut() {
    let case = Case {
        shape: shape(4, 2, 64),
        window: 0,
        pairs: Pairs::Halves,
        sequences: &[(0, 40)],
    };
    let plain = Plain::new(&case);
    let all = 0..40;
    for singles in [Singles::All, Singles::Lone] {
        let mut whole = Device::new(&case, &plain, ops(Order::Forwards, Precision::Invariant));
        let whole = whole
            .step(&case, &plain, std::slice::from_ref(&all), singles)
            .remove(0);
        let mut cut = Device::new(&case, &plain, ops(Order::Forwards, Precision::Invariant));
        // With the prefill kernel no chunk of one token: that would be the other kernel's.
        let chunks = [0..13, 13..15, 15..40];
        let chunks: Vec<f32> = chunks
            .into_iter()
            .flat_map(|range| {
                cut.step(&case, &plain, std::slice::from_ref(&range), singles)
                    .remove(0)
            })
            .collect();
        assert_eq!(whole, chunks, "{singles:?}");
    }
}
