//! The weight of a conversation: how many turns and images, how much text, and a hash of its beginning.
//!
//! Reads both dialects, whose messages have the same skeleton. Never keeps text.

use crate::scan::{Broken, Cursor, Span};

/// Tokens that a message costs beside its text, and an image at a usual size.
const MESSAGE_TOKENS: u64 = 4;
const IMAGE_TOKENS: u64 = 800;
/// Bytes of text to a token. Holds for English and code; the provider's own count replaces it at settlement.
const TOKEN_BYTES: u64 = 4;
/// Encoded bytes of a document or a sound that weigh as much as one byte of text: a PDF page of 100 KB is about 2,500
/// tokens.
const BINARY_BYTES: u64 = 10;

pub(super) struct Conversation<'a> {
    text: &'a [u8],
    pub(super) messages: u32,
    /// Messages but for the system's.
    pub(super) turns: u32,
    pub(super) images: u32,
    pub(super) tools: u32,
    /// The last message brings the result of a tool.
    pub(super) tool_loop: bool,
    /// Blocks of thinking that no provider has signed.
    pub(super) unsigned: Vec<Span>,
    /// The texts of the last message that the user wrote, quotes included.
    pub(super) said: Vec<Span>,
    /// The texts of the message being read.
    texts: Vec<Span>,
    text_bytes: u64,
    system: u64,
    tools_hash: u64,
    opening: u64,
}

/// What one message was.
#[derive(Default)]
struct Message {
    is_system: bool,
    is_user: bool,
    has_result: bool,
    /// Belongs to the beginning of the conversation, which alone is hashed.
    is_opening: bool,
    hash: u64,
}

