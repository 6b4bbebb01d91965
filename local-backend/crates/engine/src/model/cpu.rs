//! One forward pass for every architecture, on the CPU, over paged keys and values.
//!
//! Owns: the order of operations, and the memory they work in. Refuses to know: containers, sampling, who asks. Threads
//! meet five times a layer: after the products of queries, keys and values, after attention, after its output, after the
//! two halves of the feed-forward layer.

use super::Use;
use super::arch::{Config, Pooling};
use super::progress::Progress;
use super::source::Source;
use super::weights::{Layer, Linear, Norms, Weights};
use crate::backend::{AllocateError, BLOCK_TOKENS, Backend, ModelInfo, Output, Row, StepEnd, Want};
use kernels::{
    Activations, Feed, Heads, KvCache, KvKind, KvShape, Matrix, Mode, Norm, Part, Pool, Queries, Slot,
    attend, feed, multiply, rotate,
};
use std::sync::atomic::{AtomicBool, Ordering};

/// How a model is to run.
pub(super) struct Settings {
    pub(super) threads: usize,
    pub(super) weights: Use,
    /// How keys and values are kept; `None`: as suits the weights.
    pub(super) kv: Option<KvKind>,
}

pub(super) struct Model {
    info: ModelInfo,
    config: Config,
    weights: Weights,
    /// Keeps the tokens' embeddings, which are read where they lie.
    source: Source,
    pool: Pool,
    shape: KvShape,
    /// One per layer.
    caches: Vec<KvCache>,
    /// Angle per position of each pair: of layers that see everything, and of those that see a window.
    frequencies: [Vec<f32>; 2],
    memory: Memory,
    suspended: Suspended,
}

/// Where the last step that was suspended stood: the layer before which it stopped, and the residual there. Everything else
/// between two layers is in the cache.
#[derive(Default)]
struct Suspended {
    layer: Option<usize>,
    x: Vec<f32>,
}

/// What a step works in; kept, since fresh memory costs more than the work in it.
#[derive(Default)]
struct Memory {
    /// Tokens by width: the residual.
    x: Vec<f32>,
    /// What a half of a layer begins with.
    input: Activations,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Activations,
    hidden: Activations,
    /// A half's result, where it is normed before it is added.
    result: Vec<f32>,
    /// Cosines and sines, tokens by pairs, of both kinds of layers.
    angles: [(Vec<f32>, Vec<f32>); 2],
}

/// The sequences of a step, as attention and the cache see them.
struct Places<'a> {
    queries: Vec<Queries<'a>>,
    slots: Vec<Slot>,
    /// Of each token.
    positions: Vec<usize>,
}

