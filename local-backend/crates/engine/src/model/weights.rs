//! A model's tensors, found by their GGUF names whatever the container, and laid out for the kernels.

use super::Use;
use super::arch::{Config, Order};
use super::progress::Progress;
use super::source::Source;
use kernels::{Format, KvKind, Matrix, Norm, Pool, Precision, Rows};

/// A matrix with what is added to its products.
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// Norms around one half of a layer.
#[derive(Default)]
pub(super) struct Norms {
    /// On what goes in.
    pub(super) before: Option<Norm>,
    /// On what comes out, before it is added.
    pub(super) inside: Option<Norm>,
    /// On the sum.
    pub(super) after: Option<Norm>,
}

pub(super) struct Layer {
    pub(super) attention: Norms,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) query_norm: Option<Norm>,
    pub(super) key_norm: Option<Norm>,
    pub(super) output: Linear,
    pub(super) feed: Norms,
    pub(super) gate: Option<Matrix>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// What is done before the first layer beside looking tokens up.
#[derive(Default)]
pub(super) struct Entry {
    /// Positions by width.
    pub(super) positions: Option<Vec<f32>>,
    /// Of the only segment.
    pub(super) kind: Option<Vec<f32>>,
    pub(super) norm: Option<Norm>,
}

pub(super) struct Weights {
    pub(super) entry: Entry,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Option<Norm>,
    /// Absent in models that only embed.
    pub(super) output: Option<Matrix>,
    /// Bytes that a token reads.
    pub(super) bytes: usize,
    /// Whether every matrix multiplies floats.
    pub(super) is_float: bool,
}

/// Reads tensors and checks their shapes.
struct Loader<'a> {
    source: &'a Source,
    config: &'a Config,
    pool: &'a mut Pool,
    weights: Use,
    bytes: usize,
    is_float: bool,
}

