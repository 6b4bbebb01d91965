//! Calls on a schedule that does not wait for answers, and calls as fast as answers come.

use super::connection::{Answer, Connection};
use super::process;
use super::stack::Target;
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Latencies in nanoseconds, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
}

/// An open loop.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub per_second: u32,
    pub calls: u32,
    /// Calls that can wait for their answers at the same time.
    pub connections: u32,
}

/// What an open loop saw, in nanoseconds from the moment a call was due.
pub struct Latencies {
    pub whole: Histogram<u64>,
    pub first_token: Histogram<u64>,
    pub failed: u64,
}

/// Makes the scheduled calls. Connection `k` of `n` makes every `n`th call at the moment it is due, or as soon after
/// as its earlier one lets it; the wait counts.
pub fn open_loop(target: &Target, request: &[u8], schedule: Schedule) -> Latencies {
    let step = Duration::from_secs(1) / schedule.per_second;
    let start = Instant::now() + Duration::from_millis(20);
    let merge = |mut all: Latencies, one: Latencies| {
        all.whole += one.whole;
        all.first_token += one.first_token;
        all.failed += one.failed;
        all
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..schedule.connections)
            .map(|first| {
                scope.spawn(move || {
                    let mut seen = nothing();
                    let mut connection = Connection::open(target.address).expect("the target listens");
                    for index in (first..schedule.calls).step_by(schedule.connections as usize) {
                        let due = start + step * index;
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        match connection.call(request) {
                            Ok(answer) => note(&mut seen, due, answer),
                            Err(error) => {
                                eprintln!("a call to {} failed: {error}", target.name);
                                seen.failed += 1;
                                connection = Connection::open(target.address).expect("the target listens");
                            }
                        }
                    }
                    seen
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .fold(nothing(), merge)
    })
}

fn nothing() -> Latencies {
    Latencies {
        whole: histogram(),
        first_token: histogram(),
        failed: 0,
    }
}

fn note(seen: &mut Latencies, due: Instant, answer: Answer) {
    let since =
        |moment: Instant| u64::try_from(moment.saturating_duration_since(due).as_nanos()).unwrap_or(u64::MAX);
    seen.whole.saturating_record(since(answer.ended));
    if let Some(first) = answer.first_token {
        seen.first_token.saturating_record(since(first));
    }
}

/// What a closed loop saw.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    pub per_second: f64,
    /// Processor time of the target for one call; `None` for the provider itself.
    pub cpu_us: Option<f64>,
    pub failed: u64,
}

/// Calls as fast as `connections` callers get their answers.
pub fn closed_loop(target: &Target, request: &[u8], connections: u32, lasting: Duration) -> Throughput {
    let (done, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let mut measured = (Duration::ZERO, Duration::ZERO, 0);
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut connection = Connection::open(target.address).expect("the target listens");
                while !stop.load(Ordering::Relaxed) {
                    match connection.call(request) {
                        Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            eprintln!("a call to {} failed: {error}", target.name);
                            connection = Connection::open(target.address).expect("the target listens");
                            failed.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
        // Connections and pools fill first.
        std::thread::sleep(lasting / 5);
        let cpu = || target.pid.map_or(Duration::ZERO, process::cpu);
        let (from, cpu_from, done_from) = (Instant::now(), cpu(), done.load(Ordering::Relaxed));
        std::thread::sleep(lasting);
        measured = (
            from.elapsed(),
            cpu() - cpu_from,
            done.load(Ordering::Relaxed) - done_from,
        );
        stop.store(true, Ordering::Relaxed);
    });
    let (elapsed, cpu, calls) = measured;
    let calls = calls.max(1) as f64;
    Throughput {
        per_second: calls / elapsed.as_secs_f64(),
        cpu_us: target.pid.map(|_| cpu.as_secs_f64() * 1e6 / calls),
        failed: failed.into_inner(),
    }
}
