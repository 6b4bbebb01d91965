//! Where a model is to run, and whether it can.

use super::Use;
use super::cuda::Capacity;
use kernels::KvKind;
use kernels::cuda::{Card, Choice, CudaError, Driver, Libraries, Ops, choose};
use std::path::PathBuf;
use std::sync::Arc;

pub use kernels::cuda::{Kernels, Precision};

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda,
    /// A card if one can be used, else the CPU.
    Auto,
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "auto" => Ok(Self::Auto),
            other => Err(format!("`{other}` is no device; there are cpu, cuda and auto")),
        }
    }
}

/// How cards are found and used.
#[derive(Clone, Debug)]
pub struct CudaSettings {
    /// Which card.
    pub ordinal: u32,
    /// Where NVIDIA's libraries lie, if not where the system's loader finds them.
    pub root: Option<PathBuf>,
    /// Where compiled kernels are kept; `None`: compiled at every start.
    pub kernels: Option<PathBuf>,
    pub precision: Precision,
    /// Which kernels a card may take.
    pub choice: Kernels,
}

impl Default for CudaSettings {
    /// The first card; compiled kernels in the user's cache folder.
    fn default() -> Self {
        Self {
            ordinal: 0,
            root: None,
            kernels: std::env::home_dir().map(|home| home.join(".cache/tollgate/kernels")),
            precision: Precision::Fast,
            choice: Kernels::Auto,
        }
    }
}

/// A place that was found.
#[derive(Clone)]
pub enum Place {
    Cpu {
        threads: usize,
        weights: Use,
        /// How keys and values are kept; `None`: as suits the weights.
        kv: Option<KvKind>,
    },
    Cuda {
        driver: Arc<dyn Driver>,
        precision: Precision,
        capacity: Capacity,
        /// The kernels that were found fit, and why.
        choice: Choice,
    },
}

impl Place {
    /// The CPU, with weights as they are stored.
    #[must_use]
    pub fn cpu(threads: usize) -> Self {
        Self::Cpu {
            threads,
            weights: Use::AsStored,
            kv: None,
        }
    }

    /// The same place, with keys and values kept like this.
    ///
    /// # Errors
    /// A card has no kernels for bf16 and f32.
    pub fn keeping(self, kv: Option<KvKind>) -> Result<Self, String> {
        match (self, kv) {
            (Self::Cpu { threads, weights, .. }, kv) => Ok(Self::Cpu { threads, weights, kv }),
            (card, None) => Ok(card),
            (
                Self::Cuda {
                    driver,
                    precision,
                    capacity,
                    choice,
                },
                Some(kv @ (KvKind::F16 | KvKind::Int8)),
            ) => Ok(Self::Cuda {
                capacity: Capacity { kv, ..capacity },
                driver,
                precision,
                choice,
            }),
            (card, Some(_)) => Err(format!(
                "{card} keeps keys and values as f16 or int8: choose one of these for `kv_cache`, or leave it out"
            )),
        }
    }
}

/// What launches on a card with the kernels chosen for it.
pub(super) fn launches(driver: &Arc<dyn Driver>, precision: Precision, choice: &Choice) -> Ops {
    Ops::new(driver.clone(), precision).with_ways(choice.ways)
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Place({self})")
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu { threads, .. } => write!(f, "the CPU, {threads} threads"),
            Self::Cuda { driver, .. } => f.write_str(&driver.facts().name),
        }
    }
}

/// Finds the device asked for. With [`Device::Auto`] the CPU is taken where no card can be used, and the reason returned beside it.
///
/// # Errors
/// A card was asked for and none can be used.
pub fn find(
    device: Device,
    threads: usize,
    settings: &CudaSettings,
) -> Result<(Place, Option<CudaError>), CudaError> {
    if device == Device::Cpu {
        return Ok((Place::cpu(threads), None));
    }
    let libraries = Libraries::new(settings.root.as_deref());
    let opened = Card::open(settings.ordinal, &libraries, settings.kernels.as_deref())
        .and_then(|driver| Ok((choose(&driver, settings.choice)?, driver)));
    match opened {
        Ok((choice, driver)) => {
            let place = Place::Cuda {
                driver,
                precision: settings.precision,
                capacity: Capacity::default(),
                choice,
            };
            Ok((place, None))
        }
        Err(error) if device == Device::Auto => Ok((Place::cpu(threads), Some(error))),
        Err(error) => Err(error),
    }
}
