//! `tollgate`: the gateway and the commands around it.

mod accept;
mod admin;
mod attempt;
mod boot;
mod cli;
mod client;
mod clock;
mod config;
mod fleet;
mod gateway;
mod listen;
mod local;
mod quickstart;
mod refuse;
mod relay;
mod serve;
mod settle;
mod telemetry;
mod trail;
mod understand;
mod upstream;

fn main() -> std::process::ExitCode {
    cli::run()
}
