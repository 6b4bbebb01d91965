//! The configuration as an operator meets it: the documented file, and mistakes in it.

use super::*;
use crate::config::document;
use std::collections::BTreeMap;

const EXAMPLE: &str = include_str!("../../../config.example.yaml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::read(text, "t.yaml", Path::new("/folder"))
}

/// The report of a document's mistakes.
fn report(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn the_example_is_valid_and_documents_every_key() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(
        (config.keys.len(), config.accounts.len(), config.providers.len()),
        (1, 3, 2)
    );
    let schema = serde_json::to_value(schemars::schema_for!(Document)).unwrap();
    let definitions = schema["$defs"].as_object().unwrap().values();
    let properties = definitions
        .chain([&schema])
        .filter_map(|shape| shape["properties"].as_object());
    let missing: Vec<&String> = properties
        .flat_map(|keys| keys.keys())
        .filter(|key| !EXAMPLE.contains(&format!("{key}:")))
        .collect();
    assert!(
        missing.is_empty(),
        "config.example.yaml does not mention {missing:?}"
    );
}

/// What the example says of settings that have a default is the default.
#[test]
fn the_example_shows_the_defaults() {
    let mut example: Document = router_policies::document::parse(EXAMPLE, "example").unwrap();
    let provider = example.providers.remove("openai").unwrap();
    let bare: document::Provider = serde_json::from_str(r#"{"dialect": "openai_chat"}"#).unwrap();
    assert_eq!(
        document::Provider {
            base_url: None,
            ..provider
        },
        bare
    );
    let default = Document::default();
    example.providers = BTreeMap::new();
    example.accounts = BTreeMap::new();
    example.prices = default.prices.clone();
    assert_eq!(example, default);
}

#[test]
fn an_empty_document_is_a_configuration() {
    let config = parse("{}").unwrap();
    assert_eq!(config.limits.body_bytes, 32 << 20);
    assert_eq!(config.policy, Path::new("/folder/policy.yaml"));
    assert_eq!(
        config.database,
        ledger::Database::Sqlite("/folder/tollgate.db".into())
    );
}

#[test]
fn well_known_providers_need_no_address() {
    let config = parse("providers: {anthropic: {dialect: anthropic}}").unwrap();
    let base = &config.providers[0].base;
    assert_eq!(
        (base.tls, base.host.as_str(), base.port, base.path.as_str()),
        (true, "api.anthropic.com", 443, "/v1")
    );
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let check = |text: &str, parts: &[&str]| {
        let report = report(text);
        for part in parts {
            assert!(report.contains(part), "{text}\ngave: {report}\nwithout: {part}");
        }
    };
    check(
        "limits:\n  body_mb: 5\n",
        &["t.yaml:2:3: limits.body_mb", "did you mean `body_mib`?"],
    );
    check(
        "label_headers: [x-customer, X-Api-Key]",
        &["t.yaml:1:29: label_headers[1]", "carries a secret"],
    );
    for secret in [
        "authorization",
        "Proxy-Authorization",
        "api-key",
        "Cookie",
        "x-amz-security-token",
    ] {
        check(
            &format!("label_headers: [{secret}]"),
            &["label_headers[0]", "carries a secret"],
        );
    }
    check(
        "label_headers: [x-tollgate-tag-a]",
        &["label_headers[0]", "x-tollgate-tag-NAME"],
    );
    check(
        "label_headers: [\"a b\"]",
        &["label_headers[0]", "no name of a header"],
    );
    check(
        "admin: {address: 0.0.0.0:1}",
        &["t.yaml:1:1: admin: ", "without a key", "admin.key"],
    );
    check(
        "accounts: {a: {keys: {k: {hash: secret}}}}",
        &["accounts.a.keys.k.hash", "tollgate key create"],
    );
    check(
        "providers:\n  x: {dialect: anthropic}",
        &["t.yaml:2:3: providers.x.base_url", "/v1"],
    );
    check(
        "accounts: {a: {budgets: [{limit_dollars: \"ten\", per: day}]}}",
        &["accounts.a.budgets[0]"],
    );
    check("accounts: {a/b: {}}", &["accounts.a/b", "must not"]);
    check("listen: []", &["listen", "nobody"]);
    check("listen: [{address: 127.0.0.1:8081}]", &["listen[0]", "twice"]);
    check(
        "limits: {body_timeout_s: 0}",
        &["limits.body_timeout_s", "above 0"],
    );
    check("limits: {body_mib: 4096}", &["limits.body_mib", "1024"]);
    check("log: {filter: \"tollgate=loud\"}", &["log.filter"]);
    check("prices: [{model: a}]", &["prices[0]", "input_per_mtok"]);
    check(
        "price_lists: {litellm: nowhere.json}",
        &["price_lists.litellm", "cannot be read"],
    );
    check(
        "accounts: {acme: {teams: {t: {rate_limits: {tokens_per_minute: 0}}}}}",
        &[
            "accounts.acme.teams.t.rate_limits.tokens_per_minute",
            "lets nothing through",
        ],
    );
    check(
        "redis: {url: 'redis://:secret@host/0'}",
        &["redis.url", "file:PATH"],
    );
    check("redis: {url: host:6379}", &["redis.url", "env:NAME"]);
    check(
        "redis: {url: 'redis://host/0', timeout_ms: 0}",
        &["redis.timeout_ms", "above 0"],
    );
    check("listen: {address: 1}", &["t.yaml:1:"]);
    check("listen: [\n", &["t.yaml:"]);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text =
        "limits:\n  body_mb: 5\nprovider: {}\naccounts:\n  acme:\n    teams:\n      ops: {budget: []}\n";
    let error = parse(text).unwrap_err();
    let lines: Vec<_> = error.mistakes.iter().map(|mistake| mistake.line).collect();
    assert_eq!(lines, [Some(2), Some(3), Some(7)], "{error}");
    let text = "listen: []\nlimits:\n  keepalive_s: 0\nproviders:\n  a: {dialect: anthropic}\n  b: {dialect: anthropic, base_url: ftp://x}\n";
    let error = parse(text).unwrap_err();
    let mut lines: Vec<_> = error.mistakes.iter().map(|mistake| mistake.line).collect();
    lines.sort_unstable();
    assert_eq!(lines, [Some(1), Some(3), Some(5), Some(6)], "{error}");
    assert!(
        error
            .to_string()
            .starts_with("the configuration has 4 mistakes\n")
    );
}

#[test]
fn a_key_belongs_to_one_account() {
    let hash = format!("sha256:{}", "ab".repeat(32));
    let report = report(&format!(
        "accounts: {{a: {{keys: {{x: {{hash: \"{hash}\"}}}}}}, b: {{keys: {{y: {{hash: \"{hash}\"}}}}}}}}"
    ));
    assert!(
        report.contains("accounts.b.keys.y.hash") && report.contains("a/-/-/x"),
        "{report}"
    );
}

#[test]
fn a_secret_is_taken_by_reference_and_never_shown() {
    let report = report("providers: {openai: {dialect: openai_chat, credential: sk-123}}");
    assert!(
        report.contains("env:NAME") && !report.contains("sk-123"),
        "{report}"
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s"), "  very-secret-indeed \n").unwrap();
    let config = Config::read("admin: {key: \"file:s\"}", "t.yaml", folder.path()).unwrap();
    assert_eq!(config.admin.key.as_ref().unwrap().expose(), "very-secret-indeed");
    assert!(!format!("{config:?}").contains("very-secret"));
}

#[test]
fn no_empty_or_short_admin_key_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    for (secret, problem) in [("", "empty"), ("\n", "empty"), ("changeme", "shorter than 16")] {
        std::fs::write(folder.path().join("s"), secret).unwrap();
        let error = Config::read("admin: {key: \"file:s\"}", "t.yaml", folder.path()).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_batch_api_belongs_to_a_provider_that_has_it() {
    let provider = |rest: &str| format!("providers:\n  p:\n    credential: file:t\n{rest}");
    let base = "    base_url: https://h/v1beta/openai\n    dialect: openai_chat\n    batch: gemini\n";
    let told = |text: String| report(&text);
    assert!(
        !told(provider(base)).contains("batch"),
        "only the credential is missing"
    );
    let other = told(provider(&base.replace("openai_chat", "anthropic")));
    assert!(
        other.contains("t.yaml:6") && other.contains("`gemini` is not for a provider that speaks anthropic"),
        "{other}"
    );
    assert!(other.contains("write `dialect: openai_chat`"), "{other}");
    let elsewhere = told(provider(&base.replace("/v1beta/openai", "/v1")));
    assert!(
        elsewhere.contains("t.yaml:4") && elsewhere.contains("must end in `/openai`"),
        "{elsewhere}"
    );
    assert!(
        elsewhere.contains("generativelanguage.googleapis.com/v1beta/openai"),
        "{elsewhere}"
    );
    for (dialect, batch) in [("anthropic", "openai"), ("openai_chat", "anthropic")] {
        let text = base
            .replace("openai_chat", dialect)
            .replace("batch: gemini", &format!("batch: {batch}"));
        assert!(told(provider(&text)).contains("is not for a provider that speaks"));
    }
}
