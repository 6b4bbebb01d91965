//! Byte-pair encoding as GPT-2 does it, with the pre-tokenizer of SmolLM: digits stand alone, then words, runs of
//! other characters and white space.

use std::collections::HashMap;

/// What a GGUF file says of its tokenizer.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// The name of the pre-tokenizer.
    pub pre: String,
    pub tokens: Vec<String>,
    /// Pairs, joined by a space, in order of rank.
    pub merges: Vec<String>,
    /// 3: control, 4: user-defined; these are whole tokens in text.
    pub kinds: Vec<u32>,
}

/// The tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// The bytes of each token.
    tokens: Vec<Vec<u8>>,
    is_special: Vec<bool>,
    /// Special tokens by their text, the longest first.
    special: Vec<(String, u32)>,
    /// Some vocabularies have no token for bytes that text hardly ever holds; those are left out.
    of_byte: [Option<u32>; 256],
    /// What two tokens become, and the rank of that.
    merges: HashMap<(u32, u32), (u32, u32)>,
}

/// GPT-2 writes bytes as printable characters: those that are printable as themselves, the rest from U+0100 on.
fn byte_characters() -> [char; 256] {
    let mut out = ['\0'; 256];
    let mut next = 256;
    for byte in 0..=255u8 {
        let is_printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        out[usize::from(byte)] = if is_printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
    }
    out
}

impl Tokenizer {
    /// # Errors
    /// The vocabulary contradicts itself or needs another pre-tokenizer.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, String> {
        if !matches!(vocabulary.pre.as_str(), "smollm" | "default" | "gpt-2") {
            return Err(format!(
                "its pre-tokenizer is `{}`; this build knows `smollm`",
                vocabulary.pre
            ));
        }
        let characters = byte_characters();
        let to_byte: HashMap<char, u8> = (0..=255u8)
            .map(|byte| (characters[usize::from(byte)], byte))
            .collect();
        let by_text: HashMap<&str, u32> = vocabulary
            .tokens
            .iter()
            .enumerate()
            .map(|(id, text)| (text.as_str(), id as u32))
            .collect();
        let id = |text: &str| {
            by_text
                .get(text)
                .copied()
                .ok_or_else(|| format!("the token `{text}` is missing"))
        };
        let mut of_byte = [None; 256];
        for (byte, slot) in of_byte.iter_mut().enumerate() {
            *slot = id(characters[byte].to_string().as_str()).ok();
        }
        let mut merges = HashMap::with_capacity(vocabulary.merges.len());
        for (rank, merge) in vocabulary.merges.iter().enumerate() {
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| format!("`{merge}` is not a merge"))?;
            let joined = id(&format!("{left}{right}"))?;
            merges.insert((id(left)?, id(right)?), (rank as u32, joined));
        }
        let is_special: Vec<bool> = (0..vocabulary.tokens.len())
            .map(|at| vocabulary.kinds.get(at).is_some_and(|kind| matches!(kind, 3 | 4)))
            .collect();
        let whole = |at: usize| (vocabulary.tokens[at].clone(), at as u32);
        let mut special: Vec<_> = (0..is_special.len())
            .filter(|at| is_special[*at])
            .map(whole)
            .collect();
        special.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let bytes = |(at, text): (usize, &String)| {
            if is_special[at] {
                return text.clone().into_bytes();
            }
            text.chars()
                .flat_map(|c| {
                    to_byte
                        .get(&c)
                        .copied()
                        .map_or_else(|| c.to_string().into_bytes(), |b| vec![b])
                })
                .collect()
        };
        let tokens = vocabulary.tokens.iter().enumerate().map(bytes).collect();
        Ok(Self {
            tokens,
            is_special,
            special,
            of_byte,
            merges,
        })
    }

    /// The tokens of a text; with `parse_special`, special tokens written in it are those tokens.
    pub fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let found = if parse_special {
                self.next_special(rest)
            } else {
                None
            };
            let (plain, special) = found.map_or((rest, None), |(at, id, length)| {
                (&rest[..at], Some((id, at + length)))
            });
            for piece in pieces(plain) {
                self.merge(piece.as_bytes(), &mut out);
            }
            let Some((id, end)) = special else { break };
            out.push(id);
            rest = &rest[end..];
        }
        out
    }

    fn next_special(&self, text: &str) -> Option<(usize, u32, usize)> {
        let found = self
            .special
            .iter()
            .filter_map(|(special, id)| Some((text.find(special.as_str())?, *id, special.len())));
        // The first one; where two begin together, the longer.
        found.min_by_key(|(at, _, length)| (*at, std::cmp::Reverse(*length)))
    }

    /// Joins the pair of the lowest rank until no pair can be joined.
    fn merge(&self, piece: &[u8], out: &mut Vec<u32>) {
        let mut ids: Vec<u32> = piece
            .iter()
            .filter_map(|byte| self.of_byte[usize::from(*byte)])
            .collect();
        loop {
            let ranked = ids.windows(2).enumerate();
            let ranked = ranked.filter_map(|(at, pair)| {
                self.merges
                    .get(&(pair[0], pair[1]))
                    .map(|(rank, id)| (*rank, at, *id))
            });
            let Some((_, at, id)) = ranked.min() else { break };
            ids[at] = id;
            ids.remove(at + 1);
        }
        out.extend(ids);
    }

    /// The bytes of a token; a part of a character is possible.
    pub fn decode_token(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], Vec::as_slice)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.is_special.get(id as usize).copied().unwrap_or(false)
    }

    pub fn vocabulary(&self) -> usize {
        self.tokens.len()
    }
}

