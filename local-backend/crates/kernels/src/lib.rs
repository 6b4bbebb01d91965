//! The arithmetic of inference on the CPU, and on NVIDIA GPUs in [`cuda`]; the only `unsafe` code of the project.
//!
//! Owns: weight tiles and their products, attention over paged keys and values, the small operations, the thread pool,
//! memory. Refuses to know: models, sequences, containers. Invariants: a sum is taken in one fixed order whatever shares
//! the call, so results do not depend on batching; every kernel is written once over [`lanes`], whose plain
//! implementation is the reference of the others.

mod activations;
#[cfg(test)]
mod agree;
mod attention;
mod cache;
pub mod cuda;
mod draw;
mod formats;
mod lanes;
mod memory;
mod ops;
mod pool;
mod product;
mod tiles;

pub use activations::Activations;
pub use attention::{Heads, Queries, Reach, attend};
pub use cache::{BLOCK, KvCache, KvKind, KvShape, Slot};
pub use draw::{Candidates, Draw, likeliest};
pub use formats::Format;
pub use lanes::Isa;
pub use memory::{Mapped, read_bandwidth};
pub use ops::{Activation, Norm, Pairs, rotate};
pub use pool::Pool;
pub use product::{Feed, Mode, Part, feed, multiply};
pub use tiles::{Matrix, Precision, Rows};
