//! The ledger: who may spend, what is held, what was spent, and the durable row of every request.
//!
//! Owns: budgets and their windows, reservations, the journal, the store (the only SQL in the project). Refuses to
//! know: wire formats, prices, sockets, the clock (times are passed in). Invariants: `spent + reserved ≤ limit` for
//! every budget of every account on a path at every grant; an upstream attempt is in the journal before it starts and
//! is settled exactly once, through any crash; posting is idempotent by request.

mod books;
mod crash;
mod journal;
mod ledger;
mod reservation;
mod store;
mod window;
mod writer;

pub use books::Balance;
pub use journal::{Fsync, JournalError};
pub use ledger::{AccountSpec, Ask, BudgetSpec, Denied, KeySpec, Ledger, OpenError, Principal, Settings};
pub use reservation::{Intent, Opening, Reservation};
pub use store::{StoredAttempt, StoredRequest};
pub use window::Period;
