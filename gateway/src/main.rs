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
mod focus;
mod gateway;
mod limits;
mod listen;
mod local;
mod prices;
mod quickstart;
mod refuse;
mod relay;
mod serve;
mod settle;
mod share;
mod telemetry;
mod trail;
mod understand;
mod upstream;
mod wire;

/// Every request allocates buffers of 64 KiB for its body and its answer, which the system's allocator gives back to the
/// kernel's free lists each time, at a tenth of all processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
