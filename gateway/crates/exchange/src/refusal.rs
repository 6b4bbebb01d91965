//! The one error of the request path: whose fault, whether to retry, which status, what to say, what to do.

use crate::spelled;
use std::time::Duration;

/// Who can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Caller,
    Policy,
    Provider,
    Gateway,
}

spelled!(Fault { Caller => "caller", Policy => "policy", Provider => "provider", Gateway => "gateway" });

/// The closed set of reasons a request ends without an answer. The spelling is the `code` in error bodies and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    InvalidRequest,
    InvalidKey,
    PermissionDenied,
    ModelNotFound,
    RouteNotFound,
    MethodNotAllowed,
    RequestTimeout,
    RequestTooLarge,
    ContextTooLong,
    BudgetExceeded,
    RateLimited,
    ModelUnpriced,
    NoDeployment,
    UpstreamRejected,
    UpstreamRateLimited,
    UpstreamFailed,
    UpstreamTimeout,
    Draining,
    StoreUnavailable,
    Internal,
}

spelled!(RefusalKind {
    InvalidRequest => "invalid_request",
    InvalidKey => "invalid_api_key",
    PermissionDenied => "permission_denied",
    ModelNotFound => "model_not_found",
    RouteNotFound => "route_not_found",
    MethodNotAllowed => "method_not_allowed",
    RequestTimeout => "request_timeout",
    RequestTooLarge => "request_too_large",
    ContextTooLong => "context_length_exceeded",
    BudgetExceeded => "budget_exceeded",
    RateLimited => "rate_limit_exceeded",
    ModelUnpriced => "model_unpriced",
    NoDeployment => "no_deployment_available",
    UpstreamRejected => "upstream_rejected",
    UpstreamRateLimited => "upstream_rate_limited",
    UpstreamFailed => "upstream_failed",
    UpstreamTimeout => "upstream_timeout",
    Draining => "draining",
    StoreUnavailable => "store_unavailable",
    Internal => "internal_error",
});

impl RefusalKind {
    /// The HTTP status this kind answers with, unless the refusal carries the provider's own.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextTooLong | Self::UpstreamRejected => 400,
            Self::InvalidKey => 401,
            Self::PermissionDenied | Self::ModelUnpriced => 403,
            Self::ModelNotFound | Self::RouteNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::RequestTooLarge => 413,
            Self::BudgetExceeded | Self::RateLimited | Self::UpstreamRateLimited => 429,
            Self::Internal => 500,
            Self::UpstreamFailed => 502,
            Self::NoDeployment | Self::Draining | Self::StoreUnavailable => 503,
            Self::UpstreamTimeout => 504,
        }
    }

    pub const fn fault(self) -> Fault {
        match self {
            Self::InvalidRequest
            | Self::InvalidKey
            | Self::ModelNotFound
            | Self::RouteNotFound
            | Self::MethodNotAllowed
            | Self::RequestTimeout
            | Self::RequestTooLarge
            | Self::ContextTooLong => Fault::Caller,
            Self::PermissionDenied | Self::BudgetExceeded | Self::RateLimited | Self::ModelUnpriced => {
                Fault::Policy
            }
            Self::UpstreamRejected
            | Self::UpstreamRateLimited
            | Self::UpstreamFailed
            | Self::UpstreamTimeout => Fault::Provider,
            Self::NoDeployment | Self::Draining | Self::StoreUnavailable | Self::Internal => Fault::Gateway,
        }
    }
}

/// A refusal, ready to be put into the caller's dialect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// The provider's own status where it should be passed on.
    pub status: u16,
    /// For the caller: what is wrong. Never a secret, never an internal address.
    pub message: String,
    /// For the caller: what to do about it.
    pub hint: Option<String>,
    /// Which request field is at fault, as a path.
    pub param: Option<String>,
    pub retry_after: Option<Duration>,
    /// `Some(false)` tells the SDKs not to retry although the status suggests it (`x-should-retry`).
    pub should_retry: Option<bool>,
}

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: kind.status(),
            message: message.into(),
            hint: None,
            param: None,
            retry_after: None,
            should_retry: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    #[must_use]
    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    #[must_use]
    pub fn should_retry(mut self, retry: bool) -> Self {
        self.should_retry = Some(retry);
        self
    }
}
