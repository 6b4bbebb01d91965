//! A file's tensors onto the device.

use super::super::arch::{Config, Order};
use super::super::source::Source;
use super::{Capacity, Layer, Model, Stack, Weights};
use crate::backend::ModelInfo;
use kernels::cuda::{Buffer, CudaError, Driver, Matrix, Ops};
use kernels::{Activation, Rows};
use std::collections::HashMap;
use std::sync::Arc;

fn told(error: CudaError) -> String {
    error.to_string()
}

struct Loader<'a> {
    source: &'a Source,
    config: &'a Config,
    driver: &'a Arc<dyn Driver>,
    bytes: usize,
}

impl<'a> Loader<'a> {
    fn need(&self, name: &str, shape: (usize, usize)) -> Result<Rows<'a>, String> {
        let rows = self
            .source
            .tensor(name)?
            .ok_or_else(|| format!("the tensor `{name}` is missing"))?;
        if (rows.rows, rows.columns) != shape {
            return Err(format!(
                "`{name}` is {} by {} where {} by {} is expected",
                rows.rows, rows.columns, shape.0, shape.1
            ));
        }
        Ok(rows)
    }

    /// Matrices one under the other; those that lie alike become one, which costs one launch.
    fn stack(&mut self, parts: &[(String, (usize, usize))]) -> Result<Stack, String> {
        let rows = parts
            .iter()
            .map(|(name, shape)| self.need(name, *shape))
            .collect::<Result<Vec<_>, _>>()?;
        let is_one = rows.windows(2).all(|pair| Matrix::joins(&pair[0], &pair[1]));
        let groups: Vec<&[Rows<'_>]> = if is_one {
            vec![&rows[..]]
        } else {
            rows.chunks(1).collect()
        };
        let mut stack = Stack {
            parts: Vec::new(),
            rows: 0,
        };
        for group in groups {
            let matrix = Matrix::from_rows(self.driver, group)
                .map_err(|error| format!("`{}`: {error}", parts[0].0))?;
            self.bytes += matrix.bytes();
            let offset = stack.rows;
            stack.rows += matrix.rows();
            stack.parts.push((matrix, offset));
        }
        Ok(stack)
    }

    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        let Some(rows) = self.source.tensor(name)? else {
            return Ok(None);
        };
        let mut out = vec![0.0; rows.rows * rows.columns];
        let size = rows.format.row_bytes(rows.columns).max(1);
        let each = rows
            .data
            .chunks_exact(size)
            .zip(out.chunks_exact_mut(rows.columns));
        each.for_each(|(row, out)| rows.format.dequantize(row, out));
        Ok(Some(out))
    }

    /// A norm's weights, if it is there.
    fn norm(&self, name: &str, len: usize) -> Result<Option<Buffer<f32>>, String> {
        let name = format!("{name}.weight");
        let Some(mut weights) = self.floats(&name)? else {
            return Ok(None);
        };
        if weights.len() != len {
            return Err(format!("`{name}` does not have {len} elements"));
        }
        weights
            .iter_mut()
            .for_each(|weight| *weight += self.config.norm_shift);
        Buffer::from_slice(self.driver, &weights).map(Some).map_err(told)
    }

    fn need_norm(&self, name: &str, len: usize) -> Result<Buffer<f32>, String> {
        self.norm(name, len)?
            .ok_or_else(|| format!("the tensor `{name}.weight` is missing"))
    }

    /// Biases of queries, keys and values, if any is there.
    fn bias(&self, names: [String; 3], sizes: [usize; 3]) -> Result<Option<Buffer<f32>>, String> {
        let mut all = Vec::new();
        let mut is_there = false;
        for (name, size) in names.iter().zip(sizes) {
            let name = format!("{name}.bias");
            let bias = self.floats(&name)?;
            is_there |= bias.is_some();
            let bias = bias.unwrap_or_else(|| vec![0.0; size]);
            if bias.len() != size {
                return Err(format!("`{name}` does not have {size} elements"));
            }
            all.extend(bias);
        }
        let bias = is_there.then(|| Buffer::from_slice(self.driver, &all));
        bias.transpose().map_err(told)
    }

    fn layer(&mut self, index: usize) -> Result<Layer, String> {
        let Config {
            width,
            heads,
            kv_heads,
            head_dim,
            feed,
            ..
        } = *self.config;
        let name = |part: &str| format!("blk.{index}.{part}");
        let weight = |part: &str| format!("blk.{index}.{part}.weight");
        for part in ["attn_output.bias", "ffn_up.bias", "ffn_down.bias"] {
            if self.source.tensor(&name(part))?.is_some() {
                return Err(format!("`{}`: the GPU's pass adds no such bias", name(part)));
            }
        }
        let (query, key) = (heads * head_dim, kv_heads * head_dim);
        let qkv = [
            (weight("attn_q"), (query, width)),
            (weight("attn_k"), (key, width)),
            (weight("attn_v"), (key, width)),
        ];
        let biases = [name("attn_q"), name("attn_k"), name("attn_v")];
        Ok(Layer {
            attention_norm: self.need_norm(&name("attn_norm"), width)?,
            qkv: self.stack(&qkv)?,
            bias: self.bias(biases, [query, key, key])?,
            query_norm: self.norm(&name("attn_q_norm"), head_dim)?,
            key_norm: self.norm(&name("attn_k_norm"), head_dim)?,
            output: self.stack(&[(weight("attn_output"), (width, query))])?,
            after_attention: self.norm(&name("post_attention_norm"), width)?,
            feed_norm: self.need_norm(&name("ffn_norm"), width)?,
            gate_up: self.stack(&[
                (weight("ffn_gate"), (feed, width)),
                (weight("ffn_up"), (feed, width)),
            ])?,
            down: self.stack(&[(weight("ffn_down"), (width, feed))])?,
            after_feed: self.norm(&name("post_ffw_norm"), width)?,
        })
    }

    fn weights(&mut self, vocabulary: usize) -> Result<Weights, String> {
        let width = self.config.width;
        let layers = (0..self.config.layers)
            .map(|index| self.layer(index))
            .collect::<Result<Vec<_>, _>>()?;
        let before = self.bytes;
        let embedding = self.stack(&[("token_embd.weight".into(), (vocabulary, width))])?;
        let is_tied = self.source.tensor("output.weight")?.is_none();
        let output = if is_tied {
            None
        } else {
            // An embedding that is only looked up in is not read by a token.
            self.bytes = before;
            Some(self.stack(&[("output.weight".into(), (vocabulary, width))])?)
        };
        Ok(Weights {
            layers,
            embedding,
            output,
            final_norm: self.need_norm("output_norm", width)?,
            bytes: self.bytes,
        })
    }
}

