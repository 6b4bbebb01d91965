//! Thinking: where it begins and ends in what a model produces, and the budget that ends it. Owns the markers and the
//! count; refuses to know sampling and formats.
//!
//! The budget counts tokens, not text: after exactly so many thinking tokens the closing marker's own tokens are forced,
//! whatever the model would have said, whether the prompt or the model itself opened the block. A model that thinks on
//! after the marker may; it does so in its answer, where the limit on output holds.

use std::collections::VecDeque;

/// How a model's thinking is marked, and how much of it is allowed.
#[derive(Clone, Debug)]
pub struct Thinking {
    pub open: String,
    pub close: String,
    /// What is produced to close it: the marker's tokens, and what usually follows.
    pub close_tokens: Vec<u32>,
    /// Thinking tokens; `None`: as many as it likes.
    pub budget: Option<usize>,
    /// The prompt has already opened it.
    pub is_open: bool,
}

/// What a piece of text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    #[default]
    Content,
    Reasoning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come; it may still begin to think.
    Before,
    Inside,
    After,
}

/// One answer's thinking.
#[derive(Clone, Debug)]
pub struct Thinker {
    thinking: Thinking,
    state: State,
    /// Text that may be the beginning of a marker.
    held: String,
    spent: usize,
    is_closing: bool,
    forced: VecDeque<u32>,
}

impl Thinker {
    #[must_use]
    pub fn new(thinking: Thinking) -> Self {
        let state = if thinking.is_open {
            State::Inside
        } else {
            State::Before
        };
        Self {
            thinking,
            state,
            held: String::new(),
            spent: 0,
            is_closing: false,
            forced: VecDeque::new(),
        }
    }

    /// Thinking tokens so far; markers are none.
    #[must_use]
    pub fn spent(&self) -> usize {
        self.spent
    }

