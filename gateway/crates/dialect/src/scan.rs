//! A lazy look at JSON text: structure is checked, values are spans, nothing is built.
//!
//! Accepts exactly RFC 8259, but for the depth: what is passed on unread must not be read differently by the next
//! parser. Knows nothing of what the fields mean. The text must be UTF-8; its reader checks that once.

use std::ops::Range;
use wide::u8x32;

/// The deepest nesting, which is also the deepest that a translation can parse.
const DEPTH: u32 = 127;

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
    #[inline]
    pub(crate) fn peek(&mut self) -> u8 {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return *byte;
            }
            self.at += 1;
        }
        0
    }

    #[inline]
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
            self.at += plain_prefix(&self.text[self.at..]);
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at - 1);
                }
                // Escapes come in runs, and where there is one there are more.
                Some(b'\\') => {
                    self.at += escaped_prefix(&self.text[self.at..]);
                    while self.text.get(self.at) == Some(&b'\\') {
                        self.escape()?;
                    }
                }
                _ => return Err(Broken(self.at)),
            }
        }
    }

    #[inline]
    fn escape(&mut self) -> Result<(), Broken> {
        match self.text.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let digits = self.text.get(self.at + 2..self.at + 6);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(Broken(self.at));
                }
                self.at += 6;
            }
            _ => return Err(Broken(self.at)),
        }
        Ok(())
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
            b'-' | b'0'..=b'9' => self.number()?,
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

    fn number(&mut self) -> Result<(), Broken> {
        self.at += usize::from(self.text.get(self.at) == Some(&b'-'));
        if self.text.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.text.get(self.at), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Broken> {
        let count = self.text[self.at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        self.at += count;
        if count == 0 { Err(Broken(self.at)) } else { Ok(()) }
    }

    /// An object; `each` is called before each value, which it must consume.
    #[inline]
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
    #[inline]
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

/// How many bytes there are before the first that is not plain text inside a string: a quote, a backslash or a control
/// character. The next escape is mostly near, so words go first; long runs go in blocks that become vector instructions.
#[inline]
fn plain_prefix(text: &[u8]) -> usize {
    let mut at = 0;
    loop {
        for _ in 0..4 {
            let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) else {
                let rest = &text[at..];
                return at + rest.iter().position(|byte| special(*byte)).unwrap_or(rest.len());
            };
            let found = specials(u64::from_le_bytes(*word));
            if found != 0 {
                return at + found.trailing_zeros() as usize / 8;
            }
            at += 8;
        }
        while let Some(block) = text.get(at..at + 32) {
            if block.iter().fold(false, |any, byte| any | special(*byte)) {
                break;
            }
            at += 32;
        }
    }
}

/// The length of the whole blocks at the beginning of `text` that hold nothing but plain bytes and escapes of two bytes,
/// less a backslash that the last of them ends in. Looks at a block at once: a branch for each escape is mispredicted
/// more often than not. The masks of escaped bytes are found as in Langdale and Lemire, "Parsing Gigabytes of JSON per
/// Second" (2019), section 3.1.1.
fn escaped_prefix(text: &[u8]) -> usize {
    let (mut at, mut carry) = (0, 0);
    while let Some(block) = text.get(at..).and_then(<[u8]>::first_chunk::<32>) {
        let bytes = u8x32::new(*block);
        let mask = |byte: u8| bytes.simd_eq(u8x32::splat(byte)).to_bitmask();
        let (escaped, next) = escaped(mask(b'\\'), carry);
        let ends = mask(b'"') & !escaped;
        let control = bytes.simd_lt(u8x32::splat(0x20)).to_bitmask();
        if ends | control != 0 {
            break;
        }
        let valid = b"\"\\/bfnrt".iter().fold(0, |valid, byte| valid | mask(*byte));
        if escaped & !valid != 0 {
            break;
        }
        (at, carry) = (at + 32, next);
    }
    at - carry as usize
}

/// Which bytes of a block are escaped, by the mask of its backslashes; `carry` is 1 where the one before it ended in a
/// backslash that escapes, as it will be for the next.
const fn escaped(backslashes: u32, carry: u32) -> (u32, u32) {
    const EVEN: u32 = 0x5555_5555;
    let backslashes = backslashes & !carry;
    let follows = (backslashes << 1) | carry;
    let odd_starts = backslashes & !EVEN & !follows;
    let (sequences, overflow) = odd_starts.overflowing_add(backslashes);
    ((EVEN ^ (sequences << 1)) & follows, overflow as u32)
}

const fn special(byte: u8) -> bool {
    (byte == b'"') | (byte == b'\\') | (byte < 0x20)
}

/// The high bit of every byte that is special. A borrow can mark a byte falsely, but only above a true one.
const fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let below = (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash)
        | (word.wrapping_sub(ONES * 0x20) & !word);
    below & (ONES << 7)
}

