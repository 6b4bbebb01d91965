//! What tokens cost: from a price book and a count of tokens to a quote before the call and a charge after it.
//!
//! Owns: the price book, its overrides and its version; the price of owned hardware; the count used when a provider
//! reports none. Refuses to know: wire formats, accounts, sockets, the clock. Invariants: floating point is turned
//! into integer pico-dollars once, when a price is read; a charge is rounded once, upwards, in `exchange::Bill`.

mod book;
mod overrides;
mod price;

pub use book::{PriceBook, PriceError};
pub use overrides::{ComputePrice, Dollars, PriceOverride, PriceOverrides};
pub use price::{ModelPrice, counted_usage};
