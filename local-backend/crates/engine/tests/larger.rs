//! Larger models against llama.cpp, by hand: `TOLLGATE_MODELS=folder cargo nextest run -p engine --test larger
//! --run-ignored all`. The files are those that `fixtures/make.py` names.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "against/llama_cpp.rs"]
mod llama_cpp;

use engine::model::load;
use llama_cpp::{check_answers, check_tokens, logits};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

fn check(file: &str, fixture: &str, most: f32) {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let folder = std::env::var("TOLLGATE_MODELS").unwrap_or_else(|_| panic!("set TOLLGATE_MODELS"));
    let mut model = load(&PathBuf::from(folder).join(file), 2).unwrap_or_else(|error| panic!("{error}"));
    model.backend.allocate(64).unwrap();
    check_tokens(&model, fixture);
    let (agreement, difference) = check_answers(&mut model, fixture);
    assert!(
        agreement > 0.93 && difference < most,
        "{file}: {agreement} equal, {difference} apart"
    );
    let tokens = model
        .tokenizer
        .encode("The quick brown fox jumps over the lazy dog, and sleeps.", false);
    let whole = logits(&mut model, &tokens, 0, 512);
    assert_eq!(
        logits(&mut model, &tokens, 0, 5),
        whole,
        "a chunk changed a result"
    );
}

#[test]
#[ignore = "needs gemma-3-270m-q4_k_m.gguf, 253 MB"]
fn gemma_answers_as_in_llama_cpp() {
    check(
        "gemma-3-270m-q4_k_m.gguf",
        include_str!("fixtures/gemma3.json"),
        0.08,
    );
}

#[test]
#[ignore = "needs qwen2.5-coder-1.5b-instruct-q4_k_m.gguf, 1.1 GB"]
fn qwen_answers_as_in_llama_cpp() {
    let file = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf";
    check(file, include_str!("fixtures/qwen25.json"), 0.08);
}

#[test]
#[ignore = "needs the folder all-MiniLM-L6-v2, 91 MB"]
fn minilm_embeds_as_in_transformers() {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let folder = std::env::var("TOLLGATE_MODELS").unwrap_or_else(|_| panic!("set TOLLGATE_MODELS"));
    let folder = PathBuf::from(folder).join("all-MiniLM-L6-v2");
    let mut model = load(&folder, 2).unwrap_or_else(|error| panic!("{error}"));
    let cases: serde_json::Value = serde_json::from_str(include_str!("fixtures/minilm.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let expected: Vec<f32> = serde_json::from_value(case["embedding"].clone()).unwrap();
        let ours = model.tokenizer.encode_framed(case["text"].as_str().unwrap(), 128);
        assert_eq!(ours, tokens, "{}", case["text"]);
        let mut out = Vec::new();
        model.backend.embed(&[&tokens], &AtomicBool::new(false), &mut out);
        for (ours, theirs) in out.iter().zip(&expected) {
            assert!((ours - theirs).abs() < 1e-5, "{}: {ours} {theirs}", case["text"]);
        }
    }
}
