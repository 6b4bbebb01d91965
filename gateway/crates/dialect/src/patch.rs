//! The caller's own bytes with the few fields changed that must be. Every other byte stays as it is.

use crate::encode::{Loss, Target};
use crate::request::Request;
use crate::scan::Span;
use crate::thinking;
use bytes::Bytes;
use exchange::{Dialect, Thinking};
use serde_json::{Value, json};

/// The body for a candidate of the caller's own dialect; `raw` itself where nothing has to change.
pub(crate) fn patch(request: &Request, target: &Target<'_>, losses: &mut Vec<Loss>) -> Bytes {
    let (spots, facts) = (&request.spots, &request.facts);
    let mut edits = Edits::default();
    if *facts.model != *target.model {
        edits.set(spots.model.as_ref(), "model", json!(target.model).to_string());
    }
    if facts.stream != target.stream {
        edits.set(spots.stream.as_ref(), "stream", target.stream.to_string());
    }
    let cap = target
        .max_output_tokens
        .filter(|cap| facts.max_output_tokens.is_none_or(|asked| *cap < asked));
    if let Some(cap) = cap {
        limit(request, cap, &mut edits);
    }
    if request.dialect == Dialect::OpenaiChat {
        if target.stream && !spots.include_usage {
            ask_for_usage(request, &mut edits);
        }
        if !target.can_think {
            // The field may be null, which says nothing.
            if let Some(spot) = spots.reasoning_effort.as_ref() {
                edits.set(Some(spot), "reasoning_effort", "null".into());
            }
        } else if let Some(wanted) = target.thinking {
            let level = json!(thinking::level(wanted).as_str()).to_string();
            edits.set(spots.reasoning_effort.as_ref(), "reasoning_effort", level);
        }
    } else {
        let max = cap
            .or(facts.max_output_tokens)
            .unwrap_or(crate::encode::USUAL_MAX_TOKENS);
        // A limit below the caller's own budget would make the request invalid.
        let squeezed = facts.thinking.filter(|own| {
            cap.is_some() && matches!(own, Thinking::Tokens(tokens) if u64::from(*tokens) >= max)
        });
        let broken_off = drop_unsigned(request, &mut edits, losses);
        let off = (!target.can_think).then_some(Thinking::Level(exchange::ThinkingLevel::None));
        if let Some(wanted) = broken_off.or(off).or(target.thinking).or(squeezed) {
            set_thinking(request, (wanted, max), &mut edits, losses);
        }
    }
    edits.apply(request)
}

fn limit(request: &Request, cap: u64, edits: &mut Edits) {
    let spots = &request.spots;
    match (&spots.max_completion_tokens, &spots.max_tokens) {
        (None, None) if request.dialect == Dialect::OpenaiChat => {
            edits.set(None, "max_completion_tokens", cap.to_string());
        }
        (None, spot) => edits.set(spot.as_ref(), "max_tokens", cap.to_string()),
        (Some(spot), other) => {
            edits.set(Some(spot), "max_completion_tokens", cap.to_string());
            if let Some(other) = other {
                edits.set(Some(other), "max_tokens", cap.to_string());
            }
        }
    }
}

pub(crate) fn ask_for_usage(request: &Request, edits: &mut Edits) {
    let spot = request.spots.stream_options.as_ref();
    let given = spot.and_then(|span| serde_json::from_slice(&request.raw[span.clone()]).ok());
    let mut options: Value = given.filter(Value::is_object).unwrap_or_else(|| json!({}));
    options["include_usage"] = true.into();
    edits.set(spot, "stream_options", options.to_string());
}

