//! Attention over the paged cache: both kernels, with every architecture's extras, against plain code in f64.

use super::{Random, driver, limits, near, ops};
use half::f16;
use kernels::cuda::{
    Batch, Buffer, HeadShape, KvPages, Ops, Order, Precision, QkvExtras, Singles, Span, Steps, Workspace,
};
use kernels::{KvKind, Pairs};

/// Attention of a batch over a cache, with every trick of the architectures, against plain code.
struct Case {
    shape: HeadShape,
    kind: KvKind,
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

    /// One head after bias, norm and rotation, rounded as the cache does.
    fn head(&self, case: &Case, at: (usize, usize), head: usize) -> Vec<f64> {
        let exact = self.exact_head(case, at, head);
        let is_kept = head >= case.shape.heads;
        if case.kind == KvKind::Int8 && is_kept {
            let scale = largest(&exact) / 127.0;
            return exact
                .iter()
                .map(|value| (value / scale).round() * scale)
                .collect();
        }
        exact.iter().map(|value| f16::from_f64(*value).to_f64()).collect()
    }

    fn exact_head(&self, case: &Case, (sequence, position): (usize, usize), head: usize) -> Vec<f64> {
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
        x
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

fn largest(head: &[f64]) -> f64 {
    head.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

fn scale(shape: HeadShape) -> f64 {
    1.0 / (shape.dim as f64).sqrt()
}

/// Blocks of a sequence lie apart and backwards.
fn block_of(sequence: usize, at: usize) -> usize {
    63 - sequence - 4 * at
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
            pages: KvPages::new(driver(&ops), (case.shape, case.kind), limits.blocks).unwrap(),
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
        let tables: Vec<Vec<u32>> = (0..ranges.len())
            .map(|sequence| (0..15).map(|block| block_of(sequence, block) as u32).collect())
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
        // A byte that lies between two steps may be rounded to either.
        let tolerance = if case.kind == KvKind::Int8 { 5e-3 } else { 2e-3 };
        near(
            &got[sequence],
            &expected,
            tolerance,
            &format!("{:?}, sequence {sequence}", case.shape),
        );
    }
    if case.kind == KvKind::Int8 {
        bytes_are_near(case, &plain, &device.pages);
    }
}

/// What the cache keeps: the largest of each head is 127, everything within half a step.
fn bytes_are_near(case: &Case, plain: &Plain, pages: &KvPages) {
    let (shape, kept) = (case.shape, pages.read().unwrap());
    for (half, kept) in kept.iter().enumerate() {
        for (sequence, (before, now)) in case.sequences.iter().enumerate() {
            for (position, head) in
                (0..before + now).flat_map(|at| (0..shape.kv_heads).map(move |head| (at, head)))
            {
                let all = shape.heads + half * shape.kv_heads + head;
                let exact = plain.exact_head(case, (sequence, position), all);
                let block = block_of(sequence, position / 16);
                let row = (block * shape.kv_heads + head) * 16 + position % 16;
                let scale = f64::from(kept.scales[row]);
                assert!((scale * 127.0 / largest(&exact) - 1.0).abs() < 1e-5);
                let bytes = &kept.elements[row * shape.dim..][..shape.dim];
                for (byte, exact) in bytes.iter().zip(exact) {
                    let value = f64::from(byte.cast_signed()) * scale;
                    assert!(
                        (value - exact).abs() <= scale * 0.502,
                        "{value} for {exact}, steps of {scale}"
                    );
                }
            }
        }
    }
}

fn shape(heads: usize, kv_heads: usize, dim: usize) -> HeadShape {
    HeadShape { heads, kv_heads, dim }
}

#[test]
fn attention_with_heads_of_64() {
    let case = Case {
        shape: shape(6, 2, 64),
        kind: KvKind::F16,
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
        kind: KvKind::F16,
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
        kind: KvKind::F16,
        window: 0,
        pairs: Pairs::Halves,
        sequences: &[(20, 1), (0, 33)],
    };
    attention(&case, Order::Forwards);
}

/// Every kernel that reads bytes: single queries in groups of four and eight, prompts, heads of every size.
#[test]
fn attention_over_bytes() {
    let all = [
        (shape(6, 2, 64), 0, &[(0, 1), (150, 1), (15, 20)][..]),
        (shape(6, 1, 128), 40, &[(139, 1), (64, 9)]),
        (shape(9, 1, 256), 0, &[(20, 1), (0, 33)]),
        (shape(4, 2, 64), 24, &[(40, 1)]),
        (shape(4, 1, 256), 0, &[(3, 1)]),
        (shape(2, 1, 128), 0, &[(0, 1), (5, 7)]),
    ];
    for ((shape, window, sequences), order) in all.into_iter().zip(super::ORDERS.into_iter().cycle()) {
        let case = Case {
            shape,
            kind: KvKind::Int8,
            window,
            pairs: Pairs::Halves,
            sequences,
        };
        attention(&case, order);
    }
}

#[test]
fn kinds_without_kernels_are_refused() {
    let ops = ops(Order::Forwards, Precision::Fast);
    for kind in [KvKind::Bf16, KvKind::F32] {
        let error = KvPages::new(driver(&ops), (shape(2, 1, 64), kind), 4).unwrap_err();
        assert!(error.to_string().contains("f16 or int8"), "{error}");
    }
}

#[test]
fn single_queries_do_not_depend_on_how_a_prompt_is_cut() {
    let case = Case {
        shape: shape(4, 2, 64),
        kind: KvKind::F16,
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
