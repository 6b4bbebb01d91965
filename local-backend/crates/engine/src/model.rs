//! Models: from files to something that computes.

mod arch;
mod cpu;
pub mod cuda;
mod gguf;
mod made_up;
mod place;
mod progress;
mod safetensors;
mod source;
mod weights;

use crate::backend::{Backend, ModelInfo};
use crate::text::{ChatTemplate, Tokenizer, Vocabulary, read_tokenizer_json};
use gguf::Gguf;
use safetensors::Safetensors;
use serde_json::Value;
use source::Source;
use std::path::Path;

pub use kernels::{Format, KvKind};
pub use made_up::MadeUp;
pub use place::{CudaSettings, Device, Kernels, Place, Precision, find};
pub use progress::Progress;

/// A model, ready to run.
pub struct Loaded {
    pub backend: Box<dyn Backend>,
    pub tokenizer: Tokenizer,
    /// Absent in base models.
    pub template: Option<ChatTemplate>,
    pub info: ModelInfo,
    /// Tokens that a cache may hold in what memory is free; told by a GPU.
    pub fitting_tokens: Option<usize>,
}

/// The file is not a model that can be run here.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path} cannot be read: {source}; `deploy/fetch-model.sh` fetches the default model")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is not a model this build can run: {problem}")]
    Unusable { path: String, problem: String },
}

/// Tokens with which sequences begin and end.
struct Ends {
    bos: Option<u32>,
    add_bos: bool,
    eos: Vec<u32>,
}

/// Tokens that end a turn, whatever else a file names.
const TURN_ENDS: [&str; 5] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
];

/// What a container says beside its tensors.
struct About {
    name: Option<String>,
    vocabulary: Vocabulary,
    template: Option<String>,
    ends: Ends,
}

/// What weights become in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// What they are in the file, in tiles.
    #[default]
    AsStored,
    /// Floats: slow and large, and nothing is rounded but what the file has rounded.
    AsFloats,
}

/// [`load_on`] the CPU, with weights as they are stored.
///
/// # Errors
/// As there.
pub fn load(path: &Path, threads: usize) -> Result<Loaded, LoadError> {
    load_on(path, &Place::cpu(threads))
}

/// [`load_watched`] by nobody.
///
/// # Errors
/// As there.
pub fn load_on(path: &Path, place: &Place) -> Result<Loaded, LoadError> {
    load_watched(path, place, &Progress::default())
}

/// Loads a model: a GGUF file, or a folder (or a `.safetensors` file in one) in Hugging Face's layout.
///
/// # Errors
/// The file is missing, broken, or of a kind not known here.
pub fn load_watched(path: &Path, place: &Place, progress: &Progress) -> Result<Loaded, LoadError> {
    let shown = path.display().to_string();
    let is_folder = path.is_dir() || path.extension().is_some_and(|end| end == "safetensors");
    let unusable = |problem| LoadError::Unusable {
        path: shown.clone(),
        problem,
    };
    let (source, about) = if is_folder {
        let files = Safetensors::open(path).map_err(unusable)?;
        let about = about_folder(path, &files.config).map_err(unusable)?;
        (Source::Safetensors(files), about)
    } else {
        let file = kernels::Mapped::open(path).map_err(|source| LoadError::Read {
            path: shown.clone(),
            source,
        })?;
        let gguf = Gguf::parse(file).map_err(unusable)?;
        let about = About {
            name: gguf.text("general.name"),
            vocabulary: gguf.vocabulary().map_err(unusable)?,
            template: gguf.text("tokenizer.chat_template"),
            ends: gguf.ends(),
        };
        (Source::Gguf(gguf), about)
    };
    let loaded = assemble(path, (source, about), (place, progress)).map_err(unusable)?;
    progress.end();
    Ok(loaded)
}

fn assemble(
    path: &Path,
    (source, about): (Source, About),
    (place, progress): (&Place, &Progress),
) -> Result<Loaded, String> {
    let template = about
        .template
        .map(|source| ChatTemplate::new(&source))
        .transpose()?;
    let tokenizer = Tokenizer::new(about.vocabulary)?;
    let Ends {
        bos,
        add_bos,
        mut eos,
    } = about.ends;
    for end in TURN_ENDS.iter().filter_map(|text| tokenizer.token_id(text)) {
        if !eos.contains(&end) {
            eos.push(end);
        }
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let info = ModelInfo {
        name: about.name.or(stem).unwrap_or_default(),
        bos,
        add_bos,
        eos,
        ..ModelInfo::default()
    };
    let mut fitting_tokens = None;
    let backend: Box<dyn Backend> = match place {
        Place::Cpu { threads, weights, kv } => {
            let settings = cpu::Settings {
                threads: *threads,
                weights: *weights,
                kv: *kv,
            };
            Box::new(cpu::Model::new(source, info, (settings, progress))?)
        }
        Place::Cuda {
            driver,
            precision,
            capacity,
            choice,
        } => {
            let ops = place::launches(driver, *precision, choice);
            let model = cuda::Model::new(&source, info, ops, *capacity)?;
            fitting_tokens = Some(model.blocks_that_fit() * crate::backend::BLOCK_TOKENS);
            Box::new(model)
        }
    };
    let info = backend.info().clone();
    Ok(Loaded {
        backend,
        tokenizer,
        template,
        info,
        fitting_tokens,
    })
}

/// What lies beside the weights in Hugging Face's layout.
fn about_folder(path: &Path, config: &Value) -> Result<About, String> {
    let folder = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let json = |name: &str| -> Result<Value, String> {
        let bytes = std::fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
        serde_json::from_slice(&bytes).map_err(|error| format!("{name}: {error}"))
    };
    let vocabulary = read_tokenizer_json(&json("tokenizer.json")?)?;
    // The rest may be missing.
    let settings = json("tokenizer_config.json").unwrap_or_default();
    let generation = json("generation_config.json").unwrap_or_default();
    let text = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
    let id = |name: Option<String>| {
        let name = name?;
        let place = vocabulary.tokens.iter().position(|token| *token == name)?;
        u32::try_from(place).ok()
    };
    let number = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut eos: Vec<u32> = id(text(&settings["eos_token"])).into_iter().collect();
    for ends in [&generation["eos_token_id"], &config["eos_token_id"]] {
        eos.extend(number(ends));
        eos.extend(ends.as_array().into_iter().flatten().filter_map(number));
    }
    eos.sort_unstable();
    eos.dedup();
    let file = std::fs::read_to_string(folder.join("chat_template.jinja")).ok();
    let ends = Ends {
        bos: id(text(&settings["bos_token"])).or_else(|| number(&config["bos_token_id"])),
        add_bos: settings["add_bos_token"]
            .as_bool()
            .unwrap_or(vocabulary.frame.0.is_some()),
        eos,
    };
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(About {
        name,
        template: file.or_else(|| text(&settings["chat_template"])),
        vocabulary,
        ends,
    })
}
