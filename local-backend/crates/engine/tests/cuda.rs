//! The GPU's forward pass against the CPU's, with the kernels run on the CPU by their SIMT shim: the same small models of every
//! architecture that the GPU's pass takes, written as GGUF files by the test.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use engine::backend::{BLOCK_TOKENS, Backend, Row, StepEnd};
use engine::model::cuda::Capacity;
use engine::model::{CudaSettings, Device, Place, Use, find, load_on};
use kernels::cuda::{Choice, Ops, Order, Precision, Simt, Way, Ways};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// GGUF's numbers of tensor types.
const F32: u32 = 0;
const Q4_1: u32 = 3;
const Q8_0: u32 = 8;
const Q4_K: u32 = 12;
const Q6_K: u32 = 14;
const BF16: u32 = 30;

struct Shape {
    architecture: &'static str,
    width: usize,
    feed: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Of most matrices, and of `attn_v`, `ffn_down` and the embedding.
    formats: [u32; 2],
    window: usize,
}

const VOCABULARY: usize = 80;
const LAYERS: usize = 2;

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
}

/// Random weights in a format: sound scales, any quants.
fn tensor(format: u32, count: usize, scale: f32, random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
    match format {
        F32 => (0..count).for_each(|_| out.extend((random.float() * scale).to_le_bytes())),
        BF16 => {
            (0..count).for_each(|_| out.extend(half::bf16::from_f32(random.float() * scale).to_le_bytes()));
        }
        _ => {
            let (weights, quants) = match format {
                Q4_1 => (32, 16),
                Q8_0 => (32, 32),
                Q4_K => (256, 12 + 128),
                _ => (256, 192),
            };
            for _ in 0..count / weights {
                let mut body: Vec<u8> = (0..quants).map(|_| random.next() as u8).collect();
                match format {
                    Q4_1 => {
                        out.extend(half(scale / 8.0));
                        out.extend(half(-scale));
                    }
                    Q8_0 => out.extend(half(scale / 128.0)),
                    Q4_K => {
                        out.extend(half(scale / 8.0 / 32.0));
                        out.extend(half(scale / 32.0));
                    }
                    _ => {
                        body.extend((0..16).map(|_| (random.next() % 64) as u8));
                        body.extend(half(scale / 32.0 / 32.0));
                    }
                }
                out.extend(body);
            }
        }
    }
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn key(out: &mut Vec<u8>, count: &mut u64, name: &str, kind: u32) {
    text(out, name);
    out.extend(kind.to_le_bytes());
    *count += 1;
}

fn metadata(shape: &Shape) -> (Vec<u8>, u64) {
    let (mut out, mut count) = (Vec::new(), 0);
    key(&mut out, &mut count, "general.architecture", 8);
    text(&mut out, shape.architecture);
    let sizes = [
        ("embedding_length", shape.width),
        ("block_count", LAYERS),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("attention.key_length", shape.head_dim),
        ("context_length", 512),
        ("attention.sliding_window", shape.window),
    ];
    for (name, size) in sizes {
        key(&mut out, &mut count, &format!("{}.{name}", shape.architecture), 4);
        out.extend((size as u32).to_le_bytes());
    }
    let epsilon = format!("{}.attention.layer_norm_rms_epsilon", shape.architecture);
    key(&mut out, &mut count, &epsilon, 6);
    out.extend(1e-5f32.to_le_bytes());
    key(&mut out, &mut count, "tokenizer.ggml.model", 8);
    text(&mut out, "gpt2");
    key(&mut out, &mut count, "tokenizer.ggml.pre", 8);
    text(&mut out, "smollm");
    key(&mut out, &mut count, "tokenizer.ggml.tokens", 9);
    out.extend(8u32.to_le_bytes());
    out.extend((VOCABULARY as u64).to_le_bytes());
    (0..VOCABULARY).for_each(|token| match token {
        0 => text(&mut out, "t"),
        1 => text(&mut out, "1"),
        2 => text(&mut out, "t1"),
        token => text(&mut out, &format!("x{token}")),
    });
    key(&mut out, &mut count, "tokenizer.ggml.token_type", 9);
    out.extend(5u32.to_le_bytes());
    out.extend((VOCABULARY as u64).to_le_bytes());
    (0..VOCABULARY).for_each(|_| out.extend(1i32.to_le_bytes()));
    key(&mut out, &mut count, "tokenizer.ggml.merges", 9);
    out.extend(8u32.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    text(&mut out, "t 1");
    (out, count)
}

/// Names, dimensions (columns first), formats and a scale of every tensor.
fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>, u32, f32)> {
    let (inner, shared) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let [most, some] = shape.formats;
    let near = |columns: usize| 2.0 / (columns as f32).sqrt();
    let mut all = vec![
        (
            "token_embd.weight".to_owned(),
            vec![shape.width, VOCABULARY],
            some,
            1.0,
        ),
        ("output_norm.weight".to_owned(), vec![shape.width], F32, 1.0),
    ];
    for index in 0..LAYERS {
        let mut add = |name: &str, dimensions: &[usize], format: u32| {
            let scale = if dimensions.len() == 2 {
                near(dimensions[0])
            } else {
                1.0
            };
            all.push((format!("blk.{index}.{name}"), dimensions.to_vec(), format, scale));
        };
        add("attn_norm.weight", &[shape.width], F32);
        add("ffn_norm.weight", &[shape.width], F32);
        add("attn_q.weight", &[shape.width, inner], most);
        add("attn_k.weight", &[shape.width, shared], most);
        add("attn_v.weight", &[shape.width, shared], some);
        add("attn_output.weight", &[inner, shape.width], most);
        add("ffn_gate.weight", &[shape.width, shape.feed], most);
        add("ffn_up.weight", &[shape.width, shape.feed], most);
        add("ffn_down.weight", &[shape.feed, shape.width], some);
        if shape.architecture == "qwen2" {
            add("attn_q.bias", &[inner], F32);
            add("attn_k.bias", &[shared], F32);
            add("attn_v.bias", &[shared], F32);
        }
        if matches!(shape.architecture, "qwen3" | "gemma3") {
            add("attn_q_norm.weight", &[shape.head_dim], F32);
            add("attn_k_norm.weight", &[shape.head_dim], F32);
        }
        if shape.architecture == "gemma3" {
            add("post_attention_norm.weight", &[shape.width], F32);
            add("post_ffw_norm.weight", &[shape.width], F32);
        }
    }
    all
}

fn write(shape: &Shape, folder: &Path) -> PathBuf {
    let mut random = Random(7);
    let (metadata, keys) = metadata(shape);
    let tensors = tensors(shape);
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    for (name, dimensions, format, scale) in &tensors {
        text(&mut infos, name);
        infos.extend((dimensions.len() as u32).to_le_bytes());
        dimensions
            .iter()
            .for_each(|size| infos.extend((*size as u64).to_le_bytes()));
        infos.extend(format.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(tensor(*format, dimensions.iter().product(), *scale, &mut random));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(keys.to_le_bytes());
    out.extend(metadata);
    out.extend(infos);
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    let path = folder.join("model.gguf");
    std::fs::File::create(&path).unwrap().write_all(&out).unwrap();
    path
}

/// The shim; with `TOLLGATE_CARD=1` the first card.
fn place(precision: Precision, capacity: Capacity) -> Place {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let is_card = std::env::var("TOLLGATE_CARD").is_ok();
    if is_card {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.run/cuda");
        let settings = CudaSettings {
            root: Some(root),
            ..CudaSettings::default()
        };
        let found = find(Device::Cuda, 1, &settings).unwrap_or_else(|error| panic!("{error}"));
        let Place::Cuda { driver, choice, .. } = found.0 else {
            panic!("a card")
        };
        return Place::Cuda {
            driver,
            precision,
            capacity,
            choice,
        };
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    Place::Cuda {
        driver: Simt::build(folder, Order::Mixed).unwrap_or_else(|error| panic!("{error}")),
        precision,
        capacity,
        choice: Choice {
            ways: Ways {
                multiply: Way::Hopper,
                attend: Way::Hopper,
            },
            why: String::new(),
        },
    }
}

const SMALL: Capacity = Capacity {
    tokens: 48,
    sequences: 4,
};

fn backend(path: &Path, place: &Place) -> Box<dyn Backend> {
    let mut loaded = load_on(path, place).unwrap_or_else(|error| panic!("{error}"));
    loaded.backend.allocate(40).unwrap();
    loaded.backend
}

/// A step of rows `(tokens, first, first block)`, all wanting logits.
fn step(backend: &mut dyn Backend, rows: &[(&[u32], usize, u32)]) -> Vec<Vec<f32>> {
    let tables: Vec<Vec<u32>> = rows
        .iter()
        .map(|(tokens, first, block)| {
            (0..(first + tokens.len()).div_ceil(BLOCK_TOKENS) as u32)
                .map(|at| block + at)
                .collect()
        })
        .collect();
    let rows: Vec<Row<'_>> = rows
        .iter()
        .zip(&tables)
        .map(|((tokens, first, _), blocks)| Row {
            tokens,
            first: *first,
            blocks,
            wants_logits: true,
        })
        .collect();
    let mut out = Vec::new();
    assert_eq!(
        backend.step(&rows, &AtomicBool::new(false), &mut out),
        StepEnd::Done
    );
    out.chunks_exact(backend.info().vocabulary)
        .map(<[f32]>::to_vec)
        .collect()
}

fn near(got: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let worst = worst(got, expected);
        assert!(
            worst <= tolerance,
            "{what}: apart by {worst} of the largest logit"
        );
    }
}

/// The real model, beside the same with nothing rounded: the GPU's pass must be no further from it than the CPU's is. By hand:
/// `cargo nextest run -p engine --test cuda --run-ignored only`.
#[test]
#[ignore = "half a minute: a real model on the shim"]
fn smollm2_is_as_near_to_exact_as_on_the_cpu() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.run/models/smollm2-135m-instruct-q4_1.gguf");
    let exact = Place::Cpu {
        threads: 2,
        weights: Use::AsFloats,
        kv: None,
    };
    let mut exact = backend(&path, &exact);
    let mut cpu = backend(&path, &Place::cpu(2));
    let mut cuda = backend(&path, &place(Precision::Fast, SMALL));
    let mut all: Vec<u32> = vec![504, 3575, 282, 4649, 314];
    let (mut first, mut sums, mut equal) = (0, [0.0f64; 2], 0);
    for _ in 0..8 {
        let rows: &[(&[u32], usize, u32)] = &[(&all[first..], first, 0)];
        let truth = step(&mut *exact, rows).remove(0);
        let got = [step(&mut *cpu, rows).remove(0), step(&mut *cuda, rows).remove(0)];
        for (sum, got) in sums.iter_mut().zip(&got) {
            *sum += f64::from(root_mean_square(got, &truth));
        }
        let [theirs, ours] = got.map(|logits| engine::sample::likeliest(&logits));
        equal += usize::from(theirs == ours);
        first = all.len();
        all.push(engine::sample::likeliest(&truth));
    }
    let [cpu, cuda] = sums.map(|sum| sum / 8.0);
    println!(
        "from exact, of the logits' spread: CPU {cpu:.5}, GPU's pass {cuda:.5}; {equal} of 8 tokens equal; {all:?}"
    );
    assert!(cuda < cpu * 1.5 && equal >= 7, "{cpu} {cuda} {equal}");
}

/// The root of the mean square of differences, as a share of that of the logits.
fn root_mean_square(got: &[f32], truth: &[f32]) -> f32 {
    let apart: f32 = got
        .iter()
        .zip(truth)
        .map(|(got, truth)| (got - truth).powi(2))
        .sum();
    (apart / truth.iter().map(|truth| truth.powi(2)).sum::<f32>()).sqrt()
}

/// The largest difference, as a share of the largest logit.
fn worst(got: &[f32], expected: &[f32]) -> f32 {
    let scale = expected
        .iter()
        .fold(0.0f32, |scale, value| scale.max(value.abs()));
    let apart = got
        .iter()
        .zip(expected)
        .map(|(got, expected)| (got - expected).abs());
    apart.fold(0.0, f32::max) / scale
}

fn tokens(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32)
        .map(|at| (at * 37 + seed * 11 + 5) % VOCABULARY as u32)
        .collect()
}

/// The same steps on both: a prompt longer than the room, a mixed step, then single tokens often enough that their graph is
/// recorded and replayed.
fn compare(shape: &Shape, tolerance: f32) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(shape, folder.path());
    let mut cpu = backend(&path, &Place::cpu(1));
    let mut cuda = backend(&path, &place(Precision::Fast, SMALL));
    assert_eq!(cuda.info().vocabulary, cpu.info().vocabulary);
    let (long, short) = (tokens(70, 1), tokens(9, 2));
    let mut both = |rows: &[(&[u32], usize, u32)], what: &str| {
        let expected = step(&mut *cpu, rows);
        near(
            &step(&mut *cuda, rows),
            &expected,
            tolerance,
            &format!("{}, {what}", shape.architecture),
        );
    };
    both(&[(&long, 0, 0)], "a prompt");
    both(&[(&[3], 70, 0), (&short, 0, 20)], "a mixed step");
    for at in 0..5 {
        both(
            &[(&[4 + at as u32], 71 + at, 0), (&[9], 9 + at, 20), (&[7], 0, 30)],
            "single tokens",
        );
    }
}

