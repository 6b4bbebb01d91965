//! What the engine asks of a device that draws tokens itself: logits only where the host has to look at them, and the same
//! answers as from a device that gives logits only.

use super::device::{Asked, Device, SPECIAL, tokenizer};
use super::{Answer, answer, request, small, start, submit};
use engine::engine::{Event, Request};
use engine::grammar::Grammars;
use engine::think::Thinking;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What came, and how many rows wanted tokens and logits.
fn drawn(device: Device, ask: Request) -> (Answer, [usize; 2]) {
    let asked: Arc<Asked> = Arc::default();
    let engine = start(device.draws(&asked), small(4096));
    let got = answer(&engine, ask);
    let count = [&asked.tokens, &asked.logits].map(|counter| counter.load(Ordering::Relaxed));
    (got, count)
}

/// Every kind of request that needs nothing but a draw: with guesses, on both devices, to the same answer.
#[test]
fn answers_are_the_same_and_no_logits_come() {
    let looping = || Device::script("one two three four five six ".repeat(8));
    let changes: [fn(&mut Request); 6] = [
        |_| {},
        |ask| ask.sampling.temperature = 0.9,
        |ask| (ask.sampling.temperature, ask.sampling.top_k) = (1.6, 40),
        |ask| (ask.sampling.temperature, ask.sampling.top_p) = (1.4, 0.9),
        |ask| (ask.sampling.temperature, ask.sampling.min_p) = (2.0, 0.05),
        |ask| ask.stop = vec!["six one".into()],
    ];
    let devices: [fn() -> Device; 2] = [Device::random, looping];
    for change in changes {
        for device in devices {
            for seed in [1, 2] {
                let ask = || {
                    let mut ask = request("one two three four five six one two ", 120);
                    ask.sampling.seed = seed;
                    change(&mut ask);
                    ask
                };
                let expected = answer(&start(device(), small(4096)), ask());
                let (got, [tokens, logits]) = drawn(device(), ask());
                assert_eq!(got, expected);
                assert!(
                    tokens >= got.counts.output && logits == 0,
                    "{tokens} and {logits}"
                );
            }
        }
    }
}

#[test]
fn where_the_host_must_look_logits_come() {
    let changes: [fn(&mut Request); 6] = [
        |ask| ask.sampling.logprobs = Some(0),
        |ask| ask.sampling.logit_bias = [(65, 1.0)].into(),
        |ask| ask.sampling.presence_penalty = 0.1,
        |ask| ask.sampling.frequency_penalty = -0.1,
        |ask| ask.sampling.repetition_penalty = 1.1,
        |ask| {
            let grammars = Grammars::new(tokenizer(), &[SPECIAL]).unwrap();
            ask.grammar = Some(grammars.lark("start: /[ -~]+/".into()).unwrap());
        },
    ];
    for change in changes {
        let ask = || {
            let mut ask = request("a prompt", 30);
            ask.sampling.temperature = 0.8;
            change(&mut ask);
            ask
        };
        let (got, [tokens, logits]) = drawn(Device::random(), ask());
        assert!(
            tokens == 0 && logits >= got.counts.output,
            "{tokens} and {logits}"
        );
        assert_eq!(got, answer(&start(Device::random(), small(4096)), ask()));
    }
}

/// Tokens that are forced take a random number as others do, so that what follows is drawn alike with guesses and without.
#[test]
fn thinking_ends_in_time_where_the_device_draws() {
    let ask = || {
        let mut ask = request("go", 60);
        ask.sampling.temperature = 1.3;
        ask.thinking = Some(Thinking {
            open: "<think>".into(),
            close: "</think>".into(),
            close_tokens: vec![SPECIAL + 2],
            budget: Some(9),
            is_open: true,
        });
        ask
    };
    let device = || Device::script("I think. ".repeat(9));
    let (got, [tokens, logits]) = drawn(device(), ask());
    assert_eq!(got.counts.reasoning, 9);
    assert!(tokens > 0 && logits == 0);
    assert_eq!(got, answer(&start(device(), small(4096)), ask()));
}

/// Rows of both kinds in the same steps: each request is given its own.
#[test]
fn both_kinds_share_steps() {
    let asked: Arc<Asked> = Arc::default();
    let device = Device::random().layers(1, Duration::from_micros(200));
    let engine = start(device.draws(&asked), small(4096));
    let ask = |at: usize| {
        let mut ask = request(&format!("prompt {at} "), 40);
        ask.sampling.temperature = 0.7;
        ask.sampling.seed = at as u64;
        ask.sampling.logprobs = (at % 2 == 1).then_some(1);
        ask
    };
    let all: Vec<_> = (0..6).map(|at| submit(&engine, ask(at))).collect();
    for (at, (_ticket, events)) in all.iter().enumerate() {
        let (mut told, mut content) = (0, String::new());
        for event in events {
            match event {
                Event::Text { text, logprobs, .. } => {
                    told += logprobs.len();
                    content.push_str(&text);
                }
                Event::Finished { .. } => break,
                Event::Failed(problem) => panic!("{problem}"),
            }
        }
        let alone = answer(&start(Device::random(), small(4096)), ask(at)).content;
        assert_eq!((content, told > 0), (alone, at % 2 == 1));
    }
    let read = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
    assert!(read(&asked.tokens) > 0 && read(&asked.logits) > 0);
}
