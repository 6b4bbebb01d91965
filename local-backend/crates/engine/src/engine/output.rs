//! Text on its way out: what may be the beginning of a stop string waits until it is certain.

/// Holds text back until it cannot be part of a stop string.
#[derive(Clone, Debug)]
pub(super) struct Output {
    /// Empty ones never come.
    stop: Vec<String>,
    held: String,
}

impl Output {
    pub(super) fn new(stop: Vec<String>) -> Self {
        Self {
            stop,
            held: String::new(),
        }
    }

    /// The text that is certain, and which stop string came.
    pub(super) fn push(&mut self, text: &str) -> (String, Option<usize>) {
        self.held.push_str(text);
        let stops = self.stop.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops.filter_map(|(index, stop)| Some((self.held.find(stop.as_str())?, index)));
        if let Some((at, index)) = found.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(index));
        }
        let begins = |start: &usize| {
            let tail = &self.held[*start..];
            !tail.is_empty() && self.stop.iter().any(|stop| stop.starts_with(tail))
        };
        let starts = self.held.char_indices().map(|(at, _)| at);
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let keep = starts.filter(|at| *at >= from).find(begins);
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), None)
    }

    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_over_several_tokens_is_not_let_out() {
        let mut output = Output::new(vec!["END".into(), "\n\n".into()]);
        assert_eq!(output.push("say E"), ("say ".into(), None));
        assert_eq!(output.push("N"), (String::new(), None));
        assert_eq!(output.push("e"), ("ENe".into(), None));
        assert_eq!(output.push("xEN"), ("x".into(), None));
        assert_eq!(output.push("D more"), (String::new(), Some(0)));
        let mut output = Output::new(vec!["é!".into()]);
        assert_eq!(output.push("caf\u{e9}"), ("caf".into(), None));
        assert_eq!(output.finish(), "é");
    }
}