impl<'a> Places<'a> {
    fn of(rows: &[Row<'a>]) -> Self {
        Self::new(rows.iter().map(|row| (row.blocks, row.first, row.tokens.len())))
    }

    fn new(parts: impl Iterator<Item = (&'a [u32], usize, usize)>) -> Self {
        let (mut queries, mut slots, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for (blocks, first, count) in parts {
            let start = positions.len();
            for position in first..first + count {
                positions.push(position);
                slots.push(Slot {
                    block: blocks[position / BLOCK_TOKENS],
                    offset: (position % BLOCK_TOKENS) as u32,
                });
            }
            queries.push(Queries {
                blocks,
                first,
                count,
                start,
            });
        }
        Self {
            queries,
            slots,
            positions,
        }
    }
}

impl Model {
    /// `info` names the model; sizes are filled in here.
    pub(super) fn new(
        source: Source,
        mut info: ModelInfo,
        (settings, progress): (Settings, &Progress),
    ) -> Result<Self, String> {
        let mut pool = Pool::new(settings.threads);
        let config = source.config()?;
        let weights = Weights::load((&source, &config), (&mut pool, settings.weights), progress)?;
        let vocabulary = source
            .tensor("token_embd.weight")?
            .map_or(0, |embedding| embedding.rows);
        let divisors = source.tensor("rope_freqs.weight")?.map(|rows| {
            let mut out = vec![0.0; rows.columns];
            rows.format.dequantize(rows.data, &mut out);
            out
        });
        let of_kind = |rope: Option<&super::arch::Rope>, divisors: Option<&[f32]>| {
            rope.map_or_else(Vec::new, |rope| config.frequencies(rope, divisors))
        };
        let frequencies = [
            of_kind(config.rope.as_ref(), divisors.as_deref()),
            of_kind(config.local_rope.as_ref(), None),
        ];
        info.architecture.clone_from(&config.architecture);
        info.context_tokens = config.context;
        info.vocabulary = vocabulary;
        info.layers = config.layers;
        info.kv_heads = config.kv_heads;
        info.head_dim = config.head_dim;
        info.bytes = weights.bytes as u64;
        info.embedding_width = config.width;
        info.embeds = config.pooling.is_some();
        info.generates = weights.output.is_some();
        let kind = settings.kv.unwrap_or(weights.cache_kind());
        let shape = KvShape {
            kind,
            heads: config.kv_heads,
            dim: config.head_dim,
        };
        info.kv_bytes = kind.bytes();
        info.kv_scale_bytes = kind.scale_bytes();
        Ok(Self {
            info,
            config,
            weights,
            source,
            pool,
            shape,
            caches: Vec::new(),
            frequencies,
            memory: Memory::default(),
            suspended: Suspended::default(),
        })
    }

    /// The residual before the first layer.
    fn enter(&mut self, tokens: impl Iterator<Item = u32>, places: &Places<'_>) {
        let (width, scale) = (self.config.width, self.config.embedding_scale);
        self.memory.x.resize(places.positions.len() * width, 0.0);
        let Ok(Some(embedding)) = self.source.tensor("token_embd.weight") else {
            return;
        };
        let (bytes, entry) = (embedding.format.row_bytes(width), &self.weights.entry);
        for ((token, position), out) in tokens
            .zip(&places.positions)
            .zip(self.memory.x.chunks_exact_mut(width))
        {
            let start = token as usize * bytes;
            embedding
                .format
                .dequantize(&embedding.data[start..start + bytes], out);
            if scale != 1.0 {
                out.iter_mut().for_each(|value| *value *= scale);
            }
            let more = entry.positions.as_ref().map(|all| &all[position * width..]);
            for more in more.into_iter().chain(entry.kind.as_deref()) {
                out.iter_mut().zip(more).for_each(|(out, more)| *out += more);
            }
        }
        if let Some(norm) = &entry.norm {
            norm.apply_each(&mut self.memory.x);
        }
    }

    /// Cosines and sines of the step's positions.
    fn turn(&mut self, positions: &[usize]) {
        for (frequencies, (cosines, sines)) in self.frequencies.iter().zip(&mut self.memory.angles) {
            cosines.clear();
            sines.clear();
            for position in positions {
                for frequency in frequencies {
                    let (sine, cosine) = (*position as f32 * frequency).sin_cos();
                    cosines.push(cosine);
                    sines.push(sine);
                }
            }
        }
    }

    fn layer(&mut self, index: usize, cache: usize, places: &Places<'_>) {
        let (config, memory, pool) = (&self.config, &mut self.memory, &mut self.pool);
        let layer = &self.weights.layers[index];
        let tokens = places.positions.len();
        begin(
            pool,
            &layer.attention,
            &layer.query.matrix,
            (&memory.x, &mut memory.input),
        );
        memory.query.resize(tokens * layer.query.matrix.rows(), 0.0);
        memory.key.resize(tokens * layer.key.matrix.rows(), 0.0);
        memory.value.resize(tokens * layer.value.matrix.rows(), 0.0);
        multiply(
            pool,
            &memory.input,
            &mut [
                part(&layer.query, &mut memory.query, Mode::Set),
                part(&layer.key, &mut memory.key, Mode::Set),
                part(&layer.value, &mut memory.value, Mode::Set),
            ],
        );
        let angles = &memory.angles[usize::from(config.is_local[index])];
        for (heads, norm, linear) in [
            (&mut memory.query, &layer.query_norm, &layer.query),
            (&mut memory.key, &layer.key_norm, &layer.key),
        ] {
            place(
                pool,
                (heads, linear.matrix.rows()),
                norm.as_ref(),
                (config, angles),
            );
        }
        let cache = &mut self.caches[cache];
        cache.store(pool, &places.slots, (&memory.key, &memory.value));
        let heads = Heads {
            count: config.heads,
            scale: config.attention_scale,
            reach: config.reach(index),
        };
        let output = &layer.output;
        memory
            .attended
            .reset(tokens, output.matrix.columns(), output.matrix.precision());
        attend(
            pool,
            cache,
            &places.queries,
            (&heads, &memory.query),
            &mut memory.attended,
        );
        finish(
            pool,
            &layer.attention,
            (output, &memory.attended),
            (&mut memory.x, &mut memory.result),
        );
        self.feed(index, tokens);
    }

    /// The second half of a layer.
    fn feed(&mut self, index: usize, tokens: usize) {
        let (config, memory, pool) = (&self.config, &mut self.memory, &mut self.pool);
        let layer: &Layer = &self.weights.layers[index];
        begin(
            pool,
            &layer.feed,
            &layer.up.matrix,
            (&memory.x, &mut memory.input),
        );
        let (up, down) = (&layer.up, &layer.down);
        memory
            .hidden
            .reset(tokens, up.matrix.rows(), down.matrix.precision());
        let first = Feed {
            gate: layer.gate.as_ref(),
            up: &up.matrix,
            bias: up.bias.as_deref(),
            activation: config.activation,
        };
        feed(pool, &memory.input, &first, &mut memory.hidden);
        finish(
            pool,
            &layer.feed,
            (down, &memory.hidden),
            (&mut memory.x, &mut memory.result),
        );
    }

    /// The layers over the step's tokens, whose keys and values go to their own layer's cache, or all to the first. Answers
    /// with the layer before which it was stopped.
    fn forward(
        &mut self,
        places: &Places<'_>,
        (from, has_caches): (usize, bool),
        abort: &AtomicBool,
    ) -> Result<(), usize> {
        self.turn(&places.positions);
        for index in from..self.weights.layers.len() {
            if abort.load(Ordering::Relaxed) {
                return Err(index);
            }
            self.layer(index, if has_caches { index } else { 0 }, places);
        }
        Ok(())
    }

    /// What is left of a step whose residual before layer `from` is there.
    fn go_on(
        &mut self,
        (rows, places): (&[Row<'_>], &Places<'_>),
        from: usize,
        abort: &AtomicBool,
        output: &mut Output,
    ) -> StepEnd {
        output.tokens.clear();
        match self.forward(places, (from, true), abort) {
            Ok(()) if rows.iter().any(|row| row.wants == Want::Logits) => {
                self.head(rows, &mut output.logits);
                StepEnd::Done
            }
            Ok(()) => {
                output.logits.clear();
                StepEnd::Done
            }
            Err(layer) => {
                output.logits.clear();
                self.suspended.layer = Some(layer);
                std::mem::swap(&mut self.suspended.x, &mut self.memory.x);
                StepEnd::Suspended
            }
        }
    }

    /// Logits for the last token of every row that wants them.
    fn head(&mut self, rows: &[Row<'_>], logits: &mut Vec<f32>) {
        let (width, memory, pool) = (self.config.width, &mut self.memory, &mut self.pool);
        let Some(output) = &self.weights.output else {
            return;
        };
        let mut wanted = Vec::new();
        let mut end = 0;
        for row in rows {
            end += row.tokens.len();
            if row.wants == Want::Logits {
                wanted.push(end - 1);
            }
        }
        memory.input.reset(wanted.len(), width, output.precision());
        let (x, norm) = (&memory.x, self.weights.final_norm.as_ref());
        memory.input.fill(pool, &|row, out| {
            let x = &x[wanted[row] * width..(wanted[row] + 1) * width];
            match norm {
                Some(norm) => norm.apply(x, out),
                None => out.copy_from_slice(x),
            }
        });
        // What was there is overwritten, so that it need not be cleared.
        logits.resize(wanted.len() * self.info.vocabulary, 0.0);
        let whole = Part {
            matrix: output,
            bias: None,
            out: logits,
            mode: Mode::Set,
        };
        multiply(pool, &memory.input, &mut [whole]);
        if let Some(cap) = self.config.logit_cap {
            logits
                .iter_mut()
                .for_each(|logit| *logit = (*logit / cap).tanh() * cap);
        }
    }

    /// One vector of length 1 for each sequence, appended to `out`.
    fn pool_sequences(&self, kind: Pooling, sequences: &[&[u32]], out: &mut Vec<f32>) {
        let (width, mut start) = (self.config.width, 0);
        for sequence in sequences {
            let mut rows = self.memory.x[start * width..(start + sequence.len()) * width].to_vec();
            start += sequence.len();
            if let Some(norm) = &self.weights.final_norm {
                norm.apply_each(&mut rows);
            }
            let mut vector = match kind {
                Pooling::First => rows[..width].to_vec(),
                Pooling::Last => rows[rows.len() - width..].to_vec(),
                Pooling::Mean => {
                    let mut mean = vec![0.0; width];
                    for row in rows.chunks_exact(width) {
                        mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value);
                    }
                    mean
                }
            };
            let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|value| *value /= length.max(1e-12));
            out.extend(vector);
        }
    }
}

fn part<'a>(linear: &'a Linear, out: &'a mut [f32], mode: Mode) -> Part<'a> {
    Part {
        matrix: &linear.matrix,
        bias: linear.bias.as_deref(),
        out,
        mode,
    }
}

/// What a half of a layer multiplies first.
fn begin(pool: &mut Pool, norms: &Norms, first: &Matrix, (x, input): (&[f32], &mut Activations)) {
    let width = first.columns();
    input.reset(x.len() / width, width, first.precision());
    input.fill(pool, &|token, out| {
        let x = &x[token * width..(token + 1) * width];
        match &norms.before {
            Some(norm) => norm.apply(x, out),
            None => out.copy_from_slice(x),
        }
    });
}

/// A half's last product, added to the residual.
fn finish(
    pool: &mut Pool,
    norms: &Norms,
    (last, input): (&Linear, &Activations),
    (x, result): (&mut [f32], &mut Vec<f32>),
) {
    let width = last.matrix.rows();
    match &norms.inside {
        None => multiply(pool, input, &mut [part(last, x, Mode::Add)]),
        Some(norm) => {
            result.resize(x.len(), 0.0);
            multiply(pool, input, &mut [part(last, result, Mode::Set)]);
            let result = &*result;
            pool.rows(x, width, &|token, x| {
                let mut normed = vec![0.0; width];
                norm.apply(&result[token * width..(token + 1) * width], &mut normed);
                x.iter_mut().zip(&normed).for_each(|(x, more)| *x += more);
            });
        }
    }
    if let Some(norm) = &norms.after {
        pool.rows(x, width, &|_, x| norm.apply_each(x));
    }
}

/// Norms each token's heads and turns them to their position.
fn place(
    pool: &mut Pool,
    (heads, width): (&mut [f32], usize),
    norm: Option<&Norm>,
    (config, (cosines, sines)): (&Config, &(Vec<f32>, Vec<f32>)),
) {
    let pairs = config.head_dim / 2;
    if norm.is_none() && cosines.is_empty() {
        return;
    }
    pool.rows(heads, width, &|token, heads| {
        if let Some(norm) = norm {
            norm.apply_each(heads);
        }
        if !cosines.is_empty() {
            let range = token * pairs..(token + 1) * pairs;
            rotate(heads, config.pairs, (&cosines[range.clone()], &sines[range]));
        }
    });
}

impl Backend for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate(&mut self, blocks: usize) -> Result<(), AllocateError> {
        self.caches.clear();
        for _ in 0..self.config.layers {
            match KvCache::new(self.shape, blocks) {
                Ok(cache) => self.caches.push(cache),
                Err(_) => {
                    self.caches.clear();
                    return Err(AllocateError::OutOfMemory {
                        blocks,
                        bytes: blocks * self.info.block_bytes(),
                    });
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, rows: &[Row<'_>], abort: &AtomicBool, output: &mut Output) -> StepEnd {
        let places = Places::of(rows);
        let tokens = rows.iter().flat_map(|row| row.tokens).copied();
        self.enter(tokens, &places);
        self.go_on((rows, &places), 0, abort, output)
    }

    fn resume(&mut self, rows: &[Row<'_>], abort: &AtomicBool, output: &mut Output) -> StepEnd {
        let Some(layer) = self.suspended.layer.take() else {
            return self.step(rows, abort, output);
        };
        std::mem::swap(&mut self.suspended.x, &mut self.memory.x);
        self.go_on((rows, &Places::of(rows)), layer, abort, output)
    }

    fn embed(&mut self, sequences: &[&[u32]], abort: &AtomicBool, out: &mut Vec<f32>) -> Option<StepEnd> {
        out.clear();
        let kind = self.config.pooling?;
        let mut next = 0;
        let tables: Vec<Vec<u32>> = sequences
            .iter()
            .map(|sequence| {
                let first = next;
                next += sequence.len().div_ceil(BLOCK_TOKENS) as u32;
                (first..next).collect()
            })
            .collect();
        // Nothing is looked at again after its layer, so that all layers can have one cache; a causal model's own are
        // left alone.
        let kept = std::mem::take(&mut self.caches);
        let shape = KvShape {
            kind: self.weights.cache_kind(),
            ..self.shape
        };
        let cache = KvCache::new(shape, next as usize).ok()?;
        self.caches.push(cache);
        let parts = tables.iter().zip(sequences);
        let places = Places::new(parts.map(|(table, sequence)| (table.as_slice(), 0, sequence.len())));
        self.enter(sequences.iter().copied().flatten().copied(), &places);
        let ended = self.forward(&places, (0, false), abort);
        self.caches = kept;
        if ended.is_err() {
            return Some(StepEnd::Aborted);
        }
        self.pool_sequences(kind, sequences, out);
        Some(StepEnd::Done)
    }
}
