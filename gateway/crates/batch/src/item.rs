//! The life of an item: `queued → packed → submitted → succeeded | errored | expired | cancelled | rescued`.
//!
//! Invariant: an end has no way out, so that an item is answered and charged once however often a provider's answer, a
//! crash or a second node tells of it.

/// Where an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waits to be sent.
    Queued,
    /// In a pack that is on its way to a provider.
    Packed,
    /// A provider has it, or a synchronous call for it runs.
    Submitted,
    Succeeded,
    Errored,
    Expired,
    Cancelled,
    /// Answered by the synchronous tier after its batch had not come in time.
    Rescued,
}

/// What happens to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Pack,
    /// The pack came to nothing before the provider took it.
    Unpack,
    Submit,
    Succeed,
    /// An error that no further try would mend, or none is left.
    Fail,
    /// An error that the next batch may mend.
    Retry,
    Expire,
    Cancel,
    /// Its answer came from the synchronous tier.
    Rescue,
}

/// Such a thing does not happen to an item in such a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Illegal {
    pub from: State,
    pub event: Event,
}

impl State {
    pub const ALL: [State; 8] = [
        State::Queued,
        State::Packed,
        State::Submitted,
        State::Succeeded,
        State::Errored,
        State::Expired,
        State::Cancelled,
        State::Rescued,
    ];

    /// The one spelling, in SQL, JSON and metrics alike.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Packed => "packed",
            State::Submitted => "submitted",
            State::Succeeded => "succeeded",
            State::Errored => "errored",
            State::Expired => "expired",
            State::Cancelled => "cancelled",
            State::Rescued => "rescued",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    pub const fn is_end(self) -> bool {
        !matches!(self, State::Queued | State::Packed | State::Submitted)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Illegal`]: nothing of the kind happens here; the caller keeps the state it has.
    pub const fn after(self, event: Event) -> Result<State, Illegal> {
        use State::{Cancelled, Errored, Expired, Packed, Queued, Rescued, Submitted, Succeeded};
        Ok(match (self, event) {
            (Queued, Event::Pack) => Packed,
            (Packed, Event::Unpack) | (Submitted, Event::Retry) => Queued,
            // A synchronous call has no pack.
            (Packed | Queued, Event::Submit) => Submitted,
            (Submitted, Event::Succeed) => Succeeded,
            (Submitted | Queued | Packed, Event::Fail) => Errored,
            (Submitted | Queued | Packed, Event::Expire) => Expired,
            (Submitted | Queued | Packed, Event::Cancel) => Cancelled,
            (Submitted, Event::Rescue) => Rescued,
            (from, event) => return Err(Illegal { from, event }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: [Event; 9] = [
        Event::Pack,
        Event::Unpack,
        Event::Submit,
        Event::Succeed,
        Event::Fail,
        Event::Retry,
        Event::Expire,
        Event::Cancel,
        Event::Rescue,
    ];

    #[test]
    fn the_straight_ways_are_open() {
        let walk = |events: &[Event]| {
            let mut state = State::Queued;
            for event in events {
                state = state.after(*event)?;
            }
            Ok::<_, Illegal>(state)
        };
        use Event::*;
        assert_eq!(walk(&[Pack, Submit, Succeed]), Ok(State::Succeeded));
        assert_eq!(
            walk(&[Pack, Unpack, Pack, Submit, Retry, Pack, Submit, Fail]),
            Ok(State::Errored)
        );
        assert_eq!(walk(&[Pack, Submit, Retry, Submit, Rescue]), Ok(State::Rescued));
        assert!(
            walk(&[Pack, Succeed]).is_err(),
            "nobody answers what was never sent"
        );
    }

    proptest! {
        #[test]
        fn an_end_is_an_end(events in prop::collection::vec(prop::sample::select(&EVENTS[..]), 0..40)) {
            let mut state = State::Queued;
            let mut ended = None;
            for event in events {
                let next = state.after(event);
                if let Some(end) = ended {
                    prop_assert_eq!(next, Err(Illegal { from: end, event }));
                }
                state = next.unwrap_or(state);
                if state.is_end() {
                    ended = Some(state);
                }
            }
            prop_assert_eq!(State::parse(state.as_str()), Some(state));
        }
    }
}
