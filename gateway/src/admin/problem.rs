//! What goes wrong in the admin API, as RFC 9457 has it: a status, a stable code, what is wrong, and what to do.

use ledger::{EditError, StoreError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `application/problem+json`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Problem {
    pub(super) status: u16,
    /// Stable, for programs.
    pub(super) code: String,
    /// What is wrong.
    pub(super) detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
    /// Of a document: each with its line, column, path, problem and hint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) mistakes: Vec<Value>,
    /// Methods that there are, where the one asked for is not.
    #[serde(skip)]
    pub(super) allow: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

impl Problem {
    pub(crate) fn new(status: u16, code: &str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            detail: detail.into(),
            hint: None,
            mistakes: Vec::new(),
            allow: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The request says something that cannot be.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(400, "invalid_request", detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(403, "permission_denied", detail)
    }

    pub(crate) fn missing(what: impl std::fmt::Display) -> Self {
        Self::new(404, "not_found", format!("there is no {what}"))
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the admin API cannot use the store");
        Self::new(503, "store_unavailable", "the store cannot be used now")
            .hint("the gateway's log says why; try again")
    }
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Self {
        let detail = error.to_string();
        match error {
            EditError::Store(error) => error.into(),
            EditError::Missing(what) if what.starts_with("account") => {
                Self::new(404, "not_found", detail).hint("create it with POST /admin/v1/accounts")
            }
            EditError::Missing(_) => Self::new(404, "not_found", detail),
            EditError::Exists(_) => Self::new(409, "already_exists", detail),
            EditError::Configured(_) => Self::new(409, "declared_by_configuration", detail)
                .hint("change it in the configuration file and start the gateway again"),
            EditError::Ended(_) => Self::new(409, "ended", detail),
        }
    }
}
