//! The forward pass of a llama-like transformer on the CPU, over paged keys and values in f16.

use super::gguf::{Gguf, Weights};
use crate::backend::{AllocateError, BLOCK_TOKENS, Backend, ModelInfo, Row, StepEnd};
use half::f16;
use kernels::{Matrix, Pool, Quantized, attend, rms_norm, rope, silu_multiply};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

struct Layer {
    attention_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    feed_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// Sizes and constants of the architecture.
struct Shape {
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    epsilon: f32,
    /// Angle per position of each pair.
    frequencies: Vec<f32>,
}

pub(super) struct Model {
    info: ModelInfo,
    shape: Shape,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    output: Matrix,
    embedding: Weights,
    gguf: Gguf,
    pool: Pool,
    /// For each layer: keys, then values; a block holds its tokens' heads one after the other.
    cache: Vec<(Vec<u16>, Vec<u16>)>,
    blocks: usize,
}

/// One token of a step.
struct Place {
    row: usize,
    position: usize,
}

impl Model {
    pub(super) fn new(gguf: Gguf, path: &Path, threads: usize) -> Result<Self, String> {
        let architecture = gguf.text("general.architecture").unwrap_or_default();
        if architecture != "llama" {
            return Err(format!(
                "its architecture is `{architecture}`; this build runs `llama`"
            ));
        }
        let number = |key: &str| {
            gguf.number(&format!("{architecture}.{key}"))
                .ok_or_else(|| format!("`{architecture}.{key}` is missing"))
        };
        let (width, heads) = (
            number("embedding_length")? as usize,
            number("attention.head_count")? as usize,
        );
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads as f64) as usize;
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) || !width.is_multiple_of(heads) {
            return Err(format!(
                "{heads} heads of {kv_heads} key heads over {width} make no sense"
            ));
        }
        let head_dim = width / heads;
        let base = number("rope.freq_base").unwrap_or(10_000.0) as f32;
        let pairs = head_dim / 2;
        let frequencies = (0..pairs)
            .map(|pair| base.powf(-(pair as f32) / pairs as f32))
            .collect();
        let count = number("block_count")? as usize;
        let mut layers = Vec::with_capacity(count);
        for index in 0..count {
            layers.push(layer(&gguf, index)?);
        }
        let embedding = gguf.weights("token_embd.weight")?;
        let output = if gguf.has("output.weight") {
            gguf.weights("output.weight")?
        } else {
            gguf.weights("token_embd.weight")?
        };
        let output = matrix(&gguf, &output);
        let token = |key: &str| {
            gguf.number(&format!("tokenizer.ggml.{key}"))
                .map(|token| token as u32)
        };
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let sizes = |layer: &Layer| {
            [
                &layer.query,
                &layer.key,
                &layer.value,
                &layer.output,
                &layer.gate,
                &layer.up,
                &layer.down,
            ]
            .map(Matrix::bytes)
            .iter()
            .sum::<usize>()
        };
        let bytes = layers.iter().map(sizes).sum::<usize>() + output.bytes();
        let info = ModelInfo {
            name: gguf.text("general.name").or(stem).unwrap_or_default(),
            architecture: architecture.clone(),
            context_tokens: number("context_length")? as usize,
            vocabulary: embedding.rows,
            layers: count,
            kv_heads,
            head_dim,
            bytes: bytes as u64,
            bos: token("bos_token_id"),
            add_bos: gguf
                .number("tokenizer.ggml.add_bos_token")
                .is_some_and(|add| add != 0.0),
            eos: [token("eos_token_id"), token("eot_token_id")]
                .into_iter()
                .flatten()
                .collect(),
        };
        let epsilon = number("attention.layer_norm_rms_epsilon")? as f32;
        let shape = Shape {
            width,
            heads,
            kv_heads,
            head_dim,
            epsilon,
            frequencies,
        };
        let final_norm = gguf.floats("output_norm.weight")?;
        let (pool, cache) = (Pool::new(threads), Vec::new());
        Ok(Self {
            info,
            shape,
            layers,
            final_norm,
            output,
            embedding,
            gguf,
            pool,
            cache,
            blocks: 0,
        })
    }

    fn embed(&self, token: u32, out: &mut [f32]) {
        let bytes = self.embedding.columns / 32 * self.embedding.format.block_bytes();
        let start = self.embedding.range.start + token as usize * bytes;
        self.embedding
            .format
            .dequantize(&self.gguf.bytes()[start..start + bytes], out);
    }

    /// Keys and values of one layer for the step's tokens, rotated and put into the cache.
    fn store(&mut self, layer: usize, rows: &[Row<'_>], places: &[Place], (keys, values): (&[f32], &[f32])) {
        let width = self.shape.kv_heads * self.shape.head_dim;
        let (key_cache, value_cache) = &mut self.cache[layer];
        for (token, place) in places.iter().enumerate() {
            let block = rows[place.row].blocks[place.position / BLOCK_TOKENS] as usize;
            let start = (block * BLOCK_TOKENS + place.position % BLOCK_TOKENS) * width;
            for (cache, fresh) in [(&mut *key_cache, keys), (&mut *value_cache, values)] {
                let fresh = &fresh[token * width..(token + 1) * width];
                for (slot, value) in cache[start..start + width].iter_mut().zip(fresh) {
                    *slot = f16::from_f32(*value).to_bits();
                }
            }
        }
    }

    fn attention(&mut self, layer: usize, rows: &[Row<'_>], places: &[Place], query: &[f32]) -> Vec<f32> {
        let Shape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let width = kv_heads * head_dim;
        let mut out = vec![0.0; query.len()];
        let (keys, values) = &self.cache[layer];
        self.pool.chunks(&mut out, head_dim, &|index, out| {
            let (token, head) = (index / heads, index % heads);
            let (place, shared) = (&places[token], head / (heads / kv_heads));
            let blocks = rows[place.row].blocks;
            let cache = (0..=place.position).map(|position| {
                let block = blocks[position / BLOCK_TOKENS] as usize;
                let start = (block * BLOCK_TOKENS + position % BLOCK_TOKENS) * width + shared * head_dim;
                (&keys[start..start + head_dim], &values[start..start + head_dim])
            });
            attend(&query[index * head_dim..(index + 1) * head_dim], cache, out);
        });
        out
    }

    fn layer(&mut self, index: usize, rows: &[Row<'_>], places: &[Place], x: &mut [f32]) {
        let (tokens, width) = (places.len(), self.shape.width);
        let kv_width = self.shape.kv_heads * self.shape.head_dim;
        let layer = &self.layers[index];
        let mut normed = vec![0.0; x.len()];
        rms_norm(x, &layer.attention_norm, self.shape.epsilon, &mut normed);
        let input = Quantized::new(&normed, width);
        let (mut query, mut key, mut value) = (
            vec![0.0; x.len()],
            vec![0.0; tokens * kv_width],
            vec![0.0; tokens * kv_width],
        );
        layer.query.multiply(&mut self.pool, &input, &mut query);
        layer.key.multiply(&mut self.pool, &input, &mut key);
        layer.value.multiply(&mut self.pool, &input, &mut value);
        for (token, place) in places.iter().enumerate() {
            let angle = |frequency: &f32| (place.position as f32 * frequency).sin_cos();
            let angles: Vec<(f32, f32)> = self
                .shape
                .frequencies
                .iter()
                .map(|frequency| {
                    let (sine, cosine) = angle(frequency);
                    (cosine, sine)
                })
                .collect();
            rope(&mut query[token * width..(token + 1) * width], &angles);
            rope(&mut key[token * kv_width..(token + 1) * kv_width], &angles);
        }
        self.store(index, rows, places, (&key, &value));
        let attended = self.attention(index, rows, places, &query);
        let layer = &self.layers[index];
        layer
            .output
            .multiply(&mut self.pool, &Quantized::new(&attended, width), &mut normed);
        x.iter_mut().zip(&normed).for_each(|(x, more)| *x += more);
        rms_norm(x, &layer.feed_norm, self.shape.epsilon, &mut normed);
        let input = Quantized::new(&normed, width);
        let feed = layer.gate.rows();
        let (mut gate, mut up) = (vec![0.0; tokens * feed], vec![0.0; tokens * feed]);
        layer.gate.multiply(&mut self.pool, &input, &mut gate);
        layer.up.multiply(&mut self.pool, &input, &mut up);
        silu_multiply(&mut gate, &up);
        layer
            .down
            .multiply(&mut self.pool, &Quantized::new(&gate, feed), &mut normed);
        x.iter_mut().zip(&normed).for_each(|(x, more)| *x += more);
    }

    /// Logits for the last token of every row that wants them.
    fn head(&mut self, rows: &[Row<'_>], x: &[f32], logits: &mut Vec<f32>) {
        let width = self.shape.width;
        let (mut wanted, mut end) = (Vec::new(), 0);
        for row in rows {
            end += row.tokens.len();
            if row.wants_logits {
                wanted.extend_from_slice(&x[(end - 1) * width..end * width]);
            }
        }
        if wanted.is_empty() {
            return;
        }
        let mut normed = vec![0.0; wanted.len()];
        rms_norm(&wanted, &self.final_norm, self.shape.epsilon, &mut normed);
        logits.resize(wanted.len() / width * self.info.vocabulary, 0.0);
        self.output
            .multiply(&mut self.pool, &Quantized::new(&normed, width), logits);
    }
}

fn matrix(gguf: &Gguf, weights: &Weights) -> Matrix {
    Matrix::new(
        weights.format,
        &gguf.bytes()[weights.range.clone()],
        weights.rows,
        weights.columns,
    )
}

fn layer(gguf: &Gguf, index: usize) -> Result<Layer, String> {
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let weights = |part: &str| gguf.weights(&name(part)).map(|weights| matrix(gguf, &weights));
    Ok(Layer {
        attention_norm: gguf.floats(&name("attn_norm"))?,
        query: weights("attn_q")?,
        key: weights("attn_k")?,
        value: weights("attn_v")?,
        output: weights("attn_output")?,
        feed_norm: gguf.floats(&name("ffn_norm"))?,
        gate: weights("ffn_gate")?,
        up: weights("ffn_up")?,
        down: weights("ffn_down")?,
    })
}

impl Backend for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate(&mut self, blocks: usize) -> Result<(), AllocateError> {
        self.cache.clear();
        let length = blocks * BLOCK_TOKENS * self.shape.kv_heads * self.shape.head_dim;
        let bytes = blocks * self.info.block_bytes();
        let make = || -> Option<Vec<u16>> {
            let mut cache = Vec::new();
            cache.try_reserve_exact(length).ok()?;
            cache.resize(length, 0);
            Some(cache)
        };
        for _ in 0..self.info.layers {
            match (make(), make()) {
                (Some(keys), Some(values)) => self.cache.push((keys, values)),
                _ => {
                    self.cache.clear();
                    return Err(AllocateError::OutOfMemory { blocks, bytes });
                }
            }
        }
        self.blocks = blocks;
        Ok(())
    }

    fn step(&mut self, rows: &[Row<'_>], abort: &AtomicBool, logits: &mut Vec<f32>) -> StepEnd {
        logits.clear();
        let width = self.shape.width;
        let mut places = Vec::new();
        for (row, part) in rows.iter().enumerate() {
            places
                .extend((part.first..part.first + part.tokens.len()).map(|position| Place { row, position }));
        }
        let mut x = vec![0.0; places.len() * width];
        let tokens = rows.iter().flat_map(|row| row.tokens);
        for (token, out) in tokens.zip(x.chunks_exact_mut(width)) {
            Self::embed(self, *token, out);
        }
        for index in 0..self.layers.len() {
            if abort.load(Ordering::Relaxed) {
                return StepEnd::Aborted;
            }
            self.layer(index, rows, &places, &mut x);
        }
        self.head(rows, &x, logits);
        StepEnd::Done
    }
}
