//! What an admission and its end cost: `cargo run --release -p limits --example admission_cost`. Prints microseconds, the best of
//! several rounds.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program: it prints and may fail loudly"
)]

use limits::{Book, Path, Rule};
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

const SUBJECTS: u32 = 60_000;
const TIMES: u32 = 200_000;

fn main() {
    let mut book = Book::default();
    let rule = Rule {
        requests_per_minute: Some(u32::MAX),
        tokens_per_minute: Some(u32::MAX),
        concurrency: Some(u32::MAX),
    };
    let ids: Vec<_> = (0..SUBJECTS)
        .map(|index| book.add(index.to_string().into(), rule, 0))
        .collect();
    let book = Mutex::new(book);
    let best = (0..15)
        .map(|round| {
            let start = Instant::now();
            for request in 0..TIMES {
                // An org, its team, a workflow and a key, far from each other in memory.
                let at = |step: u32| ids[(request.wrapping_mul(step) % SUBJECTS) as usize];
                let path: Path = [ids[0], at(7919), at(104_729), at(611_953)].into_iter().collect();
                let now = i64::from(round * TIMES + request);
                black_box(book.lock().unwrap().admit(&path, 800, now)).unwrap();
                book.lock().unwrap().leave(&path, 800, 650);
            }
            start.elapsed().as_secs_f64() / f64::from(TIMES)
        })
        .fold(f64::INFINITY, f64::min);
    println!(
        "admission and end, 4 subjects of {SUBJECTS}, 3 limits each  {:.3} us",
        best * 1e6
    );
}
