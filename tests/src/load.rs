//! The load generator's parts: what is started, how it is called, and what is read of it.
//!
//! Three targets are compared in one run: the fake provider called directly, the floor (a pass-through proxy in front of
//! it) and the gateway with keys, budgets, limits and metrics on. Calls are made by threads with blocking sockets, since a
//! timer wheel of milliseconds would drown what is measured; a latency counts from the moment a call was due, so that a
//! slow answer also counts for the calls that it delayed.

pub mod connection;
pub mod pace;
pub mod process;
pub mod stack;
pub mod streams;
