//! The admin listener: health, readiness, metrics, budgets and stored requests.

use crate::client::Client;
use crate::clock;
use crate::gateway::{Gateway, h2_options, read_head, reuse};
use async_trait::async_trait;
use bytes::Bytes;
use exchange::RequestId;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_http::ResponseHeader;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;

pub(crate) struct Admin {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) options: HttpServerOptions,
}

struct Reply {
    status: u16,
    kind: &'static str,
    body: Bytes,
}

impl Reply {
    fn json(status: u16, value: &serde_json::Value) -> Self {
        Self {
            status,
            kind: "application/json",
            body: value.to_string().into(),
        }
    }

    fn error(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "error": { "message": message } }))
    }
}

impl Admin {
    async fn reply(&self, client: &mut Client) -> Reply {
        let path = client.path().to_owned();
        let path = path.as_str();
        // Probes carry no secrets, and show none.
        match path {
            "/health" => return Reply::json(200, &json!({ "status": "ok" })),
            "/health/readiness" => return self.readiness(),
            _ => {}
        }
        if !self.may_enter(client) {
            return Reply::error(401, "send the admin key as `Authorization: Bearer`");
        }
        match path {
            "/metrics" => {
                let text = self
                    .gateway
                    .meters
                    .render(self.gateway.in_flight(), self.gateway.ledger.counts());
                Reply {
                    status: 200,
                    kind: "text/plain; version=0.0.4",
                    body: text.into(),
                }
            }
            "/v1/budgets" => self.budgets(),
            "/admin/v1/policies" => self.policies(client).await,
            _ => match path.strip_prefix("/v1/requests/") {
                Some(id) => self.request(id).await,
                None => Reply::error(
                    404,
                    "the admin API has /health, /health/readiness, /metrics, /v1/budgets, /v1/requests/{id} and /admin/v1/policies",
                ),
            },
        }
    }

    /// Compares hashes, so that the time taken tells nothing of the key.
    fn may_enter(&self, client: &Client) -> bool {
        let Some(key) = &self.gateway.config.admin.key else {
            return true;
        };
        let given = client
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "));
        given.is_some_and(|given| Sha256::digest(given.trim()) == Sha256::digest(key.expose()))
    }

    fn readiness(&self) -> Reply {
        match self.gateway.ledger.healthy() {
            Ok(()) => Reply::json(200, &json!({ "status": "ready" })),
            Err(problem) => Reply::json(503, &json!({ "status": "not ready", "ledger": problem })),
        }
    }

    fn budgets(&self) -> Reply {
        let balances = self.gateway.ledger.all_balances(clock::unix_us());
        let shown = balances.iter().map(|balance| {
            json!({
                "budget": balance.budget.id,
                "account": balance.budget.account.to_string(),
                "period": balance.budget.spec.period.as_str(),
                "limit": balance.limit.to_string(),
                "spent": balance.spent.to_string(),
                "reserved": balance.reserved.to_string(),
                "remaining": balance.remaining().to_string(),
            })
        });
        Reply::json(200, &shown.collect())
    }

    /// `GET`: the policy in force; `POST`: another one, judged before it is adopted.
    async fn policies(&self, client: &mut Client) -> Reply {
        if client.session.req_header().method.as_str() != "POST" {
            let rules = self.gateway.rules.now();
            return Reply::json(
                200,
                &json!({ "version": rules.policy.version(), "text": rules.text }),
            );
        }
        let limits = &self.gateway.config.limits;
        let body = match client.read_body(limits.body_bytes, limits.body_timeout).await {
            Ok(body) => body,
            Err(Some(refusal)) => return Reply::error(refusal.status, &refusal.message),
            Err(None) => return Reply::error(400, "the body did not arrive"),
        };
        let Ok(text) = std::str::from_utf8(&body) else {
            return Reply::error(400, "a policy is UTF-8 text");
        };
        match tokio::task::block_in_place(|| self.gateway.rules.put(text)) {
            Ok(told) => Reply::json(200, &told),
            Err(rejected) => {
                let mistakes = rejected.0.iter().map(|one| {
                    json!({
                        "line": one.line, "column": one.column, "path": one.path, "problem": one.problem,
                        "hint": one.hint,
                    })
                });
                let mistakes: Vec<_> = mistakes.collect();
                let message = "the policy was not adopted; the one in force stays";
                Reply::json(
                    422,
                    &json!({ "error": { "message": message, "mistakes": mistakes } }),
                )
            }
        }
    }

    async fn request(&self, id: &str) -> Reply {
        let Ok(id) = uuid::Uuid::parse_str(id) else {
            return Reply::error(400, "that is not a request id");
        };
        self.gateway.ledger.flush().await;
        match self.gateway.ledger.request(RequestId(id)).await {
            Ok(Some(request)) => Reply::json(200, &json!(request)),
            Ok(None) => Reply::error(404, "no such request"),
            Err(error) => Reply::error(503, &error.to_string()),
        }
    }
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let session = read_head(session, shutdown, self.gateway.config.limits.keepalive).await?;
        let mut client = Client::new(session);
        let reply = self.reply(&mut client).await;
        let mut head = ResponseHeader::build(reply.status, Some(2)).ok()?;
        head.insert_header("content-type", reply.kind).ok()?;
        client.answer(head, reply.body).await.ok()?;
        if client.reusable {
            reuse(client.session).await
        } else {
            None
        }
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(h2_options())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
