//! The deadline guard: when waiting for what is out must end, so that a rescue still arrives in time.

use crate::Completions;

/// What the synchronous tier needs to answer what is left of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Rescue {
    /// One call at worst, its retry included.
    pub call_us: i64,
    /// Calls at once.
    pub parallel: u32,
    /// For what is not foreseen.
    pub margin_us: i64,
}

impl Rescue {
    /// The time that `items` calls need.
    pub fn needs_us(&self, items: usize) -> i64 {
        let rounds = i64::try_from(items.div_ceil(self.parallel.max(1) as usize)).unwrap_or(i64::MAX);
        rounds.saturating_mul(self.call_us).saturating_add(self.margin_us)
    }
}

/// A pack that a provider has.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub submitted_us: i64,
    /// The earliest deadline of those not answered.
    pub deadline_us: i64,
    /// Items not answered.
    pub open: usize,
    /// How long the provider may take to end a batch that is cancelled; what it has answered is then told.
    pub cancel_us: i64,
    /// The provider has been told.
    pub cancelling: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again, at the latest then.
    Wait { until_us: i64 },
    /// Tell the provider to stop, so that what it answered is kept and what it did not is not billed.
    Cancel,
    /// Call the synchronous tier now for what is open.
    Rescue,
}

/// Judges a flight. `level`: the chance of an answer in time below which waiting is given up early; the last moment from
/// which a rescue still arrives ends it in any case.
pub fn watch(
    flight: &Flight,
    (times, running_us): (&Completions, &[i64]),
    rescue: &Rescue,
    level: f64,
    now_us: i64,
) -> Verdict {
    let last_call = flight.deadline_us.saturating_sub(rescue.needs_us(flight.open));
    if now_us >= last_call {
        return Verdict::Rescue;
    }
    let last_cancel = last_call.saturating_sub(flight.cancel_us);
    if flight.cancelling {
        return Verdict::Wait { until_us: last_call };
    }
    if now_us >= last_cancel {
        return Verdict::Cancel;
    }
    let age = now_us.saturating_sub(flight.submitted_us);
    if times.within(running_us, age, last_cancel - now_us) < level {
        return Verdict::Cancel;
    }
    Verdict::Wait {
        until_us: last_cancel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SECOND;
    use proptest::prelude::*;

    const RESCUE: Rescue = Rescue {
        call_us: 60 * SECOND,
        parallel: 10,
        margin_us: 30 * SECOND,
    };

    fn flight(deadline_s: i64, open: usize, cancelling: bool) -> Flight {
        Flight {
            submitted_us: 0,
            deadline_us: deadline_s * SECOND,
            open,
            cancel_us: 120 * SECOND,
            cancelling,
        }
    }

    #[test]
    fn the_batch_is_cancelled_first_and_rescued_at_the_last_call() {
        let times = Completions::new(600 * SECOND);
        let judge = |flight: Flight, now_s: i64| watch(&flight, (&times, &[]), &RESCUE, 0.01, now_s * SECOND);
        // Twenty items: two rounds of a minute, and half a minute.
        assert_eq!(
            judge(flight(3600, 20, false), 60),
            Verdict::Wait {
                until_us: 3330 * SECOND
            }
        );
        assert_eq!(judge(flight(3600, 20, false), 3330), Verdict::Cancel);
        assert_eq!(
            judge(flight(3600, 20, true), 3340),
            Verdict::Wait {
                until_us: 3450 * SECOND
            }
        );
        assert_eq!(judge(flight(3600, 20, true), 3450), Verdict::Rescue);
    }

    #[test]
    fn hopeless_waits_end_early() {
        let mut times = Completions::new(600 * SECOND);
        (0..200).for_each(|_| times.ended(1000 * SECOND));
        let late = flight(5000, 1, false);
        let running = vec![4500 * SECOND; 20];
        assert_eq!(
            watch(&late, (&times, &running), &RESCUE, 0.3, 4500 * SECOND),
            Verdict::Cancel
        );
    }

    proptest! {
        /// However the guard is called, a rescue that begins when it says so ends before the deadline.
        #[test]
        fn whoever_looks_when_told_is_in_time(deadline_s in 300i64..90_000, open in 1usize..5000, parallel in 1u32..500) {
            let rescue = Rescue { parallel, ..RESCUE };
            let times = Completions::new(3600 * SECOND);
            let mut flight = flight(deadline_s, open, false);
            let mut now = 0;
            for _ in 0..4 {
                match watch(&flight, (&times, &[]), &rescue, 0.0, now) {
                    Verdict::Wait { until_us } => { prop_assert!(until_us > now); now = until_us; }
                    Verdict::Cancel => flight.cancelling = true,
                    Verdict::Rescue => break,
                }
            }
            let could = flight.deadline_us - rescue.needs_us(open) >= 0;
            prop_assert!(!could || now + rescue.needs_us(open) <= flight.deadline_us);
        }
    }
}