/// Takes out thinking that Anthropic has not signed, which it would refuse. Where the model's turn goes on behind it, the
/// turn can only go on without thinking.
fn drop_unsigned(request: &Request, edits: &mut Edits, losses: &mut Vec<Loss>) -> Option<Thinking> {
    let (spots, raw) = (&request.spots, &request.raw);
    if spots.unsigned.is_empty() {
        return None;
    }
    let mut runs: Vec<Span> = Vec::new();
    for span in &spots.unsigned {
        match runs.last_mut() {
            Some(run) if raw[run.end..span.start].trim_ascii() == b"," => run.end = span.end,
            _ => runs.push(span.clone()),
        }
    }
    for run in runs {
        let (before, after) = (
            raw[..run.start].trim_ascii_end(),
            raw[run.end..].trim_ascii_start(),
        );
        // With one of the commas around it, where there is one.
        let with_comma = match (before.strip_suffix(b","), after.strip_prefix(b",")) {
            (_, Some(rest)) => run.start..raw.len() - rest.len(),
            (Some(rest), None) => rest.len()..run.end,
            (None, None) => run,
        };
        edits.replaced.push((with_comma, String::new()));
    }
    losses.push(Loss::new(
        "messages",
        "thinking that Anthropic has not signed is left out",
    ));
    spots
        .tool_loop
        .then_some(Thinking::Level(exchange::ThinkingLevel::None))
}

/// Anthropic refuses thinking beside some settings and in the middle of a tool's use: the caller's own request goes
/// before the policy's wish, which is then reported as lost.
fn set_thinking(
    request: &Request,
    (wanted, max): (Thinking, u64),
    edits: &mut Edits,
    losses: &mut Vec<Loss>,
) {
    let spots = &request.spots;
    let is_on = request.facts.thinking.is_some_and(|own| !thinking::is_off(own)) && spots.thinking.is_some();
    if spots.adaptive && !thinking::is_off(wanted) {
        let spot = spots.output_config.as_ref();
        let given = spot.and_then(|span| serde_json::from_slice(&request.raw[span.clone()]).ok());
        let mut config: Value = given.filter(Value::is_object).unwrap_or_else(|| json!({}));
        config["effort"] = thinking::anthropic_effort(wanted).into();
        edits.set(spot, "output_config", config.to_string());
        return;
    }
    let budget = thinking::budget(wanted, max);
    match budget {
        None if is_on => edits.set(
            spots.thinking.as_ref(),
            "thinking",
            r#"{"type":"disabled"}"#.into(),
        ),
        None => {}
        Some(_) if !is_on && spots.excludes_thinking.is_some() => {
            let name = spots.excludes_thinking.unwrap_or_default();
            losses.push(Loss::new(
                "thinking",
                format!("the caller's own `{name}` excludes it"),
            ));
        }
        Some(_) if !is_on && spots.tool_loop => {
            losses.push(Loss::new(
                "thinking",
                "cannot begin in the middle of a tool's use",
            ));
        }
        Some(budget) => edits.set(
            spots.thinking.as_ref(),
            "thinking",
            thinking::enabled(budget).to_string(),
        ),
    }
}

/// Values replaced where they stand, and fields put before the closing brace.
#[derive(Default)]
pub(crate) struct Edits {
    replaced: Vec<(Span, String)>,
    added: String,
}

impl Edits {
    pub(crate) fn set(&mut self, spot: Option<&Span>, name: &str, value: String) {
        match spot {
            Some(span) => self.replaced.push((span.clone(), value)),
            None => {
                self.added.push_str(",\"");
                self.added.push_str(name);
                self.added.push_str("\":");
                self.added.push_str(&value);
            }
        }
    }

    pub(crate) fn apply(mut self, request: &Request) -> Bytes {
        let raw = &request.raw;
        if self.replaced.is_empty() && self.added.is_empty() {
            return raw.clone();
        }
        let end = request.spots.end;
        self.replaced.push((end..end, self.added));
        self.replaced.sort_unstable_by_key(|(span, _)| span.start);
        let more: usize = self.replaced.iter().map(|(_, value)| value.len()).sum();
        let mut out = Vec::with_capacity(raw.len() + more);
        let mut from = 0;
        for (span, value) in &self.replaced {
            out.extend_from_slice(&raw[from..span.start]);
            out.extend_from_slice(value.as_bytes());
            from = span.end;
        }
        out.extend_from_slice(&raw[from..]);
        out.into()
    }
}
