//! `tollgate`: the gateway and the commands around it.

mod accept;
mod admin;
mod attempt;
mod batch;
mod boot;
mod cli;
mod client;
mod clock;
mod config;
mod fetch;
mod fleet;
mod focus;
mod gateway;
mod learn;
mod limits;
mod listen;
mod local;
mod memory;
mod notify;
mod oidc;
mod prices;
mod quickstart;
mod records;
mod refuse;
mod relay;
mod rule;
mod rules;
mod serve;
mod settle;
mod share;
mod starting;
mod telemetry;
mod trail;
mod understand;
mod upstream;
mod wire;

/// Every request allocates buffers of 64 KiB for its body and its answer. The system's allocator gives them back and
/// consolidates each time, at a tenth of all processor time; others fault in huge pages, which stops every stream of a
/// thread for milliseconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
