//! Answers that are not generated: JSON, refusals in the caller's own format.

use crate::api::{self, BadRequest, messages};
use crate::caller::Unknown;
use crate::registry::GetError;
use bytes::Bytes;
use engine::engine::SubmitError;
use http::HeaderValue;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::Response;
use serde_json::Value;
use std::convert::Infallible;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// Whose format an error is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    OpenAi,
    Anthropic,
}

impl Shape {
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }
}

/// A request that is not answered.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: String,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
    /// Seconds until it makes sense to try again.
    pub(crate) retry_after: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    pub(crate) fn coded(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// OpenAI's and Anthropic's word for the kind.
    fn kinds(&self) -> (&'static str, &'static str) {
        match self.status {
            401 => ("authentication_error", "authentication_error"),
            404 => ("invalid_request_error", "not_found_error"),
            413 => ("invalid_request_error", "request_too_large"),
            429 => ("rate_limit_error", "rate_limit_error"),
            503 => ("server_error", "overloaded_error"),
            400..=499 => ("invalid_request_error", "invalid_request_error"),
            _ => ("server_error", "api_error"),
        }
    }

    pub(crate) fn reply(&self, shape: Shape) -> Response<Body> {
        let (openai, anthropic) = self.kinds();
        let body = match shape {
            Shape::OpenAi => api::error(&self.message, openai, self.param, self.code),
            Shape::Anthropic => messages::error(&self.message, anthropic),
        };
        let mut reply = json(self.status, &body);
        if let Some(seconds) = self.retry_after {
            reply
                .headers_mut()
                .insert("retry-after", HeaderValue::from(seconds));
        }
        reply
    }
}

impl From<BadRequest> for Refusal {
    fn from(bad: BadRequest) -> Self {
        Self {
            param: bad.param,
            code: bad.code,
            ..Self::new(400, bad.message)
        }
    }
}

impl From<Unknown> for Refusal {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Key => Self::new(
                401,
                "a valid key is needed: `Authorization: Bearer KEY` or `x-api-key: KEY`",
            )
            .coded("invalid_api_key"),
            Unknown::Header(message) => Self::new(400, message),
        }
    }
}

impl From<GetError> for Refusal {
    fn from(error: GetError) -> Self {
        let message = error.to_string();
        match error {
            GetError::Unknown { .. } => Self::new(404, message).coded("model_not_found"),
            GetError::NoMemory(_) => Self::new(503, message).coded("no_memory").after(5),
            GetError::Broken(_) => Self::new(500, message).coded("model_broken"),
        }
    }
}

/// Why the engine did not take a request that would wait so long.
pub(crate) fn not_taken(error: SubmitError, expected_wait_ms: u64) -> Refusal {
    let message = error.to_string();
    match error {
        SubmitError::Full => {
            let seconds = expected_wait_ms.div_ceil(1000).clamp(1, 60);
            Refusal::new(429, format!("{message}; try again in {seconds} s"))
                .coded("queue_full")
                .after(seconds)
        }
        SubmitError::Stopped => Refusal::new(503, message).coded("engine_stopped").after(1),
        SubmitError::Length { .. } => Refusal::new(400, message).coded("context_length_exceeded"),
    }
}

pub(crate) fn json(status: u16, body: &Value) -> Response<Body> {
    text(status, "application/json", body.to_string())
}

pub(crate) fn text(status: u16, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static(kind));
    response
}
