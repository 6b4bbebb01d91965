//! The forward pass on a GPU.
//!
//! **Never run on a GPU yet**: tested on the CPU through the kernels' SIMT shim, on small models against the CPU's own pass.
//!
//! Owns: the order of launches, the graphs, how a step is cut into what there is room for. Refuses to know: launches
//! themselves, containers, sampling's settings. Single tokens and prompts take different attention kernels and large multiplies
//! other ways than small ones, so with [`Precision::Fast`] a token's last bits may depend on its company; with
//! [`Precision::Invariant`] they do not.

mod load;
mod room;
mod synthetic;

use super::arch::Config;
use crate::backend::{AllocateError, BLOCK_TOKENS, Backend, Draw, ModelInfo, Output, Row, StepEnd, Want};
use kernels::Activation;
use kernels::cuda::{
    Buffer, CudaError, Driver, Emit, Form, Gate, Glu, GraphId, KvPages, Matrix, Norm, Ops, Place, Precision,
    QkvExtras, Sampling, Singles, Span, Steps, Then,
};
use room::Room;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use room::Capacity;
pub use synthetic::{SyntheticModel, UnknownModel};

/// Matrices that take the same activations, with the place of each one's products.
struct Stack {
    parts: Vec<(Matrix, usize)>,
    rows: usize,
}

struct Layer {
    attention_norm: Buffer<f32>,
    qkv: Stack,
    bias: Option<Buffer<f32>>,
    query_norm: Option<Buffer<f32>>,
    key_norm: Option<Buffer<f32>>,
    output: Stack,
    /// On attention's output before it is added, where the architecture has it.
    after_attention: Option<Buffer<f32>>,
    feed_norm: Buffer<f32>,
    gate_up: Stack,
    down: Stack,
    after_feed: Option<Buffer<f32>>,
}

/// Weights on the device.
struct Weights {
    layers: Vec<Layer>,
    embedding: Stack,
    /// None: the embedding's.
    output: Option<Stack>,
    final_norm: Buffer<f32>,
    /// Bytes that a token reads.
    bytes: usize,
}

/// How far a shape of step has come: the first time it is launched kernel by kernel (which also loads them), the second time
/// recorded, from then on replayed.
#[derive(Clone, Copy)]
enum Graph {
    Seen,
    Recorded(GraphId),
}

/// A model on a device.
pub struct Model {
    info: ModelInfo,
    config: Config,
    ops: Ops,
    weights: Weights,
    /// Angle per position of each pair: of layers that see everything, and of those that see a window.
    frequencies: [Vec<f32>; 2],
    asked: Capacity,
    /// What there is room for of what was asked.
    capacity: Capacity,
    room: Option<Room>,
    /// By tokens and splits.
    graphs: HashMap<(usize, usize), Graph>,
}

/// A part of a step that there is room for.
#[derive(Default)]
struct Piece<'a> {
    steps: Vec<Steps<'a>>,
    /// Of the steps that have logits, what is done with them.
    wants: Vec<Want>,
}

/// Sizes that steps of single tokens are padded to, so that few graphs serve all.
const BUCKETS: [usize; 13] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];

impl Model {
    fn gate(&self) -> Gate {
        if self.config.activation == Activation::Silu {
            Gate::Silu
        } else {
            Gate::GeluTanh
        }
    }

