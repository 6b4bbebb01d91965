//! Every kernel against plain arithmetic, and every instruction set against the plain one, bit for bit.

use crate::attention::{Heads, Queries, Reach, attend};
use crate::cache::{BLOCK, KvCache, KvKind, KvShape, Slot};
use crate::formats::{COLS, Format};
use crate::lanes::Isa;
use crate::ops::Activation;
use crate::product::{Feed, Mode, Part, feed, multiply};
use crate::tiles::{Matrix, Precision, Rows};
use crate::{Activations, Pool};
use half::{bf16, f16};
use std::sync::{Mutex, MutexGuard, PoisonError};

const FORMATS: [Format; 11] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
    Format::F16,
    Format::Bf16,
    Format::F32,
];

/// The instruction set is one for the process, so tests that choose it take turns.
fn choosing() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` with each instruction set that is there and checks that all give the same.
fn everywhere(work: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let _turn = choosing();
    let plain = {
        Isa::Plain.limit();
        work()
    };
    for isa in [Isa::Avx2, Isa::Avx512] {
        if isa.limit() == isa {
            assert_eq!(plain, work(), "{isa:?} differs from plain code");
        }
    }
    Isa::best().limit();
    plain
}

/// Numbers that look random and are the same every time.
fn noise(seed: u32) -> impl Iterator<Item = u32> {
    let step = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(seed), step).map(|state| state >> 8)
}

fn floats(seed: u32, count: usize) -> Vec<f32> {
    noise(seed)
        .take(count)
        .map(|n| (n % 2000) as f32 / 1000.0 - 1.0)
        .collect()
}

/// Bytes of a matrix whose scales are small numbers and whose weights are anything.
fn weights(format: Format, rows: usize, columns: usize) -> Vec<u8> {
    let mut random = noise(7);
    let blocks = rows * columns / format.block_weights();
    let mut data = Vec::new();
    for _ in 0..blocks {
        let mut block: Vec<u8> = random
            .by_ref()
            .take(format.block_bytes())
            .map(|n| n as u8)
            .collect();
        let value = (random.next().unwrap_or(0) % 2000) as f32 / 1000.0 - 1.0;
        let (scale, minimum) = (f16::from_f32(0.01 + value * 0.002), f16::from_f32(value * 0.07));
        match format {
            Format::F32 => block.copy_from_slice(&value.to_le_bytes()),
            Format::F16 => block.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Format::Bf16 => block.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            Format::Q6K => block[208..].copy_from_slice(&scale.to_le_bytes()),
            _ => block[..2].copy_from_slice(&scale.to_le_bytes()),
        }
        if matches!(format, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K) {
            block[2..4].copy_from_slice(&minimum.to_le_bytes());
        }
        data.extend(block);
    }
    data
}

fn activations(pool: &mut Pool, x: &[f32], columns: usize, precision: Precision) -> Activations {
    let mut out = Activations::default();
    out.reset(x.len() / columns, columns, precision);
    out.fill(pool, &|token, row| {
        row.copy_from_slice(&x[token * columns..(token + 1) * columns])
    });
    out
}

/// `(exact product, sum of its terms' sizes)` in f64.
fn product(weights: &[f32], x: &[f32]) -> (f64, f64) {
    weights.iter().zip(x).fold((0.0, 0.0), |(sum, size), (w, x)| {
        let term = f64::from(*w) * f64::from(*x);
        (sum + term, size + term.abs())
    })
}

#[test]
fn products_are_those_of_dequantized_weights_in_every_format_and_batch() {
    let (rows, columns, tokens) = (41, 512, 75);
    for format in FORMATS {
        let data = weights(format, rows, columns);
        let mut plain = vec![0.0; rows * columns];
        let bytes = format.row_bytes(columns);
        for (row, out) in data.chunks_exact(bytes).zip(plain.chunks_exact_mut(columns)) {
            format.dequantize(row, out);
        }
        let x = floats(3, tokens * columns);
        let bias = floats(9, rows);
        let results = everywhere(|| {
            let mut pool = Pool::new(2);
            let source = Rows {
                format,
                data: &data,
                rows,
                columns,
            };
            let matrix = Matrix::new(&mut pool, source).unwrap();
            let mut run = |x: &[f32]| {
                let x = activations(&mut pool, x, columns, matrix.precision());
                let mut out = vec![1.0; x.tokens() * rows];
                let part = Part {
                    matrix: &matrix,
                    bias: Some(&bias),
                    out: &mut out,
                    mode: Mode::Add,
                };
                multiply(&mut pool, &x, &mut [part]);
                out
            };
            let batched = run(&x);
            for token in [0, 7, 74] {
                let alone = run(&x[token * columns..(token + 1) * columns]);
                assert_eq!(
                    alone,
                    &batched[token * rows..(token + 1) * rows],
                    "a batch changed a result"
                );
            }
            batched
        });
        // Rounding activations to eight bits, and scales to eleven, is most of the error.
        let allowed = if format.is_quantized() { 4e-3 } else { 1e-6 };
        for (token, results) in results.chunks_exact(rows).enumerate() {
            for (row, value) in results.iter().enumerate() {
                let (exact, size) = product(
                    &plain[row * columns..(row + 1) * columns],
                    &x[token * columns..(token + 1) * columns],
                );
                let exact = exact + 1.0 + f64::from(bias[row]);
                let error = (exact - f64::from(*value)).abs();
                assert!(error < allowed * size, "{format:?} {exact} {value}");
            }
        }
    }
}

#[test]
fn a_feed_is_the_product_of_two_products() {
    let (rows, columns, tokens) = (96, 64, 70);
    for format in [Format::Q4_1, Format::F32] {
        let (gate, up) = (
            weights(format, rows, columns),
            weights(format, rows + 32, columns),
        );
        let up = &up[32 * format.row_bytes(columns)..];
        let x = floats(5, tokens * columns);
        everywhere(|| {
            let mut pool = Pool::new(2);
            let source = |data| Rows {
                format,
                data,
                rows,
                columns,
            };
            let gate = Matrix::new(&mut pool, source(&gate)).unwrap();
            let up = Matrix::new(&mut pool, source(up)).unwrap();
            let x = activations(&mut pool, &x, columns, gate.precision());
            let (mut gates, mut ups) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
            let part = |matrix, out| Part {
                matrix,
                bias: None,
                out,
                mode: Mode::Set,
            };
            multiply(&mut pool, &x, &mut [part(&gate, &mut gates), part(&up, &mut ups)]);
            let mut out = Activations::default();
            out.reset(tokens, rows, Precision::Int8);
            let layer = Feed {
                gate: Some(&gate),
                up: &up,
                bias: None,
                activation: Activation::Silu,
            };
            feed(&mut pool, &x, &layer, &mut out);
            for ((gate, up), value) in gates.iter().zip(&ups).zip(out.floats()) {
                let exact = gate / (1.0 + (-gate).exp()) * up;
                assert!(
                    (exact - value).abs() <= 1e-5 * exact.abs().max(1e-3),
                    "{exact} {value}"
                );
            }
            let block = &out.floats()[COLS..2 * COLS];
            let rounded = &out.bytes[COLS..2 * COLS];
            for (float, byte) in block.iter().zip(rounded) {
                assert!((float - f32::from(*byte) * out.scales[1]).abs() <= out.scales[1] * 0.501);
            }
            out.floats().to_vec()
        });
    }
}

/// A cache with every position of one sequence stored, in blocks that lie apart.
struct Stored {
    cache: KvCache,
    blocks: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

fn stored(shape: KvShape, positions: usize) -> Stored {
    let count = positions.div_ceil(BLOCK);
    let blocks: Vec<u32> = (0..count as u32).rev().map(|block| block * 2 + 1).collect();
    let mut cache = KvCache::new(shape, 2 * count + 1).unwrap();
    let width = shape.heads * shape.dim;
    let (keys, values) = (floats(11, positions * width), floats(13, positions * width));
    let slots: Vec<Slot> = (0..positions)
        .map(|position| Slot {
            block: blocks[position / BLOCK],
            offset: (position % BLOCK) as u32,
        })
        .collect();
    cache.store(&mut Pool::new(2), &slots, (&keys, &values));
    Stored {
        cache,
        blocks,
        keys,
        values,
    }
}

/// Softmax attention of one query in f64.
fn exact(
    stored: &Stored,
    query: &[f32],
    (head, scale): (usize, f64),
    range: std::ops::Range<usize>,
) -> Vec<f64> {
    let shape = stored.cache.shape();
    let row = |of: &[f32], position: usize| {
        let start = (position * shape.heads + head) * shape.dim;
        of[start..start + shape.dim].to_vec()
    };
    let scores: Vec<f64> = range
        .clone()
        .map(|at| product(&row(&stored.keys, at), query).0 * scale)
        .collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; shape.dim];
    for (at, weight) in range.zip(weights) {
        for (out, value) in out.iter_mut().zip(row(&stored.values, at)) {
            *out += weight / total * f64::from(value);
        }
    }
    out
}

#[test]
fn attention_is_a_softmax_whatever_the_step_holds() {
    for (dim, heads, kv_heads, kind) in [
        (64, 9, 3, KvKind::F16),
        (24, 4, 4, KvKind::F32),
        (128, 12, 2, KvKind::Bf16),
        (256, 4, 1, KvKind::F16),
        (64, 9, 3, KvKind::Int8),
        (24, 4, 2, KvKind::Int8),
    ] {
        let shape = KvShape {
            kind,
            heads: kv_heads,
            dim,
        };
        let (positions, width) = (203, heads * dim);
        let stored = stored(shape, positions);
        let query: Vec<f32> = floats(17, positions * width).iter().map(|x| x * 3.0).collect();
        for reach in [Reach::Before, Reach::Window(70), Reach::All] {
            let scale = (dim as f32).powf(-0.5);
            let settings = Heads {
                count: heads,
                scale,
                reach,
            };
            let run = |pool: &mut Pool, first: usize, count: usize| {
                let mut out = Activations::default();
                out.reset(count, width, Precision::Float);
                let row = Queries {
                    blocks: &stored.blocks,
                    first,
                    count,
                    start: 0,
                };
                let query = &query[first * width..(first + count) * width];
                attend(pool, &stored.cache, &[row], (&settings, query), &mut out);
                out.floats().to_vec()
            };
            let all = everywhere(|| {
                let mut pool = Pool::new(2);
                let all = run(&mut pool, 0, positions);
                if reach != Reach::All {
                    for (first, count) in [(0, 1), (63, 3), (100, 103), (202, 1)] {
                        let some = run(&mut pool, first, count);
                        assert_eq!(
                            some,
                            &all[first * width..(first + count) * width],
                            "a chunk changed a result"
                        );
                    }
                }
                all
            });
            let allowed = match kind {
                KvKind::F16 => 3e-3,
                KvKind::Bf16 | KvKind::Int8 => 2e-2,
                KvKind::F32 => 2e-6,
            };
            for (position, head) in [(0, 0), (15, heads - 1), (80, 1), (202, heads / 2)] {
                let range = match reach {
                    Reach::Before => 0..position + 1,
                    Reach::Window(size) => (position + 1usize).saturating_sub(size)..position + 1,
                    Reach::All => 0..positions,
                };
                let start = position * width + head * dim;
                let place = (head / (heads / kv_heads), f64::from(scale));
                let exact = exact(&stored, &query[start..start + dim], place, range);
                for (exact, value) in exact.iter().zip(&all[start..start + dim]) {
                    assert!(
                        (exact - f64::from(*value)).abs() < allowed,
                        "{kind:?} {reach:?}: {exact} {value}"
                    );
                }
            }
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let mut pool = Pool::new(1);
    let source = |data, columns| Rows {
        format: Format::Q4K,
        data,
        rows: 16,
        columns,
    };
    assert!(Matrix::new(&mut pool, source(&[0; 16 * 144], 256)).is_ok());
    assert!(Matrix::new(&mut pool, source(&[0; 16 * 144 - 1], 256)).is_err());
    assert!(Matrix::new(&mut pool, source(&[0; 16 * 144], 128)).is_err());
    // 16 rows of 2⁶⁰ weights would be 16 · 9 · 2⁵⁹ bytes: 0, if nobody looked.
    assert!(Matrix::new(&mut pool, source(&[], 1 << 60)).is_err());
}
