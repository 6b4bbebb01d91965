//! What the background class gets: how long its own steps are, and when it rides in those of others. Owns the two rules;
//! refuses to know who is next.
//!
//! **Alone.** A step of background requests is stopped when another request comes, and what it had computed is lost. Short
//! steps lose little and pay the fixed cost of a step often; long ones the other way round. With a fixed cost *b* and *Q*
//! seconds of quiet to come, of which one step's half is lost at the end, steps of √(2·b·Q) waste least. How much quiet is
//! to come is not known; that there will be as much as there has been is the best guess that needs no model of callers.
//!
//! **Riding.** Where every other request only waits for its next token, a machine that reads its weights once for all rows
//! may have arithmetic to spare: background requests join the step, as far as it is expected to take hardly longer for it.
//! That is most of what a card has, and next to nothing where each row costs as much as the one before, as on a CPU. No step
//! that reads another's prompt has riders, so that times to first tokens are as without them.

use super::{Class, Plan, Scheduler};
use std::time::Duration;

/// What a step with riders may take, as a multiple of what it would take without. A third of a step for riders, on a CPU,
/// made answers come half as fast and first tokens a sixth later.
const RIDE: f64 = 1.05;
/// So much quiet is reckoned with at least.
const QUIET: Duration = Duration::from_millis(50);

impl Scheduler {
    /// How long a step of nothing but background requests should be.
    pub(super) fn alone(&self) -> Duration {
        let quiet = self.quiet.max(QUIET).as_secs_f64();
        let best = (2.0 * self.pace.fixed() * quiet).sqrt();
        Duration::from_secs_f64(best).min(self.limits.step)
    }

    /// How long a step of other requests may be with background requests in it. `None`: they have to wait.
    pub(super) fn riding(&self, plan: &Plan) -> Option<Duration> {
        let is_waiting = self
            .waiting
            .iter()
            .any(|entry| entry.job.class == Class::Foreground);
        let is_reading = plan.parts.iter().any(|part| part.count > 1 || !part.is_last);
        (!plan.parts.is_empty() && !is_waiting && !is_reading).then(|| {
            let alone = Duration::from_secs_f64(self.pace.expected(plan.work()));
            self.pace.aimed_at(alone).mul_f64(RIDE).min(self.limits.step)
        })
    }

    /// A step was taken.
    pub(super) fn note_quiet(&mut self, class: Class, took: Duration) {
        self.quiet = match class {
            Class::Foreground => Duration::ZERO,
            Class::Background => self.quiet + took,
        };
    }
}
