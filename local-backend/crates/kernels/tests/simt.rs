//! The CUDA kernels, unchanged, on the CPU, against plain code in f64. Threads of a block run in three orders.
//!
//! On a machine with a card, `TOLLGATE_CARD=1` runs the same tests there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use half::{bf16, f16};
use kernels::cuda::{
    Activations, Batch, Buffer, Card, Driver, Emit, Form, Gate, Glu, Kind, Libraries, Limits, Matrix, Norm,
    Ops, Order, Place, Precision, Sampling, Scratch, Simt, Singles, Steps, Then, WeightBlock, pack,
};
use kernels::{Candidates, Draw};
use std::path::Path;
use std::sync::Arc;

#[path = "simt/attention.rs"]
mod attention;
#[path = "simt/hopper.rs"]
mod hopper;
#[path = "simt/kinds.rs"]
mod kinds;

const ORDERS: [Order; 3] = [Order::Forwards, Order::Backwards, Order::Mixed];

fn ops(order: Order, precision: Precision) -> Ops {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let is_card = std::env::var("TOLLGATE_CARD").is_ok();
    if is_card {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.run/cuda");
        let card = Card::open(0, &Libraries::new(Some(&root)), None);
        return Ops::new(card.unwrap_or_else(|error| panic!("{error}")), precision);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    Ops::new(
        Simt::build(folder, order).unwrap_or_else(|error| panic!("{error}")),
        precision,
    )
}

fn driver(ops: &Ops) -> &Arc<dyn Driver> {
    ops.driver()
}

/// Floats in −1..1, the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

fn near(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected
        .iter()
        .fold(1e-3f64, |scale, value| scale.max(value.abs()));
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let apart = (f64::from(*got) - expected).abs();
        assert!(
            apart <= tolerance * scale,
            "{what}: at {at} {got} instead of {expected}"
        );
    }
}

/// Every kind of weights with a block of each.
fn block(kind: Kind, random: &mut Random) -> WeightBlock {
    let round = |value: f32| f16::from_f32(value).to_f32();
    let scale = round(0.02 + 0.01 * random.float());
    let (low, count) = if kind == Kind::W4 { (0, 16) } else { (-128, 256) };
    WeightBlock {
        quants: std::array::from_fn(|_| low + (random.next() % count) as i16),
        scales: if kind == Kind::W8x16 {
            [scale, round(0.02 + 0.01 * random.float())]
        } else {
            [scale; 2]
        },
        minimum: if kind == Kind::W8x16 {
            0.0
        } else {
            round(0.1 * random.float())
        },
    }
}

struct Quantized {
    matrix: Matrix,
    /// By rows.
    weights: Vec<f64>,
}

fn quantized(ops: &Ops, kind: Kind, (rows, columns): (usize, usize)) -> Quantized {
    let mut random = Random(rows as u64 * 31 + columns as u64);
    let blocks: Vec<WeightBlock> = (0..rows * columns / 32)
        .map(|_| block(kind, &mut random))
        .collect();
    let weights = blocks
        .iter()
        .flat_map(|block| {
            (0..32).map(|column| {
                f64::from(block.scales[column / 16]) * f64::from(block.quants[column])
                    + f64::from(block.minimum)
            })
        })
        .collect();
    let packed = pack(kind, (rows, columns), &|row, block| {
        blocks[row * columns / 32 + block]
    })
    .unwrap();
    Quantized {
        matrix: Matrix::from_packed(driver(ops), &packed).unwrap(),
        weights,
    }
}

fn emitted(ops: &Ops, x: &[f32], columns: usize, form: Form) -> Activations {
    let tokens = x.len() / columns;
    let x = Buffer::from_slice(driver(ops), x).unwrap();
    let mut out = Activations::new(driver(ops), tokens * columns).unwrap();
    let plain = Norm {
        x: &x,
        weight: None,
        columns,
        tokens,
        epsilon: 0.0,
    };
    ops.norm(&plain, Emit::All, form, &mut out).unwrap();
    out
}

/// What the multiply is really given.
fn values(activations: &Activations) -> Vec<f64> {
    let (quants, scales) = activations.read_q8().unwrap();
    let at = |(index, quant): (usize, &i8)| f64::from(*quant) * f64::from(scales[index / 32][0]);
    quants.iter().enumerate().map(at).collect()
}

fn products(x: &[f64], weights: &[f64], columns: usize) -> Vec<f64> {
    x.chunks_exact(columns)
        .flat_map(|x| {
            weights
                .chunks_exact(columns)
                .map(move |weights| x.iter().zip(weights).map(|(x, weight)| x * weight).sum())
        })
        .collect()
}

