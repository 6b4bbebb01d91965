//! Routing policy: a YAML file that platform teams edit, test, explain and replay, and the pure functions it compiles to.
//!
//! Owns: the policy document, classification (value, latency, thinking), the decision with its trace, and the tools
//! that judge a policy before it ships. Refuses to know: the clock, sockets, wire formats, the price book (quotes
//! arrive as numbers). Invariants: `classify` and `decide` are functions of their arguments alone; a deployment that
//! is not in the plan has a verdict that says why.

mod ability;
mod cases;
mod condition;
mod decide;
mod diff;
pub mod document;
mod estimates;
pub mod eval;
mod explain;
mod lint;
mod policy;
pub mod predict;
mod quote;
mod replay;
mod table;
pub mod tool;

pub use cases::{Case, CaseFailure, Cases, Given, Outcome};
pub use condition::{Condition, Range, When};
pub use decide::{Ask, NoRoute};
pub use diff::{Diff, Move, Place, diff};
pub use document::{DocumentError, DocumentErrors};
pub use estimates::{Estimate, Estimates, Predicted, ThinkingGain};
pub use exchange::EstimateSource;
pub use explain::{explain, trace_table};
pub use lint::{Finding, Inversion, Inversions, Priced, Report, Severity, Standing, lint};
pub use policy::{
    Capability, Deferral, Deployment, Dollars, LatencyLevel, LatencyRule, NamedModels, Objective, Policy,
    PolicyDocument, Quality, ReferencePrice, Route, Situation, Speed, Spelling, Split, Step, TeamLayer,
    TeamsDocument, ThinBudget, ThinkingAbility, ThinkingRule, ThinkingWish, ValueLevel, ValueRule, Workflow,
};
pub use replay::{
    Comparison, Decided, Flip, Interval, Recorded, RecordedOutcome, Replay, Replaying, Side, Summary, replay,
};