#[test]
fn llama_in_small_blocks() {
    let shape = Shape {
        architecture: "llama",
        width: 192,
        feed: 288,
        heads: 3,
        kv_heads: 1,
        head_dim: 64,
        formats: [Q4_1, Q8_0],
        window: 0,
    };
    compare(&shape, 0.025);
}

#[test]
fn qwen2_in_blocks_of_256() {
    let shape = Shape {
        architecture: "qwen2",
        width: 256,
        feed: 512,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        formats: [Q4_K, Q6_K],
        window: 0,
    };
    compare(&shape, 0.025);
}

#[test]
fn qwen3_in_bf16() {
    let shape = Shape {
        architecture: "qwen3",
        width: 128,
        feed: 192,
        heads: 4,
        kv_heads: 2,
        head_dim: 128,
        formats: [BF16, BF16],
        window: 0,
    };
    compare(&shape, 0.008);
}

#[test]
fn gemma3_with_a_window_and_norms_inside() {
    let shape = Shape {
        architecture: "gemma3",
        width: 128,
        feed: 256,
        heads: 2,
        kv_heads: 1,
        head_dim: 256,
        formats: [Q8_0, Q8_0],
        window: 24,
    };
    compare(&shape, 0.01);
}

/// A prompt long enough for Hopper's own kernels in every layer, in two chunks, and a decoded token after it.
#[test]
fn a_long_prompt_on_hopper_kernels() {
    let shape = Shape {
        architecture: "llama",
        width: 128,
        feed: 192,
        heads: 3,
        kv_heads: 1,
        head_dim: 64,
        formats: [Q4_1, Q8_0],
        window: 0,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = write(&shape, folder.path());
    let room = Capacity {
        tokens: 160,
        sequences: 4,
    };
    let mut cpu = backend(&path, &Place::cpu(1));
    let mut cuda = backend(&path, &place(Precision::Fast, room));
    let prompt = tokens(291, 1);
    for (rows, what) in [(&prompt[..290], "a prompt"), (&prompt[290..], "a token")] {
        let first = if rows.len() == 1 { 290 } else { 0 };
        let expected = step(&mut *cpu, &[(rows, first, 0)]);
        near(&step(&mut *cuda, &[(rows, first, 0)]), &expected, 0.025, what);
    }
}

#[test]
fn with_invariant_precision_chunks_and_company_do_not_change_a_bit() {
    let shape = Shape {
        architecture: "llama",
        width: 64,
        feed: 96,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        formats: [Q4_1, Q8_0],
        window: 0,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = write(&shape, folder.path());
    let place = place(Precision::Invariant, SMALL);
    let prompt = tokens(30, 3);
    let whole = step(&mut *backend(&path, &place), &[(&prompt, 0, 0)]);
    let mut model = backend(&path, &place);
    step(&mut *model, &[(&prompt[..11], 0, 4)]);
    step(&mut *model, &[(&prompt[11..12], 11, 4)]);
    let other = tokens(15, 4);
    let last = step(&mut *model, &[(&other, 0, 20), (&prompt[12..], 12, 4)]);
    assert_eq!(last[1], whole[0]);
}

#[test]
fn an_abort_ends_a_prompt() {
    let shape = Shape {
        architecture: "llama",
        width: 64,
        feed: 96,
        heads: 1,
        kv_heads: 1,
        head_dim: 64,
        formats: [Q8_0, Q8_0],
        window: 0,
    };
    let folder = tempfile::tempdir().unwrap();
    let mut model = backend(&write(&shape, folder.path()), &place(Precision::Fast, SMALL));
    let row = Row {
        tokens: &[1, 2, 3],
        first: 0,
        blocks: &[0],
        wants_logits: true,
    };
    let mut out = Vec::new();
    assert_eq!(
        model.step(&[row], &AtomicBool::new(true), &mut out),
        StepEnd::Aborted
    );
    assert!(out.is_empty());
}

#[test]
fn a_synthetic_model_generates_on_the_device_what_the_host_would_choose() {
    let Place::Cuda { driver, .. } = place(Precision::Fast, SMALL) else {
        panic!("a device")
    };
    let tiny = engine::model::cuda::SyntheticModel::tiny();
    let mut model = tiny.make(Ops::new(driver, Precision::Fast), SMALL).unwrap();
    model.allocate(20).unwrap();
    let generated = model.generate(2, 6).unwrap();
    // The same by the interface that gives logits.
    let mut token = 1u32;
    for at in 0..6 {
        let logits = step(&mut model, &[(&[token], at, 0)]).remove(0);
        token = engine::sample::likeliest(&logits);
    }
    assert_eq!(generated, [token, token]);
    assert!(model.bytes_per_token() > 0);
}

#[test]
fn without_a_card_the_reason_is_told() {
    let settings = CudaSettings::default();
    let (_, reason) = find(Device::Auto, 1, &settings).unwrap();
    // Where there is a card there is nothing to tell.
    if let Some(reason) = reason {
        let Err(error) = find(Device::Cuda, 1, &settings) else {
            panic!("auto found none, asked for by name it is there")
        };
        assert_eq!(error.to_string(), reason.to_string());
    }
    assert!(
        "gpu"
            .parse::<Device>()
            .unwrap_err()
            .contains("cpu, cuda and auto")
    );
}