    /// Whether the answer proper has begun, so that its form may be held to.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state != State::Inside
    }

    /// The token that must come next, if the budget says so.
    #[must_use]
    pub fn forced(&self) -> Option<u32> {
        let is_spent = self.thinking.budget.is_some_and(|budget| self.spent >= budget);
        match self.forced.front() {
            Some(token) => Some(*token),
            None if self.state == State::Inside && is_spent && !self.is_closing => {
                self.thinking.close_tokens.first().copied()
            }
            None => None,
        }
    }

    /// A token came, with the text that is whole with it. Answers with that text in pieces, without the markers.
    pub fn push(&mut self, token: u32, text: &str) -> Vec<(Channel, String)> {
        let was_inside = self.state == State::Inside;
        if self.forced.front() == Some(&token) {
            self.forced.pop_front();
        } else if !self.is_closing && self.forced() == Some(token) {
            self.is_closing = true;
            self.forced = self.thinking.close_tokens.iter().skip(1).copied().collect();
        }
        let mut pieces = self.split(text);
        if was_inside && self.state == State::Inside && !self.is_closing {
            self.spent += 1;
        }
        if self.state == State::Inside && self.is_closing && self.forced.is_empty() {
            // A closing token without text closes as well.
            pieces.extend(self.finish());
            self.state = State::After;
        }
        pieces
    }

    /// Text that was held, at the end.
    pub fn finish(&mut self) -> Option<(Channel, String)> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| (self.channel(), held))
    }

    fn channel(&self) -> Channel {
        match self.state {
            State::Inside => Channel::Reasoning,
            State::Before | State::After => Channel::Content,
        }
    }

    fn split(&mut self, text: &str) -> Vec<(Channel, String)> {
        self.held.push_str(text);
        let mut out = Vec::new();
        loop {
            let (mark, next) = match self.state {
                State::Before => (self.thinking.open.clone(), State::Inside),
                State::Inside => (self.thinking.close.clone(), State::After),
                State::After => break,
            };
            let Some(at) = self.held.find(&mark) else { break };
            // An opening marker in the middle of an answer is text.
            if self.state == State::Before && !self.held[..at].trim().is_empty() {
                break;
            }
            let before = self.held[..at].to_owned();
            self.held.drain(..at + mark.len());
            if self.state == State::Inside && !before.is_empty() {
                out.push((Channel::Reasoning, before));
            }
            self.state = next;
        }
        let sure = self.sure();
        let text: String = self.held.drain(..sure).collect();
        if self.state == State::Before && !text.trim().is_empty() {
            self.state = State::After;
        }
        if !text.is_empty() {
            out.push((self.channel(), text));
        }
        out
    }

    /// How much of what is held can be no part of a marker.
    fn sure(&self) -> usize {
        let mark = match self.state {
            State::Before if self.held.trim().is_empty() => return 0,
            State::Before if self.thinking.open.starts_with(self.held.trim_start()) => return 0,
            State::Inside => &self.thinking.close,
            State::Before | State::After => return self.held.len(),
        };
        let partial = (1..mark.len())
            .rev()
            .filter(|length| mark.is_char_boundary(*length))
            .find(|length| self.held.ends_with(&mark[..*length]));
        self.held.len() - partial.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thinking(budget: Option<usize>, is_open: bool) -> Thinker {
        Thinker::new(Thinking {
            open: "<think>".into(),
            close: "</think>".into(),
            close_tokens: vec![100, 101],
            budget,
            is_open,
        })
    }

    /// A model that would say these words one by one: the budget's tokens go before them.
    fn run(thinker: &mut Thinker, script: &[&str]) -> (String, String, Vec<u32>) {
        let (mut reasoning, mut content, mut tokens) = (String::new(), String::new(), Vec::new());
        let mut script = script.iter().enumerate();
        loop {
            let (token, text) = match thinker.forced() {
                Some(100) => (100, "</think>"),
                Some(token) => (token, "\n\n"),
                None => match script.next() {
                    Some((at, text)) => (at as u32, *text),
                    None => break,
                },
            };
            tokens.push(token);
            for (channel, text) in thinker.push(token, text) {
                match channel {
                    Channel::Reasoning => reasoning.push_str(&text),
                    Channel::Content => content.push_str(&text),
                }
            }
        }
        if let Some((channel, text)) = thinker.finish() {
            match channel {
                Channel::Reasoning => reasoning.push_str(&text),
                Channel::Content => content.push_str(&text),
            }
        }
        (reasoning, content, tokens)
    }

    #[test]
    fn a_budget_of_n_ends_thinking_after_n_tokens() {
        for budget in 0..6 {
            let mut opened = thinking(Some(budget), true);
            let (reasoning, content, tokens) = run(&mut opened, &["a"; 20]);
            assert_eq!(reasoning, "a".repeat(budget));
            assert_eq!(content, format!("\n\n{}", "a".repeat(20 - budget)));
            assert_eq!(tokens[budget..budget + 2], [100, 101]);
            assert_eq!(opened.spent(), budget);
            // And where the model itself opens the block.
            let mut script = vec!["<think>"];
            script.extend(["b"; 20]);
            let mut own = thinking(Some(budget), false);
            let (reasoning, _, tokens) = run(&mut own, &script);
            assert_eq!((reasoning, own.spent()), ("b".repeat(budget), budget));
            assert_eq!(tokens[budget + 1..budget + 3], [100, 101]);
        }
    }

    #[test]
    fn a_model_that_ends_in_time_is_left_alone() {
        let (reasoning, content, tokens) =
            run(&mut thinking(Some(10), true), &["x", "y", "</think>", "done"]);
        assert_eq!((reasoning.as_str(), content.as_str()), ("xy", "done"));
        assert_eq!(tokens, [0, 1, 2, 3]);
    }

    #[test]
    fn markers_over_several_tokens_are_found_and_others_are_text() {
        let script = [
            "\n",
            "<th",
            "ink>",
            "a <b> </th",
            "at",
            "</thi",
            "nk>",
            "c <think> d",
        ];
        let (reasoning, content, _) = run(&mut thinking(None, false), &script);
        assert_eq!(reasoning, "a <b> </that");
        assert_eq!(content, "c <think> d");
        let (reasoning, content, _) = run(&mut thinking(Some(3), false), &["hello ", "<think>", "x"]);
        assert_eq!((reasoning.as_str(), content.as_str()), ("", "hello <think>x"));
    }
}
