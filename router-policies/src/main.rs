//! `policy`: check, test, explain, compare and replay routing policies before they ship.

use clap::Parser;
use router_policies::tool::{Command, Format, Verdict};
use std::io::Write;
use std::process::ExitCode;

/// Check, test, explain, compare and replay routing policies before they ship.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.command.reads_a_ledger() {
        return by_the_gateway();
    }
    let format = if arguments.json {
        Format::Json
    } else {
        Format::Text
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let ran = arguments.command.run(format, None, &mut out);
    let ended = out.flush();
    match (ran, ended) {
        (Ok(Verdict::Good), Ok(())) => ExitCode::SUCCESS,
        (Ok(_), _) => ExitCode::FAILURE,
        (Err(error), _) => {
            let _ = writeln!(std::io::stderr(), "policy: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The ledger is the gateway's, and so is the program that reads it: the same command, by the `tollgate` beside this
/// program or else the one in the path.
fn by_the_gateway() -> ExitCode {
    let beside = std::env::current_exe().map(|own| own.with_file_name("tollgate"));
    let program = beside
        .ok()
        .filter(|program| program.exists())
        .unwrap_or_else(|| "tollgate".into());
    let arguments = std::env::args_os().skip(1);
    let status = std::process::Command::new(program)
        .arg("policy")
        .args(arguments)
        .status();
    match status.map(|status| status.code()) {
        Ok(code) => ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(2)),
        Err(error) => {
            let hint = "it reads the ledger; build it with `cargo build -p gateway`, or put it in the path";
            let _ = writeln!(
                std::io::stderr(),
                "policy: `tollgate` does not run: {error}; {hint}"
            );
            ExitCode::from(2)
        }
    }
}
