//! What the gateway costs, as ratios to the least a proxy can cost, measured in one run.

#![allow(clippy::print_stdout, reason = "the table is the program's output")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a broken measurement should stop the run"
)]

use clap::Parser;
use hdrhistogram::Histogram;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;
use tests::load::pace::{Schedule, Throughput, closed_loop, open_loop};
use tests::load::stack::{Stack, Target, request};
use tests::load::streams::{Burst, Shape, burst};

/// Load on loopback: the provider called directly, a pass-through proxy in front of it (the floor), and the gateway with
/// keys, budgets, limits and metrics on.
///
/// Latencies are from open loops and count from the moment a call was due. Processor time is from closed loops. Rounds
/// alternate between floor and gateway; each bar is held against the median of the rounds' ratios.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Rounds of every measurement.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each closed loop.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Callers in closed loops.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Calls per second in open loops of 1 KB bodies; a fifth of it for 100 KB.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Concurrent streams.
    #[arg(long, default_value_t = 1000)]
    streams: u32,
    /// Run one part: cpu, latency, streams. `cpu` may name a case, such as `cpu:1 KB, whole`.
    #[arg(long)]
    only: Option<String>,
    /// Where the binaries are; left out, they are built and found beside this one.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Exit with 1 when a bar is missed.
    #[arg(long)]
    check: bool,
}

