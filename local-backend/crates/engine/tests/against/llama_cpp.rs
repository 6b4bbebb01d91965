//! A model's tokens and answers against those of llama.cpp: the same tokens, or a choice between tokens that llama.cpp
//! itself found about equally likely.

use engine::backend::{BLOCK_TOKENS, Output, Row, StepEnd, Want};
use engine::model::Loaded;
use engine::sample::likeliest;
use serde_json::Value;
use std::sync::atomic::AtomicBool;

/// Runs `tokens` in chunks of the given size and returns the logits after the last.
pub(crate) fn logits(model: &mut Loaded, tokens: &[u32], first: usize, chunk: usize) -> Vec<f32> {
    let blocks: Vec<u32> = (0..(first + tokens.len()).div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut out = Output::default();
    let mut at = 0;
    while at < tokens.len() {
        let end = (at + chunk).min(tokens.len());
        let row = Row {
            tokens: &tokens[at..end],
            first: first + at,
            blocks: &blocks,
            wants: if end == tokens.len() {
                Want::Logits
            } else {
                Want::Nothing
            },
        };
        let ended = model.backend.step(&[row], &AtomicBool::new(false), &mut out);
        assert_eq!(ended, StepEnd::Done);
        at = end;
    }
    out.logits
}

/// The logarithm of the sum of exponentials.
fn log_sum(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = logits.iter().map(|logit| (logit - largest).exp()).sum::<f32>();
    sum.ln() + largest
}

/// Prompts are cut into llama.cpp's tokens.
pub(crate) fn check_tokens(model: &Loaded, fixture: &str) {
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    for case in fixture.as_array().unwrap() {
        let first = model
            .info
            .bos
            .filter(|_| model.info.add_bos && model.template.is_none());
        let mut tokens: Vec<u32> = first.into_iter().collect();
        tokens.extend(model.tokenizer.encode(case["text"].as_str().unwrap(), true));
        let expected: Vec<u32> = serde_json::from_value(case["prompt_tokens"].clone()).unwrap();
        assert_eq!(tokens, expected, "{}", case["text"]);
    }
}

/// Both engines round activations to eight bits, each in its own way, so that log-probabilities differ by a few
/// hundredths and now and then by half a unit. What is asked: nearly always the same token; where not, one that llama.cpp
/// found nearly as likely; and on average next to no difference. Returns `(share of equal tokens, mean difference)`.
pub(crate) fn check_answers(model: &mut Loaded, fixture: &str) -> (f32, f32) {
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let (mut steps, mut equal, mut difference) = (0, 0, 0.0f32);
    for case in fixture.as_array().unwrap() {
        let prompt: Vec<u32> = serde_json::from_value(case["prompt_tokens"].clone()).unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let top: Vec<Vec<(u32, f32)>> = serde_json::from_value(case["top"].clone()).unwrap();
        let mut answer = logits(model, &prompt, 0, 512);
        for (step, token) in expected.iter().enumerate() {
            let (ours, total) = (likeliest(&answer), log_sum(&answer));
            let known = |id: u32| top[step].iter().find(|(known, _)| *known == id);
            let theirs = known(*token).unwrap().1;
            let near = known(ours).is_some_and(|(_, ours)| theirs - ours < 1.0);
            assert!(
                near,
                "{} parts at {step}: {ours} instead of {token}",
                case["prompt"]
            );
            steps += 1;
            equal += usize::from(ours == *token);
            difference += (answer[*token as usize] - total - theirs).abs();
            // Their token goes on, so that every step is compared.
            answer = logits(model, &[*token], prompt.len() + step, 1);
        }
    }
    assert!(steps >= 150, "only {steps} steps");
    (equal as f32 / steps as f32, difference / steps as f32)
}