fn multiplied(ops: &Ops, matrix: &Matrix, x: &Activations, tokens: usize) -> Vec<f32> {
    let stride = matrix.rows() + 16;
    let mut out = Buffer::from_slice(driver(ops), &vec![0.5f32; tokens * stride]).unwrap();
    let mut scratch = Scratch::new(ops, 0).unwrap();
    // Once over what is there, once on top.
    for then in [Then::Replace, Then::Add] {
        let place = Place {
            offset: 16,
            stride,
            then,
        };
        ops.multiply(matrix, x, (&mut out, place), &mut scratch).unwrap();
    }
    let all = out.read(tokens * stride).unwrap();
    let rows = all.chunks_exact(stride);
    assert!(
        rows.clone()
            .all(|row| row[..16].iter().all(|value| *value == 0.5))
    );
    rows.flat_map(|row| row[16..].iter().map(|value| value / 2.0))
        .collect()
}

#[test]
fn norms_and_quantization() {
    let (tokens, columns) = (3, 160);
    let mut random = Random(1);
    let (x, weight) = (random.floats(tokens * columns), random.floats(columns));
    let expected: Vec<f64> = x
        .chunks_exact(columns)
        .flat_map(|x| {
            let square: f64 = x.iter().map(|value| f64::from(*value).powi(2)).sum();
            let factor = 1.0 / (square / columns as f64 + 1e-5).sqrt();
            x.iter()
                .zip(&weight)
                .map(move |(x, weight)| f64::from(*x) * factor * f64::from(*weight))
        })
        .collect();
    for order in ORDERS {
        let ops = ops(order, Precision::Fast);
        let (x, weight) = (
            Buffer::from_slice(driver(&ops), &x).unwrap(),
            Buffer::from_slice(driver(&ops), &weight).unwrap(),
        );
        let mut out = Activations::new(driver(&ops), tokens * columns).unwrap();
        let norm = Norm {
            x: &x,
            weight: Some(&weight),
            columns,
            tokens,
            epsilon: 1e-5,
        };
        ops.norm(&norm, Emit::All, Form::Q8, &mut out).unwrap();
        let (quants, scales) = out.read_q8().unwrap();
        for (index, expected) in expected.chunks_exact(32).enumerate() {
            let largest = expected
                .iter()
                .fold(0.0f64, |largest, value| largest.max(value.abs()));
            let [scale, sum] = scales[index].map(f64::from);
            assert!(
                (scale - largest / 127.0).abs() < 1e-6 * largest,
                "{scale} {largest}"
            );
            let quants = &quants[index * 32..][..32];
            let exact: f64 = quants.iter().map(|quant| f64::from(*quant) * scale).sum();
            assert!((sum - exact).abs() < 1e-5, "{sum} {exact}");
            for (quant, expected) in quants.iter().zip(expected) {
                assert!((f64::from(*quant) * scale - expected).abs() <= scale * 0.501);
            }
        }
        ops.norm(&norm, Emit::All, Form::Bf16, &mut out).unwrap();
        let got: Vec<f32> = out
            .read_bf16()
            .unwrap()
            .iter()
            .map(|bits| bf16::from_bits(*bits).to_f32())
            .collect();
        near(&got, &expected, 1.0 / 256.0, "bf16");
        let mut sum = Buffer::from_slice(driver(&ops), &vec![1.0f32; tokens * columns]).unwrap();
        ops.norm_add(&norm, &mut sum).unwrap();
        let expected: Vec<f64> = expected.iter().map(|value| value + 1.0).collect();
        near(&sum.read(tokens * columns).unwrap(), &expected, 1e-6, "added");
    }
}

#[test]
fn gates() {
    let (tokens, columns) = (2, 288);
    let gate_up = Random(2).floats(tokens * 2 * columns);
    for gate in [Gate::Silu, Gate::GeluTanh] {
        let act = |x: f64| match gate {
            Gate::Silu => x / (1.0 + (-x).exp()),
            Gate::GeluTanh => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh()),
        };
        let expected: Vec<f64> = gate_up
            .chunks_exact(2 * columns)
            .flat_map(|both| {
                (0..columns).map(move |at| act(f64::from(both[at])) * f64::from(both[columns + at]))
            })
            .collect();
        let ops = ops(Order::Mixed, Precision::Fast);
        let buffer = Buffer::from_slice(driver(&ops), &gate_up).unwrap();
        let mut out = Activations::new(driver(&ops), tokens * columns).unwrap();
        let glu = Glu {
            gate_up: &buffer,
            columns,
            tokens,
            gate,
        };
        ops.glu(&glu, Form::Q8, &mut out).unwrap();
        let got: Vec<f32> = values(&out).iter().map(|value| *value as f32).collect();
        near(&got, &expected, 0.5 / 127.0 + 1e-5, "int8");
        ops.glu(&glu, Form::Bf16, &mut out).unwrap();
        let got: Vec<f32> = out
            .read_bf16()
            .unwrap()
            .iter()
            .map(|bits| bf16::from_bits(*bits).to_f32())
            .collect();
        near(&got, &expected, 1.0 / 256.0, "bf16");
    }
}

