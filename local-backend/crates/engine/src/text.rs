//! Text: tokens to and from it, and the template that makes a prompt of messages.

mod bytelevel;
mod json;
mod merge;
mod sentencepiece;
mod template;
mod tokenizer;
mod vocabulary;
mod wordpiece;

pub use json::read as read_tokenizer_json;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
pub use vocabulary::{Scheme, TokenKind, Vocabulary};

/// Bytes of tokens on their way to being text: a character whose bytes are spread over tokens waits for its last one.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    waiting: Vec<u8>,
}

impl Utf8Stream {
    /// The text that is whole with these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.waiting.extend_from_slice(bytes);
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.waiting) {
                Ok(text) => {
                    out.push_str(text);
                    self.waiting.clear();
                    return out;
                }
                Err(error) => {
                    let (whole, invalid) = (error.valid_up_to(), error.error_len());
                    out.push_str(&String::from_utf8_lossy(&self.waiting[..whole]));
                    match invalid {
                        // More bytes may make it a character.
                        None => {
                            self.waiting.drain(..whole);
                            return out;
                        }
                        Some(length) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            self.waiting.drain(..whole + length);
                        }
                    }
                }
            }
        }
    }

    /// What is left at the end, if anything.
    pub fn finish(&mut self) -> String {
        let out = String::from_utf8_lossy(&self.waiting).into_owned();
        self.waiting.clear();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_whole_and_broken_bytes_are_marked() {
        let mut stream = Utf8Stream::default();
        let bytes = "aé🙂z".as_bytes();
        let pieces: Vec<String> = bytes.iter().map(|byte| stream.push(&[*byte])).collect();
        assert_eq!(pieces, ["a", "", "é", "", "", "", "🙂", "z"]);
        assert_eq!(stream.push(&[0xff, b'x', 0xe2]), "\u{fffd}x");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
