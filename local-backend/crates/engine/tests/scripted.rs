//! The engine thread over a device that computes nothing but keeps its cache as a real one does: whatever it answers
//! depends on every token that it reads back through the block tables.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "scripted/device.rs"]
mod device;
#[path = "scripted/draws.rs"]
mod draws;

use device::{Device, SPECIAL, tokenizer};
use engine::engine::{
    Counts, Engine, Event, Finish, Order, Request, Settings, Speculation, Standing, SubmitError, Ticket,
};
use engine::sample::Sampling;
use engine::scheduler::{Class, Limits};
use engine::think::{Channel, Thinking};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(device: Device, settings: Settings) -> Engine {
    Engine::start(Box::new(device), tokenizer(), settings).unwrap()
}

fn small(kv_tokens: usize) -> Settings {
    Settings {
        kv_tokens,
        ..Settings::default()
    }
}

fn request(prompt: &str, max_tokens: usize) -> Request {
    Request {
        tokens: tokenizer().encode(prompt, true),
        max_tokens,
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        ..Request::default()
    }
}

fn submit(engine: &Engine, request: Request) -> (Ticket, Receiver<Event>) {
    let (sender, receiver) = sync_channel(10_000);
    let sink = Box::new(move |event| sender.try_send(event).is_ok());
    (engine.submit(request, sink).unwrap(), receiver)
}

/// An answer as it came.
#[derive(Debug, PartialEq)]
struct Answer {
    content: String,
    reasoning: String,
    finish: Finish,
    counts: Counts,
}

fn collect(events: &Receiver<Event>) -> Answer {
    let (mut content, mut reasoning) = (String::new(), String::new());
    loop {
        match events.recv_timeout(PATIENCE).expect("an event") {
            Event::Text { channel, text, .. } => match channel {
                Channel::Content => content.push_str(&text),
                Channel::Reasoning => reasoning.push_str(&text),
            },
            Event::Finished { finish, counts, .. } => {
                return Answer {
                    content,
                    reasoning,
                    finish,
                    counts,
                };
            }
            Event::Failed(problem) => panic!("{problem}"),
        }
    }
}

