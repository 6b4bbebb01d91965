//! What the predictor costs for one prompt: the budget is 200 µs for 4 KB on one core.

#![allow(clippy::expect_used, reason = "a benchmark fails by panicking")]

use divan::Bencher;
use router_policies::predict::Predictor;

fn main() {
    divan::main();
}

/// Prose and code in turn, as an agent's prompts are.
fn prompt(bytes: usize) -> String {
    let text = "A shop sold 48 pens in April at $1.25 each, and half as many in May. How much did it earn?\n\
                def f(text, n):\n    for i, c in enumerate(text.split(',')):\n        if c.isdigit() and i < n:\n\
                            text = text.replace(c, str(int(c) + 1))\n    return text[:n]\n";
    let mut prompt = String::new();
    for part in 0.. {
        prompt.push_str(&format!("Part {part}, section {}: ", part * 37 % 101));
        prompt.push_str(text);
        if prompt.len() >= bytes {
            break;
        }
    }
    prompt.truncate(bytes);
    prompt
}

#[divan::bench(args = [200, 1024, 4096, 65536])]
fn predict(bencher: Bencher<'_, '_>, bytes: usize) {
    let predictor = Predictor::shipped().expect("the shipped model loads");
    let prompt = prompt(bytes);
    bencher.bench_local(|| predictor.predict(divan::black_box(&prompt)));
}

#[divan::bench(args = [4096])]
fn predict_and_classes(bencher: Bencher<'_, '_>, bytes: usize) {
    let predictor = Predictor::shipped().expect("the shipped model loads");
    let prompt = prompt(bytes);
    bencher.bench_local(|| predictor.classes(&predictor.predict(divan::black_box(&prompt))));
}
