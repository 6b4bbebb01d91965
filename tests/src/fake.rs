//! Fake providers: OpenAI, Anthropic and Gemini wire formats as the real services send them, scripted by model name.
//!
//! Owns the server and its log. One port speaks HTTP/1.1 and HTTP/2 (prior knowledge, or ALPN when TLS is on). The fake
//! notices a hang-up in every phase, because hyper watches the connection while a handler or a body is pending: the
//! request's ticket is dropped at that instant, which is what cancel tests measure against.

pub mod anthropic;
pub mod batch;
pub mod call;
pub mod gemini;
pub mod log;
pub mod openai;
pub mod plain;
pub mod play;
pub mod script;
mod server;

pub use log::{Ended, Entry, Stats, unix_us};
pub use script::{Script, full_text, token_text};

use crate::certs::Certificate;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Lower-case hexadecimal SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// How to run a fake provider.
#[derive(Clone)]
pub struct Options {
    pub address: SocketAddr,
    pub tls: Option<Arc<Certificate>>,
    /// Counters only, no entries: for load runs.
    pub quiet: bool,
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            tls: None,
            quiet: false,
            threads: 1,
        }
    }
}

/// A running fake provider on a runtime of its own, so that a busy test does not delay it. Stops when dropped.
pub struct Fake {
    address: SocketAddr,
    log: Arc<log::Log>,
    runtime: Option<tokio::runtime::Runtime>,
    scheme: &'static str,
}

impl Fake {
    /// Plain HTTP on a free port.
    pub fn start() -> Self {
        Self::start_with(&Options::default()).expect("a loopback port to listen on")
    }

    pub fn start_with(options: &Options) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads)
            .thread_name("fake-provider")
            .enable_all()
            .build()?;
        let log = Arc::new(log::Log::new(options.quiet));
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let address = runtime.block_on(server::listen(options, log.clone()))?;
        Ok(Self {
            address,
            log,
            runtime: Some(runtime),
            scheme,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a provider's `base_url` should be: ends in `/v1`.
    pub fn base_url(&self) -> String {
        self.origin() + "/v1"
    }

    /// The same for Gemini, whose own surface lies beside one that speaks OpenAI's dialect.
    pub fn gemini_base_url(&self) -> String {
        self.origin() + "/v1beta/openai"
    }

    fn origin(&self) -> String {
        let host = if self.scheme == "https" {
            "localhost".to_owned()
        } else {
            self.address.ip().to_string()
        };
        format!("{}://{host}:{}", self.scheme, self.address.port())
    }

    pub fn stats(&self) -> Stats {
        self.log.stats()
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.log.entries()
    }

    pub fn reset(&self) {
        self.log.reset();
    }

    /// Waits until `done` holds for the log; `None` after ten seconds.
    pub async fn wait_for<T>(&self, mut done: impl FnMut(&[Entry]) -> Option<T>) -> Option<T> {
        for _ in 0..10_000 {
            if let Some(found) = done(&self.entries()) {
                return Some(found);
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        None
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
