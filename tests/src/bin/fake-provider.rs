//! A fake provider as a process: prints `listening on http://ADDR` and serves until it is killed.

#![allow(
    clippy::print_stdout,
    reason = "the printed address is the program's interface"
)]

use anyhow::Context;
use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tests::certs::Certificate;
use tests::fake::{Fake, Options};

/// Speaks the OpenAI and Anthropic wire formats and Gemini's batches, scripted by model name.
///
/// `fake-ttft50-gap5-n100` waits 50 ms, then streams 100 tokens 5 ms apart. Parts: ttftMS gapMS nTOKENS sizeBYTES thinkN
/// inTOKENS tools STATUS (429, 500, ...) STATUSafterSECONDS failfirstN hang stallN cutN badusage nousage deaf echo stamp waitMS xLABEL;
/// of flex: flexbusyN noflex; of batches: batchMS bpartPERCENT bfails bexpires bnever bdeaf.
/// The header `x-fake` wins over the model name. GET /_fake/stats, GET /_fake/requests, GET /_fake/batches, DELETE /_fake.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Serve TLS and write the authority's certificate to this file.
    #[arg(long, value_name = "FILE")]
    tls: Option<PathBuf>,
    /// Keep counters but no entries per request.
    #[arg(long)]
    quiet: bool,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let tls = match &arguments.tls {
        None => None,
        Some(file) => {
            let certificate = Certificate::generate();
            std::fs::write(file, &certificate.authority_pem)
                .with_context(|| format!("cannot write {}", file.display()))?;
            Some(Arc::new(certificate))
        }
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let options = Options {
        address: arguments.listen,
        tls,
        quiet: arguments.quiet,
        threads: arguments.threads,
    };
    let fake =
        Fake::start_with(&options).with_context(|| format!("cannot listen on {}", arguments.listen))?;
    println!("listening on {scheme}://{}", fake.address());
    loop {
        std::thread::park();
    }
}
