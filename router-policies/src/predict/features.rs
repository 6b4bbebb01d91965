//! What can be counted in a prompt without understanding it: its length, numbers, symbols, code marks, choices.
//!
//! Owns: the list of numeric features and their one definition. Refuses to know: words as such (see `words`), models,
//! outcomes. Invariants: the vector holds no text and is safe to store; every number is finite; a prompt costs one
//! pass over at most [`MOST_BYTES`] bytes, however long it is.

use super::words::{Token, TokenKind, tokens};

/// Of a longer prompt the first and the last half of this many bytes are read.
pub const MOST_BYTES: usize = 16 * 1024;

/// Symbols that are counted one by one.
const SYMBOLS: [(u8, &str); 21] = [
    (b'=', "equals"),
    (b'+', "plus"),
    (b'*', "star"),
    (b'/', "slash"),
    (b'%', "percent"),
    (b'$', "dollar"),
    (b'(', "parens"),
    (b'[', "brackets"),
    (b'{', "braces"),
    (b':', "colons"),
    (b',', "commas"),
    (b'.', "dots"),
    (b'?', "questions"),
    (b'\'', "single_quotes"),
    (b'"', "double_quotes"),
    (b'\\', "backslashes"),
    (b'_', "underscores"),
    (b'<', "angles"),
    (b'^', "carets"),
    (b'-', "dashes"),
    (b';', "semicolons"),
];

/// Classes of words that are counted together.
const CLASSES: [(&str, &[&str]); 8] = [
    ("loops", &["for", "while"]),
    (
        "branches",
        &[
            "if", "elif", "else", "try", "except", "break", "continue", "return",
        ],
    ),
    (
        "negations",
        &["not", "except", "least", "never", "false", "incorrect", "without"],
    ),
    (
        "ratios",
        &[
            "half",
            "third",
            "quarter",
            "fourth",
            "fifth",
            "percent",
            "twice",
            "double",
            "triple",
            "thrice",
            "times",
            "ratio",
            "average",
            "fraction",
            "remaining",
            "total",
            "each",
            "per",
            "every",
            "than",
        ],
    ),
    (
        "comparisons",
        &[
            "more", "less", "fewer", "than", "older", "younger", "longer", "shorter", "as",
        ],
    ),
    (
        "times",
        &[
            "hour", "hours", "minute", "minutes", "day", "days", "week", "weeks", "month", "months", "year",
            "years",
        ],
    ),
    ("hows", &["how"]),
    ("statements", &["statement"]),
];

const REST: [&str; 40] = [
    "characters",
    "words",
    "lines",
    "numbers",
    "distinct_share",
    "distinct_words",
    "word_length",
    "long_words",
    "digit_share",
    "capital_share",
    "symbol_share",
    "foreign_share",
    "largest_number",
    "distinct_numbers",
    "decimals",
    "large_numbers",
    "negative_numbers",
    "deepest_indent",
    "mean_indent",
    "method_calls",
    "calls",
    "slices",
    "indexed",
    "quoted_characters",
    "longest_quoted",
    "quoted",
    "sentences",
    "sentence_words",
    "choices",
    "choice_length",
    "choice_spread",
    "numeric_choices",
    "stem_characters",
    "blanks",
    "last_line",
    "last_line_digits",
    "last_line_commas",
    "last_line_quotes",
    "last_line_brackets",
    "capitalised_words",
];

/// Length of a feature vector.
pub const COUNT: usize = SYMBOLS.len() + CLASSES.len() + REST.len();

/// Names, in the order of the vector.
pub fn names() -> impl Iterator<Item = &'static str> {
    let symbols = SYMBOLS.iter().map(|(_, name)| *name);
    symbols.chain(CLASSES.iter().map(|(name, _)| *name)).chain(REST)
}

/// The numbers of one prompt. Counts are `ln(1 + count)`, shares 0 … 1, lengths `ln(1 + characters)`.
pub fn numbers(text: &str) -> [f32; COUNT] {
    let text = bounded(text);
    let mut out = [0.0; COUNT];
    let (symbols, rest) = out.split_at_mut(SYMBOLS.len());
    let (classes, rest) = rest.split_at_mut(CLASSES.len());
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    for (slot, (byte, _)) in symbols.iter_mut().zip(SYMBOLS) {
        *slot = log(counts[usize::from(byte)] as usize);
    }
    let words = WordCounts::of(&text, classes);
    let shape = shape(&text, &counts, &words);
    rest.copy_from_slice(&shape);
    out
}