/// The string that ends at the first bare quote of `text`: its length as written, and its length in UTF-8 once the
/// escapes are resolved. `None` where it does not end.
pub(crate) fn string_lengths(text: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut saved) = (0, 0);
    loop {
        at += plain_prefix(&text[at..]);
        match (text.get(at)?, text.get(at + 1)) {
            (b'"', _) => return Some((at, at - saved)),
            (b'\\', Some(b'u')) => {
                let digits = std::str::from_utf8(text.get(at + 2..at + 6)?).ok()?;
                saved += match u16::from_str_radix(digits, 16).ok()? {
                    0..0x80 => 5,
                    0x80..0x800 => 4,
                    // Two halves of a pair make four bytes.
                    0xd800..0xe000 => 4,
                    _ => 3,
                };
                at += 6;
            }
            (b'\\', Some(_)) => {
                saved += 1;
                at += 2;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    fn accepts(text: &[u8]) -> bool {
        let mut cursor = Cursor::new(text);
        cursor.skip().is_ok() && cursor.end().is_ok()
    }

    fn check(text: &[u8]) {
        // The reference skips strings unread, so that text that is not UTF-8 is out of its reach and of this test.
        if let Ok(utf8) = std::str::from_utf8(text) {
            let reference = serde_json::from_str::<IgnoredAny>(utf8).is_ok();
            assert_eq!(accepts(text), reference, "{utf8:?}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".*".prop_map(Into::into),
            "[\"\\\\a\u{0}-\u{20}é]{0,80}".prop_map(Into::into),
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
        fn every_json_text_is_accepted_and_no_prefix_of_a_container(value in json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            prop_assert!(accepts(text.as_bytes()));
            if value.is_object() || value.is_array() {
                for end in 0..text.len() {
                    prop_assert!(!accepts(&text.as_bytes()[..end]));
                }
            }
        }

        /// One wrong byte anywhere: both must take it, or both must not.
        #[test]
        fn damaged_text_is_judged_as_by_serde_json(value in json(), at in any::<prop::sample::Index>(), byte in 0u8..128) {
            let mut text = value.to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            check(&text);
            text.remove(at);
            check(&text);
        }

        #[test]
        fn text_made_of_json_pieces_is_judged_as_by_serde_json(text in "[\\[\\]{}:,\"\\\\u0-2dD8tbfn\\-+.eE \n\t\u{1}]{0,12}") {
            check(text.as_bytes());
        }

        #[test]
        fn numbers_and_words_are_judged_as_by_serde_json(text in "-?[0-2]{0,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?|true|tru|nulll|false") {
            check(text.as_bytes());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            accepts(&bytes);
            string_lengths(&bytes);
        }

        #[test]
        fn lengths_are_those_of_the_resolved_string(text in ".*|[\"\\\\\n\u{1}é€😀]{0,40}", ascii in any::<bool>()) {
            let mut written = serde_json::to_string(&text).unwrap();
            if ascii {
                let units = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
                written = written.chars().map(|c| if c.is_ascii() { c.to_string() } else { units(c) }).collect();
            }
            let inside = written.len() - 2;
            prop_assert_eq!(string_lengths(&written.as_bytes()[1..]), Some((inside, text.len())));
        }
    }

    /// The naive reading of escapes, block by block.
    fn reference_escaped(backslashes: u32, carry: u32) -> (u32, u32) {
        let (mut escaped, mut pending) = (0, carry == 1);
        for bit in 0..32 {
            let is_escaped = pending;
            pending = !is_escaped && backslashes >> bit & 1 == 1;
            escaped |= u32::from(is_escaped) << bit;
        }
        (escaped, u32::from(pending))
    }

    proptest! {
        #[test]
        fn escaped_bytes_are_those_that_a_reader_finds(backslashes in prop::num::u32::ANY, dense in any::<bool>(), carry in 0u32..2) {
            let backslashes = if dense { backslashes | backslashes.rotate_left(7) | backslashes.rotate_left(13) } else { backslashes };
            prop_assert_eq!(escaped(backslashes, carry), reference_escaped(backslashes, carry));
        }

        /// Long strings, so that whole blocks are skipped, with every way to end or to be wrong.
        #[test]
        fn long_strings_with_escapes_are_read_as_the_reference_does(pieces in prop::collection::vec(
            prop::sample::select(vec!["plain text ", "\\n", "\\\\", "\\\"", "\\/", "\\u00e9", "x", "\\\\\\\\", "é", "\"", "\\x", "\u{1}"]), 0..60)) {
            check(format!("\"{}\"", pieces.concat()).as_bytes());
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(
            accepts(nested(127).as_bytes())
                && serde_json::from_str::<serde_json::Value>(&nested(127)).is_ok()
        );
        assert!(!accepts(nested(128).as_bytes()));
        assert!(!accepts("[".repeat(100_000).as_bytes()));
    }
}
