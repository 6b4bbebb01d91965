//! What tokens cost: from a price book and a count of tokens to a quote before the call and a charge after it.
//!
//! Owns: the price book, its sources and its version; tariffs by tier, size and date; the price of owned hardware; the
//! count used when a provider reports none. Refuses to know: wire formats, accounts, sockets, files, the clock.
//! Invariants: floating point is turned into integer pico-dollars once, when a price is read; a charge is rounded once,
//! upwards, in `exchange::Bill`.

mod book;
mod decimal;
mod list;
mod litellm;
mod overrides;
mod price;

pub use book::{PriceBook, PriceError, Query, Source, Sources};
pub use overrides::{ComputePrice, Dollars, PriceOverride, PriceOverrides};
pub use price::{Bracket, ModelPrice, counted_usage};
