//! What the repository promises of itself: absences, sizes, openings, nothing of anybody's machine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every tracked text file and its content.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(listed.status.success(), "git ls-files failed");
    let names = String::from_utf8(listed.stdout).unwrap();
    let wanted = names
        .lines()
        .filter(|name| endings.iter().any(|ending| name.ends_with(ending)));
    let found: Vec<_> = wanted
        .filter_map(|name| Some((name.to_owned(), std::fs::read_to_string(root().join(name)).ok()?)))
        .collect();
    assert!(!found.is_empty());
    found
}

fn dependencies(package: &str) -> String {
    let manifest = std::fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
    manifest
        .split("[dependencies]")
        .nth(1)
        .unwrap_or_default()
        .split("[dev-dependencies]")
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn crates_do_not_know_what_they_must_not() {
    let store = ["sqlx", "rusqlite"];
    for (package, absent) in [
        (
            "gateway/crates/exchange",
            &["tokio", "pingora-core", "dialect", "meter", "ledger", "http"][..],
        ),
        (
            "gateway/crates/dialect",
            &["tokio", "pingora-core", "meter", "ledger", "router-policies"],
        ),
        (
            "gateway/crates/meter",
            &["tokio", "pingora-core", "dialect", "ledger", "router-policies"],
        ),
        (
            "gateway/crates/ledger",
            &["dialect", "meter", "pingora-core", "router-policies"],
        ),
        (
            "gateway/crates/limits",
            &["tokio", "exchange", "ledger", "redis", "time", "pingora-core"],
        ),
        (
            "gateway/crates/batch",
            &[
                "tokio",
                "exchange",
                "dialect",
                "meter",
                "ledger",
                "router-policies",
                "pingora-core",
                "serde",
            ],
        ),
        // Everything of the product is seen from outside, but for the core that `batchday` simulates.
        (
            "tests",
            &[
                "exchange",
                "dialect",
                "meter",
                "ledger",
                "limits",
                "router-policies",
                "gateway",
                "engine",
                "kernels",
            ],
        ),
        (
            "router-policies",
            &["tokio", "dialect", "meter", "ledger", "pingora-core"],
        ),
        (
            "local-backend/crates/kernels",
            &["tokio", "hyper", "engine", "exchange"],
        ),
        (
            "local-backend/crates/engine",
            &["tokio", "hyper", "exchange", "dialect"],
        ),
        (
            "local-backend",
            &["exchange", "dialect", "meter", "ledger", "router-policies"],
        ),
        ("gateway", &["engine", "kernels", "sqlx"]),
    ] {
        let declared = dependencies(package);
        let declares = |name: &str| {
            declared
                .lines()
                .any(|line| line.split([' ', '=']).next() == Some(name))
        };
        for name in absent {
            assert!(!declares(name), "{package} must not depend on {name}");
        }
        if package != "gateway/crates/ledger" {
            assert!(
                store.iter().all(|name| !declares(name)),
                "only the ledger knows SQL, not {package}"
            );
        }
    }
}

#[test]
fn money_and_decisions_know_neither_floats_nor_clocks() {
    for (name, text) in files(&[".rs"]) {
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let has = |word: &str| code.iter().any(|line| line.contains(word));
        if name.starts_with("gateway/crates/exchange/src") || name.starts_with("gateway/crates/limits/src") {
            assert!(!has("f32") && !has("f64"), "{name} has a float");
        }
        let clockless = [
            "router-policies/src",
            "gateway/crates/ledger/src",
            "gateway/crates/limits/src",
            "gateway/crates/batch/src",
        ];
        if clockless.iter().any(|folder| name.starts_with(folder)) {
            assert!(
                !has("Instant::now") && !has("SystemTime"),
                "{name} looks at a clock"
            );
        }
        let is_kernel = name.starts_with("local-backend/crates/kernels/");
        let unsafe_code = code
            .iter()
            .any(|line| line.contains("unsafe ") && !line.contains('"'));
        assert!(is_kernel || !unsafe_code, "{name} has unsafe code");
    }
}

#[test]
fn files_are_of_a_size_to_be_read_and_say_what_they_are() {
    for (name, text) in files(&[".rs"]) {
        assert!(text.lines().count() <= 800, "{name} has more than 800 lines");
        assert!(text.starts_with("//!"), "{name} does not open with what it owns");
        assert!(
            !name.ends_with("/mod.rs"),
            "{name}: use a file named after the module"
        );
        let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap();
        assert!(
            !["utils", "helpers", "common", "manager"].contains(&stem),
            "{name}: name it after what it owns"
        );
    }
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(
        architecture.lines().count() <= 250,
        "ARCHITECTURE.md is to be read in one go"
    );
}

#[test]
fn nothing_of_anybodys_machine_or_purse_is_committed() {
    let own = "tests/tests/tidy.rs";
    for (name, text) in files(&[
        ".rs", ".toml", ".md", ".yaml", ".yml", ".sh", ".py", ".sql", ".json", "run",
    ]) {
        if name == own {
            continue;
        }
        for place in ["/home/", "/Users/", "/root/", "/work/"] {
            assert!(
                !text.contains(place),
                "{name} names a place on a machine: {place}"
            );
        }
        for secret in [
            "sk-ant-",
            "sk-proj-",
            "AKIA",
            "BEGIN RSA PRIVATE KEY",
            "BEGIN PRIVATE KEY",
        ] {
            assert!(!text.contains(secret), "{name} may hold a secret: {secret}");
        }
    }
}
