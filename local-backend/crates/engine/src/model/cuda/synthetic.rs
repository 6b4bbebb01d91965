//! Models of known shapes with made-up weights, made on the device: speed does not depend on their values.

use super::super::arch::{Config, Rope};
use super::{Capacity, Layer, Model, Stack, Weights};
use crate::backend::ModelInfo;
use crate::model::{Format, MadeUp};
use kernels::Pairs;
use kernels::cuda::{Buffer, CudaError, Kind, Matrix, Ops};

/// A shape to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticModel {
    pub name: &'static str,
    width: usize,
    feed: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    is_tied: bool,
    has_head_norms: bool,
    /// None: bf16.
    kind: Option<Kind>,
}

/// No such shape.
#[derive(Debug, thiserror::Error)]
#[error(
    "no synthetic model is called `{0}`; there are llama-8b, qwen3-8b and smollm2-135m, each also with -q4 or -q8"
)]
pub struct UnknownModel(String);

const LLAMA_8B: SyntheticModel = SyntheticModel {
    name: "llama-8b",
    width: 4096,
    feed: 14_336,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 128_256,
    is_tied: false,
    has_head_norms: false,
    kind: None,
};
const QWEN3_8B: SyntheticModel = SyntheticModel {
    name: "qwen3-8b",
    feed: 12_288,
    layers: 36,
    vocabulary: 151_936,
    has_head_norms: true,
    ..LLAMA_8B
};
const SMOLLM2_135M: SyntheticModel = SyntheticModel {
    name: "smollm2-135m",
    width: 576,
    feed: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    vocabulary: 49_152,
    is_tied: true,
    ..LLAMA_8B
};

impl std::str::FromStr for SyntheticModel {
    type Err = UnknownModel;

    fn from_str(name: &str) -> Result<Self, UnknownModel> {
        let (stem, kind) = match name.rsplit_once('-') {
            Some((stem, "q4")) => (stem, Some(Kind::W4)),
            Some((stem, "q8")) => (stem, Some(Kind::W8)),
            _ => (name, None),
        };
        let found = [LLAMA_8B, QWEN3_8B, SMOLLM2_135M]
            .into_iter()
            .find(|model| model.name == stem);
        found
            .map(|model| Self { kind, ..model })
            .ok_or_else(|| UnknownModel(name.to_owned()))
    }
}

impl SyntheticModel {
    /// A file of the same widths and heads, with few layers and tokens.
    pub fn small(&self) -> MadeUp {
        let format = match self.kind {
            None => Format::Bf16,
            Some(Kind::W4) => Format::Q4_1,
            Some(Kind::W8 | Kind::W8x16) => Format::Q8_0,
        };
        MadeUp {
            architecture: if self.has_head_norms { "qwen3" } else { "llama" },
            width: self.width,
            feed: self.feed,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            vocabulary: 512,
            context: 1024,
            formats: [format; 2],
            ..MadeUp::LLAMA
        }
    }
}

/// Makes matrices with a seed for each.
struct Maker<'a> {
    ops: &'a Ops,
    kind: Option<Kind>,
    seed: u32,
    bytes: usize,
}

impl Maker<'_> {
    fn stack(&mut self, rows: usize, columns: usize) -> Result<Stack, CudaError> {
        self.seed += 1;
        let matrix = Matrix::synthetic(self.ops, (rows, columns), self.kind, self.seed)?;
        self.bytes += matrix.bytes();
        Ok(Stack {
            parts: vec![(matrix, 0)],
            rows,
        })
    }

    fn ones(&self, len: usize) -> Result<Buffer<f32>, CudaError> {
        Buffer::from_slice(self.ops.driver(), &vec![1.0; len])
    }

    fn layer(&mut self, model: &SyntheticModel) -> Result<Layer, CudaError> {
        let (inner, shared) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        let head_norm = |maker: &Self| {
            let norm = model.has_head_norms.then(|| maker.ones(model.head_dim));
            norm.transpose()
        };
        Ok(Layer {
            attention_norm: self.ones(model.width)?,
            qkv: self.stack(inner + 2 * shared, model.width)?,
            bias: None,
            query_norm: head_norm(self)?,
            key_norm: head_norm(self)?,
            output: self.stack(model.width, inner)?,
            after_attention: None,
            feed_norm: self.ones(model.width)?,
            gate_up: self.stack(2 * model.feed, model.width)?,
            down: self.stack(model.width, model.feed)?,
            after_feed: None,
        })
    }
}

impl SyntheticModel {
    /// A model of a few thousand weights, for tests.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            name: "tiny",
            width: 64,
            feed: 96,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 64,
            vocabulary: 96,
            kind: Some(Kind::W8),
            ..SMOLLM2_135M
        }
    }

    fn config(&self) -> Result<Config, String> {
        let mut config = Config::plain("llama");
        config.width = self.width;
        config.feed = self.feed;
        config.layers = self.layers;
        config.heads = self.heads;
        config.kv_heads = self.kv_heads;
        config.head_dim = self.head_dim;
        config.context = 8192;
        config.pairs = Pairs::Halves;
        config.is_local = vec![false; self.layers];
        config.rope = Some(Rope {
            base: 500_000.0,
            factor: 1.0,
        });
        config.check()
    }

    /// Makes the model on a device.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn make(&self, ops: Ops, capacity: Capacity) -> Result<Model, CudaError> {
        let config = self.config().map_err(CudaError::Shape)?;
        let mut maker = Maker {
            ops: &ops,
            kind: self.kind,
            seed: 0,
            bytes: 0,
        };
        let layers = (0..self.layers)
            .map(|_| maker.layer(self))
            .collect::<Result<Vec<_>, _>>()?;
        let before = maker.bytes;
        let embedding = maker.stack(self.vocabulary, self.width)?;
        let output = if self.is_tied {
            None
        } else {
            maker.bytes = before;
            Some(maker.stack(self.vocabulary, self.width)?)
        };
        let weights = Weights {
            layers,
            embedding,
            output,
            final_norm: maker.ones(self.width)?,
            bytes: maker.bytes,
        };
        let rope = config.rope.clone();
        let frequencies = rope.map_or_else(Vec::new, |rope| config.frequencies(&rope, None));
        let info = ModelInfo {
            name: format!("synthetic {}", self.name),
            ..ModelInfo::default()
        };
        Ok(Model::assemble(
            (config, self.vocabulary, info),
            (weights, [frequencies, Vec::new()]),
            ops,
            capacity,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_with_and_without_a_format() {
        assert_eq!("llama-8b".parse::<SyntheticModel>().unwrap(), LLAMA_8B);
        assert_eq!(
            "qwen3-8b-q4".parse::<SyntheticModel>().unwrap().kind,
            Some(Kind::W4)
        );
        let error = "llama-9b".parse::<SyntheticModel>().unwrap_err().to_string();
        assert!(error.contains("llama-8b, qwen3-8b"), "{error}");
    }
}
