//! Models: from a GGUF file to something that computes.

mod cpu;
mod gguf;

use crate::backend::{Backend, ModelInfo};
use crate::text::{ChatTemplate, Tokenizer};
use gguf::Gguf;
use std::path::Path;

/// A model, ready to run.
pub struct Loaded {
    pub backend: Box<dyn Backend>,
    pub tokenizer: Tokenizer,
    /// Absent in base models.
    pub template: Option<ChatTemplate>,
    pub info: ModelInfo,
}

/// The file is not a model that can be run here.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path} cannot be read: {source}; `deploy/fetch-model.sh` fetches the default model")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is not a GGUF model this build can run: {problem}")]
    Unusable { path: String, problem: String },
}

/// Loads a model for the CPU.
///
/// # Errors
/// The file is missing, broken, or of a kind not known here.
pub fn load(path: &Path, threads: usize) -> Result<Loaded, LoadError> {
    let shown = path.display().to_string();
    let file = kernels::Mapped::open(path).map_err(|source| LoadError::Read {
        path: shown.clone(),
        source,
    })?;
    let load = || -> Result<Loaded, String> {
        let gguf = Gguf::parse(file)?;
        let tokenizer = Tokenizer::new(gguf.vocabulary()?)?;
        let template = gguf
            .text("tokenizer.chat_template")
            .map(|source| ChatTemplate::new(&source))
            .transpose()?;
        let model = cpu::Model::new(gguf, path, threads)?;
        let info = model.info().clone();
        Ok(Loaded {
            backend: Box::new(model),
            tokenizer,
            template,
            info,
        })
    };
    load().map_err(|problem| LoadError::Unusable { path: shown, problem })
}