/// Sizes that leave a part of every loop: rows for one warp of eight and more, columns beyond a multiple of four tiles.
const SHAPE: (usize, usize) = (144, 32 * 11);

#[test]
fn quantized_multiplies_of_every_size() {
    for (index, kind) in [Kind::W4, Kind::W8, Kind::W8x16].into_iter().enumerate() {
        let ops = ops(ORDERS[index], Precision::Fast);
        let Quantized { matrix, weights } = quantized(&ops, kind, SHAPE);
        for tokens in [1, 2, 3, 7, 8, 9, 17, 33, 70] {
            let x = Random(tokens as u64).floats(tokens * SHAPE.1);
            let x = emitted(&ops, &x, SHAPE.1, matrix.form(&ops, tokens));
            let expected = products(&values(&x), &weights, SHAPE.1);
            let got = multiplied(&ops, &matrix, &x, tokens);
            near(&got, &expected, 2e-6, &format!("{kind:?}, {tokens} tokens"));
        }
    }
}

#[test]
fn a_token_alone_and_in_company_is_the_same_to_the_bit() {
    let ops = ops(Order::Forwards, Precision::Invariant);
    for kind in [Kind::W4, Kind::W8, Kind::W8x16] {
        let Quantized { matrix, .. } = quantized(&ops, kind, SHAPE);
        let x = Random(5).floats(21 * SHAPE.1);
        let all = multiplied(&ops, &matrix, &emitted(&ops, &x, SHAPE.1, Form::Q8), 21);
        for token in [0, 8, 20] {
            let alone = &x[token * SHAPE.1..][..SHAPE.1];
            let alone = multiplied(&ops, &matrix, &emitted(&ops, alone, SHAPE.1, Form::Q8), 1);
            assert_eq!(alone, all[token * SHAPE.0..][..SHAPE.0], "{kind:?}, {token}");
        }
    }
}

#[test]
fn bf16_multiplies_of_every_size() {
    let (rows, columns) = (40, 352);
    let ops = ops(Order::Backwards, Precision::Fast);
    let bits: Vec<u16> = Random(6)
        .floats(rows * columns)
        .iter()
        .map(|value| bf16::from_f32(*value).to_bits())
        .collect();
    let weights: Vec<f64> = bits.iter().map(|bits| bf16::from_bits(*bits).to_f64()).collect();
    let matrix = Matrix::from_bf16(driver(&ops), (rows, columns), &bits).unwrap();
    for tokens in [1, 2, 3, 6, 13] {
        let x = emitted(&ops, &Random(7).floats(tokens * columns), columns, Form::Bf16);
        let given: Vec<f64> = x
            .read_bf16()
            .unwrap()
            .iter()
            .map(|bits| bf16::from_bits(*bits).to_f64())
            .collect();
        let expected = products(&given, &weights, columns);
        near(
            &multiplied(&ops, &matrix, &x, tokens),
            &expected,
            2e-6,
            &format!("{tokens} tokens"),
        );
    }
}

#[test]
fn embeddings_and_unpacking() {
    let (rows, columns) = (48, 96);
    for kind in [Kind::W4, Kind::W8, Kind::W8x16] {
        let ops = ops(Order::Mixed, Precision::Fast);
        let Quantized { matrix, weights } = quantized(&ops, kind, (rows, columns));
        let unpacked: Vec<f32> = ops
            .unpacked(&matrix)
            .unwrap()
            .iter()
            .map(|bits| bf16::from_bits(*bits).to_f32())
            .collect();
        near(&unpacked, &weights, 1.0 / 256.0, "unpacked");
        let limits = limits(rows);
        let mut batch = Batch::new(driver(&ops), limits).unwrap();
        let tokens = [0, 7, 8, 15, 16, 31, 47];
        let steps = Steps {
            tokens: &tokens,
            first: 0,
            blocks: &[0],
            wants_logits: false,
        };
        batch.write(&[steps], Singles::Lone).unwrap();
        let mut out = Buffer::new(driver(&ops), tokens.len() * columns).unwrap();
        ops.embed(&matrix, &batch, 2.0, &mut out).unwrap();
        let expected: Vec<f64> = tokens
            .iter()
            .flat_map(|token| {
                weights[*token as usize * columns..][..columns]
                    .iter()
                    .map(|weight| weight * 2.0)
            })
            .collect();
        near(
            &out.read(tokens.len() * columns).unwrap(),
            &expected,
            1e-6,
            "embedded",
        );
    }
}