    /// Cuts rows into pieces that fit; a row may be cut, then its last part alone wants something.
    fn pieces<'a>(&self, rows: &[Row<'a>]) -> Vec<Piece<'a>> {
        let (mut pieces, mut left) = (Vec::new(), 0);
        let singles_left = |piece: &Piece<'_>| self.capacity.sequences > piece.steps.len();
        for row in rows {
            let mut at = 0;
            while at < row.tokens.len() {
                if left == 0 || !pieces.last().is_some_and(singles_left) {
                    pieces.push(Piece::default());
                    left = self.capacity.tokens;
                }
                let count = left.min(row.tokens.len() - at);
                let is_last = at + count == row.tokens.len();
                let want = Some(row.wants).filter(|want| is_last && *want != Want::Nothing);
                let step = Steps {
                    tokens: &row.tokens[at..at + count],
                    first: row.first + at,
                    blocks: row.blocks,
                    wants_logits: want.is_some(),
                };
                if let Some(piece) = pieces.last_mut() {
                    piece.steps.push(step);
                    piece.wants.extend(want);
                }
                at += count;
                left -= count;
            }
        }
        pieces
    }

    fn run(
        &mut self,
        rows: &[Row<'_>],
        abort: &AtomicBool,
        output: &mut Output,
    ) -> Result<StepEnd, CudaError> {
        for mut piece in self.pieces(rows) {
            let is_single = piece
                .steps
                .iter()
                .all(|step| step.tokens.len() == 1 && step.wants_logits);
            let trash = [self.trash()];
            if is_single {
                let count = piece.steps.len();
                let bucket = BUCKETS
                    .into_iter()
                    .find(|bucket| *bucket >= count)
                    .unwrap_or(count);
                let padding = Steps {
                    tokens: &[0],
                    first: 0,
                    blocks: &trash,
                    wants_logits: true,
                };
                piece
                    .steps
                    .resize(bucket.min(self.capacity.sequences).max(count), padding);
            }
            let singles = match self.ops.precision() {
                Precision::Fast => Singles::Lone,
                Precision::Invariant => Singles::All,
            };
            self.room()?.batch.write(&piece.steps, singles)?;
            if is_single {
                self.replay()?;
            } else if self.forward(abort)? == StepEnd::Aborted {
                return Ok(StepEnd::Aborted);
            }
            self.give(&piece.wants, output)?;
        }
        self.ops.driver().synchronize()?;
        Ok(StepEnd::Done)
    }

    /// What the rows of the logits on the device are wanted for: tokens are drawn there, only others come here.
    fn give(&mut self, wants: &[Want], output: &mut Output) -> Result<(), CudaError> {
        let vocabulary = self.info.vocabulary;
        let (ops, room) = (self.ops.clone(), self.room()?);
        if wants.iter().any(|want| matches!(want, Want::Token(_))) {
            // With the likeliest as if it were wanted of the others: their logits stay as they are.
            let draws = wants.iter().map(|want| match want {
                Want::Token(draw) => *draw,
                Want::Nothing | Want::Logits => Draw::default(),
            });
            room.sampling.set(&draws.collect::<Vec<_>>())?;
            ops.sample(&mut room.logits, &room.sampling, &mut room.chosen)?;
            let chosen = room.chosen.read(wants.len())?;
            let drawn = chosen
                .iter()
                .zip(wants)
                .filter(|(_, want)| **want != Want::Logits);
            output.tokens.extend(drawn.map(|(token, _)| *token));
        }
        let mut row = 0;
        for alike in wants.chunk_by(|a, b| (*a == Want::Logits) == (*b == Want::Logits)) {
            if alike[0] == Want::Logits {
                let start = output.logits.len();
                output.logits.resize(start + alike.len() * vocabulary, 0.0);
                room.logits
                    .read_from(row * vocabulary, &mut output.logits[start..])?;
            }
            row += alike.len();
        }
        Ok(())
    }

    /// The block that padding writes to: one more than was asked for.
    fn trash(&self) -> u32 {
        self.room
            .as_ref()
            .map_or(0, |room| room.batch.limits().blocks - 1) as u32
    }

    fn room(&mut self) -> Result<&mut Room, CudaError> {
        self.room
            .as_mut()
            .ok_or_else(|| CudaError::Shape("no KV cache was allocated".into()))
    }

    /// Computes the batch of single tokens as written, by a graph once its shape is known.
    fn replay(&mut self) -> Result<(), CudaError> {
        let batch = &self.room()?.batch;
        let key = (batch.count(), batch.splits());
        let never = AtomicBool::new(false);
        match self.graphs.get(&key).copied() {
            None => {
                self.forward(&never)?;
                self.graphs.insert(key, Graph::Seen);
                Ok(())
            }
            Some(Graph::Seen) => {
                self.ops.driver().record()?;
                let launched = self.forward(&never);
                // The recording is ended whether or not the launches were taken.
                let graph = self.ops.driver().recorded();
                launched?;
                let graph = graph?;
                self.graphs.insert(key, Graph::Recorded(graph));
                self.launch_graph(key, graph)
            }
            Some(Graph::Recorded(graph)) => self.launch_graph(key, graph),
        }
    }

    fn launch_graph(&mut self, key: (usize, usize), graph: GraphId) -> Result<(), CudaError> {
        if !self.ops.driver().replay(graph)? {
            // Memory was freed since, by whomever: it is recorded again.
            self.graphs.insert(key, Graph::Seen);
            self.replay()?;
        }
        Ok(())
    }

    /// Launches the whole pass over the batch as written, up to the logits.
    fn forward(&mut self, abort: &AtomicBool) -> Result<StepEnd, CudaError> {
        let Some(mut room) = self.room.take() else {
            return Err(CudaError::Shape("no KV cache was allocated".into()));
        };
        let done = self.layers(&mut room, abort);
        self.room = Some(room);
        done
    }

    fn layers(&self, room: &mut Room, abort: &AtomicBool) -> Result<StepEnd, CudaError> {
        let embedding = &self.weights.embedding.parts[0].0;
        self.ops
            .embed(embedding, &room.batch, self.config.embedding_scale, &mut room.x)?;
        for index in 0..self.weights.layers.len() {
            if abort.load(Ordering::Relaxed) {
                self.ops.driver().synchronize()?;
                return Ok(StepEnd::Aborted);
            }
            self.attention(index, room)?;
            self.feed(index, room)?;
        }
        self.head(room)?;
        Ok(StepEnd::Done)
    }

    /// Normed `x` in every form that a stack's matrices take.
    fn enter(
        &self,
        room: &mut Room,
        norm: &Buffer<f32>,
        (stack, emit): (&Stack, Wanted),
    ) -> Result<(), CudaError> {
        let tokens = match emit {
            Wanted::All => room.batch.count(),
            Wanted::Last => room.batch.wanted(),
        };
        for form in stack.forms(&self.ops, tokens) {
            let emit = match emit {
                Wanted::All => Emit::All,
                Wanted::Last => Emit::Wanted(&room.batch),
            };
            let norm = Norm {
                x: &room.x,
                weight: Some(norm),
                columns: self.config.width,
                tokens,
                epsilon: self.config.epsilon,
            };
            self.ops.norm(&norm, emit, form, &mut room.input)?;
        }
        Ok(())
    }

    fn attention(&self, index: usize, room: &mut Room) -> Result<(), CudaError> {
        let (layer, config) = (&self.weights.layers[index], &self.config);
        self.enter(room, &layer.attention_norm, (&layer.qkv, Wanted::All))?;
        layer
            .qkv
            .multiply(&self.ops, &room.input, &mut room.qkv, &mut room.scratch)?;
        let is_local = usize::from(config.is_local[index]);
        let extras = QkvExtras {
            bias: layer.bias.as_ref(),
            q_norm: layer.query_norm.as_ref(),
            k_norm: layer.key_norm.as_ref(),
            angles: &room.angles[is_local],
            pairs: config.pairs,
            epsilon: config.epsilon,
        };
        let span = Span {
            window: if is_local == 1 { config.window } else { 0 },
            scale: config.attention_scale,
        };
        let pages: &mut KvPages = &mut room.caches[index];
        self.ops
            .rope_store(&room.qkv, &extras, &room.batch, (pages, &mut room.work))?;
        self.ops
            .attend(&room.batch, &span, (pages, &mut room.work), &mut room.attended)?;
        let tokens = room.batch.count();
        for form in layer.output.forms(&self.ops, tokens) {
            let plain = Norm {
                x: &room.attended,
                weight: None,
                columns: config.heads * config.head_dim,
                tokens,
                epsilon: config.epsilon,
            };
            self.ops.norm(&plain, Emit::All, form, &mut room.input)?;
        }
        self.leave(
            room,
            &layer.output,
            (Taken::Input, layer.after_attention.as_ref()),
        )
    }

    fn feed(&self, index: usize, room: &mut Room) -> Result<(), CudaError> {
        let layer = &self.weights.layers[index];
        self.enter(room, &layer.feed_norm, (&layer.gate_up, Wanted::All))?;
        layer
            .gate_up
            .multiply(&self.ops, &room.input, &mut room.gate_up, &mut room.scratch)?;
        let tokens = room.batch.count();
        for form in layer.down.forms(&self.ops, tokens) {
            let glu = Glu {
                gate_up: &room.gate_up,
                columns: layer.gate_up.rows / 2,
                tokens,
                gate: self.gate(),
            };
            self.ops.glu(&glu, form, &mut room.hidden)?;
        }
        self.leave(room, &layer.down, (Taken::Hidden, layer.after_feed.as_ref()))
    }

    /// Adds a half's products to the residual, normed first where the architecture has it.
    fn leave(
        &self,
        room: &mut Room,
        stack: &Stack,
        (taken, norm): (Taken, Option<&Buffer<f32>>),
    ) -> Result<(), CudaError> {
        let input = match taken {
            Taken::Input => &room.input,
            Taken::Hidden => &room.hidden,
        };
        let matrix = &stack.parts[0].0;
        let place = |then| Place {
            offset: 0,
            stride: self.config.width,
            then,
        };
        let Some(norm) = norm else {
            let to = (&mut room.x, place(Then::Add));
            return self.ops.multiply(matrix, input, to, &mut room.scratch);
        };
        let to = (&mut room.result, place(Then::Replace));
        self.ops.multiply(matrix, input, to, &mut room.scratch)?;
        let norm = Norm {
            x: &room.result,
            weight: Some(norm),
            columns: self.config.width,
            tokens: room.batch.count(),
            epsilon: self.config.epsilon,
        };
        self.ops.norm_add(&norm, &mut room.x)
    }

    fn head(&self, room: &mut Room) -> Result<(), CudaError> {
        if room.batch.wanted() == 0 {
            return Ok(());
        }
        let stack = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
        self.enter(room, &self.weights.final_norm, (stack, Wanted::Last))?;
        stack.multiply(&self.ops, &room.input, &mut room.logits, &mut room.scratch)
    }

    /// Bytes that a token of a batch of one reads: the weights, without an embedding that is only looked up in.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes
    }

    /// Floating-point operations that a prompt's token takes, without attention and the logits, which only the last asks for.
    #[must_use]
    pub fn operations_per_token(&self) -> f64 {
        let matrix = |(matrix, _): &(Matrix, usize)| (matrix.rows() * matrix.columns()) as f64;
        let stack = |stack: &Stack| stack.parts.iter().map(matrix).sum::<f64>();
        let layers = self.weights.layers.iter().map(|layer| {
            stack(&layer.qkv) + stack(&layer.output) + stack(&layer.gate_up) + stack(&layer.down)
        });
        2.0 * layers.sum::<f64>()
    }

    /// Generates `count` tokens for each of `sequences` alike prompts of one token, with the likeliest taken on the device and no
    /// look at them between: the speed of decoding itself. Needs a cache of `sequences` times `count` positions.
    ///
    /// # Errors
    /// There is no room, or the device refuses.
    pub fn generate(&mut self, sequences: usize, count: usize) -> Result<Vec<u32>, CudaError> {
        let per = count.div_ceil(BLOCK_TOKENS).max(1);
        let tables: Vec<Vec<u32>> = (0..sequences)
            .map(|sequence| (0..per).map(|block| (sequence * per + block) as u32).collect())
            .collect();
        let steps: Vec<Steps<'_>> = tables
            .iter()
            .map(|blocks| Steps {
                tokens: &[1],
                first: 0,
                blocks,
                wants_logits: true,
            })
            .collect();
        let vocabulary = self.info.vocabulary;
        let mut sampling = Sampling::new(self.ops.driver(), sequences, vocabulary)?;
        sampling.set(&vec![Draw::default(); sequences])?;
        self.room()?.batch.write(&steps, Singles::Lone)?;
        for step in 0..count {
            self.replay()?;
            let ops = self.ops.clone();
            let room = self.room()?;
            ops.sample_next(&mut room.logits, &sampling, &mut room.batch)?;
            if step + 1 < count {
                ops.advance(&mut room.batch, &mut sampling)?;
            }
        }
        let room = self.room()?;
        room.batch.chosen(sequences)
    }

    /// The device's facts.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        self.ops.driver()
    }

    /// Cache blocks that fit into what memory is free, leaving a tenth.
    #[must_use]
    pub fn blocks_that_fit(&self) -> usize {
        let free = self.ops.driver().facts().free_bytes / 10 * 9;
        let room = Room::bytes(&self.config, self.info.vocabulary, &self.capacity) as u64;
        usize::try_from(free.saturating_sub(room)).unwrap_or(usize::MAX) / self.info.block_bytes().max(1)
    }
}