/// Whether a prompt is written in formal notation, code or mathematics: it calls functions, indents by four or more and
/// assigns, or it has TeX commands or powers. `numbers`: a vector of this file, or a longer one that begins with it.
pub fn is_formal(numbers: &[f32]) -> bool {
    let count = |name: &str| {
        let at = names().position(|known| known == name);
        at.and_then(|at| numbers.get(at))
            .map_or(0.0, |value| value.exp_m1())
    };
    let code = count("calls") >= 1.0 && count("deepest_indent") >= 4.0 && count("equals") >= 1.0;
    code || count("backslashes") >= 1.0 || count("carets") >= 1.0
}

/// More of a prompt's bytes beyond ASCII than any training prompt had (0.27 of 11,522): another script.
const FOREIGN: f32 = 0.3;

/// Whether a prompt is mostly in a script that no training prompt was in. `numbers`: as for [`is_formal`].
pub fn is_foreign(numbers: &[f32]) -> bool {
    let at = names().position(|known| known == "foreign_share");
    at.and_then(|at| numbers.get(at))
        .is_some_and(|share| *share > FOREIGN)
}

/// The text, or its first and last [`MOST_BYTES`] / 2 bytes where it is longer.
pub fn bounded(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= MOST_BYTES {
        return text.into();
    }
    let head = text.floor_char_boundary(MOST_BYTES / 2);
    let tail = text.ceil_char_boundary(text.len() - MOST_BYTES / 2);
    format!("{}\n{}", &text[..head], &text[tail..]).into()
}

fn log(count: usize) -> f32 {
    (count as f32).ln_1p()
}

fn share(part: usize, whole: usize) -> f32 {
    part as f32 / whole.max(1) as f32
}

/// What one walk over the tokens finds.
#[derive(Default)]
struct WordCounts {
    words: usize,
    letters: usize,
    distinct: usize,
    long: usize,
    capitalised: usize,
    numbers: usize,
    distinct_numbers: usize,
    decimals: usize,
    large: usize,
    negative: usize,
    largest: f64,
}

impl WordCounts {
    fn of(text: &str, classes: &mut [f32]) -> Self {
        let mut counts = Self::default();
        let mut seen = Vec::with_capacity(text.len() / 5);
        let mut seen_numbers = Vec::new();
        let mut before = "";
        for token in tokens(text) {
            match token.kind {
                TokenKind::Word => {
                    counts.word(&token, classes);
                    seen.push(token.hash);
                }
                TokenKind::Number => {
                    counts.number(token.text, before == "-");
                    seen_numbers.push(token.hash);
                }
                TokenKind::Symbol => {}
            }
            before = token.text;
        }
        counts.distinct = distinct(&mut seen);
        counts.distinct_numbers = distinct(&mut seen_numbers);
        classes.iter_mut().for_each(|count| *count = count.ln_1p());
        counts
    }

    fn word(&mut self, token: &Token<'_>, classes: &mut [f32]) {
        self.words += 1;
        self.letters += token.text.len();
        self.long += usize::from(token.text.len() >= 9);
        self.capitalised += usize::from(token.text.starts_with(|c: char| c.is_ascii_uppercase()));
        if token.text.len() <= 10 {
            for (count, (_, class)) in classes.iter_mut().zip(CLASSES) {
                *count += f32::from(u8::from(
                    class.iter().any(|word| word.eq_ignore_ascii_case(token.text)),
                ));
            }
        }
    }

    fn number(&mut self, text: &str, after_dash: bool) {
        self.numbers += 1;
        self.decimals += usize::from(text.contains('.'));
        self.negative += usize::from(after_dash);
        // Digits grouped by commas read as one number; what overflows reads as large.
        let value = text
            .bytes()
            .take_while(|byte| *byte != b'.')
            .filter(u8::is_ascii_digit)
            .fold(0.0_f64, |value, digit| {
                (value * 10.0 + f64::from(digit - b'0')).min(1e15)
            });
        self.large += usize::from(value >= 100.0);
        self.largest = self.largest.max(value);
    }
}

