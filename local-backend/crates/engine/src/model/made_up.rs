//! Made-up models as GGUF files: small, with any widths and weights that are sound but mean nothing. What two ways to compute are
//! given alike, to see that they answer alike. A shape has the same weights every time.

use kernels::Format;
use std::io::{BufWriter, Write};
use std::path::Path;

/// GGUF's numbers of types of values.
const WORD: u32 = 4;
const SIGNED: u32 = 5;
const FLOAT: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;
const ALIGNMENT: u64 = 32;

/// What is made up.
#[derive(Clone, Copy, Debug)]
pub struct MadeUp {
    /// `llama`, `qwen2`, `qwen3` or `gemma3`.
    pub architecture: &'static str,
    pub width: usize,
    pub feed: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub vocabulary: usize,
    pub context: usize,
    /// Positions that are looked back at, where the architecture has a window.
    pub window: usize,
    /// Of most matrices, and of `attn_v`, `ffn_down` and the embedding: formats whose blocks fit into a row.
    pub formats: [Format; 2],
}

impl MadeUp {
    /// The smallest that has all a llama has.
    pub const LLAMA: Self = Self {
        architecture: "llama",
        width: 64,
        feed: 96,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        layers: 2,
        vocabulary: 80,
        context: 512,
        window: 0,
        formats: [Format::Q4_1, Format::Q8_0],
    };

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut head = Head::default();
        head.about(self);
        let tensors = self.tensors();
        let (mut infos, mut offset) = (Head::default(), 0u64);
        for tensor in &tensors {
            infos.text(&tensor.name);
            infos.number(tensor.sizes.len() as u32);
            let sizes = tensor.sizes.iter().map(|size| *size as u64);
            sizes.for_each(|size| infos.bytes.extend(size.to_le_bytes()));
            infos.number(tensor.format.gguf());
            infos.bytes.extend(offset.to_le_bytes());
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(head.keys.to_le_bytes());
        out.extend(&head.bytes);
        out.extend(&infos.bytes);
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut file = BufWriter::new(std::fs::File::create(path)?);
        file.write_all(&out)?;
        let mut random = Random(7);
        for tensor in &tensors {
            random.write(tensor, &mut file)?;
            let rest = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
            file.write_all(&[0; ALIGNMENT as usize][..rest as usize])?;
        }
        file.flush()
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (inner, shared) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let [most, some] = self.formats;
        let mut all = vec![
            Tensor {
                amplitude: 1.0,
                ..Tensor::matrix("token_embd", (self.width, self.vocabulary), some)
            },
            Tensor::row("output_norm.weight".into(), self.width),
        ];
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            for (part, columns, rows, format) in [
                ("attn_q", self.width, inner, most),
                ("attn_k", self.width, shared, most),
                ("attn_v", self.width, shared, some),
                ("attn_output", inner, self.width, most),
                ("ffn_gate", self.width, self.feed, most),
                ("ffn_up", self.width, self.feed, most),
                ("ffn_down", self.feed, self.width, some),
            ] {
                all.push(Tensor::matrix(&name(part), (columns, rows), format));
            }
            let mut norms = vec![("attn_norm", self.width), ("ffn_norm", self.width)];
            if matches!(self.architecture, "qwen3" | "gemma3") {
                norms.extend([("attn_q_norm", self.head_dim), ("attn_k_norm", self.head_dim)]);
            }
            if self.architecture == "gemma3" {
                norms.extend([("post_attention_norm", self.width), ("post_ffw_norm", self.width)]);
            }
            let norms = norms.into_iter();
            all.extend(norms.map(|(part, len)| Tensor::row(name(part) + ".weight", len)));
            if self.architecture == "qwen2" {
                let biases = [("attn_q", inner), ("attn_k", shared), ("attn_v", shared)];
                all.extend(biases.map(|(part, len)| Tensor::row(name(part) + ".bias", len)));
            }
        }
        all
    }
}

struct Tensor {
    name: String,
    /// Columns first.
    sizes: Vec<usize>,
    format: Format,
    /// Weights lie this far around 0.
    amplitude: f32,
}

impl Tensor {
    fn matrix(name: &str, (columns, rows): (usize, usize), format: Format) -> Self {
        Self {
            name: format!("{name}.weight"),
            sizes: vec![columns, rows],
            format,
            amplitude: 2.0 / (columns as f32).sqrt(),
        }
    }

