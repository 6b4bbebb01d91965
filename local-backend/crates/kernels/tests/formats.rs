//! Every format's blocks, read as the makers of the formats read them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use kernels::Format;

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let pairs = (0..hexadecimal.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hexadecimal[at..at + 2], 16).unwrap())
        .collect()
}

/// What the tensors' numbers, bytes and weights in `fixtures/formats.txt` are, see `fixtures/formats.py`.
#[test]
fn blocks_mean_what_their_makers_say() {
    let mut seen = Vec::new();
    for line in include_str!("fixtures/formats.txt").lines() {
        let [number, row, weights] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("three columns")
        };
        let format = Format::of_gguf(number.parse().unwrap()).unwrap();
        let (row, weights) = (bytes(row), bytes(weights));
        let expected: Vec<f32> = weights
            .as_chunks()
            .0
            .iter()
            .map(|bits| f32::from_be_bytes(*bits))
            .collect();
        assert_eq!(format.row_bytes(expected.len()), row.len(), "{format:?}");
        let mut got = vec![f32::NAN; expected.len()];
        format.dequantize(&row, &mut got);
        let largest = expected
            .iter()
            .fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!(
                (got - expected).abs() <= 1e-6 * largest,
                "{format:?}, weight {at}: {got} instead of {expected}"
            );
        }
        seen.push(format.gguf());
    }
    seen.sort_unstable();
    let all: Vec<u32> = (0..100)
        .filter(|number| Format::of_gguf(*number).is_some())
        .collect();
    assert_eq!(seen, all, "every format is there");
}
