//! The vocabulary of one exchange: the values that flow from the accepted request to the durable record.
//!
//! Owns: identifiers, money, token usage, facts, profile, decision, refusal, record. Refuses to know: sockets, SQL,
//! wire formats, the clock, async. Invariants: no floating point anywhere near money; every closed set is an enum;
//! nothing here holds prompt text, so every value may be stored and replayed.

mod account;
mod decision;
mod facts;
mod fleet;
mod ids;
mod money;
mod profile;
mod record;
mod refusal;
mod usage;

pub use account::{AccountPath, Grants, NotAnAccount, is_account_name};
pub use decision::{
    Candidate, Decision, Envelope, EstimateSource, Plan, Reason, Score, ThinkingNote, Trace, TraceEntry,
    Verdict,
};
pub use facts::{Dialect, Facts, Surface};
pub use fleet::{BackendClass, Conversation, Offer};
pub use ids::{KeyHash, RequestId};
pub use money::{Bill, Money, MoneyParseError, Rate};
pub use profile::{LatencyTier, Profile, Thinking, ThinkingGrant, ThinkingLevel, ValueTier, Worth};
pub use record::{
    AttemptOutcome, AttemptRecord, Charge, ChargeLine, Ending, Item, Origin, Phase, Record, Timings,
};
pub use refusal::{Fault, Refusal, RefusalKind};
pub use usage::{ServiceTier, TokenClass, Unit, Usage, UsageSource};

/// Gives an enum its one wire spelling: `as_str`, `Display`, `FromStr` and serde agree by construction.
macro_rules! spelled {
    ($name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl $name {
            /// Every variant, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            /// The spelling used in YAML, JSON, SQL, headers and metrics alike.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok($name::$variant),)+
                    other => Err(format!("unknown value `{other}`, expected one of {}", [$($text),+].join(", "))),
                }
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(self.as_str()) }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use spelled;
