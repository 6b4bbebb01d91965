//! Calls to others that are no providers: webhooks, key sets of identity providers, the admin API from the command line.
//!
//! Blocking, and rare: whoever calls from a task does so on a thread for that.

use std::time::Duration;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

/// The most that is read of an answer.
pub(crate) const LONGEST: u64 = 4 << 20;

/// A client that follows no redirects, trusts the system's authorities, and takes any status for an answer.
pub(crate) fn agent(within: Duration) -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .build();
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
