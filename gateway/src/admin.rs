//! The admin listener: health, readiness, metrics, and the admin API.
//!
//! Owns: who may come in, and one answer to each request. Refuses to know: SQL; what each operation does is in a file of its
//! own. Invariants: what is not in the table of routes is not there, and the document that tells of it is made from the
//! table; every refusal is a [`Problem`] that says what to do.

mod accounts;
mod alerts;
mod audit;
mod budgets;
mod form;
mod idempotency;
mod jobs;
mod keys;
mod openapi;
mod policies;
mod problem;
mod rates;
mod requests;
mod route;
mod table;
mod usage;
mod visitor;

use crate::client::Client;
use crate::clock;
use crate::gateway::{Gateway, h2_options, read_head, reuse};
pub(crate) use alerts::alert_document;
use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use idempotency::{Once, Turn};
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_http::ResponseHeader;
pub(crate) use problem::Problem;
use route::{Call, Parameters, Route};
use serde_json::json;
use std::sync::Arc;
use visitor::Visitor;

const JSON: &str = "application/json";

pub(crate) struct Admin {
    gateway: Arc<Gateway>,
    options: HttpServerOptions,
    routes: Vec<Route>,
}

struct Reply {
    status: u16,
    kind: &'static str,
    body: Bytes,
    headers: Vec<(&'static str, String)>,
}

impl Reply {
    fn new(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            kind,
            body: body.into(),
            headers: Vec::new(),
        }
    }

    fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, JSON, value.to_string())
    }
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Self {
        let mut headers = Vec::new();
        if problem.status == 401 {
            headers.push(("www-authenticate", "Bearer".to_owned()));
        }
        if let Some(allow) = problem.allow.clone() {
            headers.push(("allow", allow));
        }
        let body = json!(problem).to_string();
        Self {
            status: problem.status,
            kind: "application/problem+json",
            body: body.into(),
            headers,
        }
    }
}

impl Admin {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Self {
        Self {
            gateway,
            options: Gateway::server_options(),
            routes: table::routes(),
        }
    }

    async fn reply(&self, client: &mut Client) -> Result<Reply, Problem> {
        // Probes carry no secrets, and show none.
        match client.path() {
            "/health" => return Ok(Reply::json(200, &json!({ "status": "ok" }))),
            "/health/readiness" => return Ok(self.readiness()),
            _ => {}
        }
        let visitor = Visitor::of(&self.gateway, client)?;
        if client.path() == "/metrics" {
            visitor.must_see_everything()?;
            let text = self
                .gateway
                .meters
                .render(self.gateway.in_flight(), self.gateway.ledger.counts());
            return Ok(Reply::new(200, "text/plain; version=0.0.4", text));
        }
        let (route, parameters) = self.find(client)?;
        visitor.must(route.may)?;
        let body = if route.has_body() {
            self.body(client).await?
        } else {
            Bytes::new()
        };
        let call = Call {
            gateway: self.gateway.clone(),
            who: Arc::new(visitor),
            now_us: clock::unix_us(),
            parameters,
        };
        self.answer(client, route, (call, body)).await
    }

    fn readiness(&self) -> Reply {
        match self.gateway.ledger.healthy() {
            Ok(()) => Reply::json(200, &json!({ "status": "ready" })),
            Err(problem) => Reply::json(503, &json!({ "status": "not ready", "ledger": problem })),
        }
    }

    fn find(&self, client: &Client) -> Result<(&Route, Parameters), Problem> {
        let (method, path) = (&client.session.req_header().method, client.path());
        let mut others = Vec::new();
        for route in &self.routes {
            if let Some(parameters) = route.matches(path) {
                if route.method == *method {
                    return Ok((route, parameters));
                }
                others.push(route.method.as_str());
            }
        }
        if others.is_empty() {
            let problem = Problem::new(404, "not_found", format!("there is nothing at {path}"));
            return Err(
                problem.hint("GET /admin/v1/openapi.json tells what there is, beside /health and /metrics")
            );
        }
        let allow = others.join(", ");
        let detail = format!("{path} does not take {method}");
        let mut problem = Problem::new(405, "method_not_allowed", detail).hint(format!("it takes {allow}"));
        problem.allow = Some(allow);
        Err(problem)
    }

    async fn body(&self, client: &mut Client) -> Result<Bytes, Problem> {
        let limits = &self.gateway.config.limits;
        let read = client.read_body(limits.body_bytes, limits.body_timeout).await;
        read.map_err(|refusal| match refusal {
            Some(refusal) => Problem::new(refusal.status, refusal.kind.as_str(), refusal.message),
            None => Problem::invalid("the body did not arrive"),
        })
    }

    /// Answers, or gives the answer that the same request got before.
    async fn answer(
        &self,
        client: &Client,
        route: &Route,
        (call, body): (Call, Bytes),
    ) -> Result<Reply, Problem> {
        let uri = &client.session.req_header().uri;
        let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or("").to_owned());
        let key = client
            .header("idempotency-key")
            .filter(|_| route.method == Method::POST);
        let Some(key) = key else {
            return run(route, call, (&query, &body)).await;
        };
        let bearer = client.header("authorization").unwrap_or("");
        let once = Once::new((&call.who, bearer), key, (&path, &body))?;
        let ledger = self.gateway.ledger.clone();
        match once.begin(&ledger).await? {
            Turn::Again { status, body } => {
                let kind = if status < 400 {
                    JSON
                } else {
                    "application/problem+json"
                };
                let mut reply = Reply::new(status, kind, body);
                reply.headers.push(("idempotency-replayed", "true".to_owned()));
                Ok(reply)
            }
            Turn::Answer => {
                let reply = run(route, call, (&query, &body))
                    .await
                    .unwrap_or_else(Reply::from);
                once.end(&ledger, reply.status, &reply.body).await;
                Ok(reply)
            }
        }
    }
}

async fn run(route: &Route, call: Call, (query, body): (&str, &Bytes)) -> Result<Reply, Problem> {
    let answer = route.run(call, query, body).await?;
    Ok(match answer {
        Some(value) => Reply::json(route.status, &value),
        None => Reply::new(route.status, JSON, Bytes::new()),
    })
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
        let reply = self.reply(&mut client).await.unwrap_or_else(Reply::from);
        let mut head = ResponseHeader::build(reply.status, Some(4)).ok()?;
        if !reply.body.is_empty() {
            head.insert_header("content-type", reply.kind).ok()?;
        }
        for (name, value) in reply.headers {
            head.insert_header(name, value).ok()?;
        }
        // Answers hold keys, and what is nobody else's business.
        head.insert_header("cache-control", "no-store").ok()?;
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
