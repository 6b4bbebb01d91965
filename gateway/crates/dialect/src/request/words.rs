//! The caller's last words, for whoever judges how hard they are: looked at, bounded, never kept.
//!
//! Owns: which part of a long text is shown. Invariants: at most [`MOST`] bytes of JSON text are decoded, however long
//! the message; what is shown is whole characters of what the user wrote, not of system, model or tools.

use super::Request;
use std::borrow::Cow;

/// Bytes that are shown. Of a longer text its beginning and its end, half each: an instruction stands at one of them.
const MOST: usize = 4096;

impl Request {
    /// The text of the last message that the user wrote; empty where there is none. At most 4 KB: of a longer one the
    /// beginning and the end.
    pub fn last_words(&self) -> String {
        let raw = |span: &std::ops::Range<usize>| {
            let inside = span.start + 1..span.end.saturating_sub(1);
            self.raw
                .get(inside)
                .filter(|_| self.raw.get(span.start) == Some(&b'"'))
        };
        let texts: Vec<&[u8]> = self.spots.said.iter().filter_map(raw).collect();
        let whole: usize = texts.iter().map(|text| text.len()).sum();
        let mut shown = String::with_capacity(whole.min(MOST) + texts.len());
        if whole <= MOST {
            texts.iter().for_each(|text| add(&mut shown, text));
            return shown;
        }
        let mut room = MOST / 2;
        for text in &texts {
            add(&mut shown, beginning(text, room));
            room = room.saturating_sub(text.len());
        }
        let mut from_the_end: Vec<&[u8]> = Vec::new();
        let mut room = MOST / 2;
        for text in texts.iter().rev() {
            from_the_end.push(ending(text, room));
            room = room.saturating_sub(text.len());
        }
        from_the_end.iter().rev().for_each(|text| add(&mut shown, text));
        shown
    }
}

/// The first bytes up to a space, which ends no character and no escape in the middle.
fn beginning(text: &[u8], room: usize) -> &[u8] {
    let Some(cut) = text.get(..room) else {
        return text;
    };
    let end = cut.iter().rposition(|byte| *byte == b' ').unwrap_or(0);
    &text[..end]
}

/// The last bytes from a space on.
fn ending(text: &[u8], room: usize) -> &[u8] {
    let Some(start) = text.len().checked_sub(room) else {
        return text;
    };
    let space = text[start..].iter().position(|byte| *byte == b' ');
    space.map_or(&[], |space| &text[start + space..])
}

fn add(shown: &mut String, text: &[u8]) {
    if text.is_empty() {
        return;
    }
    if !shown.is_empty() {
        shown.push('\n');
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let decoded = if memchr::memchr(b'\\', text.as_bytes()).is_none() {
        Cow::Borrowed(text)
    } else {
        // A lone surrogate is no character; such a text is not shown.
        Cow::Owned(serde_json::from_str(&format!("\"{text}\"")).unwrap_or_default())
    };
    shown.push_str(&decoded);
}

#[cfg(test)]
mod tests {
    use crate::read_request;
    use exchange::Dialect;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn words(dialect: Dialect, messages: Value) -> String {
        let body = json!({ "model": "m", "messages": messages }).to_string();
        read_request(dialect, body.into()).unwrap().last_words()
    }

    #[test]
    fn the_last_words_are_the_users_own() {
        let messages = json!([
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": "first" },
            { "role": "assistant", "content": "yes?" },
            { "content": [{ "text": "what is", "type": "text" }, { "type": "image_url", "image_url": { "url": "x" } },
                { "type": "text", "text": "\"this\"\n?" }], "role": "user" },
            { "role": "assistant", "content": null, "tool_calls": [] },
            { "role": "tool", "content": "42" },
        ]);
        assert_eq!(words(Dialect::OpenaiChat, messages), "what is\n\"this\"\n?");
        let messages = json!([
            { "role": "user", "content": [{ "type": "text", "text": "look it up" }] },
            { "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "n", "input": { "text": "no" } }] },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t",
                "content": [{ "type": "text", "text": "found" }] }] },
        ]);
        assert_eq!(words(Dialect::Anthropic, messages), "look it up");
        assert_eq!(
            words(
                Dialect::OpenaiChat,
                json!([{ "role": "assistant", "content": "hi" }])
            ),
            ""
        );
    }

    #[test]
    fn of_a_long_text_the_beginning_and_the_end_are_shown() {
        let long = format!(
            "Read this. {}\nSummarise it in \u{1f600} words.",
            "é\t\"x\" ".repeat(20_000)
        );
        let shown = words(Dialect::OpenaiChat, json!([{ "role": "user", "content": long }]));
        assert!(
            shown.starts_with("Read this.") && shown.ends_with("Summarise it in \u{1f600} words."),
            "{shown}"
        );
        assert!(shown.len() <= super::MOST + 1, "{}", shown.len());
        let reminders = json!([{ "role": "user", "content": [{ "type": "text", "text": "r ".repeat(5000) },
            { "type": "text", "text": "the question" }] }]);
        assert!(words(Dialect::Anthropic, reminders).ends_with("the question"));
        let unbroken = words(
            Dialect::OpenaiChat,
            json!([{ "role": "user", "content": "x".repeat(9000) }]),
        );
        assert_eq!(unbroken, "");
    }

    proptest! {
        #[test]
        fn a_short_text_is_shown_as_it_was_written(text in "\\PC{0,200}") {
            let shown = words(Dialect::OpenaiChat, json!([{ "role": "user", "content": text.clone() }]));
            prop_assert_eq!(shown, text);
        }

        #[test]
        fn any_text_is_cut_between_characters(text in prop::collection::vec("[a-zé\u{1f600}\"\\\\ \n]{0,50}", 0..300)) {
            let shown = words(Dialect::OpenaiChat, json!([{ "role": "user", "content": text.concat() }]));
            prop_assert!(shown.len() <= 4 * super::MOST);
        }
    }
}
