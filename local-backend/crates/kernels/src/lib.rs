//! The arithmetic of inference on the CPU, and the only `unsafe` code of the project.
//!
//! Owns: weight tiles and their kernels, 16-bit dot products for attention, the thread pool, the memory map. Refuses
//! to know: models, sequences, files' formats. Invariants: a sum is taken in one fixed order whatever shares the
//! call, so results do not depend on batching; every vector kernel has a scalar twin it is tested against.

#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod cuda;
mod map;
mod ops;
mod pool;
mod scalar;
mod tiles;

pub use map::Mapped;
pub use ops::{attend, rms_norm, rope, silu_multiply};
pub use pool::Pool;
pub use tiles::{Format, Matrix, Quantized};
