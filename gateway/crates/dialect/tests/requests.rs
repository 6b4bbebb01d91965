//! What is learnt from a request, and what a candidate's own rules make of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dialect::{Encoded, ReadError, Request, Target, encode, read_request};
use exchange::{Dialect, Facts, Thinking, ThinkingLevel};
use serde_json::{Value, json};

const OPENAI: Dialect = Dialect::OpenaiChat;
const ANTHROPIC: Dialect = Dialect::Anthropic;

fn try_read(dialect: Dialect, body: &Value) -> Result<Request, ReadError> {
    read_request(dialect, body.to_string().into())
}

fn facts(dialect: Dialect, body: &Value) -> Facts {
    try_read(dialect, body).unwrap().facts
}

/// A request of the dialect with some fields set.
fn body(fields: &Value) -> Value {
    let mut body =
        json!({ "model": "m", "max_tokens": 8_000, "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn encoded(from: Dialect, fields: &Value, to: Dialect, thinking: Option<Thinking>) -> (Value, Encoded) {
    let request = try_read(from, &body(fields)).unwrap();
    let target = Target {
        dialect: to,
        model: "m",
        max_output_tokens: None,
        thinking,
        stream: false,
        can_think: true,
    };
    let encoded = encode(&request, &target).unwrap();
    (serde_json::from_slice(&encoded.body).unwrap(), encoded)
}

fn lost(encoded: &Encoded) -> Vec<&str> {
    encoded.losses.iter().map(|loss| &*loss.field).collect()
}

const fn level(level: ThinkingLevel) -> Option<Thinking> {
    Some(Thinking::Level(level))
}

#[test]
fn a_conversation_keeps_its_prefix_hash_while_it_grows() {
    let turn = |marked: bool, more: &[Value]| {
        let mut part = json!({ "type": "text", "text": "question" });
        if marked {
            part["cache_control"] = json!({ "type": "ephemeral" });
        }
        let mut messages = vec![json!({ "role": "user", "content": [part] })];
        messages.extend_from_slice(more);
        json!({ "messages": messages, "system": "s", "tools": [{ "name": "f" }] })
    };
    let hash = |fields: &Value| facts(ANTHROPIC, &body(fields)).prefix_hash;
    let first = hash(&turn(true, &[]));
    let answer = json!({ "role": "assistant", "content": "answer" });
    let next = json!({ "role": "user", "content": "and?" });
    assert_eq!(first, hash(&turn(false, &[answer.clone(), next.clone()])));
    assert_eq!(
        first,
        hash(&turn(false, &[answer.clone(), next.clone(), answer, next]))
    );

    // The order of the fields does not matter; each of the three parts does.
    let (start, end) = (r#"{"model":"m","max_tokens":8"#, "}");
    let raw = |parts: [&str; 3]| {
        let text = format!("{start},{}{end}", parts.join(","));
        read_request(ANTHROPIC, text.into()).unwrap().facts.prefix_hash
    };
    let (system, tools) = (r#""system":"s""#, r#""tools":[{"name":"f"}]"#);
    let messages = r#""messages":[{"role":"user","content":"q"}]"#;
    assert_eq!(raw([system, tools, messages]), raw([messages, tools, system]));
    assert_ne!(
        raw([system, tools, messages]),
        raw([r#""system":"t""#, tools, messages])
    );
    assert_ne!(
        raw([system, tools, messages]),
        raw([system, r#""tools":[{"name":"g"}]"#, messages])
    );
    assert_ne!(
        raw([system, tools, messages]),
        raw([system, tools, r#""messages":[{"role":"user","content":"r"}]"#])
    );
}

#[test]
fn pictures_and_documents_weigh_what_a_model_reads_of_them() {
    let data = "A".repeat(400_000);
    let weigh = |dialect, content: Value| {
        let facts = facts(
            dialect,
            &body(&json!({ "messages": [{ "role": "user", "content": content }] })),
        );
        (facts.images, facts.input_tokens)
    };
    let image =
        json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": data } });
    let (images, tokens) = weigh(ANTHROPIC, json!([image]));
    assert!(images == 1 && tokens < 1_000, "{tokens}");
    let (images, tokens) = weigh(
        ANTHROPIC,
        json!([{ "type": "tool_result", "tool_use_id": "t", "content": [image, image] }]),
    );
    assert!(images == 2 && (1_600..2_000).contains(&tokens), "{tokens}");
    let url = json!({ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{data}") } });
    assert!(weigh(OPENAI, json!([url])).1 < 1_000);
    let pdf = json!({ "type": "document", "source": { "type": "base64", "media_type": "application/pdf", "data": data } });
    assert!((8_000..12_000).contains(&weigh(ANTHROPIC, json!([pdf])).1));
    let plain =
        json!({ "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": data } });
    assert!(weigh(ANTHROPIC, json!([plain])).1 > 100_000);
}

#[test]
fn fields_in_disguise_and_given_twice_are_refused() {
    let message = |text: &str| read_request(OPENAI, text.to_owned().into()).unwrap_err();
    let rest = r#""messages":[{"role":"user","content":"x"}]}"#;
    for (start, param) in [
        (r#"{"model":"m","model":"n","#, "model"),
        (r#"{"model":"m","stream":true,"stream":false,"#, "stream"),
        (r#"{"model":"m","max_tokens":1,"max_tokens":9,"#, "max_tokens"),
        (r#"{"model":"m","max_t\u006fkens":9,"#, "max_tokens"),
        (r#"{"model":"m","messages":[],"#, "messages"),
        (r#"{"model":"m","stream":"yes","#, "stream"),
        (r#"{"model":"","#, "model"),
    ] {
        let error = message(&format!("{start}{rest}"));
        assert_eq!(error.param.as_deref(), Some(param), "{start}: {}", error.message);
    }
    // What is not ours to judge passes, escapes and repetitions included.
    let text = format!(r#"{{"model":"m","\u00e9":1,"x":1,"x":2,{rest}"#);
    assert!(read_request(OPENAI, text.into()).is_ok());
}

#[test]
fn broken_bodies_are_told_by_the_byte() {
    let message = |text: &[u8]| read_request(OPENAI, text.to_vec().into()).unwrap_err().message;
    assert_eq!(
        message(b"{\"model\":\"m\",}"),
        "the body is not valid JSON at byte 13: unexpected `}`"
    );
    assert_eq!(
        message(b"{\"model\":\"m\""),
        "the body is not valid JSON: it ends too early, at byte 12"
    );
    assert_eq!(
        message(b"{\"model\":\"\xff\"}"),
        "the body is not UTF-8: byte 10 is invalid"
    );
    assert_eq!(
        message(b"{\"model\":01}"),
        "the body is not valid JSON at byte 10: unexpected `1`"
    );
    assert!(message(b"{} {}").contains("at byte 3"));
    let gemini = read_request(Dialect::Gemini, "{}".into()).unwrap_err();
    assert!(gemini.message.contains("not served yet"));
}

#[test]
fn the_policys_thinking_yields_to_what_the_provider_would_refuse() {
    let high = level(ThinkingLevel::High);
    let same = |fields: Value, thinking| encoded(ANTHROPIC, &fields, ANTHROPIC, thinking);
    let (sent, _) = same(json!({}), high);
    assert_eq!(
        sent["thinking"],
        json!({ "type": "enabled", "budget_tokens": 6_400 })
    );
    for (name, value) in [
        ("temperature", json!(0.2)),
        ("top_k", json!(5)),
        ("tool_choice", json!({ "type": "any" })),
        (
            "messages",
            json!([{ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": "x" }] }]),
        ),
    ] {
        let mut fields = json!({});
        fields[name] = value;
        let (sent, encoded) = same(fields, high);
        assert!(sent.get("thinking").is_none(), "{name}");
        assert_eq!(lost(&encoded), ["thinking"], "{name}");
    }
    // Where the caller thinks already, only the amount is set.
    let on = json!({ "thinking": { "type": "enabled", "budget_tokens": 2_000 }, "max_tokens": 8_000 });
    assert_eq!(same(on.clone(), high).0["thinking"]["budget_tokens"], 6_400);
    assert_eq!(
        same(on, level(ThinkingLevel::None)).0["thinking"],
        json!({ "type": "disabled" })
    );
    assert!(
        same(json!({}), level(ThinkingLevel::None))
            .0
            .get("thinking")
            .is_none()
    );
    let adaptive =
        json!({ "thinking": { "type": "adaptive" }, "output_config": { "effort": "max", "x": 1 } });
    let (sent, _) = same(adaptive, level(ThinkingLevel::Low));
    assert_eq!(
        (&sent["output_config"], &sent["thinking"]["type"]),
        (&json!({ "effort": "low", "x": 1 }), &json!("adaptive"))
    );
}

#[test]
fn thinking_of_another_provider_is_not_sent_to_anthropic() {
    let unsigned = r#"{"type":"thinking","thinking":"a, b","signature":""}"#;
    let signed = r#"{"type":"thinking","thinking":"a","signature":"c2ln"}"#;
    let text = r#"{"type":"text","text":"t"}"#;
    let send = |blocks: &str, last: &str| {
        let raw = format!(
            r#"{{"model":"m","max_tokens":8000,"thinking":{{"type":"enabled","budget_tokens":2000}},"messages":[{{"role":"user","content":"q"}},{{"role":"assistant","content":[{blocks}]}},{{"role":"user","content":{last}}}]}}"#
        );
        let request = read_request(ANTHROPIC, raw.into()).unwrap();
        let target = Target {
            dialect: ANTHROPIC,
            model: "m",
            max_output_tokens: None,
            thinking: None,
            stream: false,
            can_think: true,
        };
        let encoded = encode(&request, &target).unwrap();
        let sent: Value = serde_json::from_slice(&encoded.body).unwrap();
        (
            sent["messages"][1]["content"].to_string(),
            sent["thinking"]["type"].clone(),
            lost(&encoded).len(),
        )
    };
    let on = json!("enabled");
    assert_eq!(
        send(&format!("{unsigned}, {text}"), "\"x\""),
        (format!("[{text}]"), on.clone(), 1)
    );
    assert_eq!(
        send(&format!("{text} , {unsigned}"), "\"x\""),
        (format!("[{text}]"), on.clone(), 1)
    );
    assert_eq!(
        send(
            &format!("{unsigned},{unsigned} ,{text}, {unsigned},{unsigned}"),
            "\"x\""
        ),
        (format!("[{text}]"), on.clone(), 1)
    );
    assert_eq!(send(&format!("{unsigned},{unsigned}"), "\"x\"").0, "[]");
    assert_eq!(
        send(&format!("{signed},{text}"), "\"x\""),
        (format!("[{signed},{text}]"), on, 0)
    );
    let nested = format!(r#"{{"type":"thinking","content":[{unsigned},{unsigned}],"signature":""}}"#);
    assert_eq!(send(&format!("{nested},{text}"), "\"x\"").0, format!("[{text}]"));
    let result = r#"[{"type":"tool_result","tool_use_id":"t","content":"r"}]"#;
    assert_eq!(
        send(&format!("{unsigned},{text}"), result),
        (format!("[{text}]"), json!("disabled"), 1)
    );
}

#[test]
fn a_limit_below_the_callers_own_thinking_shrinks_it_too() {
    let request = try_read(
        ANTHROPIC,
        &body(&json!({ "thinking": { "type": "enabled", "budget_tokens": 6_000 } })),
    )
    .unwrap();
    let with_cap = |cap| {
        let target = Target {
            dialect: ANTHROPIC,
            model: "m",
            max_output_tokens: Some(cap),
            thinking: None,
            stream: false,
            can_think: true,
        };
        serde_json::from_slice::<Value>(&encode(&request, &target).unwrap().body).unwrap()
    };
    assert_eq!(
        (
            &with_cap(7_000)["max_tokens"],
            &with_cap(7_000)["thinking"]["budget_tokens"]
        ),
        (&json!(7_000), &json!(6_000))
    );
    assert_eq!(with_cap(4_000)["thinking"]["budget_tokens"], 3_999);
    assert_eq!(with_cap(500)["thinking"], json!({ "type": "disabled" }));
}

#[test]
fn effort_and_budget_translate_into_each_other() {
    let (sent, _) = encoded(
        OPENAI,
        &json!({ "reasoning_effort": "medium", "max_completion_tokens": 20_000 }),
        ANTHROPIC,
        None,
    );
    assert_eq!(
        sent["thinking"],
        json!({ "type": "enabled", "budget_tokens": 10_000 })
    );
    let (sent, encoded_low) = encoded(
        OPENAI,
        &json!({ "reasoning_effort": "low", "max_tokens": 2_000 }),
        ANTHROPIC,
        None,
    );
    assert!(sent.get("thinking").is_none() && lost(&encoded_low) == ["reasoning_effort"]);
    let own = json!({ "thinking": { "type": "enabled", "budget_tokens": 4_000 } });
    assert_eq!(
        encoded(ANTHROPIC, &own, OPENAI, None).0["reasoning_effort"],
        "medium"
    );
    assert_eq!(
        encoded(ANTHROPIC, &own, OPENAI, level(ThinkingLevel::Low)).0["reasoning_effort"],
        "low"
    );
    let (sent, encoded) = encoded(
        OPENAI,
        &json!({ "reasoning_effort": "high", "temperature": 0.3 }),
        ANTHROPIC,
        None,
    );
    assert!(sent["thinking"].is_object() && sent.get("temperature").is_none());
    assert_eq!(lost(&encoded), ["temperature"]);
}

#[test]
fn formats_and_tiers_translate_or_are_reported() {
    let schema = json!({ "type": "object" });
    let format = json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema } } });
    let (sent, done) = encoded(OPENAI, &format, ANTHROPIC, None);
    assert_eq!(
        (&sent["output_config"]["format"]["schema"], lost(&done).len()),
        (&schema, 0)
    );
    let (_, mode) = encoded(
        OPENAI,
        &json!({ "response_format": { "type": "json_object" }, "seed": 1, "logit_bias": {}, "n": 1 }),
        ANTHROPIC,
        None,
    );
    assert_eq!(lost(&mode), ["response_format", "seed"]);
    let format = json!({ "output_config": { "format": { "type": "json_schema", "schema": schema } }, "service_tier": "standard_only" });
    let (sent, done) = encoded(ANTHROPIC, &format, OPENAI, None);
    assert_eq!(sent["response_format"]["json_schema"]["schema"], schema);
    assert_eq!((&sent["service_tier"], lost(&done).len()), (&json!("default"), 0));
    assert_eq!(sent["max_completion_tokens"], 8_000);
}

#[test]
fn dialects_that_are_not_served_say_so() {
    let request = try_read(OPENAI, &body(&json!({}))).unwrap();
    let target = Target {
        dialect: Dialect::Gemini,
        model: "m",
        max_output_tokens: None,
        thinking: None,
        stream: false,
        can_think: true,
    };
    assert!(
        encode(&request, &target)
            .unwrap_err()
            .to_string()
            .contains("gemini")
    );
}

#[test]
fn a_model_that_cannot_think_is_not_asked_to() {
    let check = |from: Dialect, fields: Value, to: Dialect| {
        let request = try_read(from, &body(&fields)).unwrap();
        let target = Target {
            dialect: to,
            model: "m",
            max_output_tokens: None,
            thinking: None,
            can_think: false,
            stream: false,
        };
        let encoded = encode(&request, &target).unwrap();
        serde_json::from_slice::<Value>(&encoded.body).unwrap()
    };
    let effort = || json!({ "reasoning_effort": "high" });
    let budget = || json!({ "thinking": { "type": "enabled", "budget_tokens": 2000 } });
    assert_eq!(check(OPENAI, effort(), OPENAI)["reasoning_effort"], Value::Null);
    assert_eq!(check(OPENAI, effort(), ANTHROPIC).get("thinking"), None);
    assert_eq!(
        check(ANTHROPIC, budget(), ANTHROPIC)["thinking"],
        json!({ "type": "disabled" })
    );
    assert_eq!(check(ANTHROPIC, budget(), OPENAI).get("reasoning_effort"), None);
}
