//! `tokenizer.json`, as the Hugging Face tokenizers library writes it.

use super::vocabulary::{Scheme, TokenKind, Vocabulary};
use serde_json::Value;

/// Whether a part of a pipeline, or a part of that, is of a kind.
fn has(part: &Value, kind: &str) -> bool {
    find(part, kind).is_some()
}

fn find<'a>(part: &'a Value, kind: &str) -> Option<&'a Value> {
    match part {
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|own| own == kind) {
                return Some(part);
            }
            fields.values().find_map(|field| find(field, kind))
        }
        Value::Array(items) => items.iter().find_map(|item| find(item, kind)),
        _ => None,
    }
}

/// Reads a vocabulary.
///
/// # Errors
/// The file is of a kind not known here, and which.
pub fn read(file: &Value) -> Result<Vocabulary, String> {
    let model = &file["model"];
    let is_bytes = has(&file["pre_tokenizer"], "ByteLevel") || has(&file["decoder"], "ByteLevel");
    let scheme = match model["type"].as_str() {
        Some("WordPiece") => Scheme::WordPiece,
        Some("Unigram") => Scheme::Unigram,
        Some("BPE") | None if is_bytes => Scheme::ByteLevel,
        Some("BPE") | None => Scheme::Pairs,
        Some(other) => {
            return Err(format!(
                "its tokenizer is of type {other}, which this build does not know"
            ));
        }
    };
    let (mut tokens, scores) = entries(model)?;
    let added: Vec<&Value> = file["added_tokens"].as_array().into_iter().flatten().collect();
    let place = |token: &Value| token["id"].as_u64().and_then(|id| usize::try_from(id).ok());
    let last = added.iter().filter_map(|token| place(token)).max().unwrap_or(0);
    if last >= tokens.len() + 65_536 {
        return Err("an added token has an id far beyond the vocabulary".into());
    }
    tokens.resize(tokens.len().max(last + 1), String::new());
    let mut out = Vocabulary::new(scheme, tokens);
    for token in added {
        let (Some(id), Some(text)) = (place(token), token["content"].as_str()) else {
            continue;
        };
        text.clone_into(&mut out.tokens[id]);
        let is_special = token["special"].as_bool() == Some(true);
        out.kinds[id] = if is_special {
            TokenKind::Control
        } else {
            TokenKind::User
        };
    }
    if !scores.is_empty() {
        out.scores = scores;
        out.scores.resize(out.tokens.len(), 0.0);
    }
    let id = |text: &str| {
        out.tokens
            .iter()
            .position(|token| token == text)
            .map(|id| id as u32)
    };
    out.unknown = match (model["unk_id"].as_u64(), model["unk_token"].as_str()) {
        (Some(id), _) => Some(id as u32),
        (None, Some(text)) => id(text),
        (None, None) => None,
    };
    out.frame = frame(&file["post_processor"], id);
    out.merges = merges(model)?;
    if scheme == Scheme::ByteLevel {
        out.pre = pre_tokenizer(&file["pre_tokenizer"])?;
    } else if model["byte_fallback"].as_bool() == Some(true) {
        for (text, kind) in out.tokens.iter().zip(&mut out.kinds) {
            if text.len() == 6 && text.starts_with("<0x") {
                *kind = TokenKind::Byte;
            }
        }
    }
    let metaspace = find(&file["pre_tokenizer"], "Metaspace");
    let is_always = |part: &Value| part["prepend_scheme"] != "never" && part["add_prefix_space"] != false;
    out.adds_space = has(&file["normalizer"], "Prepend") || metaspace.is_some_and(is_always);
    let bert = find(&file["normalizer"], "BertNormalizer");
    out.lowers = bert.map_or_else(
        || has(&file["normalizer"], "Lowercase"),
        |bert| bert["lowercase"] == true,
    );
    Ok(out)
}

/// Tokens in order of their ids, with scores if the file has them.
fn entries(model: &Value) -> Result<(Vec<String>, Vec<f32>), String> {
    if let Some(list) = model["vocab"].as_array() {
        let text = |entry: &Value| entry[0].as_str().unwrap_or_default().to_owned();
        let score = |entry: &Value| entry[1].as_f64().unwrap_or(0.0) as f32;
        return Ok((list.iter().map(text).collect(), list.iter().map(score).collect()));
    }
    let map = model["vocab"]
        .as_object()
        .ok_or("its tokenizer has no vocabulary")?;
    let mut tokens = vec![String::new(); map.len()];
    for (text, id) in map {
        let id = id
            .as_u64()
            .and_then(|id| usize::try_from(id).ok())
            .unwrap_or(usize::MAX);
        if id >= tokens.len() {
            if id >= map.len() + 65_536 {
                return Err(format!("the token `{text}` has an id far beyond the vocabulary"));
            }
            tokens.resize(id + 1, String::new());
        }
        tokens[id].clone_from(text);
    }
    Ok((tokens, Vec::new()))
}

/// Pairs, written `a b` or as a list of two.
fn merges(model: &Value) -> Result<Vec<(String, String)>, String> {
    let list = model["merges"].as_array().into_iter().flatten();
    list.map(|merge| {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let (left, right) = pair.ok_or_else(|| format!("{merge} is not a pair"))?;
        Ok((left.to_owned(), right.to_owned()))
    })
    .collect()
}

/// What stands before and after a single text.
fn frame(processor: &Value, id: impl Fn(&str) -> Option<u32>) -> (Option<u32>, Option<u32>) {
    if let Some(bert) = find(processor, "BertProcessing").or(find(processor, "RobertaProcessing")) {
        let token = |key: &str| bert[key][1].as_u64().map(|id| id as u32);
        return (token("cls"), token("sep"));
    }
    let Some(template) = find(processor, "TemplateProcessing") else {
        return (None, None);
    };
    let parts: Vec<&Value> = template["single"].as_array().into_iter().flatten().collect();
    let special = |part: Option<&&Value>| {
        part.and_then(|part| part["SpecialToken"]["id"].as_str())
            .and_then(&id)
    };
    (special(parts.first()), special(parts.last()))
}

/// The name that GGUF files would give the pre-tokenizer.
fn pre_tokenizer(part: &Value) -> Result<String, String> {
    let pattern = find(part, "Split").and_then(|split| split["pattern"]["Regex"].as_str());
    let name = match pattern {
        Some(pattern) if pattern.contains(r"\p{N}{1,3}") => "llama-bpe",
        Some(pattern) if pattern.contains(r"|\p{N}|") => "qwen2",
        Some(pattern) => {
            return Err(format!(
                "its tokenizer cuts text by `{pattern}`, which this build does not know"
            ));
        }
        None if find(part, "Digits").is_some_and(|digits| digits["individual_digits"] == true) => "smollm",
        None => "gpt-2",
    };
    Ok(name.to_owned())
}