fn distinct(hashes: &mut Vec<u64>) -> usize {
    hashes.sort_unstable();
    hashes.dedup();
    hashes.len()
}

fn shape(text: &str, counts: &[u32; 256], words: &WordCounts) -> [f32; REST.len()] {
    let of = |range: std::ops::RangeInclusive<u8>| {
        range
            .map(|byte| counts[usize::from(byte)] as usize)
            .sum::<usize>()
    };
    let (digits, capitals) = (of(b'0'..=b'9'), of(b'A'..=b'Z'));
    let foreign = of(128..=255);
    let plain = digits + capitals + of(b'a'..=b'z');
    let spaces = [b' ', b'\n', b'\t', b'\r']
        .map(|byte| counts[usize::from(byte)] as usize)
        .iter()
        .sum::<usize>();
    let code = Code::of(text);
    let (quoted, quoted_characters, longest_quoted) = quotes(text);
    let sentences = sentences(text);
    let choices = Choices::of(text);
    let last = text.trim_end().rsplit('\n').next().unwrap_or_default();
    let in_last = |set: &[u8]| last.bytes().filter(|byte| set.contains(byte)).count();
    [
        log(text.len()),
        log(words.words),
        log(code.lines),
        log(words.numbers),
        share(words.distinct, words.words),
        log(words.distinct),
        share(words.letters, words.words),
        share(words.long, words.words),
        share(digits, text.len()),
        share(capitals, text.len()),
        share(text.len() - plain - spaces - foreign, text.len()),
        share(foreign, text.len()),
        (words.largest as f32).ln_1p(),
        log(words.distinct_numbers),
        log(words.decimals),
        log(words.large),
        log(words.negative),
        log(code.deepest),
        share(code.indents, code.filled),
        log(code.methods),
        log(code.calls),
        log(code.slices),
        log(code.indexed),
        log(quoted_characters),
        log(longest_quoted),
        log(quoted),
        log(sentences),
        share(words.words, sentences).ln_1p(),
        choices.count as f32,
        log(choices.mean),
        log(choices.spread),
        share(choices.numeric, choices.count),
        log(choices.stem),
        log(text.match_indices("__").count()),
        log(last.len()),
        share(last.bytes().filter(u8::is_ascii_digit).count(), last.len()),
        log(in_last(b",")),
        log(in_last(b"'\"")),
        log(in_last(b"([{")),
        share(words.capitalised, words.words),
    ]
}

#[derive(Default)]
struct Code {
    lines: usize,
    filled: usize,
    indents: usize,
    deepest: usize,
    methods: usize,
    calls: usize,
    slices: usize,
    indexed: usize,
}

impl Code {
    fn of(text: &str) -> Self {
        let mut code = Self::default();
        for line in text.split('\n') {
            code.lines += 1;
            let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
            if indent < line.len() {
                code.filled += 1;
                code.indents += indent;
                code.deepest = code.deepest.max(indent);
            }
        }
        code.marks(text.as_bytes());
        code
    }

    /// `name(`, `.name(`, `name[` and `[a:b]`.
    fn marks(&mut self, bytes: &[u8]) {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let (mut method, mut open, mut colon) = (false, false, false);
        let mut before = b' ';
        for &byte in bytes {
            match byte {
                b'(' if is_name(before) => {
                    self.calls += 1;
                    self.methods += usize::from(method);
                }
                b'[' => {
                    self.indexed += usize::from(is_name(before));
                    (open, colon) = (true, false);
                }
                b':' if open => colon = true,
                b']' => {
                    self.slices += usize::from(open && colon);
                    open = false;
                }
                b'\n' => open = false,
                _ => {}
            }
            method = byte == b'.' || (method && is_name(byte));
            before = byte;
        }
    }
}

