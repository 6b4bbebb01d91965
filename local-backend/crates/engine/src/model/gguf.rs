//! The GGUF container: metadata and tensors as views into the mapped file.

use super::Ends;
use crate::text::{Scheme, TokenKind, Vocabulary};
use kernels::{Format, Mapped, Rows};
use std::collections::HashMap;

/// A metadata value; long arrays stay in the file.
#[derive(Clone, Debug)]
enum Value {
    Number(f64),
    Text(String),
    Array { kind: u32, count: usize, at: usize },
}

struct Tensor {
    dimensions: Vec<usize>,
    kind: u32,
    offset: usize,
}

/// A parsed file.
pub(super) struct Gguf {
    file: Mapped,
    values: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
    data: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("it ends at byte {} in the middle of its head", self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.number().map(u32::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, String> {
        usize::try_from(u64::from_le_bytes(self.number()?)).map_err(|_| "a size is out of range".into())
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.size()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "a text is not UTF-8".into())
    }

    fn scalar(&mut self, kind: u32) -> Result<f64, String> {
        Ok(match kind {
            0 | 7 => f64::from(self.number::<1>()?[0]),
            1 => f64::from(i8::from_le_bytes(self.number()?)),
            2 => f64::from(u16::from_le_bytes(self.number()?)),
            3 => f64::from(i16::from_le_bytes(self.number()?)),
            4 => f64::from(self.u32()?),
            5 => f64::from(i32::from_le_bytes(self.number()?)),
            6 => f64::from(f32::from_le_bytes(self.number()?)),
            10 => u64::from_le_bytes(self.number()?) as f64,
            11 => i64::from_le_bytes(self.number()?) as f64,
            12 => f64::from_le_bytes(self.number()?),
            other => return Err(format!("metadata of unknown type {other}")),
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        match kind {
            8 => Ok(Value::Text(self.text()?.to_owned())),
            9 => {
                let (kind, count) = (self.u32()?, self.size()?);
                let at = self.at;
                for _ in 0..count {
                    if kind == 8 {
                        self.text().map(drop)?
                    } else {
                        self.scalar(kind).map(drop)?
                    }
                }
                Ok(Value::Array { kind, count, at })
            }
            kind => Ok(Value::Number(self.scalar(kind)?)),
        }
    }
}

impl Gguf {
    pub(super) fn parse(file: Mapped) -> Result<Self, String> {
        let mut reader = Reader { bytes: &file, at: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err("it does not begin with GGUF".into());
        }
        match reader.u32()? {
            2 | 3 => {}
            other => return Err(format!("GGUF version {other} is not known")),
        }
        let (tensor_count, value_count) = (reader.size()?, reader.size()?);
        let mut values = HashMap::new();
        for _ in 0..value_count {
            let key = reader.text()?.to_owned();
            let kind = reader.u32()?;
            values.insert(key, reader.value(kind)?);
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let name = reader.text()?.to_owned();
            let count = reader.u32()? as usize;
            let dimensions = (0..count).map(|_| reader.size()).collect::<Result<Vec<_>, _>>()?;
            let (kind, offset) = (reader.u32()?, reader.size()?);
            tensors.insert(
                name,
                Tensor {
                    dimensions,
                    kind,
                    offset,
                },
            );
        }
        let alignment = match values.get("general.alignment") {
            Some(Value::Number(alignment)) if *alignment >= 1.0 => *alignment as usize,
            _ => 32,
        };
        let data = reader.at.next_multiple_of(alignment);
        Ok(Self {
            file,
            values,
            tensors,
            data,
        })
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        match self.values.get(key)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, String> {
        let Some(Value::Array { kind: 8, count, at }) = self.values.get(key) else {
            return Err(format!("`{key}` is missing"));
        };
        let mut reader = Reader {
            bytes: &self.file,
            at: *at,
        };
        (0..*count)
            .map(|_| reader.text().map(ToOwned::to_owned))
            .collect()
    }

    fn numbers(&self, key: &str) -> Result<Vec<f64>, String> {
        let Some(Value::Array { kind, count, at }) = self.values.get(key) else {
            return Err(format!("`{key}` is missing"));
        };
        let mut reader = Reader {
            bytes: &self.file,
            at: *at,
        };
        (0..*count).map(|_| reader.scalar(*kind)).collect()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.number(key).map(|flag| flag != 0.0)
    }

    pub(super) fn vocabulary(&self) -> Result<Vocabulary, String> {
        let key = |key: &str| format!("tokenizer.ggml.{key}");
        let scheme = match self.text(&key("model")).unwrap_or_default().as_str() {
            "gpt2" => Scheme::ByteLevel,
            "llama" => Scheme::Pairs,
            "t5" => Scheme::Unigram,
            "bert" => Scheme::WordPiece,
            other => {
                return Err(format!(
                    "its tokenizer is `{other}`; this build knows gpt2, llama, t5 and bert"
                ));
            }
        };
        let mut tokens = self.texts(&key("tokens"))?;
        if scheme == Scheme::WordPiece {
            tokens.iter_mut().for_each(mark_continuation);
        }
        let mut out = Vocabulary::new(scheme, tokens);
        let kinds = self.numbers(&key("token_type")).unwrap_or_default();
        for (kind, number) in out.kinds.iter_mut().zip(kinds) {
            *kind = match number as u32 {
                2 => TokenKind::Unknown,
                3 => TokenKind::Control,
                4 => TokenKind::User,
                6 => TokenKind::Byte,
                _ => TokenKind::Normal,
            };
        }
        let token = |name: &str| self.number(&key(name)).map(|token| token as u32);
        match scheme {
            Scheme::ByteLevel => {
                out.pre = self.text(&key("pre")).unwrap_or_else(|| "default".to_owned());
                let pair = |merge: String| {
                    let pair = merge
                        .split_once(' ')
                        .map(|(left, right)| (left.to_owned(), right.to_owned()));
                    pair.ok_or_else(|| format!("`{merge}` is not a merge"))
                };
                out.merges = self
                    .texts(&key("merges"))?
                    .into_iter()
                    .map(pair)
                    .collect::<Result<_, _>>()?;
            }
            Scheme::Pairs | Scheme::Unigram => {
                out.scores = self
                    .numbers(&key("scores"))?
                    .into_iter()
                    .map(|score| score as f32)
                    .collect();
                out.adds_space = self.flag(&key("add_space_prefix")).unwrap_or(true);
            }
            Scheme::WordPiece => {
                out.lowers = true;
                let first = token("cls_token_id").or(token("bos_token_id"));
                out.frame = (first, token("seperator_token_id").or(token("eos_token_id")));
            }
        }
        out.unknown = token("unknown_token_id");
        Ok(out)
    }

    /// Tokens that the file names.
    pub(super) fn ends(&self) -> Ends {
        let token = |key: &str| {
            self.number(&format!("tokenizer.ggml.{key}_token_id"))
                .map(|token| token as u32)
        };
        let eos = [token("eos"), token("eot")];
        Ends {
            bos: token("bos"),
            // As llama.cpp: SentencePiece models want it unless they say otherwise.
            add_bos: self
                .flag("tokenizer.ggml.add_bos_token")
                .unwrap_or_else(|| self.text("tokenizer.ggml.model").as_deref() == Some("llama")),
            eos: eos.into_iter().flatten().collect(),
        }
    }

    /// A tensor's bytes and shape, if it is there; vectors are one row.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Rows<'_>>, String> {
        let Some(tensor) = self.tensors.get(name) else {
            return Ok(None);
        };
        let format = Format::of_gguf(tensor.kind).ok_or_else(|| {
            format!(
                "`{name}` has tensor type {}; this build runs Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, F16, BF16 \
                 and F32: fetch the model in one of these",
                tensor.kind
            )
        })?;
        let (columns, rows) = match *tensor.dimensions.as_slice() {
            [columns] => (columns, 1),
            [columns, rows] => (columns, rows),
            _ => return Err(format!("`{name}` is neither a vector nor a matrix")),
        };
        if columns == 0 || !columns.is_multiple_of(format.block_weights()) {
            return Err(format!(
                "`{name}`: rows of {columns} weights do not divide into blocks of {format:?}"
            ));
        }
        let bytes = format.row_bytes(columns).checked_mul(rows);
        let range = bytes.and_then(|bytes| {
            let start = self.data.checked_add(tensor.offset)?;
            Some(start..start.checked_add(bytes)?)
        });
        let data = range
            .and_then(|range| self.file.get(range))
            .ok_or("the file is shorter than its head says; fetch it again")?;
        Ok(Some(Rows {
            format,
            data,
            rows,
            columns,
        }))
    }
}

/// GGUF marks the beginnings of words, BERT their continuations.
fn mark_continuation(token: &mut String) {
    let is_special = token.starts_with('[') && token.ends_with(']');
    match token.strip_prefix('▁') {
        Some(start) => *token = start.to_owned(),
        None if is_special => {}
        None => token.insert_str(0, "##"),
    }
}