/// What stands in a part beside plain values.
#[derive(Default)]
struct Payload {
    bytes: u64,
    is_text: bool,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            messages: 0,
            turns: 0,
            images: 0,
            tools: 0,
            tool_loop: false,
            unsigned: Vec::new(),
            said: Vec::new(),
            texts: Vec::new(),
            text_bytes: 0,
            system: 0,
            tools_hash: 0,
            opening: 0,
        }
    }

    pub(super) fn input_tokens(&self) -> u64 {
        self.text_bytes.div_ceil(TOKEN_BYTES)
            + u64::from(self.messages) * MESSAGE_TOKENS
            + u64::from(self.images) * IMAGE_TOKENS
    }

    /// Equal for all turns of one conversation: of the system's words, the tools and the first turn, in whatever order
    /// the fields stand.
    pub(super) fn prefix_hash(&self) -> u64 {
        mix(mix(self.system, self.tools_hash), self.opening)
    }

    /// Anthropic's `system`.
    pub(super) fn system(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        let mut message = Message {
            is_opening: true,
            ..Message::default()
        };
        self.content(cursor, &mut message)?;
        self.system = message.hash;
        Ok(())
    }

    pub(super) fn tools(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        let mut count = 0;
        cursor.peek();
        let start = cursor.at;
        cursor.array(|cursor| {
            count += 1;
            cursor.skip().map(drop)
        })?;
        self.tools = count;
        self.text_bytes += (cursor.at - start) as u64;
        self.tools_hash = hash(&self.text[start..cursor.at]);
        Ok(())
    }

    /// One element of `messages`, which is an object.
    pub(super) fn message(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        let mut message = Message {
            is_opening: self.turns == 0,
            ..Message::default()
        };
        self.texts.clear();
        cursor.object(|cursor, key| match &self.text[key] {
            b"content" => self.content(cursor, &mut message),
            b"role" => {
                let role = cursor.skip()?;
                match &self.text[role] {
                    b"\"system\"" | b"\"developer\"" => message.is_system = true,
                    b"\"tool\"" => message.has_result = true,
                    b"\"user\"" => message.is_user = true,
                    _ => {}
                }
                Ok(())
            }
            _ => {
                self.text_bytes += cursor.skip()?.len() as u64;
                Ok(())
            }
        })?;
        if message.is_user && !self.texts.is_empty() {
            std::mem::swap(&mut self.said, &mut self.texts);
        }
        if message.is_opening {
            self.opening = mix(self.opening, message.hash);
        }
        self.messages += 1;
        self.turns += u32::from(!message.is_system);
        self.tool_loop = message.has_result;
        Ok(())
    }

    fn content(&mut self, cursor: &mut Cursor<'_>, message: &mut Message) -> Result<(), Broken> {
        if cursor.peek() != b'[' {
            let span = cursor.skip()?;
            self.text_bytes += span.len() as u64;
            self.remember(message, span.clone());
            self.texts.push(span);
            return Ok(());
        }
        cursor.array(|cursor| {
            if cursor.peek() == b'{' {
                self.part(cursor, message)
            } else {
                cursor.skip().map(drop)
            }
        })
    }

    fn part(&mut self, cursor: &mut Cursor<'_>, message: &mut Message) -> Result<(), Broken> {
        let (mut is_image, mut payload) = (false, Payload::default());
        let (start, mut is_thinking, mut is_unsigned) = (cursor.at, false, false);
        let (mut is_text, mut said) = (false, None);
        cursor.object(|cursor, key| match &self.text[key] {
            b"type" => {
                let kind = cursor.skip()?;
                let kind = &self.text[kind];
                is_image = matches!(kind, b"\"image_url\"" | b"\"image\"" | b"\"input_image\"");
                is_thinking = kind == b"\"thinking\"";
                is_text = matches!(kind, b"\"text\"" | b"\"input_text\"");
                message.has_result |= kind == b"\"tool_result\"";
                Ok(())
            }
            // Moves with the end of the conversation, so that it is no part of its beginning.
            b"cache_control" => cursor.skip().map(drop),
            b"content" => {
                // The result of a tool is nobody's words.
                let own = self.texts.len();
                self.content(cursor, message)?;
                self.texts.truncate(own);
                Ok(())
            }
            b"text" => {
                let span = cursor.skip()?;
                self.text_bytes += span.len() as u64;
                self.remember(message, span.clone());
                said = Some(span);
                Ok(())
            }
            b"signature" => {
                let span = cursor.skip()?;
                is_unsigned = &self.text[span] == b"\"\"";
                Ok(())
            }
            b"image_url" | b"source" | b"input_audio" | b"file" => {
                cursor.peek();
                let start = cursor.at;
                payload = self.payload(cursor)?;
                self.remember(message, start..cursor.at);
                Ok(())
            }
            _ => {
                let span = cursor.skip()?;
                self.text_bytes += span.len() as u64;
                self.remember(message, span);
                Ok(())
            }
        })?;
        if is_text {
            self.texts.extend(said);
        }
        if is_thinking && is_unsigned {
            // Nobody nests them; whoever does has the outermost taken out with all that is in it.
            self.unsigned.retain(|inner| inner.start < start);
            self.unsigned.push(start..cursor.at);
        }
        if is_image {
            self.images += 1;
        } else if payload.is_text {
            self.text_bytes += payload.bytes;
        } else {
            self.text_bytes += payload.bytes / BINARY_BYTES;
        }
        Ok(())
    }

    fn payload(&self, cursor: &mut Cursor<'_>) -> Result<Payload, Broken> {
        let mut payload = Payload::default();
        if cursor.peek() != b'{' {
            payload.bytes = cursor.skip()?.len() as u64;
            return Ok(payload);
        }
        cursor.object(|cursor, key| {
            let span = cursor.skip()?;
            match &self.text[key] {
                b"type" => payload.is_text = matches!(&self.text[span], b"\"text\"" | b"\"content\""),
                _ => payload.bytes += span.len() as u64,
            }
            Ok(())
        })?;
        Ok(payload)
    }

    fn remember(&self, message: &mut Message, span: Span) {
        if message.is_opening {
            message.hash = mix(message.hash, hash(&self.text[span]));
        }
    }
}

const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(left: u64, right: u64) -> u64 {
    let product = u128::from(left ^ PRIME) * u128::from(right.rotate_left(29) ^ 0xd6e8_feb8_6659_fd93);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Not against an adversary: it groups turns of one conversation, and must stay the same between versions, for it is
/// stored. Four lanes, so that a long prefix costs less than its copy.
fn hash(bytes: &[u8]) -> u64 {
    let mut lanes = [bytes.len() as u64, 1, 2, 3];
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, piece) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            *lane = (*lane ^ word(piece)).wrapping_mul(PRIME).rotate_left(23);
        }
    }
    for (lane, piece) in lanes.iter_mut().zip(blocks.remainder().chunks(8)) {
        *lane = (*lane ^ word(piece)).wrapping_mul(PRIME).rotate_left(23);
    }
    mix(mix(lanes[0], lanes[1]), mix(lanes[2], lanes[3]))
}
