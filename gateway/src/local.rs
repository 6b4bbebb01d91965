//! Public endpoints that the gateway answers by itself.

use crate::accept::{Endpoint, authenticate, dialect_of};
use crate::client::Client;
use crate::gateway::Gateway;
use crate::refuse::refuse;
use bytes::Bytes;
use dialect::ModelEntry;
use exchange::RequestId;
use pingora_http::ResponseHeader;
use std::sync::Arc;

pub(crate) async fn answer(gateway: &Arc<Gateway>, client: &mut Client, endpoint: Endpoint, id: RequestId) {
    let dialect = dialect_of(client);
    let body = match endpoint {
        Endpoint::Health => Bytes::from_static(b"{\"status\":\"ok\"}"),
        Endpoint::Models | Endpoint::Generate(_) => match authenticate(&gateway.ledger, client) {
            Ok(who) => {
                let policy = &gateway.policy;
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
        },
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
