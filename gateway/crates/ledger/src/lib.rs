//! The ledger: who may spend, what is held, what was spent, and the durable row of every request.
//!
//! Owns: budgets and their windows, reservations, the journal, the store (the only SQL in the project). Refuses to
//! know: wire formats, prices, sockets, the clock (times are passed in). Invariants: `spent + reserved ≤ limit` for
//! every budget of every account on a path at every grant; an upstream attempt is in the journal before it starts and
//! is settled exactly once, through any crash; posting is idempotent by request.

mod books;
mod budget;
mod crash;
mod journal;
mod keeper;
mod ledger;
mod reservation;
mod settlement;
mod store;
mod window;
mod writer;

pub use books::Balance;
pub use budget::{Budget, BudgetSpec, Enforcement, Increase, Scope};
pub use journal::{Fsync, JournalError};
pub use keeper::{Leases, WhenAway};
pub use ledger::{
    AccountSpec, Ask, Counts, Denied, KeySpec, Ledger, OpenError, Principal, Settings, migrate,
};
pub use reservation::{BeginError, Intent, Opening, Reservation};
pub use store::{
    Alert, AuditEntry, Billed, BilledLine, Change, Database, StoreError, StoredAttempt, StoredRequest, billed,
};
pub use window::{Period, Window, Zone};
