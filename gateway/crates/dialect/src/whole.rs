//! What an answer in one JSON body says of itself, read without building it.

use crate::answer::AnswerError;
use crate::scan::{Broken, Cursor, Span, string_lengths};
use crate::tap::Progress;
use crate::{anthropic, error, openai, plain};
use exchange::Dialect;
use serde_json::Value;

/// Reads the progress off a whole answer.
///
/// # Errors
/// The body is not JSON, not an answer, or the provider's error.
pub(crate) fn read(dialect: Dialect, body: &[u8]) -> Result<Progress, AnswerError> {
    read_by(body, |reader, cursor, key| match dialect {
        Dialect::Anthropic => reader.anthropic(cursor, key),
        _ => reader.openai(cursor, key),
    })
}

/// The same of an endpoint of OpenAI's that passes as it is.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_plain(body: &[u8]) -> Result<Progress, AnswerError> {
    read_by(body, Reader::plain)
}

fn read_by<'a>(
    body: &'a [u8],
    field: impl Fn(&mut Reader<'a>, &mut Cursor<'_>, Span) -> Result<(), Broken>,
) -> Result<Progress, AnswerError> {
    let invalid = |message: String| Err(AnswerError::Invalid(message));
    if simdutf8::basic::from_utf8(body).is_err() {
        return invalid("it is not UTF-8".into());
    }
    let mut cursor = Cursor::new(body);
    if cursor.peek() != b'{' {
        return invalid("it is not a JSON object".into());
    }
    let mut reader = Reader {
        text: body,
        progress: Progress::default(),
        has_content: false,
        error: None,
    };
    let read = cursor.object(|cursor, key| field(&mut reader, cursor, key));
    if let Err(Broken(at)) = read.and_then(|()| cursor.end()) {
        return invalid(format!("it is not valid JSON at byte {at}"));
    }
    let Reader {
        mut progress,
        has_content,
        error,
        ..
    } = reader;
    match (has_content, error) {
        (_, Some(message)) => Err(AnswerError::Reported(message)),
        (false, None) => invalid("it has no content".into()),
        (true, None) => {
            progress.complete = true;
            Ok(progress)
        }
    }
}

struct Reader<'a> {
    text: &'a [u8],
    progress: Progress,
    has_content: bool,
    error: Option<String>,
}

impl Reader<'_> {
    fn parse(&self, span: Span) -> Value {
        serde_json::from_slice(&self.text[span]).unwrap_or_default()
    }

    fn openai(&mut self, cursor: &mut Cursor<'_>, key: Span) -> Result<(), Broken> {
        match (&self.text[key], cursor.peek()) {
            (b"choices", b'[') => {
                self.has_content = true;
                return cursor.array(|cursor| self.choice(cursor));
            }
            (key @ (b"model" | b"service_tier" | b"usage" | b"error"), _) => {
                let value = cursor.skip().map(|span| self.parse(span))?;
                match key {
                    b"model" => self.progress.served(&value, &Value::Null),
                    b"service_tier" => self.progress.served(&Value::Null, &value),
                    b"usage" => {
                        self.progress.usage = openai::usage(&value);
                        self.progress.told_cost(&value);
                    }
                    _ => self.error = error::said(&value),
                }
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    }

    fn plain(&mut self, cursor: &mut Cursor<'_>, key: Span) -> Result<(), Broken> {
        match (&self.text[key.clone()], cursor.peek()) {
            // Vectors are not generated text.
            (b"data", b'[') => {
                self.has_content = true;
                cursor.skip().map(drop)
            }
            (b"choices" | b"output", b'[') => {
                self.has_content = true;
                let bytes = cursor.skip()?.len();
                self.progress.generated(bytes);
                Ok(())
            }
            (b"usage", _) => {
                let value = cursor.skip().map(|span| self.parse(span))?;
                self.progress.usage = openai::usage(&value).or_else(|| plain::responses_usage(&value));
                self.progress.told_cost(&value);
                Ok(())
            }
            _ => self.openai(cursor, key),
        }
    }

    fn choice(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        if cursor.peek() != b'{' {
            return cursor.skip().map(drop);
        }
        cursor.object(|cursor, key| match (&self.text[key], cursor.peek()) {
            (b"message", b'{') => cursor.object(|cursor, key| {
                let span = cursor.skip()?;
                let bytes = match &self.text[key] {
                    b"content" | b"reasoning_content" | b"reasoning" | b"refusal" => self.string_bytes(&span),
                    b"tool_calls" => span.len(),
                    _ => 0,
                };
                self.progress.generated(bytes);
                Ok(())
            }),
            (b"finish_reason", _) => {
                let reason = cursor.skip().map(|span| self.parse(span))?;
                let finish = reason.as_str().map(openai::answer::finish);
                self.progress.finish = self.progress.finish.or(finish);
                Ok(())
            }
            _ => cursor.skip().map(drop),
        })
    }

    /// The bytes of a string that is not empty.
    fn string_bytes(&self, span: &Span) -> usize {
        let written = &self.text[span.clone()];
        let inside = written.strip_prefix(b"\"").and_then(string_lengths);
        inside.map_or(0, |(_, bytes)| bytes)
    }

    fn anthropic(&mut self, cursor: &mut Cursor<'_>, key: Span) -> Result<(), Broken> {
        match (&self.text[key], cursor.peek()) {
            (b"content", b'[') => {
                self.has_content = true;
                return cursor.array(|cursor| {
                    let bytes = cursor.skip()?.len();
                    self.progress.generated(bytes);
                    Ok(())
                });
            }
            (key @ (b"model" | b"stop_reason" | b"usage" | b"error"), _) => {
                let value = cursor.skip().map(|span| self.parse(span))?;
                match key {
                    b"model" => self.progress.served(&value, &Value::Null),
                    b"stop_reason" => self.progress.finish = value.as_str().map(anthropic::answer::finish),
                    b"usage" => {
                        self.progress.served(&Value::Null, &value["service_tier"]);
                        self.progress.usage = anthropic::usage(&value);
                        self.progress.told_cost(&value);
                    }
                    _ => self.error = error::said(&value),
                }
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    }
}
