//! Calls to others that are no providers: webhooks, key sets of identity providers, the admin API from the command line.
//!
//! Blocking, and rare: whoever calls from a task does so on a thread for that.

use anyhow::Context;
use std::path::Path;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig};

/// The most that is read of an answer.
pub(crate) const LONGEST: u64 = 4 << 20;

/// A client that follows no redirects, trusts the system's authorities, and takes any status for an answer.
pub(crate) fn agent(within: Duration) -> Agent {
    trusting(RootCerts::PlatformVerifier, within)
}

/// The same, which trusts the authorities in a PEM file instead.
///
/// # Errors
/// It cannot be read, or holds no certificate.
pub(crate) fn agent_trusting(file: &Path, within: Duration) -> anyhow::Result<Agent> {
    let shown = file.display();
    let pem = std::fs::read(file).with_context(|| format!("the authorities in {shown} cannot be read"))?;
    let mut authorities = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(one) = item.with_context(|| format!("{shown} is no PEM file"))? {
            authorities.push(one);
        }
    }
    anyhow::ensure!(!authorities.is_empty(), "{shown} holds no PEM certificate");
    Ok(trusting(RootCerts::new_with_certs(&authorities), within))
}

fn trusting(authorities: RootCerts, within: Duration) -> Agent {
    let tls = TlsConfig::builder().root_certs(authorities).build();
    Agent::config_builder()
        .timeout_global(Some(within))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .into()
}
