//! Ways to draw: every cut, alone and with others.

use kernels::Draw;

const PLAIN: Draw = Draw {
    temperature: 0.9,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: 0,
    index: 0,
};

/// None of them is the likeliest token alone by its temperature.
pub(crate) const KINDS: [Draw; 9] = [
    PLAIN,
    Draw { top_k: 1, ..PLAIN },
    Draw { top_k: 25, ..PLAIN },
    Draw { top_p: 0.3, ..PLAIN },
    Draw {
        top_p: 0.97,
        temperature: 3.0,
        ..PLAIN
    },
    Draw {
        top_p: 0.9,
        top_k: 70,
        ..PLAIN
    },
    Draw {
        min_p: 0.2,
        temperature: 2.0,
        ..PLAIN
    },
    Draw {
        min_p: 0.05,
        top_p: 0.8,
        top_k: 200,
        ..PLAIN
    },
    Draw {
        top_p: 0.001,
        ..PLAIN
    },
];
