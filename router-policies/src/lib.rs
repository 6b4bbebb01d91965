//! Routing policy: a YAML file that platform teams edit, test and explain, and the pure functions it compiles to.
//!
//! Owns: the policy document, classification (value, latency, thinking) and the decision with its trace. Refuses to
//! know: the clock, sockets, wire formats, prices (quotes arrive as numbers). Invariants: `classify` and `decide` are
//! functions of their arguments alone; a deployment that is not in the plan has a verdict that says why.

mod cases;
mod decide;
pub mod document;
pub mod eval;
mod matcher;
mod policy;
pub mod predict;

pub use cases::{Case, CaseFailure, Cases};
pub use decide::{Ask, NoRoute};
pub use document::DocumentError;
pub use matcher::{Range, When};
pub use policy::{Capability, Deployment, Policy, PolicyDocument};
