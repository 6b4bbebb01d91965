//! A made-up model as a GGUF file, with the widths and heads of a [`SyntheticModel`] but few layers and tokens: what the CPU and a card
//! are given alike, to see that they answer alike. Values are the same every time.

use super::SyntheticModel;
use kernels::cuda::Kind;
use std::io::{BufWriter, Write};
use std::path::Path;

/// GGUF's numbers of types of tensors and of values.
const F32: u32 = 0;
const Q4_1: u32 = 3;
const Q8_0: u32 = 8;
const BF16: u32 = 30;
const WORD: u32 = 4;
const FLOAT: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;
const LAYERS: usize = 2;
const VOCABULARY: usize = 512;
const ALIGNMENT: u64 = 32;

struct Tensor {
    name: String,
    /// Columns first.
    sizes: Vec<usize>,
    format: u32,
    amplitude: f32,
}

impl Tensor {
    fn bytes(&self) -> u64 {
        let count = self.sizes.iter().product::<usize>() as u64;
        match self.format {
            F32 => count * 4,
            Q4_1 => count / 32 * 20,
            Q8_0 => count / 32 * 34,
            _ => count * 2,
        }
    }
}

#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    keys: u64,
}

impl Head {
    fn text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, name: &str, kind: u32) {
        self.text(name);
        self.bytes.extend(kind.to_le_bytes());
        self.keys += 1;
    }

    fn list(&mut self, name: &str, kind: u32, len: usize) {
        self.key(name, LIST);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    fn about(&mut self, model: &SyntheticModel) {
        let architecture = model.architecture();
        self.key("general.architecture", TEXT);
        self.text(architecture);
        for (name, size) in [
            ("embedding_length", model.width),
            ("block_count", LAYERS),
            ("attention.head_count", model.heads),
            ("attention.head_count_kv", model.kv_heads),
            ("attention.key_length", model.head_dim),
            ("context_length", 1024),
        ] {
            self.key(&format!("{architecture}.{name}"), WORD);
            self.bytes.extend((size as u32).to_le_bytes());
        }
        self.key(&format!("{architecture}.attention.layer_norm_rms_epsilon"), FLOAT);
        self.bytes.extend(1e-5f32.to_le_bytes());
        self.key("tokenizer.ggml.model", TEXT);
        self.text("gpt2");
        self.key("tokenizer.ggml.pre", TEXT);
        self.text("smollm");
        self.list("tokenizer.ggml.tokens", TEXT, VOCABULARY);
        self.text("t");
        self.text("1");
        self.text("t1");
        (3..VOCABULARY).for_each(|token| self.text(&format!("x{token}")));
        self.list("tokenizer.ggml.merges", TEXT, 1);
        self.text("t 1");
    }
}

impl SyntheticModel {
    fn architecture(&self) -> &'static str {
        if self.has_head_norms { "qwen3" } else { "llama" }
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (inner, shared) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let format = match self.kind {
            None => BF16,
            Some(Kind::W4) => Q4_1,
            Some(Kind::W8 | Kind::W8x16) => Q8_0,
        };
        let matrix = |name: String, columns: usize, rows: usize| Tensor {
            name,
            sizes: vec![columns, rows],
            format,
            amplitude: 2.0 / (columns as f32).sqrt(),
        };
        let norm = |name: String, len: usize| Tensor {
            name,
            sizes: vec![len],
            format: F32,
            amplitude: 1.0,
        };
        let mut all = vec![
            matrix("token_embd.weight".into(), self.width, VOCABULARY),
            norm("output_norm.weight".into(), self.width),
        ];
        for layer in 0..LAYERS {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            all.push(norm(name("attn_norm"), self.width));
            all.push(norm(name("ffn_norm"), self.width));
            if self.has_head_norms {
                all.push(norm(name("attn_q_norm"), self.head_dim));
                all.push(norm(name("attn_k_norm"), self.head_dim));
            }
            for (part, columns, rows) in [
                ("attn_q", self.width, inner),
                ("attn_k", self.width, shared),
                ("attn_v", self.width, shared),
                ("attn_output", inner, self.width),
                ("ffn_gate", self.width, self.feed),
                ("ffn_up", self.width, self.feed),
                ("ffn_down", self.feed, self.width),
            ] {
                all.push(matrix(name(part), columns, rows));
            }
        }
        all
    }

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
            infos.bytes.extend((tensor.sizes.len() as u32).to_le_bytes());
            let sizes = tensor.sizes.iter().map(|size| *size as u64);
            sizes.for_each(|size| infos.bytes.extend(size.to_le_bytes()));
            infos.bytes.extend(tensor.format.to_le_bytes());
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

    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 31) as f32 - 1.0
    }

    fn write(&mut self, tensor: &Tensor, file: &mut impl Write) -> std::io::Result<()> {
        let amplitude = tensor.amplitude;
        let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
        let count = tensor.sizes.iter().product::<usize>();
        match tensor.format {
            F32 => (0..count)
                .try_for_each(|_| file.write_all(&(1.0 + 0.5 * self.float() * amplitude).to_le_bytes())),
            Q4_1 | Q8_0 => (0..count / 32).try_for_each(|_| {
                let words = if tensor.format == Q4_1 { 4 } else { 8 };
                if tensor.format == Q4_1 {
                    file.write_all(&half(amplitude / 8.0))?;
                    file.write_all(&half(-amplitude))?;
                } else {
                    file.write_all(&half(amplitude / 128.0))?;
                }
                (0..words).try_for_each(|_| file.write_all(&self.next().to_le_bytes()))
            }),
            _ => (0..count).try_for_each(|_| {
                let bits = half::bf16::from_f32(self.float() * amplitude).to_le_bytes();
                file.write_all(&bits)
            }),
        }
    }
}
