//! Public endpoints that the gateway answers by itself.

use crate::accept::{Endpoint, authenticate, dialect_of};
use crate::client::Client;
use crate::gateway::Gateway;
use crate::learn;
use crate::memory::OutcomeForm;
use crate::refuse::refuse;
use bytes::Bytes;
use dialect::ModelEntry;
use exchange::{Refusal, RefusalKind, RequestId};
use ledger::StoreError;
use pingora_http::ResponseHeader;
use serde_json::json;
use std::sync::Arc;

pub(crate) async fn answer(gateway: &Arc<Gateway>, client: &mut Client, endpoint: Endpoint, id: RequestId) {
    let dialect = dialect_of(client);
    let body = match endpoint {
        Endpoint::Health => Bytes::from_static(b"{\"status\":\"ok\"}"),
        Endpoint::Outcomes => match outcome(gateway, client).await {
            Ok(Some(body)) => body,
            Ok(None) => return,
            Err(refusal) => {
                refuse(client, dialect, &refusal, id).await;
                return;
            }
        },
        Endpoint::Models | Endpoint::Batch | Endpoint::Generate(_) => {
            match authenticate(gateway, client).await {
                Ok(who) => {
                    let rules = gateway.rules.now();
                    let policy = &rules.policy;
                    let named = policy.virtual_models().iter().map(|name| (&**name, "tollgate"));
                    let deployed = policy
                        .deployments()
                        .iter()
                        .map(|known| (&*known.model, &*known.provider));
                    let mut models: Vec<ModelEntry<'_>> = Vec::new();
                    for (id, owned_by) in named.chain(deployed) {
                        if who.grants.allows_model(id) && models.iter().all(|known| known.id != id) {
                            models.push(ModelEntry {
                                id,
                                owned_by,
                                created_unix_s: 0,
                            });
                        }
                    }
                    dialect::model_list(dialect, &models)
                }
                Err(refusal) => {
                    refuse(client, dialect, &refusal, id).await;
                    return;
                }
            }
        }
    };
    // Constants make a valid head.
    let Ok(mut head) = ResponseHeader::build(200, Some(2)) else {
        return;
    };
    if head.insert_header("content-type", "application/json").is_ok()
        && client.answer(head, body).await.is_err()
    {
        client.reusable = false;
    }
}

/// Takes what a caller says of an answer. `None`: the caller has gone.
async fn outcome(gateway: &Gateway, client: &mut Client) -> Result<Option<Bytes>, Refusal> {
    let who = authenticate(gateway, client).await?;
    let timeout = gateway.config.limits.body_timeout;
    let body = match client.read_body(64 << 10, timeout).await {
        Ok(body) => body,
        Err(Some(refusal)) => return Err(refusal),
        Err(None) => return Ok(None),
    };
    let invalid = |message: String| {
        Refusal::new(RefusalKind::InvalidRequest, message)
            .hint("send {\"request_id\": …, \"success\": true}, or workflow_run_id in place of request_id")
    };
    let form: OutcomeForm =
        serde_json::from_slice(&body).map_err(|error| invalid(format!("that is no outcome: {error}")))?;
    form.check().map_err(invalid)?;
    let unkept = |error: StoreError| {
        Refusal::new(
            RefusalKind::StoreUnavailable,
            format!("the outcome was not kept: {error}"),
        )
        .hint("tell it again in a moment")
    };
    let told = learn::told(gateway, &who.account.org, &form)
        .await
        .map_err(unkept)?;
    learn::tell(gateway, &told).await.map_err(unkept)?;
    Ok(Some(json!({ "requests": told.len() }).to_string().into()))
}
