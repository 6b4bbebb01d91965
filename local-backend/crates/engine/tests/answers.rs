//! Whole answers of the real model through the engine: the same whatever shares the steps, what is cached and what is
//! guessed; and in the form that was asked for, always.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use engine::engine::{Engine, Event, Finish, Request, Settings, Speculation, Ticket};
use engine::grammar::Grammars;
use engine::model::{Loaded, load};
use engine::sample::Sampling;
use engine::text::Tokenizer;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

fn model() -> Loaded {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let set = std::env::var("TOLLGATE_MODEL").map(PathBuf::from);
    let default = || {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../.run/models/smollm2-135m-instruct-q4_1.gguf")
    };
    load(&set.unwrap_or_else(|_| default()), 2).unwrap_or_else(|error| panic!("{error}"))
}

fn start(speculation: Speculation) -> (Engine, Arc<Tokenizer>) {
    let loaded = model();
    let tokenizer = Arc::new(loaded.tokenizer);
    let settings = Settings {
        kv_tokens: 8192,
        speculation,
        ..Settings::default()
    };
    (
        Engine::start(loaded.backend, tokenizer.clone(), settings).unwrap(),
        tokenizer,
    )
}

fn submit(engine: &Engine, request: Request) -> (Ticket, Receiver<Event>) {
    let (sender, receiver) = sync_channel(10_000);
    let sink = Box::new(move |event| sender.try_send(event).is_ok());
    (engine.submit(request, sink).unwrap(), receiver)
}

fn collect(events: &Receiver<Event>) -> (String, Finish) {
    let mut content = String::new();
    loop {
        match events.recv_timeout(Duration::from_secs(120)).expect("an event") {
            Event::Text { text, .. } => content.push_str(&text),
            Event::Finished { finish, .. } => return (content, finish),
            Event::Failed(problem) => panic!("{problem}"),
        }
    }
}

#[test]
fn answers_are_the_same_alone_together_cached_and_guessed() {
    let ask = |tokenizer: &Tokenizer, at: usize| {
        Request {
        tokens: tokenizer.encode(
            &format!("<|im_start|>user\nRepeat: red green blue red green blue, {at} times.<|im_end|>\n<|im_start|>assistant\n"),
            true,
        ),
        max_tokens: 24,
        sampling: Sampling {
            temperature: if at.is_multiple_of(2) { 0.0 } else { 0.8 },
            seed: at as u64,
            ..Sampling::default()
        },
        ..Request::default()
    }
    };
    let (plain, tokenizer) = start(Speculation::Off);
    let expected: Vec<_> = (0..4)
        .map(|at| {
            let (_ticket, events) = submit(&plain, ask(&tokenizer, at));
            collect(&events)
        })
        .collect();
    drop(plain);
    let (guessing, tokenizer) = start(Speculation::PromptLookup);
    // One by one, so that there are guesses; then all at once, over what is cached.
    for (at, expected) in expected.iter().enumerate() {
        let (_ticket, events) = submit(&guessing, ask(&tokenizer, at));
        assert_eq!(&collect(&events), expected, "{at} alone");
    }
    let asked: Vec<_> = (0..4).map(|at| submit(&guessing, ask(&tokenizer, at))).collect();
    for (at, (_ticket, events)) in asked.iter().enumerate() {
        assert_eq!(collect(events), expected[at], "{at} together");
    }
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert!(read(&guessing.metrics().guessed_right) > 0 && read(&guessing.metrics().prefix_hits) > 0);
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": { "enum": ["cat", "dog", "bird \"quoted\""] },
            "age": { "type": "integer", "minimum": 0, "maximum": 99 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 3 }, "maxItems": 1 },
            "wild": { "type": "boolean" },
        },
        "required": ["kind", "age", "tags", "wild"],
        "additionalProperties": false,
    })
}

/// Checked by hand, not by what made the mask.
fn satisfies(text: &str) -> bool {
    let Ok(Value::Object(animal)) = serde_json::from_str(text) else {
        return false;
    };
    let kind = animal["kind"]
        .as_str()
        .is_some_and(|kind| ["cat", "dog", "bird \"quoted\""].contains(&kind));
    let age = animal["age"].as_i64().is_some_and(|age| (0..=99).contains(&age));
    let tags = animal["tags"].as_array().is_some_and(|tags| {
        let short = |tag: &Value| tag.as_str().is_some_and(|tag| tag.chars().count() <= 3);
        tags.len() <= 1 && tags.iter().all(short)
    });
    kind && age && tags && animal["wild"].is_boolean() && animal.len() == 4
}

#[test]
fn a_schema_is_never_violated_in_two_hundred_sampled_answers() {
    let (engine, tokenizer) = start(Speculation::PromptLookup);
    let form = Grammars::new(tokenizer.clone(), &[2])
        .unwrap()
        .json(&schema())
        .unwrap();
    let ask = |seed| Request {
        tokens: tokenizer.encode(
            "<|im_start|>user\nMake up an animal.<|im_end|>\n<|im_start|>assistant\n",
            true,
        ),
        max_tokens: 100,
        sampling: Sampling {
            temperature: 1.0,
            seed,
            ..Sampling::default()
        },
        grammar: Some(form.fork()),
        ..Request::default()
    };
    let asked: Vec<_> = (0..200).map(|seed| submit(&engine, ask(seed))).collect();
    let answers: Vec<_> = asked.iter().map(|(_ticket, events)| collect(events)).collect();
    for (text, finish) in &answers {
        assert!(*finish == Finish::Stop && satisfies(text), "{finish:?}: {text}");
    }
    let distinct: std::collections::HashSet<_> = answers.iter().map(|(text, _)| text).collect();
    assert!(distinct.len() > 100, "{} distinct answers", distinct.len());
}
