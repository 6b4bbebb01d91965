//! Any text as a policy document, and any text as cases: read or refused, never a panic; what is read can rule.

#![no_main]

use libfuzzer_sys::fuzz_target;
use router_policies::{Cases, Given, Policy, lint};

fuzz_target!(|text: &str| {
    match Policy::parse(text, "fuzz") {
        Ok(policy) => {
            let _ = Given::default().decide(&policy);
            let _ = lint(&policy, text, None);
        }
        Err(mistakes) => assert!(!mistakes.0.is_empty(), "refused without a reason"),
    }
    let _ = Cases::parse(text, "fuzz");
});
