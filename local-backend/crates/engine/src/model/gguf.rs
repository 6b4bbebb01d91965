//! The GGUF container: metadata and tensors as views into the mapped file.

use crate::text::Vocabulary;
use kernels::{Format, Mapped};
use std::collections::HashMap;
use std::ops::Range;

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

/// Where a tensor lies and how.
pub(super) struct Weights {
    pub(super) format: Format,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) range: Range<usize>,
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

    pub(super) fn bytes(&self) -> &[u8] {
        &self.file
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

    pub(super) fn vocabulary(&self) -> Result<Vocabulary, String> {
        let model = self.text("tokenizer.ggml.model").unwrap_or_default();
        if model != "gpt2" {
            return Err(format!("its tokenizer is `{model}`; this build knows `gpt2`"));
        }
        Ok(Vocabulary {
            pre: self.text("tokenizer.ggml.pre").unwrap_or_default(),
            tokens: self.texts("tokenizer.ggml.tokens")?,
            merges: self.texts("tokenizer.ggml.merges")?,
            kinds: self
                .numbers("tokenizer.ggml.token_type")?
                .into_iter()
                .map(|kind| kind as u32)
                .collect(),
        })
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.tensors
            .get(name)
            .ok_or_else(|| format!("the tensor `{name}` is missing"))
    }

    fn range(&self, tensor: &Tensor, bytes: usize) -> Result<Range<usize>, String> {
        let start = self.data + tensor.offset;
        if start + bytes > self.file.len() {
            return Err("the file is shorter than its head says; fetch it again".into());
        }
        Ok(start..start + bytes)
    }

    /// A quantized matrix.
    pub(super) fn weights(&self, name: &str) -> Result<Weights, String> {
        let tensor = self.tensor(name)?;
        let format = match tensor.kind {
            2 => Format::Q4_0,
            3 => Format::Q4_1,
            8 => Format::Q8_0,
            other => {
                return Err(format!(
                    "`{name}` has tensor type {other}; this build runs Q4_0, Q4_1 and Q8_0"
                ));
            }
        };
        let &[columns, rows] = tensor.dimensions.as_slice() else {
            return Err(format!("`{name}` is not a matrix"));
        };
        if !rows.is_multiple_of(16) || !columns.is_multiple_of(32) {
            return Err(format!(
                "`{name}` of {rows} by {columns} does not divide into tiles"
            ));
        }
        let range = self.range(tensor, rows * columns / 32 * format.block_bytes())?;
        Ok(Weights {
            format,
            rows,
            columns,
            range,
        })
    }

    /// A vector of floats.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, String> {
        let tensor = self.tensor(name)?;
        if tensor.kind != 0 {
            return Err(format!("`{name}` should be F32"));
        }
        let count: usize = tensor.dimensions.iter().product();
        let bytes = &self.file[self.range(tensor, count * 4)?];
        Ok(bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}
