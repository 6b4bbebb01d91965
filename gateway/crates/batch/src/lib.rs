//! The batch tier's judgement: what may wait, where it waits, when it goes, and when waiting must end.
//!
//! Owns: the life of an item, pooling and flushing, completion times, the choice of the way, the deadline guard. Refuses
//! to know: IO, the clock, async, SQL, wire formats, accounts. Times are microseconds since any fixed moment, amounts are
//! nano-dollars; both are the caller's. The gateway and the simulation (`batchday`) drive this same code.
//!
//! The policy in prose. A provider bills a batch's answered items only, so trying a batch costs nothing but time: the
//! question is never whether the batch will surely be done by the deadline, but whether there will be time left for the
//! synchronous tier should it not be. Every deferrable item therefore takes the cheapest way whose expected price, rescue
//! included, is the least, as long as its deadline leaves room for the rescue. The guard watches what is out, and ends the
//! wait at the last moment from which a rescue still arrives in time, or earlier where waiting has become hopeless.

mod choose;
mod completion;
mod guard;
mod item;
mod pool;

pub use choose::{Choice, Offer, Way, choose, rescue};
pub use completion::Completions;
pub use guard::{Flight, Rescue, Verdict, watch};
pub use item::{Event, Illegal, State};
pub use pool::{Caps, Flush, FlushRules, Pending, Summary, cut, flush, slack_class};

/// One second in the unit of all times here.
pub const SECOND: i64 = 1_000_000;
