//! The arithmetic of inference on NVIDIA GPUs: own CUDA C++ in `../cuda`, compiled for the card when the program starts.
//!
//! **Never run on a GPU yet.** The kernels are compiled to machine code for two generations of cards, and run, unchanged, on the
//! CPU ([`Simt`]) against plain reference code; what only a card can show (speed, the driver, cuBLASLt, graphs) has not been seen.
//!
//! Owns: the device's memory, its kernels and their launches, the cache of compiled kernels. Refuses to know: models,
//! sequences, files' formats. Invariants: the libraries of NVIDIA are looked for when they are first needed and their absence is
//! an error with a hint, never a panic; a launch is made only by a function of [`Ops`], which has checked every length.

mod activations;
mod attention;
mod batch;
mod buffer;
mod cache;
mod card;
mod choose;
mod driver;
mod gemm;
mod hopper;
mod libraries;
mod matrix;
mod nvrtc;
mod sampling;
mod simt;
mod source;
mod tiles;

pub use activations::{Activations, Emit, Form, Gate, Glu, Norm};
pub use attention::{HeadShape, Kept, KvPages, QkvExtras, Span, Workspace};
pub use batch::{Batch, Limits, Singles, Steps};
pub use buffer::{Buffer, Plain};
pub use card::Card;
pub use choose::{Choice, Kernels, choose};
pub use driver::{Driver, Facts, Gemm, GraphId, Hopper, Launch, TensorMap, TensorShape};
pub use hopper::{Way, Ways};
pub use libraries::Libraries;
pub use matrix::{Matrix, Place, Scratch, Then};
pub use nvrtc::{Arch, Compiled, Compiler};
pub use sampling::Sampling;
pub use simt::{Order, Simt};
pub use source::{HOPPER_MODULES, MODULES, Module};
pub use tiles::{Kind, Packed, WeightBlock, pack};

use std::sync::Arc;

/// Launches on a device. Every function checks that what it is given is as long as its kernel touches.
#[derive(Clone)]
pub struct Ops {
    driver: Arc<dyn Driver>,
    facts: Facts,
    precision: Precision,
    ways: Ways,
}

/// Whether a token's result may depend on how many others share a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// It may, in the last bits: each multiply takes the fastest way for its size.
    Fast,
    /// It does not: every size takes the ways of the smallest. Prompts are read several times slower.
    Invariant,
}

impl Ops {
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, precision: Precision) -> Self {
        let facts = driver.facts();
        Self {
            driver,
            facts,
            precision,
            ways: Ways::default(),
        }
    }

    /// With kernels as [`choose`] found them fit.
    #[must_use]
    pub fn with_ways(self, ways: Ways) -> Self {
        Self { ways, ..self }
    }

    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// The argument struct of a kernel, as its `.cu` file has it: addresses first, then numbers of four bytes, no holes.
///
/// # Safety
/// As just said.
pub(crate) unsafe trait Args: Sized {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the struct has no holes.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), CudaError> {
    if holds {
        Ok(())
    } else {
        Err(CudaError::Shape(what()))
    }
}

/// Why something could not be done on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no card, or nothing to talk to it with.
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    /// A library of NVIDIA's is not there.
    #[error("{library} was not found: {hint}")]
    NoLibrary { library: &'static str, hint: String },
    /// A kernel does not compile; the log names file and line.
    #[error("the kernels in {file} do not compile for {arch}:\n{log}")]
    Compile { file: String, arch: String, log: String },
    /// The device refused.
    #[error("{what}: {problem}")]
    Device { what: String, problem: String },
    /// Sizes that do not fit together.
    #[error("{0}")]
    Shape(String),
}

impl CudaError {
    pub(crate) fn device(what: &str, problem: impl std::fmt::Display) -> Self {
        Self::Device {
            what: what.to_owned(),
            problem: problem.to_string(),
        }
    }
}
