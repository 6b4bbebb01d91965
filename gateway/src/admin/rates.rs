//! Rate limits of accounts and keys, as administrators write and read them.

use super::form::given;
use super::problem::Problem;
use super::route::{Answer, Call};
use exchange::AccountPath;
use ledger::{EditError, Rates, RatesChange};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an account or a key may do, all requests under it together. What is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RateLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    requests_per_minute: Option<u32>,
    /// Read and generated, together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    tokens_per_minute: Option<u32>,
    /// Requests running at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    concurrency: Option<u32>,
}

/// What to change of limits; what is left out stays, `null` takes a limit away.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NewRateLimits {
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<u32>", range(min = 1))]
    requests_per_minute: Option<Option<u32>>,
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<u32>", range(min = 1))]
    tokens_per_minute: Option<Option<u32>>,
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<u32>", range(min = 1))]
    concurrency: Option<Option<u32>>,
}

impl RateLimits {
    /// Those in force: the store's, or those of this gateway's configuration, which go before.
    pub(super) fn of(call: &Call, account: &AccountPath, stored: Rates) -> Self {
        let configured = call.gateway.limits.configured(account);
        configured.map_or(
            Self {
                requests_per_minute: stored.requests_per_minute,
                tokens_per_minute: stored.tokens_per_minute,
                concurrency: stored.concurrency,
            },
            |rule| Self {
                requests_per_minute: rule.requests_per_minute,
                tokens_per_minute: rule.tokens_per_minute,
                concurrency: rule.concurrency,
            },
        )
    }

    /// # Errors
    /// A limit lets nothing through.
    pub(super) fn rates(self) -> Answer<Rates> {
        let new = NewRateLimits {
            requests_per_minute: Some(self.requests_per_minute),
            tokens_per_minute: Some(self.tokens_per_minute),
            concurrency: Some(self.concurrency),
        };
        Ok(Rates::default().changed(new.checked()?))
    }
}

impl NewRateLimits {
    /// # Errors
    /// A limit lets nothing through, or this account's limits are those of the configuration.
    pub(super) fn change(self, call: &Call, account: &AccountPath) -> Answer<RatesChange> {
        let change = self.checked()?;
        if change != RatesChange::default() && call.gateway.limits.configured(account).is_some() {
            let limit = format!("the rate limit of {account}");
            return Err(EditError::Configured(limit).into());
        }
        Ok(change)
    }

    fn checked(self) -> Answer<RatesChange> {
        let all = [
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
            ("concurrency", self.concurrency),
        ];
        if let Some((name, _)) = all.iter().find(|(_, limit)| *limit == Some(Some(0))) {
            let problem = format!("`rate_limits.{name}` of 0 lets nothing through");
            return Err(Problem::invalid(problem)
                .hint("write null for any number; a key or an account is switched off by `disabled`"));
        }
        Ok(RatesChange {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrency: self.concurrency,
        })
    }
}
