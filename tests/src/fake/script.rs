//! What a fake model does, read from its name or from the `x-fake` header.
//!
//! `fake-ttft50-gap5-n100` waits 50 ms, then sends 100 tokens 5 ms apart. Parts are joined by `-`; an unknown part is an
//! error, so that a typo in a test cannot pass for the default. A name that does not begin with `fake` runs the default.

use std::time::Duration;

/// What the final usage says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageReport {
    #[default]
    Right,
    /// Ten times the tokens that were sent.
    Wrong,
    /// Never sent.
    Missing,
}

/// One model's behaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// From the last byte of the request to the response head.
    pub ttft: Duration,
    /// Between two tokens.
    pub gap: Duration,
    /// Tokens of text, before the caller's own limit applies.
    pub tokens: u32,
    /// Bytes of text per token; 0 takes the natural length of `tokN `.
    pub token_bytes: usize,
    /// Tokens of thinking before the text.
    pub think: u32,
    /// Call the first tool of the request, unless its last message already carries a tool's result.
    pub tools: bool,
    /// Answer with this error instead.
    pub status: Option<u16>,
    /// `Retry-After`, in seconds, on an error.
    pub retry_after: Option<u32>,
    /// Only the first so many requests for this model fail; the rest are answered.
    pub fail_first: Option<u32>,
    /// Accept the request and never answer.
    pub hang: bool,
    /// Stop sending after this many tokens and keep the connection open.
    pub stall_after: Option<u32>,
    /// Cut the connection in the middle of an event after this many tokens.
    pub cut_after: Option<u32>,
    pub usage: UsageReport,
    /// Input tokens to report; `None` reports a quarter of the body's length.
    pub input_tokens: Option<u64>,
    /// Go on generating after the caller has hung up, as some providers do.
    pub deaf: bool,
    /// Answer with the hashes of what arrived.
    pub echo: bool,
    /// Write into each token when it was sent.
    pub stamp: bool,
    /// Say in every answer that the next request would wait so long, as our own engine does.
    pub wait_ms: Option<u64>,
    /// Flex has no room for the first so many calls that ask for it.
    pub flex_busy: u32,
    /// Whoever asks for flex is served, and billed, at the usual tier.
    pub no_flex: bool,
    /// What becomes of a batch whose first item is this one.
    pub batch: BatchPlan,
}

/// A batch's course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// From its making to its end.
    pub length: Duration,
    /// It is refused once it has been looked through.
    pub fails: bool,
    /// At its end it expires.
    pub expires: bool,
    /// It does not end by itself.
    pub never: bool,
    /// It is told to stop and goes on.
    pub deaf: bool,
    /// Of a thousand items, so many are done when it expires, or when one that never ends is cancelled.
    pub part_permille: i64,
}

impl Default for BatchPlan {
    fn default() -> Self {
        Self {
            length: Duration::from_millis(300),
            fails: false,
            expires: false,
            never: false,
            deaf: false,
            part_permille: 0,
        }
    }
}

impl Default for Script {
    fn default() -> Self {
        Self {
            ttft: Duration::ZERO,
            gap: Duration::ZERO,
            tokens: 8,
            token_bytes: 0,
            think: 0,
            tools: false,
            status: None,
            retry_after: None,
            fail_first: None,
            hang: false,
            stall_after: None,
            cut_after: None,
            usage: UsageReport::Right,
            input_tokens: None,
            deaf: false,
            echo: false,
            stamp: false,
            wait_ms: None,
            flex_busy: 0,
            no_flex: false,
            batch: BatchPlan::default(),
        }
    }
}

impl Script {
    /// Reads a model name or an `x-fake` value.
    pub fn parse(name: &str) -> Result<Self, String> {
        let mut script = Self::default();
        let mut parts = name.split('-');
        if parts.next() != Some("fake") {
            return Ok(script);
        }
        for part in parts {
            script.apply(part)?;
        }
        Ok(script)
    }

