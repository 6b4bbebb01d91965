//! When the background class rides in the steps of others. Owns the rule; refuses to know who is next. Its own steps need
//! none: what is suspended between two layers when somebody comes is not lost, so they are as long as any.
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

impl Scheduler {
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
}
