//! Calls without their marks: small models often answer with the call's JSON alone, or in a fence, and some with the doubled
//! braces that a template shows them. Only an answer that begins so, and names a tool that was given, is taken for a call.

use serde_json::Value;

const FENCE: &str = "```";

/// Whether an answer that begins with `text` may still turn out to be a call.
pub(super) fn may_be(text: &str, names: &[String]) -> bool {
    let text = text.trim_start();
    if FENCE.starts_with(text) {
        return true;
    }
    let inside = match text.strip_prefix(FENCE) {
        None => text,
        Some(fenced) => match fenced.split_once('\n') {
            Some((language, inside)) if matches!(language.trim(), "" | "json") => inside,
            Some(_) => return false,
            None => return "json".starts_with(fenced.trim_end()),
        },
    };
    let steps = ["[", "{", "{", "\"name\"", ":", "\""];
    let mut rest = inside;
    for (at, step) in steps.into_iter().enumerate() {
        rest = rest.trim_start();
        if rest.is_empty() || step.starts_with(rest) && rest.len() < step.len() {
            return true;
        }
        // A list around it and doubled braces may be there or not.
        match rest.strip_prefix(step) {
            Some(after) => rest = after,
            None if at == 0 || at == 2 => {}
            None => return false,
        }
    }
    match rest.split_once('"') {
        Some((name, _)) => names.iter().any(|known| known == name),
        None => names.iter().any(|known| known.starts_with(rest)),
    }
}

/// The calls that an answer consists of; `None`: it is something else.
pub(super) fn read(answer: &str, names: &[String]) -> Option<Vec<Value>> {
    let answer = answer.trim();
    let inside = match answer.strip_prefix(FENCE) {
        Some(fenced) => fenced.split_once('\n')?.1,
        None => answer,
    };
    let json = if inside.trim_start().starts_with("{{") {
        &inside.trim_start()[1..]
    } else {
        inside
    };
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let (mut calls, mut end) = (Vec::new(), 0);
    while let Some(Ok(value)) = values.next() {
        end = values.byte_offset();
        match value {
            Value::Array(several) => calls.extend(several),
            one => calls.push(one),
        }
    }
    // What is left of doubled braces and of the fence.
    let is_over = json[end..]
        .chars()
        .all(|c| c.is_whitespace() || matches!(c, '}' | '`'));
    let is_call = |call: &Value| {
        let is_known = call["name"]
            .as_str()
            .is_some_and(|name| names.iter().any(|known| known == name));
        is_known && (call["arguments"].is_object() || call["parameters"].is_object())
    };
    (is_over && !calls.is_empty() && calls.iter().all(is_call)).then_some(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["get_weather", "send_mail"].map(String::from).into()
    }

    #[test]
    fn every_beginning_of_a_call_may_be_one() {
        for answer in [
            "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}",
            "```json\n{\n  \"name\": \"get_weather\",\n  \"arguments\": {\"city\": \"Oslo\"}\n}\n```",
            "{{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}}}",
            "[{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}]",
        ] {
            assert!(
                (0..answer.len()).all(|end| may_be(&answer[..end], &names())),
                "{answer}"
            );
            let calls = read(answer, &names()).unwrap_or_else(|| panic!("{answer}"));
            assert_eq!((calls.len(), calls[0]["name"].as_str()), (1, Some("get_weather")));
        }
        let two =
            "{\"name\": \"get_weather\", \"arguments\": {}}\n{\"name\": \"send_mail\", \"arguments\": {}}";
        assert_eq!(read(two, &names()).map(|calls| calls.len()), Some(2));
    }

    #[test]
    fn other_answers_are_let_through_as_soon_as_they_differ() {
        for (answer, at) in [
            ("Hello", 1),
            ("```python\nprint()", 4),
            ("{\"city\": 1}", 3),
            ("{\"name\": \"Anna\"}", 11),
            ("`code`", 2),
            ("[1, 2]", 2),
        ] {
            let differs = (0..=answer.len()).find(|end| !may_be(&answer[..*end], &names()));
            assert_eq!(differs, Some(at), "{answer}");
        }
        let named = |rest: &str| format!("{{\"name\": \"get_weather\"{rest}");
        for answer in [
            named("}"),
            named(", \"arguments\": 3}"),
            named(", \"arguments\": {}} and more"),
            named(", "),
        ] {
            assert_eq!(read(&answer, &names()), None, "{answer}");
        }
    }
}
