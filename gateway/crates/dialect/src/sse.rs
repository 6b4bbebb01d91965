//! Server-sent events: cutting a byte stream at event boundaries, reading the events, writing them.

use bytes::{Bytes, BytesMut};
use std::borrow::Cow;

/// Cuts a stream so that only whole events pass. An event that came in one piece passes without a copy.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    carry: BytesMut,
}

impl Splitter {
    /// The whole events there are, as they came; the rest waits.
    pub(crate) fn take(&mut self, chunk: Bytes) -> Bytes {
        let whole = if self.carry.is_empty() {
            chunk
        } else {
            self.carry.extend_from_slice(&chunk);
            self.carry.split().freeze()
        };
        let end = end_of_events(&whole);
        if end < whole.len() {
            self.carry.extend_from_slice(&whole[end..]);
        }
        whole.slice(..end)
    }

    /// What is left at the end of a stream, which some servers do not close with a blank line.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.carry.split().freeze()
    }
}

/// Behind the last blank line.
fn end_of_events(bytes: &[u8]) -> usize {
    let mut from = bytes.len();
    while let Some(newline) = memchr::memrchr(b'\n', &bytes[..from]) {
        let before = &bytes[..newline];
        let line_end = before.strip_suffix(b"\r").unwrap_or(before);
        if line_end.is_empty() || line_end.ends_with(b"\n") {
            return newline + 1;
        }
        from = newline;
    }
    0
}

/// One event of a block of whole events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    /// All of it, with the blank line.
    pub(crate) raw: &'a [u8],
    /// The `data` lines, joined by newlines.
    pub(crate) data: Cow<'a, [u8]>,
}

/// The events of a block.
pub(crate) fn events(block: &[u8]) -> impl Iterator<Item = Event<'_>> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut data: Option<Cow<'_, [u8]>> = None;
        let mut at = 0;
        while at < rest.len() {
            let newline = memchr::memchr(b'\n', &rest[at..]).map_or(rest.len(), |found| at + found);
            let line = rest[at..newline]
                .strip_suffix(b"\r")
                .unwrap_or(&rest[at..newline]);
            at = (newline + 1).min(rest.len());
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix(b"data:") {
                let value = value.strip_prefix(b" ").unwrap_or(value);
                data = Some(match data {
                    None => Cow::Borrowed(value),
                    Some(before) => Cow::Owned([before.as_ref(), b"\n", value].concat()),
                });
            }
        }
        let raw = &rest[..at];
        rest = &rest[at..];
        Some(Event {
            raw,
            data: data.unwrap_or_default(),
        })
    })
}

/// Appends an event with JSON data.
pub(crate) fn write(out: &mut Vec<u8>, event: Option<&str>, data: &serde_json::Value) {
    if let Some(event) = event {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    // Values built here always serialise.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &[u8] =
        b"event: a\ndata: {\"x\":1}\n\n: comment\n\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n";

    fn data(block: &[u8]) -> Vec<String> {
        events(block)
            .map(|event| String::from_utf8_lossy(&event.data).into_owned())
            .collect()
    }

    #[test]
    fn events_are_read_in_every_spelling() {
        assert_eq!(data(STREAM), ["{\"x\":1}", "", "two\nlines", "[DONE]"]);
    }

    proptest! {
        #[test]
        fn cuts_anywhere_make_no_difference(cuts in prop::collection::vec(0usize..STREAM.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let (mut splitter, mut passed, mut seen) = (Splitter::default(), Vec::new(), Vec::new());
            for pair in cuts.windows(2) {
                let block = splitter.take(Bytes::copy_from_slice(&STREAM[pair[0]..pair[1]]));
                seen.extend(data(&block).into_iter());
                passed.extend_from_slice(&block);
            }
            prop_assert_eq!(&passed, STREAM);
            prop_assert_eq!(seen, data(STREAM));
        }
    }
}