fn limits(vocabulary: usize) -> Limits {
    Limits {
        tokens: 300,
        sequences: 8,
        table: 20,
        blocks: 64,
        vocabulary,
        positions: 320,
    }
}

#[test]
fn indices_out_of_range_never_reach_the_device() {
    let ops = ops(Order::Forwards, Precision::Fast);
    let mut batch = Batch::new(driver(&ops), limits(100)).unwrap();
    let sound = Steps {
        tokens: &[99],
        first: 3,
        blocks: &[63],
        wants_logits: true,
    };
    batch.write(&[sound], Singles::Lone).unwrap();
    for broken in [
        Steps {
            tokens: &[100],
            ..sound
        },
        Steps {
            blocks: &[64],
            ..sound
        },
        Steps { first: 16, ..sound },
        Steps { tokens: &[], ..sound },
        Steps {
            blocks: &[1; 21],
            ..sound
        },
        Steps {
            tokens: &[1; 301],
            ..sound
        },
    ] {
        assert!(batch.write(&[broken], Singles::Lone).is_err(), "{broken:?}");
    }
    assert!(batch.write(&[sound; 9], Singles::Lone).is_err());
}

/// A vocabulary as large as a model's, with some logits equal, so that ties are met by every cut.
fn many_logits(vocabulary: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let logit = |at: usize| match at % 3 {
        0 => (random.float() * 24.0).round() / 4.0,
        // About as a model's are spread, with few that are likely.
        _ => 3.0 * (random.float() + random.float() + random.float() + random.float()),
    };
    (0..vocabulary).map(logit).collect()
}

#[test]
fn tokens_are_those_that_the_cpu_draws() {
    let cold = Draw {
        temperature: 1e-3,
        ..kinds::KINDS[0]
    };
    let kinds = [&kinds::KINDS[..], &[cold, Draw::default()]].concat();
    for (order, vocabulary) in ORDERS.into_iter().zip([100, 1_531, 2_003]) {
        let ops = ops(order, Precision::Fast);
        let draws = kinds.iter().flat_map(|kind| {
            (0..6u64).map(|draw| Draw {
                seed: 77 + draw % 2,
                index: draw / 2,
                ..*kind
            })
        });
        let draws: Vec<Draw> = draws.collect();
        let logits: Vec<Vec<f32>> = (0..draws.len() as u64)
            .map(|row| many_logits(vocabulary, row / 3))
            .collect();
        let mut on = Buffer::from_slice(driver(&ops), &logits.concat()).unwrap();
        let mut sampling = Sampling::new(driver(&ops), draws.len(), vocabulary).unwrap();
        sampling.set(&draws).unwrap();
        let mut tokens = Buffer::new(driver(&ops), draws.len()).unwrap();
        ops.sample(&mut on, &sampling, &mut tokens).unwrap();
        let tokens = tokens.read(draws.len()).unwrap();
        let mut candidates = Candidates::default();
        for ((draw, logits), token) in draws.iter().zip(&logits).zip(&tokens) {
            let expected = draw.choose(logits, &mut candidates);
            assert_eq!(*token, expected, "{draw:?} of {vocabulary}");
        }
        let distinct: std::collections::HashSet<_> = tokens[..6].iter().collect();
        assert!(distinct.len() > 2, "draws must differ: {tokens:?}");
        // Of the rows whose likeliest is taken nothing is lost.
        let last = draws.len() - 1;
        let mut row = vec![0.0; vocabulary];
        on.read_from(last * vocabulary, &mut row).unwrap();
        assert_eq!(row, logits[last]);
        assert!(on.read_from(last * vocabulary + 1, &mut row).is_err());
    }
}

#[test]
fn a_multiply_into_too_little_room_is_refused() {
    let ops = ops(Order::Forwards, Precision::Fast);
    let Quantized { matrix, .. } = quantized(&ops, Kind::W8, (16, 32));
    let x = emitted(&ops, &Random(1).floats(32), 32, Form::Q8);
    let mut out = Buffer::new(driver(&ops), 8).unwrap();
    let place = Place {
        offset: 0,
        stride: 16,
        then: Then::Replace,
    };
    let mut scratch = Scratch::new(&ops, 0).unwrap();
    let error = ops
        .multiply(&matrix, &x, (&mut out, place), &mut scratch)
        .unwrap_err();
    assert!(error.to_string().contains("in 8 floats"), "{error}");
}