/// The most a measurement may be, as a multiple of the floor's.
struct Bar {
    what: String,
    ratio: f64,
    most: Option<f64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let binaries = arguments.binaries.clone().unwrap_or_else(build);
    let stack = Stack::start(&binaries);
    let runs = |part: &str| {
        let only = arguments.only.as_deref();
        only.is_none_or(|only| only.split(':').next() == Some(part))
    };
    let mut bars = Vec::new();
    if runs("cpu") {
        bars.extend(cpu(&stack.targets, &arguments));
    }
    if runs("latency") {
        bars.extend(latency(&stack.targets, &arguments));
    }
    if runs("streams") {
        bars.extend(streams(&stack.targets, &arguments));
    }
    println!("\nratios to the floor, median of {} rounds", arguments.rounds);
    let mut missed = false;
    for bar in &bars {
        let verdict = match bar.most {
            None => String::new(),
            Some(most) if bar.ratio <= most => format!("holds (at most {most})"),
            Some(most) => {
                missed = true;
                format!("MISSED (at most {most})")
            }
        };
        println!("  {:<52} {:>6.2}  {verdict}", bar.what, bar.ratio);
    }
    if missed && arguments.check {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Builds what is measured with the profile of this binary, and tells where it is.
fn build() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", "gateway", "-p", "tests", "--bins"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    assert!(
        cargo.status().expect("cargo").success(),
        "the binaries did not build"
    );
    folder
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Processor time per call, and calls per second of one core.
fn cpu(targets: &[Target; 3], arguments: &Arguments) -> Vec<Bar> {
    let lasting = Duration::from_secs_f64(arguments.seconds);
    let cases = [
        ("1 KB, whole", "fake-n8", 1 << 10, false, Some(2.2)),
        ("100 KB, whole", "fake-n8", 100 << 10, false, Some(2.5)),
        ("1 KB, streamed", "fake-n8-x1", 1 << 10, true, None),
        ("1 KB, folded from a stream", "fake-n8-x1", 1 << 10, false, None),
        (
            "100 KB, folded from a stream",
            "fake-n8-x1",
            100 << 10,
            false,
            None,
        ),
    ];
    println!("processor time per call, us (calls per second of one core)");
    let mut bars = Vec::new();
    let case = arguments.only.as_deref().and_then(|only| only.split_once(':'));
    let wanted = |what: &str| case.is_none_or(|(_, case)| case == what);
    for (what, model, bytes, stream, most) in cases.into_iter().filter(|case| wanted(case.0)) {
        let request = request(model, bytes, stream);
        let mut rounds: Vec<[Throughput; 2]> = Vec::new();
        for _ in 0..arguments.rounds {
            rounds.push([&targets[1], &targets[2]].map(|target| {
                let seen = closed_loop(target, &request, arguments.connections, lasting);
                assert_eq!(seen.failed, 0, "{} refused calls", target.name);
                seen
            }));
        }
        let of = |which: usize| median(rounds.iter().filter_map(|round| round[which].cpu_us).collect());
        let ratio = median(
            rounds
                .iter()
                .filter_map(|[floor, gateway]| Some(gateway.cpu_us? / floor.cpu_us?))
                .collect(),
        );
        println!(
            "  {what:<30} floor {:>7.1} ({:>6.0})   gateway {:>7.1} ({:>6.0})",
            of(0),
            1e6 / of(0),
            of(1),
            1e6 / of(1)
        );
        bars.push(Bar {
            what: format!("CPU per request, {what}"),
            ratio,
            most,
        });
    }
    bars
}

/// Added latency and added time to the first token.
fn latency(targets: &[Target; 3], arguments: &Arguments) -> Vec<Bar> {
    let us = |histogram: &Histogram<u64>, quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
    println!("\nlatency, us: p50 / p99, and what was added to the direct call's");
    let mut bars = Vec::new();
    let cases = [
        ("1 KB, whole", "fake-n8", 1 << 10, false, 1),
        ("100 KB, whole", "fake-n8", 100 << 10, false, 5),
        ("1 KB, first token of a stream", "fake-n8-x1", 1 << 10, true, 2),
        (
            "100 KB, first token of a stream",
            "fake-n8-x1",
            100 << 10,
            true,
            5,
        ),
    ];
    for (what, model, bytes, stream, slower) in cases {
        let request = request(model, bytes, stream);
        let per_second = arguments.rate / slower;
        let schedule = Schedule {
            per_second,
            calls: per_second * 3,
            connections: 8,
        };
        let mut rounds = Vec::new();
        for _ in 0..arguments.rounds {
            rounds.push(targets.each_ref().map(|target| {
                let seen = open_loop(target, &request, schedule);
                assert_eq!(seen.failed, 0, "{} refused calls", target.name);
                let histogram = if stream { seen.first_token } else { seen.whole };
                [us(&histogram, 0.5), us(&histogram, 0.99)]
            }));
        }
        let of = |which: usize, quantile: usize| {
            median(rounds.iter().map(|round| round[which][quantile]).collect())
        };
        let added = |which: usize, quantile: usize| of(which, quantile) - of(0, quantile);
        println!(
            "  {what:<34} direct {:>6.0} / {:>6.0}   floor {:>6.0} / {:>6.0} (+{:.0} / +{:.0})   gateway {:>6.0} / {:>6.0} (+{:.0} / +{:.0})",
            of(0, 0),
            of(0, 1),
            of(1, 0),
            of(1, 1),
            added(1, 0),
            added(1, 1),
            of(2, 0),
            of(2, 1),
            added(2, 0),
            added(2, 1),
        );
        let ratio = |quantile: usize| {
            let ratios = rounds.iter().map(|[direct, floor, gateway]| {
                (gateway[quantile] - direct[quantile]) / (floor[quantile] - direct[quantile]).max(1.0)
            });
            median(ratios.collect())
        };
        let most = (stream && bytes == 1 << 10).then_some(1.6);
        bars.push(Bar {
            what: format!("added p50, {what}"),
            ratio: ratio(0),
            most,
        });
        bars.push(Bar {
            what: format!("added p99, {what}"),
            ratio: ratio(1),
            most: None,
        });
    }
    bars
}

/// Many streams at once, and throughput before and after them.
fn streams(targets: &[Target; 3], arguments: &Arguments) -> Vec<Bar> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let small = request("fake-n8", 1 << 10, false);
    let streamed: Arc<[u8]> = request("fake-gap100-n60-stamp", 1 << 10, true).into();
    let shape = Shape {
        streams: arguments.streams,
        tokens: 60,
        ramp: Duration::from_secs(2),
        steady: Duration::from_millis(4500),
    };
    let lasting = Duration::from_secs_f64(arguments.seconds);
    let speed = |target| closed_loop(target, &small, arguments.connections, lasting).per_second;
    println!("\n{} streams of 60 tokens, 100 ms apart", arguments.streams);
    let mut rounds: Vec<Vec<(Burst, f64)>> = Vec::new();
    for _ in 0..arguments.rounds {
        let mut round = Vec::new();
        for target in targets {
            let before = speed(target);
            // What a closed loop left to be written is written.
            std::thread::sleep(Duration::from_secs(4));
            let seen = runtime.block_on(burst(target, streamed.clone(), shape));
            let after = speed(target);
            let p = |quantile| seen.delays.value_at_quantile(quantile) as f64 / 1e3;
            println!(
                "  {:<8} whole and in order {:>4}   token delay p50 {:>5.0} us, p99 {:>6.0} us   cpu {:>6.0} us a stream   {:>5.1} KiB a stream, {:>5.1} MiB in all   calls/s before {:>6.0}, after {:>6.0}",
                target.name,
                seen.whole,
                p(0.5),
                p(0.99),
                seen.cpu_us.unwrap_or(f64::NAN),
                seen.resident_kib
                    .map_or(f64::NAN, |(during, before)| during.saturating_sub(before) as f64
                        / f64::from(shape.streams)),
                seen.resident_kib
                    .map_or(f64::NAN, |(during, _)| during as f64 / 1024.0),
                before,
                after,
            );
            assert_eq!(
                seen.whole, shape.streams,
                "streams through {} were damaged",
                target.name
            );
            round.push((seen, after / before));
        }
        rounds.push(round);
    }
    let ratio = |of: &dyn Fn(&(Burst, f64)) -> f64| {
        median(rounds.iter().map(|round| of(&round[2]) / of(&round[1])).collect())
    };
    let delay = |quantile: f64| move |seen: &(Burst, f64)| seen.0.delays.value_at_quantile(quantile) as f64;
    let bar = |what: &str, ratio: f64, most: Option<f64>| Bar {
        what: what.into(),
        ratio,
        most,
    };
    vec![
        bar("token delay p50", ratio(&delay(0.5)), None),
        bar("token delay p99", ratio(&delay(0.99)), Some(1.5)),
        bar(
            "CPU per stream",
            ratio(&|seen| seen.0.cpu_us.unwrap_or(f64::NAN)),
            Some(1.3),
        ),
        bar(
            "memory with all streams",
            ratio(&|seen| seen.0.resident_kib.map_or(f64::NAN, |(during, _)| during as f64)),
            None,
        ),
        bar(
            "gateway's throughput after the burst to before it",
            median(rounds.iter().map(|round| round[2].1).collect()),
            None,
        ),
        bar(
            "floor's throughput after the burst to before it",
            median(rounds.iter().map(|round| round[1].1).collect()),
            None,
        ),
    ]
}
