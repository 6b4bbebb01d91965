//! The real model against llama.cpp's answers: the same tokens, or a choice between tokens that llama.cpp itself found
//! about equally likely.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use engine::backend::{BLOCK_TOKENS, Row, StepEnd};
use engine::model::{Loaded, load};
use engine::sample::likeliest;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

const FIXTURE: &str = include_str!("fixtures/smollm2.json");

fn model() -> Loaded {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let set = std::env::var("TOLLGATE_MODEL").map(PathBuf::from);
    let default = || {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../.run/models/smollm2-135m-instruct-q4_1.gguf")
    };
    load(&set.unwrap_or_else(|_| default()), 2).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `tokens` in chunks of the given size and returns the logits after the last.
fn logits(model: &mut Loaded, tokens: &[u32], first: usize, chunk: usize) -> Vec<f32> {
    let blocks: Vec<u32> = (0..(first + tokens.len()).div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let end = (at + chunk).min(tokens.len());
        let wants_logits = end == tokens.len();
        let row = Row {
            tokens: &tokens[at..end],
            first: first + at,
            blocks: &blocks,
            wants_logits,
        };
        assert_eq!(
            model.backend.step(&[row], &AtomicBool::new(false), &mut out),
            StepEnd::Done
        );
        at = end;
    }
    out
}

#[test]
fn tokens_and_templates_are_those_of_llama_cpp() {
    let model = model();
    let fixture: serde_json::Value = serde_json::from_str(FIXTURE).unwrap();
    for case in fixture.as_array().unwrap() {
        let messages = serde_json::json!([{ "role": "user", "content": case["prompt"] }]);
        let text = model.template.as_ref().unwrap().render(&messages, None).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        let expected: Vec<u32> = serde_json::from_value(case["prompt_tokens"].clone()).unwrap();
        assert_eq!(model.tokenizer.encode(&text, true), expected, "{text}");
    }
}

/// Both engines round activations to eight bits, each in its own way, so that log-probabilities differ by a few
/// hundredths and now and then by half a unit. What is asked: nearly always the same token; where not, one that llama.cpp
/// found nearly as likely; and on average next to no difference.
#[test]
fn greedy_answers_are_those_of_llama_cpp() {
    let mut model = model();
    model.backend.allocate(64).unwrap();
    let fixture: serde_json::Value = serde_json::from_str(FIXTURE).unwrap();
    let (mut steps, mut equal, mut difference) = (0, 0, 0.0f32);
    for case in fixture.as_array().unwrap() {
        let prompt: Vec<u32> = serde_json::from_value(case["prompt_tokens"].clone()).unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let top: Vec<Vec<(u32, f32)>> = serde_json::from_value(case["top"].clone()).unwrap();
        let mut answer = logits(&mut model, &prompt, 0, 512);
        for (step, token) in expected.iter().enumerate() {
            let (ours, total) = (likeliest(&answer), log_sum(&answer));
            let likelihood = |id: u32| {
                top[step]
                    .iter()
                    .find(|(known, _)| *known == id)
                    .map(|(_, logprob)| *logprob)
            };
            let theirs = likelihood(*token).unwrap();
            let near = likelihood(ours).is_some_and(|ours| theirs - ours < 1.0);
            assert!(
                near,
                "{} parts at {step}: {ours} instead of {token}",
                case["prompt"]
            );
            steps += 1;
            equal += usize::from(ours == *token);
            difference += (answer[*token as usize] - total - theirs).abs();
            // Their token goes on, so that every step is compared.
            answer = logits(&mut model, &[*token], prompt.len() + step, 1);
        }
    }
    let (agreement, difference) = (equal as f32 / steps as f32, difference / steps as f32);
    assert!(
        steps >= 400 && agreement > 0.95 && difference < 0.08,
        "{steps} steps: {agreement} equal, {difference} apart"
    );
}

/// The logarithm of the sum of exponentials.
fn log_sum(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits
        .iter()
        .map(|logit| (logit - largest).exp())
        .sum::<f32>()
        .ln()
        + largest
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
        wants_logits: true,
    };
    let mut out = Vec::new();
    model
        .backend
        .step(&[row(&other), row(&mine)], &AtomicBool::new(false), &mut out);
    assert_eq!(out[whole.len()..], whole[..]);
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
        wants_logits: true,
    };
    let mut out = Vec::new();
    assert_eq!(
        model.backend.step(&[row], &AtomicBool::new(true), &mut out),
        StepEnd::Aborted
    );
}