/// Cuts a text into the pieces within which bytes are joined.
fn pieces(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    // Every digit is a piece; what stands between digits is cut on its own.
    let mut start = 0;
    for (at, c) in text.char_indices() {
        if c.is_numeric() {
            words(&text[start..at], &mut out);
            out.push(&text[at..at + c.len_utf8()]);
            start = at + c.len_utf8();
        }
    }
    words(&text[start..], &mut out);
    out
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?letters+| ?others+|white space not before a word|white space`.
fn words<'a>(text: &'a str, out: &mut Vec<&'a str>) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = contraction(rest)
            .or_else(|| run(rest))
            .unwrap_or_else(|| space(rest, first));
        let (piece, after) = rest.split_at(length);
        out.push(piece);
        rest = after;
    }
}

fn contraction(text: &str) -> Option<usize> {
    ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
        .iter()
        .find(|ending| text.starts_with(**ending))
        .map(|ending| ending.len())
}

/// Letters, or characters that are neither letters nor white space, with a space before them if there is one.
fn run(text: &str) -> Option<usize> {
    let body = text.strip_prefix(' ').unwrap_or(text);
    let lead = text.len() - body.len();
    let first = body.chars().next().filter(|c| !c.is_whitespace())?;
    let same = |c: char| !c.is_whitespace() && c.is_alphabetic() == first.is_alphabetic();
    let length = body.find(|c| !same(c)).unwrap_or(body.len());
    Some(lead + length)
}

/// A run of white space; its last character goes with the word that follows.
fn space(text: &str, first: char) -> usize {
    let run = text.find(|c: char| !c.is_whitespace());
    match run {
        None => text.len(),
        Some(end) => {
            let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
            if end > last { end - last } else { first.len_utf8() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn texts_are_cut_as_the_pre_tokenizer_cuts_them() {
        assert_eq!(
            pieces("Hello world's  2024!\n\n x"),
            [
                "Hello", " world", "'s", "  ", "2", "0", "2", "4", "!", "\n\n", " x"
            ]
        );
        assert_eq!(pieces("a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("x ... y"), ["x", " ...", " y"]);
        assert_eq!(pieces("tab\tend \n"), ["tab", "\t", "end", " \n"]);
    }
}
