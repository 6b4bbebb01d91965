//! The ledger: who may spend, what is held, what was spent, and the durable row of every request.
//!
//! Owns: budgets and their windows, reservations, the journal, the store (the only SQL in the project). Refuses to
//! know: wire formats, prices, sockets, the clock (times are passed in). Invariants: `spent + reserved ≤ limit` for
//! every budget of every account on a path at every grant; an upstream attempt is in the journal before it starts and
//! is settled exactly once, through any crash; posting is idempotent by request.

mod administration;
mod books;
mod budget;
mod crash;
mod definitions;
mod jobs;
mod journal;
mod keeper;
mod keys;
mod ledger;
mod rates;
mod reservation;
mod settlement;
mod store;
mod window;
mod writer;

pub use books::Balance;
pub use budget::{Budget, BudgetSpec, Enforcement, Increase, Scope};
pub use ipnet::IpNet;
pub use jobs::{
    HAND_OVER, ItemEnd, Job, JobKind, Jobs, Labels, Need, NewItem, Pack, Pool, Standing, StoredItem, Tally,
    Waitable,
};
pub use journal::{Fsync, JournalError};
pub use keeper::{Leases, WhenAway};
pub use keys::{KeySpec, NotAccepted, Operator, Principal, Role, StoredKey, StoredSecret, parse_network};
pub use ledger::{AccountSpec, Ask, Counts, Denied, Ledger, OpenError, Settings, migrate, reach};
pub use rates::{Limited, Rates, RatesChange};
pub use reservation::{BeginError, Intent, Opening, Reservation};
pub use store::{
    Account, AccountChange, Alert, Answered, AuditEntry, Billed, BilledLine, BudgetChange, Change, Database,
    Dimension, EditError, Kept, KeyChange, Outcome, Range, Reply, ServedBy, Source, StoreError, StoredAlert,
    StoredAttempt, StoredBudget, StoredDecision, StoredOutcome, StoredRequest, Subtree, Summary, UsageQuery,
    UsageRow, Waiting, billed, decisions,
};
pub use window::{Period, Window, Zone};
