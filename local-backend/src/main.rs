//! `local-backend`: our own inference engine behind the APIs of OpenAI and Anthropic.

mod api;
mod bench;
mod caller;
mod device;
mod generate;
mod metrics;
mod models;
mod progress;
mod registry;
mod reply;
mod routes;
mod server;
mod settings;
mod tools;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use engine::model::KvKind;
use settings::{ModelSettings, Settings};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Serves local models over the APIs of OpenAI and Anthropic.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve models.
    Serve(Serve),
    /// Measure a model: tokens per second of prompts and of generation, if asked beside llama.cpp.
    Bench(bench::Arguments),
    /// Fetch a model: a name from the catalogue (see `list --known`), an https URL, or `hf:OWNER/REPOSITORY/FILE`.
    Pull {
        source: String,
        /// Where to.
        #[arg(long, default_value = ".run/models")]
        dir: PathBuf,
        /// What the file's SHA-256 must be.
        #[arg(long)]
        sha256: Option<String>,
    },
    /// List the models in a folder.
    List {
        #[arg(long, default_value = ".run/models")]
        dir: PathBuf,
        /// List those that `pull` knows by name instead.
        #[arg(long)]
        known: bool,
    },
    /// Show what a model is: architecture, sizes, tokenizer, template.
    Inspect { model: PathBuf },
}

#[derive(Args)]
struct Serve {
    /// A YAML document with all settings; the flags below hold over it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// A GGUF file. May be given several times: the first is loaded at start, the others when they are asked for.
    #[arg(long)]
    model: Vec<PathBuf>,
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Left out: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Tokens that the cache of keys and values of each model holds, over all requests; on a card 0 takes what memory is free.
    #[arg(long)]
    kv_tokens: Option<usize>,
    /// How keys and values are kept: f16, bf16, f32 or int8. Left out: as suits each model's weights.
    #[arg(long)]
    kv_cache: Option<KvKind>,
    /// The name to serve the first model under. Left out: the file's stem without its quantization.
    #[arg(long)]
    name: Option<String>,
    /// A chat template for the first model, instead of its own.
    #[arg(long)]
    chat_template: Option<PathBuf>,
    /// What an hour of this machine costs, in dollars.
    #[arg(long)]
    dollars_per_hour: Option<String>,
    #[command(flatten)]
    device: device::Flags,
}

impl Serve {
    fn settings(self) -> anyhow::Result<Settings> {
        let mut settings = match &self.config {
            Some(path) => Settings::read(path)?,
            None => Settings::default(),
        };
        for path in self.model {
            settings.models.push(ModelSettings {
                path,
                name: None,
                kv_tokens: 32_768,
                kv_cache: None,
                chat_template_file: None,
                preload: false,
            });
        }
        if let Some(first) = settings.models.first_mut() {
            first.name = self.name.or(first.name.take());
            first.chat_template_file = self.chat_template.or(first.chat_template_file.take());
        }
        if let Some(kv_tokens) = self.kv_tokens {
            settings
                .models
                .iter_mut()
                .for_each(|model| model.kv_tokens = kv_tokens);
        }
        if self.kv_cache.is_some() {
            settings
                .models
                .iter_mut()
                .for_each(|model| model.kv_cache = self.kv_cache);
        }
        settings.listen = self.listen.unwrap_or(settings.listen);
        settings.threads = self.threads.unwrap_or(settings.threads);
        settings.dollars_per_hour = self.dollars_per_hour.unwrap_or(settings.dollars_per_hour);
        Ok(settings)
    }
}

fn cores(asked: Option<usize>) -> usize {
    asked
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
        .max(1)
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Serve(serve) => {
            let flags = serve.device.clone();
            let mut settings = serve.settings()?;
            settings.place = Some(flags.find(settings.threads)?);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(server::run(settings)).context("local-backend")
        }
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Pull { source, dir, sha256 } => models::pull(&source, &dir, sha256.as_deref()),
        Command::List { known: true, .. } => models::known(),
        Command::List { dir, .. } => models::list(&dir),
        Command::Inspect { model } => models::inspect(&model),
    }
}
