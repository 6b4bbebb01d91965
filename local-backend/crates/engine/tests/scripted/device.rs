//! A device for tests: its cache holds the tokens themselves, so that a wrong block or a block that somebody else wrote
//! shows in the next answer.

use engine::backend::{AllocateError, BLOCK_TOKENS, Backend, ModelInfo, Output, Row, StepEnd, Want};
use engine::text::{Scheme, TokenKind, Tokenizer, Vocabulary};
use kernels::Candidates;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Tokens below are bytes; from here on come the end, `<think>` and `</think>`.
pub(crate) const SPECIAL: u32 = 256;
const VOCABULARY: usize = 259;

/// GPT-2's way to write bytes.
fn byte_characters() -> Vec<String> {
    let mut next = 256;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap()
        }
    };
    (0..=255u8).map(character).map(String::from).collect()
}

pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    let mut tokens = byte_characters();
    tokens.extend(["<end>", "<think>", "</think>"].map(String::from));
    let mut vocabulary = Vocabulary::new(Scheme::ByteLevel, tokens);
    vocabulary.pre = "smollm".into();
    vocabulary.kinds[256..].fill(TokenKind::Control);
    Arc::new(Tokenizer::new(vocabulary).unwrap())
}

/// What it answers.
enum Mind {
    /// The next token depends on all before it.
    Random,
    /// This text after the prompt, whatever that was; then the end.
    Script(Vec<u32>),
}

pub(crate) struct Device {
    info: ModelInfo,
    mind: Mind,
    layers: (usize, Duration),
    /// Layers computed, in all steps.
    computed: Arc<AtomicUsize>,
    /// Before which layer the last step was suspended.
    suspended: usize,
    /// Steps wait until it is true.
    gate: Option<Arc<AtomicBool>>,
    /// The token at each place of each block.
    cache: Vec<Option<u32>>,
    asked: Arc<Asked>,
}

/// How many rows wanted what.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) logits: AtomicUsize,
    pub(crate) tokens: AtomicUsize,
}

impl Device {
    pub(crate) fn random() -> Self {
        Self::of(Mind::Random)
    }

    pub(crate) fn script(text: String) -> Self {
        Self::of(Mind::Script(tokenizer().encode(&text, true)))
    }

    /// So many layers, each of which takes so long.
    pub(crate) fn layers(mut self, count: usize, each: Duration) -> Self {
        self.layers = (count, each);
        self
    }

    /// How many layers it computed, in all steps.
    pub(crate) fn computed(&self) -> Arc<AtomicUsize> {
        self.computed.clone()
    }

    /// Steps do not end before `gate` is true, unless they are stopped, which opens it.
    pub(crate) fn gate(mut self, gate: &Arc<AtomicBool>) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// Draws tokens itself, and counts what is asked for.
    pub(crate) fn draws(mut self, asked: &Arc<Asked>) -> Self {
        self.info.draws = true;
        self.asked = asked.clone();
        self
    }

    fn of(mind: Mind) -> Self {
        let info = ModelInfo {
            name: "scripted".into(),
            architecture: "none".into(),
            context_tokens: 4096,
            vocabulary: VOCABULARY,
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            bytes: 0,
            bos: None,
            add_bos: false,
            eos: vec![SPECIAL],
            generates: true,
            draws: false,
            embeds: false,
            embedding_width: 0,
            kv_bytes: 4,
            kv_scale_bytes: 0,
        };
        Self {
            info,
            mind,
            layers: (1, Duration::ZERO),
            computed: Arc::default(),
            suspended: 0,
            gate: None,
            cache: Vec::new(),
            asked: Arc::default(),
        }
    }

    fn place(row: &Row<'_>, position: usize) -> usize {
        row.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }

    fn next(&self, history: &[u32], out: &mut [f32]) {
        match &self.mind {
            Mind::Random => {
                let hash = history.iter().fold(7u64, |hash, token| {
                    (hash ^ u64::from(*token))
                        .wrapping_mul(0x100_0000_01b3)
                        .rotate_left(23)
                });
                out[32 + (hash % 90) as usize] = 5.0;
                out[32 + (hash / 90 % 90) as usize] += 3.0;
            }
            Mind::Script(script) => {
                // How much of the script the history ends with is how far it has come; the prompt is no part of it.
                let come = (0..=script.len().min(history.len()))
                    .rev()
                    .find(|come| history.ends_with(&script[..*come]))
                    .unwrap_or(0);
                let next = script.get(come).copied().unwrap_or(SPECIAL);
                out[next as usize] = 12.0;
            }
        }
    }
}

impl Backend for Device {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate(&mut self, blocks: usize) -> Result<(), AllocateError> {
        self.cache = vec![None; blocks * BLOCK_TOKENS];
        Ok(())
    }

    fn step(&mut self, rows: &[Row<'_>], abort: &AtomicBool, output: &mut Output) -> StepEnd {
        self.run((rows, 0), abort, output)
    }

    fn resume(&mut self, rows: &[Row<'_>], abort: &AtomicBool, output: &mut Output) -> StepEnd {
        self.run((rows, self.suspended), abort, output)
    }
}

impl Device {
    fn run(&mut self, (rows, from): (&[Row<'_>], usize), abort: &AtomicBool, output: &mut Output) -> StepEnd {
        output.logits.clear();
        output.tokens.clear();
        while let Some(gate) = self.gate.as_ref().filter(|gate| !gate.load(Ordering::Acquire)) {
            if abort.load(Ordering::Relaxed) {
                gate.store(true, Ordering::Release);
                return StepEnd::Aborted;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        for layer in from..self.layers.0 {
            if abort.load(Ordering::Relaxed) {
                self.suspended = layer;
                return StepEnd::Suspended;
            }
            self.computed.fetch_add(1, Ordering::Relaxed);
            if !self.layers.1.is_zero() {
                std::thread::sleep(self.layers.1);
            }
        }
        // All rows are stored before any is read, as a layer does it.
        for row in rows {
            for (at, token) in row.tokens.iter().enumerate() {
                self.cache[Self::place(row, row.first + at)] = Some(*token);
            }
        }
        for row in rows.iter().filter(|row| row.wants != Want::Nothing) {
            let end = row.first + row.tokens.len();
            let history: Vec<u32> = (0..end)
                .map(|position| {
                    self.cache[Self::place(row, position)].expect("a place that was never computed")
                })
                .collect();
            let mut logits = vec![0.0; VOCABULARY];
            self.next(&history, &mut logits);
            match row.wants {
                Want::Token(draw) => {
                    assert!(self.info.draws, "a token is wanted of a device that cannot draw");
                    self.asked.tokens.fetch_add(1, Ordering::Relaxed);
                    output
                        .tokens
                        .push(draw.choose(&logits, &mut Candidates::default()));
                }
                _ => {
                    self.asked.logits.fetch_add(1, Ordering::Relaxed);
                    output.logits.extend(logits);
                }
            }
        }
        StepEnd::Done
    }
}
