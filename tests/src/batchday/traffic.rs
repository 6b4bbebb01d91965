//! The requests of a day: 60 % interactive, 40 % deferrable with deadlines from ten minutes to a day, sizes with a heavy
//! tail, more by day than by night.

use super::future::Dice;
use super::{HOUR, MINUTE, Setup};

/// A model as far as the batch tier cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Model {
    /// Batch, background windows and flex at half price or less off.
    Openai,
    /// Batch only.
    Anthropic,
    /// An open model: a hosted batch, and the own engine while it idles.
    Open,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) at_us: i64,
    pub(crate) model: Model,
    pub(crate) tokens: i64,
    /// `None`: now.
    pub(crate) deadline_us: Option<i64>,
    pub(crate) prefix: u64,
}

/// Of a hundred deferrable requests, so many have so many minutes.
const DEADLINES: [(u64, i64); 7] = [
    (4, 10),
    (6, 30),
    (12, 60),
    (16, 120),
    (17, 240),
    (20, 480),
    (25, 1440),
];

pub(crate) fn requests(setup: &Setup) -> Vec<Request> {
    let mut dice = Dice::new(setup.seed, 1);
    let mut requests: Vec<Request> = (0..setup.requests).map(|_| request(&mut dice)).collect();
    requests.sort_by_key(|request| request.at_us);
    requests
}

fn request(dice: &mut Dice) -> Request {
    let at_us = moment(dice);
    let model = match dice.below(100) {
        ..50 => Model::Openai,
        50..85 => Model::Anthropic,
        _ => Model::Open,
    };
    let tokens = (1_500.0 * (0.9 * dice.normal()).exp()) as i64 + 50;
    let deadline_us = (dice.below(100) < 40).then(|| {
        let mut draw = dice.below(100);
        let minutes = DEADLINES.iter().find(|(share, _)| {
            let found = draw < *share;
            draw = draw.saturating_sub(*share);
            found
        });
        at_us + minutes.map_or(1440, |(_, minutes)| *minutes) * MINUTE
    });
    Request {
        at_us,
        model,
        tokens,
        deadline_us,
        prefix: dice.below(40),
    }
}

/// Three in four fall into working hours; deferrable ones of the evening still end within the two days simulated.
fn moment(dice: &mut Dice) -> i64 {
    let span = if dice.below(4) < 3 {
        (8 * HOUR, 12 * HOUR)
    } else {
        (0, 24 * HOUR)
    };
    span.0 + (dice.unit() * span.1 as f64) as i64
}
