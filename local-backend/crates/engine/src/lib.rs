//! The inference engine: models, tokenizers, the KV cache, the scheduler and sampling.
//!
//! Owns: everything between a list of messages and a stream of text. Refuses to know: HTTP, async, sockets. Invariant:
//! what a sequence produces depends on the sequence and its seed alone, never on what shares its steps.

pub mod backend;
pub mod engine;
pub mod grammar;
pub mod kv;
pub mod model;
pub mod sample;
pub mod scheduler;
pub mod text;
pub mod think;
