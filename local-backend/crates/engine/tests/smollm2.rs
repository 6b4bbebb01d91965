//! The real model against llama.cpp's answers: the same tokens, or a choice between tokens that llama.cpp itself found
//! about equally likely.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "against/llama_cpp.rs"]
mod llama_cpp;

use engine::backend::{Output, Row, StepEnd, Want};
use engine::model::{KvKind, Loaded, Place, load, load_on};
use llama_cpp::{check_answers, check_tokens, logits};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

const FIXTURE: &str = include_str!("fixtures/smollm2.json");

fn model() -> Loaded {
    load(&path(), 2).unwrap_or_else(|error| panic!("{error}"))
}

fn path() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let set = std::env::var("TOLLGATE_MODEL").map(PathBuf::from);
    let default = || {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../.run/models/smollm2-135m-instruct-q4_1.gguf")
    };
    set.unwrap_or_else(|_| default())
}

#[test]
fn tokens_and_templates_are_those_of_llama_cpp() {
    let model = model();
    let fixture: serde_json::Value = serde_json::from_str(FIXTURE).unwrap();
    for case in fixture.as_array().unwrap() {
        let messages = serde_json::json!([{ "role": "user", "content": case["prompt"] }]);
        let text = model.template.as_ref().unwrap().render(&messages, None).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
    }
    check_tokens(&model, FIXTURE);
}

#[test]
fn greedy_answers_are_those_of_llama_cpp() {
    let mut model = model();
    model.backend.allocate(64).unwrap();
    let (agreement, difference) = check_answers(&mut model, FIXTURE);
    assert!(
        agreement > 0.95 && difference < 0.08,
        "{agreement} equal, {difference} apart"
    );
}

#[test]
fn chunks_and_company_do_not_change_a_bit() {
    let mut model = model();
    model.backend.allocate(64).unwrap();
    let tokens = model.tokenizer.encode(
        "The quick brown fox jumps over the lazy dog, and then it sleeps for a while.",
        false,
    );
    let whole = logits(&mut model, &tokens, 0, 512);
    for chunk in [1, 3, 7] {
        assert_eq!(
            logits(&mut model, &tokens, 0, chunk),
            whole,
            "in chunks of {chunk}"
        );
    }
    let (mine, other): (Vec<u32>, Vec<u32>) = ((0..8).collect(), (8..16).collect());
    let row = |blocks| Row {
        tokens: &tokens,
        first: 0,
        blocks,
        wants: Want::Logits,
    };
    let mut out = Output::default();
    model
        .backend
        .step(&[row(&other), row(&mine)], &AtomicBool::new(false), &mut out);
    assert_eq!(out.logits[whole.len()..], whole[..]);
}

/// Half the memory; the answers stay llama.cpp's, with its own 16 bits, and still depend on nothing but the prompt.
#[test]
fn keys_and_values_in_eight_bits_take_half_the_memory_and_answer_the_same() {
    let place = Place::cpu(2).keeping(Some(KvKind::Int8)).unwrap();
    let mut model = load_on(&path(), &place).unwrap();
    model.backend.allocate(64).unwrap();
    let (bytes, whole) = (model.info.block_bytes(), self::model().info.block_bytes());
    assert!(bytes as f64 <= whole as f64 * 0.54, "{bytes} of {whole} bytes");
    let (agreement, difference) = check_answers(&mut model, FIXTURE);
    assert!(
        agreement > 0.95 && difference < 0.08,
        "{agreement} equal, {difference} apart"
    );
    let tokens = model
        .tokenizer
        .encode("The quick brown fox jumps over the lazy dog, and sleeps.", false);
    let all = logits(&mut model, &tokens, 0, 512);
    assert_eq!(logits(&mut model, &tokens, 0, 3), all, "in chunks");
}

#[test]
fn an_abort_ends_a_step() {
    let mut model = model();
    model.backend.allocate(64).unwrap();
    let blocks: Vec<u32> = (0..64).collect();
    let row = Row {
        tokens: &[1; 500],
        first: 0,
        blocks: &blocks,
        wants: Want::Logits,
    };
    let mut out = Output::default();
    assert_eq!(
        model.backend.step(&[row], &AtomicBool::new(true), &mut out),
        StepEnd::Suspended
    );
}

/// It is stopped wherever it happens to be, again and again, and others run in between.
#[test]
fn a_suspended_step_goes_on_where_it_was() {
    let mut model = model();
    let backend = &mut model.backend;
    backend.allocate(64).unwrap();
    let never = AtomicBool::new(false);
    let blocks: Vec<u32> = (0..64).collect();
    let tokens: Vec<u32> = (0..300).map(|token| 1000 + token * 7).collect();
    let row = |tokens, blocks| Row {
        tokens,
        first: 0,
        blocks,
        wants: Want::Logits,
    };
    let (long, other) = (
        row(&tokens[..], &blocks[..32]),
        row(&tokens[100..140], &blocks[32..]),
    );
    let (mut expected, mut others, mut out) = <(Output, Output, Output)>::default();
    let started = std::time::Instant::now();
    assert_eq!(backend.step(&[long], &never, &mut expected), StepEnd::Done);
    let whole = started.elapsed();
    assert_eq!(backend.step(&[other], &never, &mut others), StepEnd::Done);
    backend.allocate(64).unwrap();
    let mut suspended = 0;
    for turn in 0.. {
        let abort = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(whole / 5);
                abort.store(true, Ordering::Relaxed);
            });
            match turn {
                0 => backend.step(&[long], &abort, &mut out),
                _ => backend.resume(&[long], &abort, &mut out),
            }
        });
        if ended == StepEnd::Done {
            break;
        }
        suspended += 1;
        assert!(ended == StepEnd::Suspended && out.logits.is_empty());
        assert_eq!(backend.step(&[other], &never, &mut out), StepEnd::Done);
        assert_eq!(out, others);
    }
    assert!(suspended > 1, "{suspended}");
    assert_eq!(out, expected);
}
