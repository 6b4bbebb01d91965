//! Test support: fake providers, a harness that runs the real binaries, test clients, and the load generator.
//!
//! Owns nothing of the product and links none of its crates: everything is seen from outside, over sockets, files and
//! exit codes. One exception: `batchday` simulates the batch tier's own core, which has no outside that could be sped up. A broken harness stops the test, so unwrapping is the error handling here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "test support: a broken harness should stop the test, and its tasks die with their runtime"
)]

pub mod background;
pub mod batchday;
pub mod certs;
pub mod crashes;
pub mod fake;
pub mod load;
pub mod postgres;
pub mod redis;
pub mod soak;
pub mod storm;