/// What the GPU's pass cannot do of an architecture.
fn unsupported(config: &Config) -> Option<&'static str> {
    if config.order == Order::After || config.has_layer_norm || !config.is_causal || config.rope.is_none() {
        return Some("models of the BERT kind run on the CPU only");
    }
    if config.logit_cap.is_some() {
        return Some("bent logits are not in the GPU's pass");
    }
    if config.activation == Activation::GeluErf {
        return Some("its activation is not in the GPU's pass");
    }
    None
}

impl Model {
    /// `info` names the model; sizes are filled in here.
    pub(in super::super) fn new(
        source: &Source,
        info: ModelInfo,
        ops: Ops,
        capacity: Capacity,
    ) -> Result<Self, String> {
        let mut config = source.config()?;
        if let Some(problem) = unsupported(&config) {
            return Err(format!("{problem}; use --device cpu"));
        }
        super::room::heads(&config).check().map_err(told)?;
        let rows =
            |name: &str| -> Result<usize, String> { Ok(source.tensor(name)?.map_or(0, |rows| rows.rows)) };
        let vocabulary = rows("token_embd.weight")?;
        config.feed = rows("blk.0.ffn_up.weight")?;
        let mut loader = Loader {
            source,
            config: &config,
            driver: ops.driver(),
            bytes: 0,
        };
        let weights = loader.weights(vocabulary)?;
        let divisors = loader.floats("rope_freqs.weight")?;
        let of_kind = |rope: Option<&super::super::arch::Rope>, divisors: Option<&[f32]>| {
            rope.map_or_else(Vec::new, |rope| config.frequencies(rope, divisors))
        };
        let frequencies = [
            of_kind(config.rope.as_ref(), divisors.as_deref()),
            of_kind(config.local_rope.as_ref(), None),
        ];
        Ok(Self::assemble(
            (config, vocabulary, info),
            (weights, frequencies),
            ops,
            capacity,
        ))
    }

    pub(super) fn assemble(
        (config, vocabulary, mut info): (Config, usize, ModelInfo),
        (weights, frequencies): (Weights, [Vec<f32>; 2]),
        ops: Ops,
        capacity: Capacity,
    ) -> Self {
        info.architecture.clone_from(&config.architecture);
        info.context_tokens = config.context;
        info.vocabulary = vocabulary;
        info.layers = config.layers;
        info.kv_heads = config.kv_heads;
        info.head_dim = config.head_dim;
        info.bytes = weights.bytes as u64;
        info.embedding_width = config.width;
        info.generates = true;
        info.draws = true;
        info.kv_bytes = capacity.kv.bytes();
        info.kv_scale_bytes = capacity.kv.scale_bytes();
        Self {
            info,
            config,
            ops,
            weights,
            frequencies,
            asked: capacity,
            capacity,
            room: None,
            graphs: HashMap::new(),
        }
    }
}
