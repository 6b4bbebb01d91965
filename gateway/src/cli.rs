//! The command line.

mod admin;
mod export;
mod policy;
mod prices;

use crate::config::{self, Config, Document};
use crate::{boot, clock, quickstart};
use clap::{Parser, Subcommand};
use router_policies::tool::Format;
use router_policies::{Policy, Severity};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A cost-aware gateway for LLM traffic.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve {
        #[arg(long, default_value = "tollgate.yaml")]
        config: PathBuf,
    },
    /// Read the configuration and the policy, and report the first mistake.
    Check {
        #[arg(long, default_value = "tollgate.yaml")]
        config: PathBuf,
    },
    /// Bring the store's schema up to date, and nothing else.
    Migrate {
        #[arg(long, default_value = "tollgate.yaml")]
        config: PathBuf,
    },
    /// Print the JSON schema of the configuration.
    Schema,
    /// Set up a folder with a configuration, a policy and a key, and run the gateway on it.
    Quickstart {
        /// State is kept here; a second start finds it.
        #[arg(long, default_value = ".run/quickstart")]
        dir: PathBuf,
        /// Where local-backend listens.
        #[arg(long, default_value = "http://127.0.0.1:8089")]
        local_url: String,
        /// Where callers connect.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: String,
        /// Where health, metrics and budgets are.
        #[arg(long, default_value = "127.0.0.1:8081")]
        admin: String,
    },
    /// What was billed, for other tools.
    Export {
        #[command(subcommand)]
        command: export::ExportCommand,
    },
    /// What models cost.
    Prices {
        #[command(subcommand)]
        command: prices::PricesCommand,
    },
    /// Check, test, explain, compare and replay routing policies; `--from-ledger` reads what the gateway recorded.
    Policy {
        #[command(subcommand)]
        command: router_policies::tool::Command,
        /// Print JSON instead of text.
        #[arg(long, global = true)]
        json: bool,
    },
    /// Keys of a running gateway.
    Keys {
        #[command(subcommand)]
        command: admin::keys::KeysCommand,
        #[command(flatten)]
        access: admin::Access,
    },
    /// Organisations, teams and workflows of a running gateway.
    Teams {
        #[command(subcommand)]
        command: admin::teams::TeamsCommand,
        #[command(flatten)]
        access: admin::Access,
    },
    /// Budgets of a running gateway.
    Budgets {
        #[command(subcommand)]
        command: admin::budgets::BudgetsCommand,
        #[command(flatten)]
        access: admin::Access,
    },
    /// Jobs of a running gateway: batches, and requests that may wait.
    Jobs {
        #[command(subcommand)]
        command: admin::jobs::JobsCommand,
        #[command(flatten)]
        access: admin::Access,
    },
    /// Who changed what in a running gateway, when and why, the latest first.
    Audit {
        #[command(subcommand)]
        command: Option<AuditCommand>,
        #[command(flatten)]
        listing: admin::Listing,
        #[command(flatten)]
        access: admin::Access,
    },
    /// Keys for the configuration file.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Subcommand)]
enum AuditCommand {
    /// What ran at once and could have waited, with the money left on the table and what waiting would cost in time.
    Batch {
        #[command(flatten)]
        since: admin::jobs::Since,
    },
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key; it is printed once, with the line for the configuration.
    Create,
}

/// Runs the command; the one place where an error becomes an exit status.
pub(crate) fn run() -> ExitCode {
    let command = Arguments::parse().command;
    if let Command::Policy { command, json } = command {
        let format = if json { Format::Json } else { Format::Text };
        return policy::run(command, format).into();
    }
    match execute(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut line = format!("tollgate: {error}");
            for cause in error.chain().skip(1) {
                line.push_str(&format!(": {cause}"));
            }
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match command {
        Command::Serve { config } => boot::run(&config),
        Command::Check { config } => {
            let (read, (policy, text)) = read(&config)?;
            let findings = boot::check(&read, &policy, &text)?;
            for finding in &findings {
                writeln!(out, "{}:{finding}", read.policy.display())?;
            }
            let errors = findings
                .iter()
                .filter(|one| one.severity == Severity::Error)
                .count();
            anyhow::ensure!(
                errors == 0,
                "{}: lint finds {errors} errors in the policy",
                config.display()
            );
            let (keys, providers) = (read.keys.len(), read.providers.len());
            let deployments = policy.deployments().len();
            writeln!(
                out,
                "{}: ok: {providers} providers, {deployments} deployments, {keys} keys",
                config.display()
            )?;
            Ok(())
        }
        Command::Migrate { config } => {
            let database = Config::load(&config)?.database;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(ledger::migrate(&database))?;
            writeln!(out, "the schema of {database} is up to date")?;
            Ok(())
        }
        Command::Schema => {
            let schema = schemars::schema_for!(Document);
            writeln!(out, "{}", serde_json::to_string_pretty(&schema)?)?;
            Ok(())
        }
        Command::Quickstart {
            dir,
            local_url,
            listen,
            admin,
        } => {
            let config = quickstart::prepare(
                &dir,
                &quickstart::Choices {
                    local_url,
                    listen,
                    admin,
                },
                &mut out,
            )?;
            boot::run(&config)
        }
        // Ran before, for its exit status is its own.
        Command::Policy { .. } => Ok(()),
        Command::Export { command } => export::run(command, &mut out),
        Command::Prices { command } => prices::run(command, &mut out),
        Command::Keys { command, access } => admin::keys::run(command, access, &mut out),
        Command::Teams { command, access } => admin::teams::run(command, access, &mut out),
        Command::Budgets { command, access } => admin::budgets::run(command, access, &mut out),
        Command::Jobs { command, access } => admin::jobs::run(command, access, &mut out),
        Command::Audit {
            command: Some(AuditCommand::Batch { since }),
            access,
            ..
        } => admin::jobs::audit(&since, access, &mut out),
        Command::Audit {
            command: None,
            listing,
            access,
        } => admin::audit::run(&listing, access, &mut out),
        Command::Key {
            command: KeyCommand::Create,
        } => {
            let key = config::key::format(clock::entropy());
            writeln!(out, "key:  {key}\nhash: {}", config::key::hash_line(&key))?;
            Ok(())
        }
    }
}

/// The configuration and the policy it names, with its text.
pub(crate) fn read(path: &Path) -> anyhow::Result<(Config, (Policy, String))> {
    let config = Config::load(path)?;
    let file = config.policy.display().to_string();
    let text = std::fs::read_to_string(&config.policy).map_err(|error| {
        anyhow::anyhow!(
            "the policy {file} cannot be read: {error}; see `policy` in {}",
            path.display()
        )
    })?;
    let policy = Policy::parse(&text, &file)?;
    Ok((config, (policy, text)))
}