    fn apply(&mut self, part: &str) -> Result<(), String> {
        if let Some((status, after)) = part.split_once("after") {
            self.status = Some(number(part, status)?);
            self.retry_after = Some(number(part, after)?);
            return Ok(());
        }
        let digits = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
        let (word, value) = part.split_at(digits);
        match (word, value) {
            ("", _) => self.status = Some(number(part, value)?),
            ("ttft", _) => self.ttft = Duration::from_millis(number(part, value)?),
            ("gap", _) => self.gap = Duration::from_millis(number(part, value)?),
            ("n", _) => self.tokens = number(part, value)?,
            ("size", _) => self.token_bytes = number(part, value)?,
            ("think", _) => self.think = number(part, value)?,
            ("in", _) => self.input_tokens = Some(number(part, value)?),
            ("cut", _) => self.cut_after = Some(number(part, value)?),
            ("stall", _) => self.stall_after = Some(number(part, value)?),
            ("failfirst", _) => self.fail_first = Some(number(part, value)?),
            ("wait", _) => self.wait_ms = Some(number(part, value)?),
            ("flexbusy", _) => self.flex_busy = number(part, value)?,
            ("noflex", "") => self.no_flex = true,
            ("batch", _) => self.batch.length = Duration::from_millis(number(part, value)?),
            ("bpart", _) => self.batch.part_permille = number::<i64>(part, value)? * 10,
            ("bfails", "") => self.batch.fails = true,
            ("bexpires", "") => self.batch.expires = true,
            ("bdeaf", "") => self.batch.deaf = true,
            ("bnever", "") => self.batch.never = true,
            ("tools", "") => self.tools = true,
            ("hang", "") => self.hang = true,
            ("badusage", "") => self.usage = UsageReport::Wrong,
            ("nousage", "") => self.usage = UsageReport::Missing,
            ("deaf", "") => self.deaf = true,
            ("echo", "") => self.echo = true,
            ("stamp", "") => self.stamp = true,
            // A label, so that tests can have distinct models with one behaviour.
            ("x", _) => {}
            _ => return Err(format!("unknown part `{part}` in the fake model's name")),
        }
        Ok(())
    }

    /// The status to fail with, for the `seen`-th request (from 0) for this model.
    pub fn failure(&self, seen: u32) -> Option<u16> {
        match self.fail_first {
            Some(first) if seen >= first => None,
            Some(_) => Some(self.status.unwrap_or(500)),
            None => self.status,
        }
    }
}

fn number<T: std::str::FromStr>(part: &str, digits: &str) -> Result<T, String> {
    digits
        .parse()
        .map_err(|_| format!("`{part}` in the fake model's name needs a number"))
}

/// The text of token `index`, `size` bytes long (0: its natural length). Every token is distinct, so order and loss show.
pub fn token_text(index: u32, size: usize) -> String {
    let mut text = format!("tok{index} ");
    if size > 0 {
        text.truncate(size);
        while text.len() < size {
            text.insert(text.len() - 1, '.');
        }
    }
    text
}

/// What stands in a token of a `stamp` script where its time of sending will be, in nanoseconds since the epoch.
pub const STAMP: &str = "@0000000000000000000";

/// The whole answer a script with `tokens` tokens gives.
pub fn full_text(tokens: u32, size: usize) -> String {
    (0..tokens).map(|index| token_text(index, size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_behaviour_and_typos_do_not() {
        let script = Script::parse("fake-ttft50-gap5-n100-size40-think3-deaf").unwrap();
        assert_eq!((script.ttft.as_millis(), script.gap.as_millis()), (50, 5));
        assert_eq!(
            (script.tokens, script.token_bytes, script.think, script.deaf),
            (100, 40, 3, true)
        );
        let limited = Script::parse("fake-429after2").unwrap();
        assert_eq!((limited.status, limited.retry_after), (Some(429), Some(2)));
        assert_eq!(Script::parse("gpt-4o-mini").unwrap(), Script::default());
        assert!(Script::parse("fake-tfft50").is_err());
        assert!(Script::parse("fake-n").is_err());
    }

    #[test]
    fn failures_can_be_limited_to_the_first_requests() {
        let script = Script::parse("fake-failfirst2-429").unwrap();
        assert_eq!(
            [0, 1, 2].map(|seen| script.failure(seen)),
            [Some(429), Some(429), None]
        );
        assert_eq!(Script::parse("fake-failfirst1").unwrap().failure(0), Some(500));
    }

    #[test]
    fn token_text_has_the_size_asked_for() {
        assert_eq!(token_text(3, 0), "tok3 ");
        assert_eq!(token_text(3, 40).len(), 40);
        assert_eq!(full_text(2, 0), "tok0 tok1 ");
    }
}