impl Loader<'_> {
    fn need(&self, name: &str) -> Result<Rows<'_>, String> {
        self.source
            .tensor(name)?
            .ok_or_else(|| format!("the tensor `{name}` is missing"))
    }

    fn matrix(&mut self, name: &str, shape: (usize, usize)) -> Result<Matrix, String> {
        let source = self.source;
        let rows = source
            .tensor(name)?
            .ok_or_else(|| format!("the tensor `{name}` is missing"))?;
        if (rows.rows, rows.columns) != shape {
            return Err(format!(
                "`{name}` is {} by {} where {} by {} is expected",
                rows.rows, rows.columns, shape.0, shape.1
            ));
        }
        let matrix = match self.weights {
            Use::AsStored => Matrix::new(self.pool, rows),
            Use::AsFloats => {
                let data: Vec<u8> = self
                    .floats(name)?
                    .unwrap_or_default()
                    .into_iter()
                    .flat_map(f32::to_le_bytes)
                    .collect();
                let floats = Rows {
                    format: Format::F32,
                    data: &data,
                    ..rows
                };
                Matrix::new(self.pool, floats)
            }
        };
        let matrix = matrix.map_err(|problem| format!("`{name}`: {problem}"))?;
        self.bytes += matrix.bytes();
        self.is_float &= matrix.precision() == Precision::Float;
        Ok(matrix)
    }

    /// The floats of a tensor, if it is there.
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        let Some(rows) = self.source.tensor(name)? else {
            return Ok(None);
        };
        let mut out = vec![0.0; rows.rows * rows.columns];
        let size = rows.format.row_bytes(rows.columns).max(1);
        for (row, out) in rows
            .data
            .chunks_exact(size)
            .zip(out.chunks_exact_mut(rows.columns))
        {
            rows.format.dequantize(row, out);
        }
        Ok(Some(out))
    }

    fn linear(&mut self, name: &str, shape: (usize, usize)) -> Result<Linear, String> {
        let matrix = self.matrix(&format!("{name}.weight"), shape)?;
        let bias = self.floats(&format!("{name}.bias"))?;
        if bias.as_ref().is_some_and(|bias| bias.len() != shape.0) {
            return Err(format!("`{name}.bias` does not have {} elements", shape.0));
        }
        Ok(Linear { matrix, bias })
    }

    /// A norm, if it is there.
    fn norm(&self, name: &str, width: usize) -> Result<Option<Norm>, String> {
        let (full, epsilon) = (format!("{name}.weight"), self.config.epsilon);
        let Some(mut weight) = self.floats(&full)? else {
            return Ok(None);
        };
        if weight.len() != width {
            return Err(format!("`{full}` does not have {width} elements"));
        }
        weight
            .iter_mut()
            .for_each(|weight| *weight += self.config.norm_shift);
        if !self.config.has_layer_norm {
            return Ok(Some(Norm::Rms { weight, epsilon }));
        }
        let bias = self
            .floats(&format!("{name}.bias"))?
            .filter(|bias| bias.len() == width);
        let bias = bias.ok_or_else(|| format!("`{name}.bias` is missing or not of {width} elements"))?;
        Ok(Some(Norm::Layer {
            weight,
            bias,
            epsilon,
        }))
    }

    fn needed_norm(&self, name: &str) -> Result<Option<Norm>, String> {
        let norm = self.norm(name, self.config.width)?;
        let norm = norm.ok_or_else(|| format!("the tensor `{name}.weight` is missing"))?;
        Ok(Some(norm))
    }

    fn norms(&self, layer: &str, [before, inside, after]: [&str; 3]) -> Result<Norms, String> {
        let norm = |part: &str| self.needed_norm(&format!("{layer}.{part}"));
        let mut norms = Norms::default();
        match self.config.order {
            Order::Before => norms.before = norm(before)?,
            Order::Around => (norms.before, norms.inside) = (norm(before)?, norm(inside)?),
            Order::After => norms.after = norm(after)?,
        }
        Ok(norms)
    }

    fn layer(&mut self, index: usize) -> Result<Layer, String> {
        let Config {
            width,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self.config;
        let layer = format!("blk.{index}");
        let name = |part: &str| format!("{layer}.{part}");
        let up_name = name("ffn_up");
        let feed = self.need(&format!("{up_name}.weight"))?.rows;
        let (query, key) = (heads * head_dim, kv_heads * head_dim);
        let has_gate = self.source.tensor(&name("ffn_gate.weight"))?.is_some();
        Ok(Layer {
            attention: self.norms(&layer, ["attn_norm", "post_attention_norm", "attn_output_norm"])?,
            query: self.linear(&name("attn_q"), (query, width))?,
            key: self.linear(&name("attn_k"), (key, width))?,
            value: self.linear(&name("attn_v"), (key, width))?,
            query_norm: self.norm(&name("attn_q_norm"), head_dim)?,
            key_norm: self.norm(&name("attn_k_norm"), head_dim)?,
            output: self.linear(&name("attn_output"), (width, query))?,
            feed: self.norms(&layer, ["ffn_norm", "post_ffw_norm", "layer_output_norm"])?,
            gate: has_gate
                .then(|| self.matrix(&name("ffn_gate.weight"), (feed, width)))
                .transpose()?,
            up: self.linear(&up_name, (feed, width))?,
            down: self.linear(&name("ffn_down"), (width, feed))?,
        })
    }
}

impl Weights {
    /// How keys and values are kept beside such weights.
    pub(super) fn cache_kind(&self) -> KvKind {
        if self.is_float { KvKind::F32 } else { KvKind::F16 }
    }

    pub(super) fn load(
        (source, config): (&Source, &Config),
        (pool, weights): (&mut Pool, Use),
        progress: &Progress,
    ) -> Result<Self, String> {
        progress.begin(config.layers + 1);
        let mut loader = Loader {
            source,
            config,
            pool,
            weights,
            bytes: 0,
            is_float: true,
        };
        let layers = (0..config.layers)
            .map(|index| {
                let layer = loader.layer(index);
                progress.step();
                layer
            })
            .collect::<Result<Vec<_>, _>>()?;
        let kinds = loader.floats("token_types.weight")?;
        let entry = Entry {
            positions: loader.floats("position_embd.weight")?,
            kind: kinds.map(|kinds| kinds[..config.width.min(kinds.len())].to_vec()),
            norm: loader.norm("token_embd_norm", config.width)?,
        };
        let vocabulary = loader.need("token_embd.weight")?.rows;
        let is_tied = source.tensor("output.weight")?.is_none();
        let output = match (config.order, is_tied) {
            (Order::After, _) => None,
            (_, true) => Some(loader.matrix("token_embd.weight", (vocabulary, config.width))?),
            (_, false) => Some(loader.matrix("output.weight", (vocabulary, config.width))?),
        };
        let final_norm = loader.norm("output_norm", config.width)?;
        Ok(Self {
            entry,
            layers,
            final_norm,
            output,
            bytes: loader.bytes,
            is_float: loader.is_float,
        })
    }
}
