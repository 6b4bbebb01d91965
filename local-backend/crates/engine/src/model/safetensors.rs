//! A folder in Hugging Face's layout: `config.json`, one or several `.safetensors` files, their tensors renamed to what
//! GGUF calls them. Vocabulary and template lie beside them.

use kernels::{Format, Mapped, Rows};
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

struct Tensor {
    file: usize,
    format: Format,
    rows: usize,
    columns: usize,
    range: Range<usize>,
}

/// The opened folder.
pub(super) struct Safetensors {
    pub(super) config: Value,
    files: Vec<Mapped>,
    tensors: HashMap<String, Tensor>,
}

/// What stands for `blk.N.` names of GGUF in a file's own names.
const LAYER_NAMES: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// Gemma has four norms a layer, and another use for one of the names.
const GEMMA_NAMES: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const BERT_NAMES: &[(&str, &str)] = &[
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("attn_output_norm", "attention.output.LayerNorm"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
    ("layer_output_norm", "output.LayerNorm"),
];
const BERT_ENTRY: &[(&str, &str)] = &[
    ("token_embd", "embeddings.word_embeddings"),
    ("position_embd", "embeddings.position_embeddings"),
    ("token_types", "embeddings.token_type_embeddings"),
    ("token_embd_norm", "embeddings.LayerNorm"),
];
const ENTRY: &[(&str, &str)] = &[
    ("token_embd", "embed_tokens"),
    ("output_norm", "norm"),
    ("output", "lm_head"),
];

/// The name that GGUF has for a tensor of a file, if the model needs it.
fn gguf_name(name: &str, is_gemma: bool) -> Option<String> {
    let (stem, ending) = name
        .rsplit_once('.')
        .filter(|(_, end)| matches!(*end, "weight" | "bias"))?;
    let starts = ["language_model.", "model.", "bert."];
    let stem = starts
        .iter()
        .fold(stem, |stem, start| stem.strip_prefix(start).unwrap_or(stem));
    let find = |names: &[(&str, &str)], own: &str| {
        names
            .iter()
            .find(|(_, theirs)| *theirs == own)
            .map(|(gguf, _)| (*gguf).to_owned())
    };
    let layer = stem
        .strip_prefix("layers.")
        .or(stem.strip_prefix("encoder.layer."));
    let Some((index, part)) = layer.and_then(|layer| layer.split_once('.')) else {
        let found = find(ENTRY, stem).or_else(|| find(BERT_ENTRY, stem))?;
        return Some(format!("{found}.{ending}"));
    };
    let found = is_gemma.then(|| find(GEMMA_NAMES, part)).flatten();
    let found = found
        .or_else(|| find(LAYER_NAMES, part))
        .or_else(|| find(BERT_NAMES, part))?;
    Some(format!("blk.{index}.{found}.{ending}"))
}

impl Safetensors {
    /// Opens a folder, or a file with its `config.json` beside it.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let folder = if path.is_dir() {
            path
        } else {
            path.parent().unwrap_or(path)
        };
        let config = std::fs::read(folder.join("config.json"))
            .map_err(|error| format!("config.json beside the weights cannot be read: {error}"))?;
        let config: Value =
            serde_json::from_slice(&config).map_err(|error| format!("config.json: {error}"))?;
        let is_gemma = config["model_type"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("gemma"));
        let mut paths = Vec::new();
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|error| error.to_string())?;
            let found = entries.flatten().map(|entry| entry.path());
            paths.extend(found.filter(|path| path.extension().is_some_and(|end| end == "safetensors")));
            paths.sort();
        } else {
            paths.push(path.to_owned());
        }
        if paths.is_empty() {
            return Err("there is no .safetensors file in the folder".into());
        }
        let mut out = Self {
            config,
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        for path in paths {
            let map = Mapped::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            out.read_head(&map, is_gemma)
                .map_err(|problem| format!("{}: {problem}", path.display()))?;
            out.files.push(map);
        }
        Ok(out)
    }

    fn read_head(&mut self, file: &[u8], is_gemma: bool) -> Result<(), String> {
        let short = || "it is shorter than its head says; fetch it again".to_owned();
        let size: [u8; 8] = file
            .get(..8)
            .and_then(|size| size.try_into().ok())
            .ok_or_else(short)?;
        let size = usize::try_from(u64::from_le_bytes(size)).map_err(|_| short())?;
        let data = size.checked_add(8).ok_or_else(short)?;
        let head: HashMap<String, Value> = serde_json::from_slice(file.get(8..data).ok_or_else(short)?)
            .map_err(|error| error.to_string())?;
        for (name, entry) in head {
            let Some(gguf) = gguf_name(&name, is_gemma) else {
                continue;
            };
            let format = match entry["dtype"].as_str() {
                Some("F32") => Format::F32,
                Some("F16") => Format::F16,
                Some("BF16") => Format::Bf16,
                other => {
                    return Err(format!(
                        "`{name}` is of type {other:?}; this build runs F32, F16 and BF16"
                    ));
                }
            };
            let numbers = |key: &str| -> Vec<usize> {
                let values = entry[key].as_array().into_iter().flatten();
                values
                    .filter_map(|value| value.as_u64().map(|value| value as usize))
                    .collect()
            };
            let (shape, offsets) = (numbers("shape"), numbers("data_offsets"));
            let (rows, columns) = match shape.as_slice() {
                [columns] => (1, *columns),
                [rows, columns] => (*rows, *columns),
                _ => return Err(format!("`{name}` is neither a vector nor a matrix")),
            };
            let &[start, end] = offsets.as_slice() else {
                return Err(format!("`{name}` has no place"));
            };
            let bytes = rows
                .checked_mul(columns)
                .and_then(|count| count.checked_mul(format.block_bytes()));
            if end.checked_sub(start) != bytes || end.checked_add(data).is_none_or(|end| end > file.len()) {
                return Err(format!("`{name}` does not lie within the file; fetch it again"));
            }
            let range = data + start..data + end;
            let file = self.files.len();
            self.tensors.insert(
                gguf,
                Tensor {
                    file,
                    format,
                    rows,
                    columns,
                    range,
                },
            );
        }
        Ok(())
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<Rows<'_>>, String> {
        Ok(self.tensors.get(name).map(|tensor| Rows {
            format: tensor.format,
            data: &self.files[tensor.file][tensor.range.clone()],
            rows: tensor.rows,
            columns: tensor.columns,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::gguf_name;

    #[test]
    fn names_are_those_of_gguf() {
        for (name, is_gemma, expected) in [
            ("model.layers.3.self_attn.q_proj.bias", false, "blk.3.attn_q.bias"),
            (
                "model.layers.3.post_attention_layernorm.weight",
                false,
                "blk.3.ffn_norm.weight",
            ),
            (
                "language_model.model.layers.3.post_attention_layernorm.weight",
                true,
                "blk.3.post_attention_norm.weight",
            ),
            (
                "bert.encoder.layer.0.output.LayerNorm.bias",
                false,
                "blk.0.layer_output_norm.bias",
            ),
            ("embeddings.LayerNorm.weight", false, "token_embd_norm.weight"),
            ("lm_head.weight", false, "output.weight"),
            ("model.norm.weight", false, "output_norm.weight"),
        ] {
            assert_eq!(gguf_name(name, is_gemma).as_deref(), Some(expected));
        }
        assert_eq!(gguf_name("pooler.dense.weight", false), None);
    }
}
