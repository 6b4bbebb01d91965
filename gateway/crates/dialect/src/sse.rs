//! Server-sent events: cutting a byte stream at event boundaries, reading the events, writing them.

use bytes::{Bytes, BytesMut};
use std::borrow::Cow;

/// An event longer than this is no event: images come in a few megabytes.
const LONGEST_EVENT: usize = 32 << 20;

/// Cuts a stream so that only whole events pass. An event that came in one piece passes without a copy, and each byte
/// is looked at once, however many pieces an event comes in.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// An event's beginning; holds no blank line.
    carry: BytesMut,
}

/// An event went on without end.
#[derive(Debug)]
pub(crate) struct TooLong;

impl Splitter {
    /// The whole events there are, as they came; the rest waits.
    pub(crate) fn take(&mut self, chunk: Bytes) -> Result<Bytes, TooLong> {
        let end = end_of_events(&self.carry, &chunk);
        if end == chunk.len() && self.carry.is_empty() {
            return Ok(chunk);
        }
        if end == 0 {
            if self.carry.len() + chunk.len() > LONGEST_EVENT {
                return Err(TooLong);
            }
            self.carry.extend_from_slice(&chunk);
            return Ok(Bytes::new());
        }
        let whole = if self.carry.is_empty() {
            chunk.slice(..end)
        } else {
            self.carry.extend_from_slice(&chunk[..end]);
            self.carry.split().freeze()
        };
        self.carry.extend_from_slice(&chunk[end..]);
        Ok(whole)
    }

    /// What is left at the end of a stream, which some servers do not close with a blank line.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.carry.split().freeze()
    }
}

/// Where in `bytes`, which follow `before`, the last blank line ends; 0 where there is none.
fn end_of_events(before: &[u8], bytes: &[u8]) -> usize {
    let mut from = bytes.len();
    while let Some(newline) = memchr::memrchr(b'\n', &bytes[..from]) {
        let line = bytes[..newline].strip_suffix(b"\r").unwrap_or(&bytes[..newline]);
        let is_blank = match line.last() {
            Some(last) => *last == b'\n',
            // The line began in what came before, which may hold its carriage return too.
            None if newline == 0 => ends_a_line(before.strip_suffix(b"\r").unwrap_or(before)),
            None => ends_a_line(before),
        };
        if is_blank {
            return newline + 1;
        }
        from = newline;
    }
    0
}

fn ends_a_line(bytes: &[u8]) -> bool {
    bytes.last().is_none_or(|last| *last == b'\n')
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

    #[test]
    fn an_event_in_one_piece_is_not_copied_and_an_endless_one_is_refused() {
        let mut splitter = Splitter::default();
        let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\nda");
        let passed = splitter.take(chunk.clone()).unwrap();
        assert_eq!((passed.as_ptr(), passed.len()), (chunk.as_ptr(), 18));
        let megabyte = Bytes::from(vec![b'x'; 1 << 20]);
        assert!((0..40).any(|_| splitter.take(megabyte.clone()).is_err()));
    }

    proptest! {
        #[test]
        fn cuts_anywhere_make_no_difference(cuts in prop::collection::vec(0usize..STREAM.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let (mut splitter, mut passed, mut seen) = (Splitter::default(), Vec::new(), Vec::new());
            for pair in cuts.windows(2) {
                let block = splitter.take(Bytes::copy_from_slice(&STREAM[pair[0]..pair[1]])).unwrap();
                seen.extend(data(&block).into_iter());
                passed.extend_from_slice(&block);
            }
            prop_assert_eq!(&passed, STREAM);
            prop_assert_eq!(seen, data(STREAM));
            prop_assert!(splitter.rest().is_empty());
        }
    }
}
