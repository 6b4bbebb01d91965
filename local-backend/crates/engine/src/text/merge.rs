//! Joining neighbours until no pair can be joined, best pair first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// A piece of text that is a token, or may become part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub(super) range: Range<usize>,
    pub(super) id: Option<u32>,
}

const NONE: usize = usize::MAX;

/// `join` gives what two neighbouring symbols become, and its rank; the least rank goes first, and among equals the
/// leftmost. Time grows with n log n, so that a hostile text costs no more than a friendly one.
pub(super) fn merge(
    mut symbols: Vec<Symbol>,
    join: impl Fn(&Symbol, &Symbol) -> Option<(i64, Option<u32>)>,
) -> Vec<Symbol> {
    let count = symbols.len();
    let mut next: Vec<usize> = (1..=count)
        .map(|at| if at == count { NONE } else { at })
        .collect();
    let mut before: Vec<usize> = (0..count).map(|at| at.checked_sub(1).unwrap_or(NONE)).collect();
    let mut heap = BinaryHeap::new();
    let offer = |heap: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize, right: usize| {
        if let Some((rank, id)) = join(&symbols[left], &symbols[right]) {
            let size = symbols[right].range.end - symbols[left].range.start;
            heap.push(Reverse((rank, left, right, size, id)));
        }
    };
    for left in 1..count {
        offer(&mut heap, &symbols, left - 1, left);
    }
    while let Some(Reverse((_, left, right, size, id))) = heap.pop() {
        // A symbol that has grown or gone since is another pair's.
        let is_same = next[left] == right
            && !symbols[left].range.is_empty()
            && !symbols[right].range.is_empty()
            && symbols[right].range.end - symbols[left].range.start == size;
        if !is_same {
            continue;
        }
        symbols[left].range.end = symbols[right].range.end;
        symbols[left].id = id;
        symbols[right].range = 0..0;
        next[left] = next[right];
        if next[left] != NONE {
            before[next[left]] = left;
            offer(&mut heap, &symbols, left, next[left]);
        }
        if before[left] != NONE {
            offer(&mut heap, &symbols, before[left], left);
        }
    }
    symbols.retain(|symbol| !symbol.range.is_empty());
    symbols
}