    /// A norm's weights or a bias.
    fn row(name: String, len: usize) -> Self {
        Self {
            name,
            sizes: vec![len],
            format: Format::F32,
            amplitude: 1.0,
        }
    }

    fn bytes(&self) -> u64 {
        self.format.row_bytes(self.sizes.iter().product()) as u64
    }
}

#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    keys: u64,
}

impl Head {
    fn number(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, name: &str, kind: u32) {
        self.text(name);
        self.number(kind);
        self.keys += 1;
    }

    fn list(&mut self, name: &str, kind: u32, len: usize) {
        self.key(name, LIST);
        self.number(kind);
        self.bytes.extend((len as u64).to_le_bytes());
    }

    fn about(&mut self, model: &MadeUp) {
        let architecture = model.architecture;
        self.key("general.architecture", TEXT);
        self.text(architecture);
        for (name, size) in [
            ("embedding_length", model.width),
            ("block_count", model.layers),
            ("attention.head_count", model.heads),
            ("attention.head_count_kv", model.kv_heads),
            ("attention.key_length", model.head_dim),
            ("context_length", model.context),
            ("attention.sliding_window", model.window),
        ] {
            self.key(&format!("{architecture}.{name}"), WORD);
            self.number(size as u32);
        }
        self.key(&format!("{architecture}.attention.layer_norm_rms_epsilon"), FLOAT);
        self.bytes.extend(1e-5f32.to_le_bytes());
        self.key("tokenizer.ggml.model", TEXT);
        self.text("gpt2");
        self.key("tokenizer.ggml.pre", TEXT);
        self.text("smollm");
        self.list("tokenizer.ggml.tokens", TEXT, model.vocabulary);
        ["t", "1", "t1"].into_iter().for_each(|token| self.text(token));
        (3..model.vocabulary).for_each(|token| self.text(&format!("x{token}")));
        self.list("tokenizer.ggml.token_type", SIGNED, model.vocabulary);
        (0..model.vocabulary).for_each(|_| self.number(1));
        self.list("tokenizer.ggml.merges", TEXT, 1);
        self.text("t 1");
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// In −1..1.
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 31) as f32 - 1.0
    }

    /// Sound scales, any quants.
    fn write(&mut self, tensor: &Tensor, file: &mut impl Write) -> std::io::Result<()> {
        let (format, amplitude) = (tensor.format, tensor.amplitude);
        let mut block = Vec::with_capacity(format.block_bytes());
        let count = tensor.sizes.iter().product::<usize>();
        for _ in 0..count / format.block_weights() {
            block.clear();
            if format.is_quantized() {
                self.quantized(format, amplitude, &mut block);
            } else {
                let value = amplitude * self.float();
                match format {
                    Format::F16 => block.extend(half::f16::from_f32(value).to_le_bytes()),
                    Format::Bf16 => block.extend(half::bf16::from_f32(value).to_le_bytes()),
                    _ => block.extend(value.to_le_bytes()),
                }
            }
            file.write_all(&block)?;
        }
        Ok(())
    }

    fn quantized(&mut self, format: Format, amplitude: f32, block: &mut Vec<u8>) {
        let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
        let (scale, minimum) = match format {
            Format::Q4_0 | Format::Q4_1 => (amplitude / 8.0, -amplitude),
            Format::Q5_0 | Format::Q5_1 => (amplitude / 16.0, -amplitude),
            Format::Q4K | Format::Q5K => (amplitude / 8.0 / 32.0, amplitude / 32.0),
            Format::Q6K => (amplitude / 32.0 / 32.0, 0.0),
            _ => (amplitude / 128.0, 0.0),
        };
        let has_minimum = matches!(format, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K);
        if format != Format::Q6K {
            block.extend(half(scale));
        }
        if has_minimum {
            block.extend(half(minimum));
        }
        // Q6_K has its scales, of which any positive one will do, and theirs at the end.
        let quants = match format {
            Format::Q6K => 192,
            _ => format.block_bytes() - block.len(),
        };
        block.extend((0..quants).map(|_| self.next() as u8));
        if format == Format::Q6K {
            block.extend((0..16).map(|_| (self.next() % 64) as u8));
            block.extend(half(scale));
        }
    }
}