/// Quoted passages within a line: how many, characters in all, characters of the longest.
fn quotes(text: &str) -> (usize, usize, usize) {
    let (mut count, mut total, mut longest) = (0, 0, 0);
    let mut open: Option<(u8, usize)> = None;
    for (at, byte) in text.bytes().enumerate() {
        match (byte, open) {
            (b'\n', _) => open = None,
            (b'\'' | b'"', None) => open = Some((byte, at)),
            (_, Some((quote, start))) if quote == byte => {
                count += 1;
                total += at - start - 1;
                longest = longest.max(at - start - 1);
                open = None;
            }
            _ => {}
        }
    }
    (count, total, longest)
}

fn sentences(text: &str) -> usize {
    let ends = text.as_bytes().windows(2);
    1 + ends
        .filter(|pair| matches!(pair[0], b'.' | b'?' | b'!') && pair[1].is_ascii_whitespace())
        .count()
}

/// Lettered answers to choose from, one a line (`A. …`).
#[derive(Default)]
struct Choices {
    count: usize,
    mean: usize,
    spread: usize,
    numeric: usize,
    /// Bytes before the first of them.
    stem: usize,
}

impl Choices {
    fn of(text: &str) -> Self {
        let mut found = Self {
            stem: text.len(),
            ..Self::default()
        };
        let (mut total, mut shortest, mut longest, mut at) = (0, usize::MAX, 0, 0);
        for line in text.split('\n') {
            if let [b'A'..=b'E', b'.' | b')', ..] = line.as_bytes() {
                let choice = line[2..].trim_start();
                if found.count == 0 {
                    found.stem = at;
                }
                found.count += 1;
                total += choice.len();
                shortest = shortest.min(choice.len());
                longest = longest.max(choice.len());
                let bare = choice.trim_start_matches(['-', '$', '(']);
                found.numeric += usize::from(bare.starts_with(|c: char| c.is_ascii_digit()));
            }
            at += line.len() + 1;
        }
        found.mean = total / found.count.max(1);
        found.spread = longest.saturating_sub(shortest);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feature(text: &str, name: &str) -> f32 {
        let at = names().position(|known| known == name).unwrap();
        numbers(text)[at]
    }

    #[test]
    fn features_count_what_their_names_say() {
        let code = "def f(s):\n    for c in s.split(','):\n        x = c[1:3]\nassert f('a,b') == ??";
        assert_eq!(feature(code, "loops"), 1_f32.ln_1p());
        assert_eq!(feature(code, "method_calls"), 1_f32.ln_1p());
        assert_eq!(feature(code, "slices"), 1_f32.ln_1p());
        assert_eq!(feature(code, "quoted"), 2_f32.ln_1p());
        assert_eq!(feature(code, "deepest_indent"), 8_f32.ln_1p());
        let sum = "Ann has 1,250 apples and -3 pears. How many are half of them?";
        assert_eq!(feature(sum, "numbers"), 2_f32.ln_1p());
        assert_eq!(feature(sum, "largest_number"), 1250_f32.ln_1p());
        assert_eq!(feature(sum, "negative_numbers"), 1_f32.ln_1p());
        assert_eq!(feature(sum, "ratios"), 1_f32.ln_1p());
        let choice = "Which is NOT a prime?\nA. 2\nB. 3\nC. 44";
        assert_eq!(feature(choice, "choices"), 3.0);
        assert_eq!(feature(choice, "numeric_choices"), 1.0);
        assert_eq!(feature(choice, "negations"), 1_f32.ln_1p());
    }

    #[test]
    fn formal_notation_is_told_from_prose() {
        assert!(is_formal(&numbers(
            "def f(s):\n    n = len(s)\n    return n\nassert f('a') == ??"
        )));
        assert!(is_formal(&numbers("Compute $\\frac{1}{2} + x$.")));
        assert!(!is_formal(&numbers(
            "Ann (who has $5) buys 3 pens = how much is left?"
        )));
    }

    #[test]
    fn names_are_as_many_as_numbers_and_distinct() {
        let mut all: Vec<_> = names().collect();
        assert_eq!(all.len(), COUNT);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), COUNT);
    }

    proptest! {
        #[test]
        fn any_text_gives_finite_numbers(text in any::<String>(), times in 1_usize..2000) {
            prop_assert!(numbers(&text).iter().all(|number| number.is_finite()));
            prop_assert!(numbers(&text.repeat(times)).iter().all(|number| number.is_finite()));
        }
    }
}
