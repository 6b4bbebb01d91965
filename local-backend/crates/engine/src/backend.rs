//! The seam between scheduling and numerics: what a forward pass is given, and what it gives back.
//! Knows nothing of requests, sampling or time. A step is a ragged batch: decode and prefill rows differ only
//! in length. Invariant: the logits of a row depend on its sequence alone, never on which rows share the step
//! or on how a prompt was cut into chunks, bit for bit.

pub use kernels::Draw;
use std::sync::atomic::AtomicBool;

/// Tokens held by one block of the KV cache.
pub const BLOCK_TOKENS: usize = kernels::BLOCK;

/// The part of one sequence that a step computes.
///
/// `blocks` must cover positions `0..first + tokens.len()`; the keys and values of positions below `first` must
/// have been computed into those blocks by earlier steps, or by rows of this one: a sequence may be cut into several rows
/// to have logits after each. Blocks that hold positions at or after `first` must belong to this sequence alone.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Token ids to compute, at least one, each below [`ModelInfo::vocabulary`].
    pub tokens: &'a [u32],
    /// Position of `tokens[0]` in its sequence.
    pub first: usize,
    /// The sequence's KV block table: block `i` holds positions `i * BLOCK_TOKENS..`.
    pub blocks: &'a [u32],
    /// What is asked for after the last token.
    pub wants: Want,
}

/// What is asked for after a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    Nothing,
    /// All of them, where the host has to look at them.
    Logits,
    /// A token drawn where the logits are. Only of a backend that says [`ModelInfo::draws`].
    Token(Draw),
}

/// What a step gives back, each kind in row order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// [`ModelInfo::vocabulary`] floats for each row that wants logits.
    pub logits: Vec<f32>,
    /// One for each row that wants a token.
    pub tokens: Vec<u32>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// Every row was computed.
    Done,
    /// The flag was seen between two layers: no logits, and the KV entries of this step's positions are undefined.
    Aborted,
    /// As aborted, but how far it came is kept, for [`Backend::resume`], until another step is suspended.
    Suspended,
}

/// Facts about a loaded model.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// Human name from the file, or the file's stem.
    pub name: String,
    /// The file format's own architecture word, as `llama`.
    pub architecture: String,
    /// Longest sequence the model was trained for.
    pub context_tokens: usize,
    /// Number of token ids, and of logits per row.
    pub vocabulary: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Key/value heads of each layer.
    pub kv_heads: usize,
    /// Floats in one head.
    pub head_dim: usize,
    /// Bytes of weights held in memory.
    pub bytes: u64,
    /// Token that opens a sequence, if the model has one.
    pub bos: Option<u32>,
    /// Whether `bos` is to be put before a plain (untemplated) prompt.
    pub add_bos: bool,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Whether [`Backend::step`] can be used: models of the BERT kind only embed.
    pub generates: bool,
    /// Whether rows may want a token; where not, they want logits, and the host draws the same one.
    pub draws: bool,
    /// Whether [`Backend::embed`] can be used.
    pub embeds: bool,
    /// Floats in an embedding.
    pub embedding_width: usize,
    /// Bytes of an element of the KV cache.
    pub kv_bytes: usize,
    /// Bytes of a position of a head beside its elements.
    pub kv_scale_bytes: usize,
}

impl ModelInfo {
    /// Bytes of one KV block over all layers, keys and values.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        let head = self.kv_bytes * self.head_dim.next_multiple_of(16) + self.kv_scale_bytes;
        2 * head * BLOCK_TOKENS * self.kv_heads * self.layers
    }
}

/// The KV cache could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// Not enough memory for the blocks asked for.
    #[error("no memory for a KV cache of {blocks} blocks ({bytes} bytes): ask for fewer cached tokens")]
    OutOfMemory {
        /// Blocks asked for.
        blocks: usize,
        /// What they would take.
        bytes: usize,
    },
}

/// A device that runs a model's forward pass.
pub trait Backend: Send {
    /// Facts about the loaded model.
    fn info(&self) -> &ModelInfo;

    /// Makes the KV cache of `blocks` blocks of [`BLOCK_TOKENS`] tokens, dropping any earlier one with its content.
    ///
    /// # Errors
    /// When the memory is not there; the backend then has no cache.
    fn allocate(&mut self, blocks: usize) -> Result<(), AllocateError>;

    /// Computes `rows`, and fills `output` (what was there is lost) with what each row wants. `abort` is read between layers.
    ///
    /// # Panics
    /// When a row breaks its contract (a block or token id out of range): that is a bug of the scheduler.
    fn step(&mut self, rows: &[Row<'_>], abort: &AtomicBool, output: &mut Output) -> StepEnd;

    /// As [`Self::step`], for the very rows of the last step that was suspended, whose blocks nobody else has had since: goes
    /// on from the layer where that one stopped. Here, for backends that suspend none: from the beginning.
    fn resume(&mut self, rows: &[Row<'_>], abort: &AtomicBool, output: &mut Output) -> StepEnd {
        self.step(rows, abort, output)
    }

    /// Fills `out` (cleared first) with one vector of [`ModelInfo::embedding_width`] floats and length 1 for each sequence, in
    /// order; a sequence has at least one token and at most [`ModelInfo::context_tokens`]. `None`: this model does not embed, or there is no memory for the keys and values of so many tokens.
    fn embed(&mut self, sequences: &[&[u32]], abort: &AtomicBool, out: &mut Vec<f32>) -> Option<StepEnd> {
        let _ = (sequences, abort, out);
        None
    }
}
