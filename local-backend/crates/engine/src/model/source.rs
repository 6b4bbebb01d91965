//! Where a model's tensors come from: they go by their GGUF names in every container.

use super::arch::Config;
use super::gguf::Gguf;
use super::safetensors::Safetensors;
use kernels::Rows;

/// An opened model.
pub(super) enum Source {
    Gguf(Gguf),
    Safetensors(Safetensors),
}

impl Source {
    /// A tensor's bytes and shape, if it is there; vectors are one row.
    ///
    /// # Errors
    /// It is there and cannot be used.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Rows<'_>>, String> {
        match self {
            Self::Gguf(gguf) => gguf.tensor(name),
            Self::Safetensors(files) => files.tensor(name),
        }
    }

    pub(super) fn config(&self) -> Result<Config, String> {
        match self {
            Self::Gguf(gguf) => Config::from_gguf(gguf),
            Self::Safetensors(files) => Config::from_json(&files.config),
        }
    }
}