/// Which rows a norm is taken of.
#[derive(Clone, Copy)]
enum Wanted {
    All,
    Last,
}

/// Which activations a half ends with.
#[derive(Clone, Copy)]
enum Taken {
    Input,
    Hidden,
}

impl Stack {
    /// The forms that its matrices take, each once.
    fn forms(&self, ops: &Ops, tokens: usize) -> Vec<Form> {
        [Form::Q8, Form::Bf16]
            .into_iter()
            .filter(|form| {
                self.parts
                    .iter()
                    .any(|(matrix, _)| matrix.form(ops, tokens) == *form)
            })
            .collect()
    }

    fn multiply(
        &self,
        ops: &Ops,
        input: &kernels::cuda::Activations,
        out: &mut Buffer<f32>,
        scratch: &mut kernels::cuda::Scratch,
    ) -> Result<(), CudaError> {
        for (matrix, offset) in &self.parts {
            let place = Place {
                offset: *offset,
                stride: self.rows,
                then: Then::Replace,
            };
            ops.multiply(matrix, input, (out, place), scratch)?;
        }
        Ok(())
    }
}

impl Backend for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate(&mut self, blocks: usize) -> Result<(), AllocateError> {
        self.graphs.clear();
        // What was there goes first.
        self.room = None;
        let sizes = (&self.config, &self.info);
        let capacity = room::fitted(self.asked, &self.config, blocks);
        self.capacity = capacity;
        let room = Room::new(&self.ops, sizes, blocks, (&self.frequencies, &capacity));
        match room {
            Ok(room) => {
                self.room = Some(room);
                Ok(())
            }
            Err(_) => Err(AllocateError::OutOfMemory {
                blocks,
                bytes: blocks * self.info.block_bytes(),
            }),
        }
    }

    #[expect(
        clippy::panic,
        reason = "after an error a card can do nothing more in this process: the engine's thread ends and its health says so"
    )]
    fn step(&mut self, rows: &[Row<'_>], abort: &AtomicBool, output: &mut Output) -> StepEnd {
        output.logits.clear();
        output.tokens.clear();
        match self.run(rows, abort, output) {
            Ok(StepEnd::Done) => StepEnd::Done,
            Ok(ended) => {
                output.logits.clear();
                output.tokens.clear();
                ended
            }
            Err(error) => panic!("{error}"),
        }
    }
}