fn answer(engine: &Engine, request: Request) -> Answer {
    let (_ticket, events) = submit(engine, request);
    collect(&events)
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

fn standing(engine: &Engine) -> Standing {
    let (sender, receiver) = sync_channel(1);
    engine
        .standing(Box::new(move |standing| drop(sender.send(standing))))
        .unwrap();
    receiver.recv_timeout(PATIENCE).unwrap()
}

/// A gate before a device's steps.
fn closed() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

/// No request, no slot, no block.
fn is_clean(engine: &Engine) -> bool {
    engine.is_idle() && engine.metrics().blocks_used.load(Ordering::Relaxed) == 0
}

#[test]
fn answers_depend_on_nothing_but_the_prompt() {
    let prompts: Vec<String> = (0..12)
        .map(|at| format!("{} and {at}", "a long beginning, ".repeat(at)))
        .collect();
    let alone = start(
        Device::random(),
        Settings {
            speculation: Speculation::Off,
            ..small(4096)
        },
    );
    let expected: Vec<String> = prompts
        .iter()
        .map(|prompt| answer(&alone, request(prompt, 150)).content)
        .collect();
    assert!(expected.iter().all(|text| !text.is_empty()));
    // All at once, in a cache that makes them push each other aside, with guesses, cold and warm.
    let gate = closed();
    let together = start(Device::random().gate(&gate), small(900));
    for _ in 0..2 {
        gate.store(false, Ordering::Release);
        let asked: Vec<_> = prompts
            .iter()
            .map(|prompt| submit(&together, request(prompt, 150)))
            .collect();
        gate.store(true, Ordering::Release);
        for ((_ticket, events), expected) in asked.iter().zip(&expected) {
            assert_eq!(&collect(events).content, expected);
        }
    }
    assert!(together.metrics().preempted.load(Ordering::Relaxed) > 0);
    until("clean", || is_clean(&together));
}

#[test]
fn guesses_change_the_speed_and_not_the_answer() {
    let looping = || Device::script("one two three four five six ".repeat(8));
    let (with, without) = (
        start(looping(), small(4096)),
        start(
            looping(),
            Settings {
                speculation: Speculation::Off,
                ..small(4096)
            },
        ),
    );
    for temperature in [0.0, 0.9] {
        let ask = || {
            let mut request = request("one two three four five six one two ", 150);
            request.sampling.temperature = temperature;
            request.sampling.seed = 5;
            request
        };
        let (one, two) = (answer(&with, ask()), answer(&without, ask()));
        assert_eq!((one.content, one.finish), (two.content, two.finish));
    }
    let read = |engine: &Engine| engine.metrics().steps.load(Ordering::Relaxed);
    assert!(with.metrics().guessed_right.load(Ordering::Relaxed) > 100);
    assert!(
        read(&with) * 2 < read(&without),
        "{} steps and {}",
        read(&with),
        read(&without)
    );
}

#[test]
fn a_cache_is_the_tenants_own() {
    let engine = start(Device::random(), small(4096));
    let ask = |tenant: &str| {
        let mut request = request(&"the same system prompt ".repeat(10), 4);
        request.order.tenant = tenant.into();
        answer(&engine, request)
    };
    assert_eq!(ask("a").counts.cached, 0);
    let again = ask("a").counts;
    assert_eq!((again.prompt, again.cached), (230, 224));
    let other = ask("b");
    assert_eq!(other.counts.cached, 0);
    assert_eq!(other.content, ask("a").content);
}

#[test]
fn five_hundred_random_cancels_leave_no_block_and_no_slot() {
    let engine = start(
        Device::random(),
        Settings {
            limits: Limits {
                running: 6,
                ..Limits::default()
            },
            ..small(1200)
        },
    );
    let mut random = 3u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    let mut alive = Vec::new();
    for at in 0..500 {
        let prompt = format!("{}{at}", "words ".repeat(next(40) as usize));
        let mut request = request(&prompt, 1 + next(60) as usize);
        request.order.class = if next(4) == 0 {
            Class::Background
        } else {
            Class::Foreground
        };
        alive.push(submit(&engine, request));
        if next(3) > 0 {
            alive.swap_remove(next(alive.len() as u64) as usize);
        }
        if next(8) == 0 {
            std::thread::sleep(Duration::from_micros(next(3000)));
        }
    }
    drop(alive);
    until("no block and no slot is left", || is_clean(&engine));
    assert_eq!(answer(&engine, request("still there", 3)).counts.output, 3);
    until("clean again", || is_clean(&engine) && engine.load().waiting == 0);
}

#[test]
fn leaving_stops_a_long_step_between_layers() {
    let engine = start(
        Device::random().layers(1000, Duration::from_millis(5)),
        small(4096),
    );
    let (ticket, _events) = submit(&engine, request("a prompt", 5));
    until("it runs", || {
        engine.metrics().running.load(Ordering::Relaxed) == 1
    });
    std::thread::sleep(Duration::from_millis(20));
    let left = Instant::now();
    drop(ticket);
    until("it is gone", || is_clean(&engine));
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    assert_eq!(engine.metrics().cancelled_prefill.load(Ordering::Relaxed), 1);
}

#[test]
fn one_that_leaves_the_queue_disturbs_nobody() {
    let engine = start(
        Device::random().layers(4, Duration::from_micros(300)),
        Settings {
            limits: Limits {
                running: 1,
                ..Limits::default()
            },
            ..small(4096)
        },
    );
    let (_ticket, events) = submit(&engine, request("the one that runs", 60));
    until("it runs", || {
        engine.metrics().running.load(Ordering::Relaxed) == 1
    });
    let (queued, _events) = submit(&engine, request("the one that waits", 60));
    drop(queued);
    until("it is gone", || {
        engine.metrics().cancelled_queued.load(Ordering::Relaxed) == 1
    });
    assert_eq!(collect(&events).counts.output, 60);
    assert_eq!(engine.metrics().aborted_steps.load(Ordering::Relaxed), 0);
}

#[test]
fn one_that_leaves_the_queue_is_gone_while_the_step_runs() {
    // The step ends only when the gate opens: nothing below can have waited for it.
    let gate = closed();
    let settings = Settings {
        queue: 1,
        limits: Limits {
            running: 1,
            ..Limits::default()
        },
        ..small(4096)
    };
    let engine = start(Device::random().gate(&gate), settings);
    let (_ticket, events) = submit(&engine, request("the one that runs", 5));
    until("it runs", || {
        engine.load().running == 1 && engine.load().waiting == 0
    });
    for _ in 0..20 {
        let (queued, _events) = submit(&engine, request("the one that waits", 60));
        assert_eq!(engine.load().waiting, 1);
        assert_eq!(
            engine.submit(request("no room", 1), Box::new(|_| true)).err(),
            Some(SubmitError::Full)
        );
        drop(queued);
        assert_eq!(engine.load().waiting, 0, "at once");
    }
    assert_eq!(engine.metrics().cancelled_queued.load(Ordering::Relaxed), 20);
    assert_eq!(engine.metrics().steps.load(Ordering::Relaxed), 0);
    gate.store(true, Ordering::Release);
    assert_eq!(collect(&events).counts.output, 5);
    until("clean", || is_clean(&engine));
    assert_eq!(
        engine.metrics().cancelled_queued.load(Ordering::Relaxed),
        20,
        "each counted once"
    );
}

#[test]
fn background_makes_way_at_once_and_is_the_same_later() {
    let background = || {
        let mut request = request("in the background", 3);
        request.order.class = Class::Background;
        request
    };
    let expected = answer(&start(Device::random(), small(4096)), background()).content;
    // The background step would never end; only being stopped opens the gate.
    let engine = start(Device::random().gate(&closed()), small(4096));
    let (_one, slow) = submit(&engine, background());
    until("it runs", || {
        engine.metrics().running.load(Ordering::Relaxed) == 1
    });
    let (_two, fast) = submit(&engine, request("at once", 1));
    collect(&fast);
    assert_eq!(collect(&slow).content, expected);
    assert!(engine.metrics().aborted_steps.load(Ordering::Relaxed) > 0);
}

#[test]
fn nothing_of_a_background_step_is_computed_twice() {
    let device = Device::random().layers(100, Duration::from_micros(300));
    let computed = device.computed();
    let engine = start(device, small(4096));
    let mut slow = request("in the background", 20);
    slow.order.class = Class::Background;
    let (_one, slow) = submit(&engine, slow);
    for turn in 0..6 {
        std::thread::sleep(Duration::from_millis(45));
        let (_two, fast) = submit(&engine, request(&format!("at once {turn}"), 1));
        collect(&fast);
    }
    assert_eq!(collect(&slow).counts.output, 20);
    let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as usize;
    let (steps, aborted) = (of(&engine.metrics().steps), of(&engine.metrics().aborted_steps));
    assert!(aborted > 0);
    assert_eq!(computed.load(Ordering::Relaxed), steps * 100);
}

#[test]
fn a_full_queue_says_so_and_a_prompt_that_does_not_fit_too() {
    let engine = start(
        Device::random().layers(10, Duration::from_millis(3)),
        Settings {
            queue: 2,
            limits: Limits {
                running: 1,
                ..Limits::default()
            },
            ..small(512)
        },
    );
    let mut tickets = vec![submit(&engine, request("first", 100))];
    until("it runs", || engine.load().waiting == 0);
    tickets.extend((0..2).map(|_| submit(&engine, request("more", 1))));
    let refused = engine.submit(request("too many", 1), Box::new(|_| true));
    assert_eq!(refused.err(), Some(SubmitError::Full));
    assert!(engine.load().expected_wait_ms < 60_000);
    tickets.clear();
    until("room again", || is_clean(&engine));
    let refused = engine.submit(request(&"x".repeat(600), 1), Box::new(|_| true));
    assert_eq!(
        refused.err(),
        Some(SubmitError::Length {
            tokens: 600,
            most: 511
        })
    );
    let refused = engine.submit(request("", 1), Box::new(|_| true));
    assert_eq!(refused.err(), Some(SubmitError::Length { tokens: 0, most: 511 }));
    assert_eq!(answer(&engine, request("fits", 2)).counts.output, 2);
}

#[test]
fn a_reader_who_does_not_read_is_gone() {
    let engine = start(Device::random(), small(4096));
    let _ticket = engine
        .submit(request("nobody reads", 100_000), Box::new(|_| false))
        .unwrap();
    until("it is gone", || {
        engine.metrics().cancelled_decode.load(Ordering::Relaxed) == 1
    });
    until("clean", || is_clean(&engine));
}

#[test]
fn stop_strings_over_tokens_end_an_answer_and_length_does() {
    let engine = start(Device::script("say it: END of it".into()), small(4096));
    let mut ask = request("go", 100);
    ask.stop = vec!["END".into()];
    let got = answer(&engine, ask);
    assert_eq!(
        (got.content.as_str(), got.finish),
        ("say it: ", Finish::Sequence(0))
    );
    let got = answer(&engine, request("go", 7));
    assert_eq!(
        (got.content.as_str(), got.finish, got.counts.output),
        ("say it:", Finish::Length, 7)
    );
}

#[test]
fn a_thinking_budget_is_kept_to_the_token() {
    let script = format!("{}{}answer", "<think>", "hmm ".repeat(30));
    let thinking = |budget, is_open| Thinking {
        open: "<think>".into(),
        close: "</think>".into(),
        close_tokens: vec![SPECIAL + 2],
        budget,
        is_open,
    };
    let engine = start(Device::script(script), small(4096));
    for budget in [0, 1, 17] {
        let mut ask = request("go", 60);
        ask.thinking = Some(thinking(Some(budget), false));
        ask.shown = [SPECIAL + 1, SPECIAL + 2].into();
        let got = answer(&engine, ask);
        assert_eq!(got.counts.reasoning, budget);
        assert_eq!(got.reasoning, "hmm ".repeat(30)[..budget]);
        assert!(
            got.content.starts_with("<think>hmm"),
            "it begins anew: {}",
            got.content
        );
        assert_eq!((got.counts.output, got.finish), (60, Finish::Length));
    }
    let device = Device::script("I think.".into());
    let mut ask = request("go", 60);
    ask.thinking = Some(thinking(Some(3), true));
    let got = answer(&start(device, small(512)), ask);
    assert_eq!((got.reasoning.as_str(), got.counts.reasoning), ("I t", 3));
    assert_eq!(got.content, "I think.");
}

#[test]
fn shares_of_one_to_three_are_kept_within_a_tenth() {
    /// Of 300 requests, each about 12 in and 23 out.
    const HALF: usize = 8000;
    let gate = closed();
    let engine = start(
        Device::random().gate(&gate),
        Settings {
            limits: Limits {
                running: 8,
                ..Limits::default()
            },
            ..small(16_384)
        },
    );
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let mut tickets = Vec::new();
    for at in 0..300 {
        for (tenant, weight) in [(0, 1), (1, 3)] {
            let mut ask = request(&format!("{tenant} asks {at}"), 20 + at % 7);
            ask.ignore_eos = true;
            ask.order = Order {
                tenant: tenant.to_string().into(),
                weight,
                ..Order::default()
            };
            // Counted until the heavier has had half of what it wants: both have requests waiting until then.
            let counts = counts.clone();
            let sink = Box::new(move |event| {
                if let Event::Finished { counts: done, .. } = event
                    && counts[1].load(Ordering::Relaxed) < HALF
                {
                    counts[tenant].fetch_add(done.prompt + 2 * done.output, Ordering::Relaxed);
                }
                true
            });
            tickets.push(engine.submit(ask, sink).unwrap());
        }
    }
    gate.store(true, Ordering::Release);
    let read = |tenant: usize| counts[tenant].load(Ordering::Relaxed);
    until("the heavier is half done", || read(1) >= HALF);
    let ratio = read(1) as f64 / read(0) as f64;
    assert!((2.7..=3.3).contains(&ratio), "{ratio}");
    let shares = standing(&engine).tenants;
    assert_eq!(
        shares.iter().map(|share| share.weight).collect::<Vec<_>>(),
        [1, 3]
    );
}

#[test]
fn slots_tell_what_every_request_is_at() {
    let engine = start(
        Device::random().layers(4, Duration::from_millis(1)),
        Settings {
            limits: Limits {
                running: 1,
                ..Limits::default()
            },
            ..small(4096)
        },
    );
    let _one = submit(&engine, request("the first", 1000));
    let _two = submit(&engine, request("the second", 1000));
    let slots = || standing(&engine).slots;
    until("one runs and one waits", || {
        let phases: Vec<_> = slots().iter().map(|slot| slot.phase).collect();
        phases == ["decode", "queued"]
    });
    assert!(slots()[0].busy_ms > 0.0);
    assert!(engine.since_heartbeat() < Duration::from_secs(1));
}
