//! The GPU's forward pass against the CPU's, with the kernels run on the CPU by their SIMT shim: the same small made-up models
//! of every architecture that the GPU's pass takes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use engine::backend::{BLOCK_TOKENS, Backend, Draw, Output, Row, StepEnd, Want};
use engine::model::cuda::Capacity;
use engine::model::{CudaSettings, Device, Format, KvKind, MadeUp, Place, Use, find, load_on};
use kernels::Candidates;
use kernels::cuda::{Choice, Ops, Order, Precision, Simt, Way, Ways};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

fn write(shape: &MadeUp, folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    shape.write(&path).unwrap();
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
    kv: KvKind::F16,
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
            wants: Want::Logits,
        })
        .collect();
    let mut out = Output::default();
    assert_eq!(
        backend.step(&rows, &AtomicBool::new(false), &mut out),
        StepEnd::Done
    );
    out.logits
        .chunks_exact(backend.info().vocabulary)
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
        .map(|at| (at * 37 + seed * 11 + 5) % MadeUp::LLAMA.vocabulary as u32)
        .collect()
}

/// The same steps on both: a prompt longer than the room, a mixed step, then single tokens often enough that their graph is
/// recorded and replayed.
fn compare(shape: &MadeUp, tolerance: f32) {
    compare_keeping(shape, None, tolerance);
}

fn compare_keeping(shape: &MadeUp, kv: Option<KvKind>, tolerance: f32) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(shape, folder.path());
    let keeping = |place: Place| backend(&path, &place.keeping(kv).unwrap());
    let mut cpu = keeping(Place::cpu(1));
    let mut cuda = keeping(place(Precision::Fast, SMALL));
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

/// A width that no large block divides.
const SMALL_BLOCKS: MadeUp = MadeUp {
    width: 192,
    feed: 288,
    heads: 3,
    kv_heads: 1,
    head_dim: 64,
    ..MadeUp::LLAMA
};

#[test]
fn llama_in_small_blocks() {
    compare(&SMALL_BLOCKS, 0.025);
}

/// Half the memory of the cache, on both. Bytes on both sides may be rounded apart where what they round is a little apart.
#[test]
fn keys_and_values_in_eight_bits() {
    compare_keeping(&SMALL_BLOCKS, Some(KvKind::Int8), 0.03);
    let folder = tempfile::tempdir().unwrap();
    let path = write(&SMALL_BLOCKS, folder.path());
    let on = |place: Place, kv| backend(&path, &place.keeping(kv).unwrap()).info().block_bytes();
    let card = || place(Precision::Fast, SMALL);
    assert_eq!(
        on(card(), Some(KvKind::Int8)),
        on(Place::cpu(1), Some(KvKind::Int8))
    );
    assert_eq!(on(card(), Some(KvKind::Int8)) * 32, on(card(), None) * 17);
    let refused = card().keeping(Some(KvKind::Bf16)).unwrap_err();
    assert!(refused.contains("as f16 or int8"), "{refused}");
}

#[test]
fn qwen2_in_blocks_of_256() {
    let shape = MadeUp {
        architecture: "qwen2",
        width: 256,
        feed: 512,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        formats: [Format::Q4K, Format::Q6K],
        ..MadeUp::LLAMA
    };
    compare(&shape, 0.025);
}

#[test]
fn qwen3_in_bf16() {
    let shape = MadeUp {
        architecture: "qwen3",
        width: 128,
        feed: 192,
        heads: 4,
        kv_heads: 2,
        head_dim: 128,
        formats: [Format::Bf16, Format::Bf16],
        ..MadeUp::LLAMA
    };
    compare(&shape, 0.008);
}

#[test]
fn gemma3_with_a_window_and_norms_inside() {
    let shape = MadeUp {
        architecture: "gemma3",
        width: 128,
        feed: 256,
        heads: 2,
        kv_heads: 1,
        head_dim: 256,
        formats: [Format::Q8_0, Format::Q8_0],
        window: 24,
        ..MadeUp::LLAMA
    };
    compare(&shape, 0.01);
}

/// A prompt long enough for Hopper's own kernels in every layer, in two chunks, and a decoded token after it.
#[test]
fn a_long_prompt_on_hopper_kernels() {
    let shape = MadeUp {
        width: 128,
        feed: 192,
        heads: 3,
        kv_heads: 1,
        head_dim: 64,
        ..MadeUp::LLAMA
    };
    let folder = tempfile::tempdir().unwrap();
    let path = write(&shape, folder.path());
    let room = Capacity { tokens: 160, ..SMALL };
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
    let shape = MadeUp::LLAMA;
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

/// Tokens drawn on the device, beside rows whose logits come back, are those that the host draws from the same logits.
#[test]
fn tokens_are_drawn_where_the_logits_are() {
    let shape = MadeUp::LLAMA;
    let folder = tempfile::tempdir().unwrap();
    let path = write(&shape, folder.path());
    let mut model = backend(&path, &place(Precision::Invariant, SMALL));
    assert!(model.info().draws);
    let draw = |index| {
        Want::Token(Draw {
            temperature: 1.5,
            top_k: 50,
            top_p: 0.95,
            seed: 3,
            index,
            ..Draw::default()
        })
    };
    // More rows than there is room for at once, one of them longer than a piece.
    let lengths = [3, 4, 60, 2, 5, 1];
    let wants = [
        draw(0),
        Want::Logits,
        draw(1),
        Want::Nothing,
        Want::Token(Draw::default()),
        Want::Logits,
    ];
    let prompts: Vec<Vec<u32>> = lengths
        .into_iter()
        .zip(0..)
        .map(|(count, seed)| tokens(count, seed))
        .collect();
    let tables: Vec<Vec<u32>> = (0..6).map(|at| (at * 5..at * 5 + 4).collect()).collect();
    let mut step = |wants: [Want; 6]| {
        let rows = prompts.iter().zip(&tables).zip(wants);
        let rows: Vec<Row<'_>> = rows
            .map(|((tokens, blocks), wants)| Row {
                tokens,
                first: 0,
                blocks,
                wants,
            })
            .collect();
        let mut out = Output::default();
        let ended = model.step(&rows, &AtomicBool::new(false), &mut out);
        assert_eq!(ended, StepEnd::Done);
        out
    };
    let all = step([Want::Logits; 6]);
    let rows: Vec<&[f32]> = all.logits.chunks_exact(shape.vocabulary).collect();
    let got = step(wants);
    assert_eq!(got.logits, [rows[1], rows[5]].concat());
    let mut candidates = Candidates::default();
    let expected = [0, 2, 4].map(|at| match wants[at] {
        Want::Token(draw) => draw.choose(rows[at], &mut candidates),
        Want::Nothing | Want::Logits => panic!("row {at} wants a token"),
    });
    assert_eq!(got.tokens, expected);
}

#[test]
fn an_abort_ends_a_prompt() {
    let shape = MadeUp {
        heads: 1,
        formats: [Format::Q8_0, Format::Q8_0],
        ..MadeUp::LLAMA
    };
    let folder = tempfile::tempdir().unwrap();
    let mut model = backend(&write(&shape, folder.path()), &place(Precision::Fast, SMALL));
    let row = Row {
        tokens: &[1, 2, 3],
        first: 0,
        blocks: &[0],
        wants: Want::Logits,
    };
    let mut out = Output::default();
    assert_eq!(
        model.step(&[row], &AtomicBool::new(true), &mut out),
        StepEnd::Aborted
    );
    assert!(out.logits.is_empty());
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
