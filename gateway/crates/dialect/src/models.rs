//! The list of models, in both shapes.

use bytes::Bytes;
use exchange::Dialect;
use serde_json::{Value, json};

/// One model a caller may name.
#[derive(Clone, Copy, Debug)]
pub struct ModelEntry<'a> {
    pub id: &'a str,
    pub owned_by: &'a str,
    pub created_unix_s: i64,
}

/// The body of `GET /v1/models`.
pub fn model_list(dialect: Dialect, models: &[ModelEntry<'_>]) -> Bytes {
    let entries: Vec<Value> = models
        .iter()
        .map(|model| match dialect {
            Dialect::Anthropic => json!({ "type": "model", "id": model.id, "display_name": model.id,
                "created_at": "1970-01-01T00:00:00Z" }),
            _ => json!({ "id": model.id, "object": "model", "created": model.created_unix_s, "owned_by": model.owned_by }),
        })
        .collect();
    let list = match dialect {
        Dialect::Anthropic => {
            let (first, last) = (
                models.first().map(|model| model.id),
                models.last().map(|model| model.id),
            );
            json!({ "data": entries, "has_more": false, "first_id": first, "last_id": last })
        }
        _ => json!({ "object": "list", "data": entries }),
    };
    list.to_string().into()
}
