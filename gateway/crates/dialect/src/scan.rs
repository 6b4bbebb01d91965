//! A lazy look at JSON text: structure is checked, values are spans, nothing is built.

use std::ops::Range;

/// Deeper nesting than any request has reason for.
const DEPTH: u32 = 128;

pub(crate) type Span = Range<usize>;

/// Where the text stops being JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) usize);

pub(crate) struct Cursor<'a> {
    text: &'a [u8],
    pub(crate) at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
        }
    }

    /// The next byte that is not white space; 0 at the end.
    pub(crate) fn peek(&mut self) -> u8 {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return *byte;
            }
            self.at += 1;
        }
        0
    }

    fn expect(&mut self, byte: u8) -> Result<(), Broken> {
        if self.peek() == byte {
            self.at += 1;
            Ok(())
        } else {
            Err(Broken(self.at))
        }
    }

    /// A string; the span is what stands between the quotes, escapes and all.
    pub(crate) fn string(&mut self) -> Result<Span, Broken> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            let rest = self.text.get(self.at..).ok_or(Broken(self.text.len()))?;
            let found = memchr::memchr2(b'"', b'\\', rest).ok_or(Broken(self.text.len()))?;
            self.at += found;
            if self.text[self.at] == b'"' {
                self.at += 1;
                return Ok(start..self.at - 1);
            }
            self.at += 2;
        }
    }

    /// Any value; the span is all of it.
    pub(crate) fn skip(&mut self) -> Result<Span, Broken> {
        let first = self.peek();
        let start = self.at;
        match first {
            b'"' => {
                self.string()?;
            }
            b'{' => self.object(|cursor, _| cursor.skip().map(drop))?,
            b'[' => self.array(|cursor| cursor.skip().map(drop))?,
            b't' => self.word(b"true")?,
            b'f' => self.word(b"false")?,
            b'n' => self.word(b"null")?,
            b'-' | b'0'..=b'9' => {
                let number = self.text[self.at..].iter();
                self.at += number
                    .take_while(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
                    .count();
            }
            _ => return Err(Broken(self.at)),
        }
        Ok(start..self.at)
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Broken> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(Broken(self.at))
        }
    }

    /// An object; `each` is called before each value, which it must consume.
    pub(crate) fn object(
        &mut self,
        mut each: impl FnMut(&mut Self, Span) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        self.expect(b'{')?;
        self.deeper()?;
        if self.peek() != b'}' {
            loop {
                let key = self.string()?;
                self.expect(b':')?;
                each(self, key)?;
                if self.peek() != b',' {
                    break;
                }
                self.at += 1;
            }
        }
        self.depth -= 1;
        self.expect(b'}')
    }

    /// An array; `each` is called before each element, which it must consume.
    pub(crate) fn array(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        self.expect(b'[')?;
        self.deeper()?;
        if self.peek() != b']' {
            loop {
                each(self)?;
                if self.peek() != b',' {
                    break;
                }
                self.at += 1;
            }
        }
        self.depth -= 1;
        self.expect(b']')
    }

    fn deeper(&mut self) -> Result<(), Broken> {
        self.depth += 1;
        if self.depth > DEPTH {
            Err(Broken(self.at))
        } else {
            Ok(())
        }
    }

    /// Nothing but white space may follow.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        self.peek();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(Broken(self.at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(text: &[u8]) -> bool {
        let mut cursor = Cursor::new(text);
        cursor.skip().is_ok() && cursor.end().is_ok()
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f32>().prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
                prop::collection::vec((".*", inner), 0..8)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_json_text_is_accepted_and_no_prefix_of_a_container(value in json()) {
            let text = value.to_string();
            prop_assert!(accepts(text.as_bytes()));
            if value.is_object() || value.is_array() {
                for end in 0..text.len() {
                    prop_assert!(!accepts(&text.as_bytes()[..end]));
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            accepts(&bytes);
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        assert!(!accepts("[".repeat(100_000).as_bytes()));
    }
}
