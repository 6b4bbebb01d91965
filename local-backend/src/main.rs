//! `local-backend`: our own inference engine behind an OpenAI-compatible server.

mod api;
mod bench;
mod server;
mod tools;

use anyhow::Context;
use clap::{Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Serves a local model over the OpenAI API.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model.
    Serve {
        /// A GGUF file.
        #[arg(long)]
        model: PathBuf,
        #[arg(long, default_value = "127.0.0.1:8089")]
        listen: SocketAddr,
        /// Left out: all cores.
        #[arg(long)]
        threads: Option<usize>,
        /// Tokens that the cache of keys and values holds, over all requests.
        #[arg(long, default_value_t = 32_768)]
        kv_tokens: usize,
        /// The name to serve the model under. Left out: the file's stem without its quantization.
        #[arg(long)]
        name: Option<String>,
    },
    /// Measure a model: tokens per second of prompts and of generation, if asked beside llama.cpp.
    Bench(bench::Arguments),
}

fn cores(asked: Option<usize>) -> usize {
    asked
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
        .max(1)
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Serve {
            model,
            listen,
            threads,
            kv_tokens,
            name,
        } => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            let settings = server::Settings {
                model,
                listen,
                threads: cores(threads),
                kv_tokens,
                name,
            };
            runtime.block_on(server::run(settings)).context("local-backend")
        }
        Command::Bench(arguments) => bench::run(&arguments),
    }
}
