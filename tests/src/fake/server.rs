//! The HTTP side of a fake provider: connections, paths, credentials, errors, and the order of events in one request.

use super::call::Call;
use super::log::{Ended, Log, Ticket};
use super::play::{Event, Play};
use super::{Options, anthropic, openai, plain};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Headers a test may want to see again. Everything else a client sends is noise here.
const LOGGED_HEADERS: [&str; 12] = [
    "authorization",
    "x-api-key",
    "anthropic-version",
    "anthropic-beta",
    "content-type",
    "content-length",
    "accept",
    "accept-encoding",
    "user-agent",
    "x-fake",
    "x-request-id",
    "host",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Openai,
    Anthropic,
}

/// Binds and serves in the background of the current runtime.
pub(super) async fn listen(options: &Options, log: Arc<Log>) -> std::io::Result<SocketAddr> {
    let socket = match options.address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(options.address)?;
    let listener = socket.listen(4096)?;
    let address = listener.local_addr()?;
    let tls = options.tls.as_ref().map(|certificate| certificate.acceptor());
    tokio::spawn(accept(listener, tls, log));
    Ok(address)
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, log: Arc<Log>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the next accept may do better.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        tokio::spawn(connection(stream, tls.clone(), log.clone()));
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, log: Arc<Log>) {
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(10_000)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20);
    let service = service_fn(move |request| {
        let log = log.clone();
        async move { Ok::<_, Infallible>(handle(request, &log).await) }
    });
    // Errors here are hang-ups, which the tickets have recorded.
    match tls {
        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

async fn handle(request: Request<Incoming>, log: &Arc<Log>) -> Response<Body> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/_fake/stats") => json(&log.stats()),
        (&Method::GET, "/_fake/requests") => json(&log.entries()),
        (&Method::DELETE, path) if path.starts_with("/_fake") => {
            log.reset();
            json(&log.stats())
        }
        (&Method::GET, "/_fake/batches") => json(&log.batches.shown()),
        (_, path) if is_batch(path) => batch(request, log).await,
        (_, path) if is_gemini(path) => gemini(request, log).await,
        (&Method::POST, "/v1/chat/completions" | "/v1beta/openai/chat/completions") => {
            answer(Wire::Openai, request, log).await
        }
        (&Method::POST, "/v1/embeddings" | "/v1/completions" | "/v1/responses") => {
            answer(Wire::Openai, request, log).await
        }
        (&Method::POST, "/v1/messages") => answer(Wire::Anthropic, request, log).await,
        (_, path) => {
            let message = format!("Invalid URL ({} {path})", request.method());
            failure(Wire::Openai, 404, &message, None)
        }
    }
}

fn is_batch(path: &str) -> bool {
    ["/v1/files", "/v1/batches", "/v1/messages/batches"]
        .iter()
        .any(|lead| path.starts_with(lead))
}

fn is_gemini(path: &str) -> bool {
    [
        "/v1beta/models/",
        "/v1beta/batches",
        "/v1beta/files/",
        "/upload/v1beta/",
        "/download/v1beta/",
    ]
    .iter()
    .any(|lead| path.starts_with(lead))
}

/// Gemini's own surface: files and batches.
async fn gemini(request: Request<Incoming>, log: &Arc<Log>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    let Ok(body) = incoming.collect().await else {
        return failure(Wire::Openai, 400, "the request body broke off", None);
    };
    let told = super::batch::answer_gemini(&log.batches, &head, &body.to_bytes());
    let mut head = Response::builder()
        .status(told.status)
        .header("content-type", "application/json");
    for (name, value) in told.fields {
        head = head.header(name, value);
    }
    head.body(full(told.body)).unwrap()
}

/// Files and batches, by whoever brings a key.
async fn batch(request: Request<Incoming>, log: &Arc<Log>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    let wire = if head.uri.path().contains("/messages/") {
        Wire::Anthropic
    } else {
        Wire::Openai
    };
    let Ok(body) = incoming.collect().await else {
        return failure(wire, 400, "the request body broke off", None);
    };
    let needed = if wire == Wire::Anthropic {
        "x-api-key"
    } else {
        "authorization"
    };
    if !head.headers.contains_key(needed) {
        return failure(wire, 401, &format!("{needed} is missing"), None);
    }
    let (method, path, body) = (&head.method, head.uri.path(), body.to_bytes());
    let answered = match wire {
        Wire::Openai => {
            let query = head.uri.query().unwrap_or_default();
            super::batch::answer_openai(&log.batches, method, (path, query), &body)
        }
        Wire::Anthropic => super::batch::answer_anthropic(&log.batches, method, path, &body),
    };
    match answered {
        Some((status, body)) => {
            let head = response(wire, status).header("content-type", "application/json");
            head.body(full(body)).unwrap()
        }
        None => failure(wire, 404, "no such endpoint", None),
    }
}

/// One call, from its head to the body that plays the answer.
async fn answer(wire: Wire, request: Request<Incoming>, log: &Arc<Log>) -> Response<Body> {
    let mut ticket = log.open(request.uri().path(), format!("{:?}", request.version()));
    let (head, incoming) = request.into_parts();
    if !log.is_quiet() {
        ticket.update(|entry| entry.headers = logged(&head.headers));
    }
    let Ok(body) = incoming.collect().await else {
        return failure(wire, 400, "the request body broke off", None);
    };
    let body = body.to_bytes();
    let scripted = head.headers.get("x-fake").and_then(|value| value.to_str().ok());
    let mut id = 0;
    ticket.update(|entry| id = entry.id);
    let path = head.uri.path();
    // Gemini's surface that speaks OpenAI's dialect.
    let endpoint = path
        .strip_prefix("/v1beta/openai")
        .map_or(path.to_owned(), |rest| format!("/v1{rest}"));
    let endpoint = endpoint.as_str();
    let call = match Call::read(id, &body, scripted) {
        Ok(call) => call.at(endpoint),
        Err(message) => return finish(&mut ticket, failure(wire, 400, &message, None)),
    };
    ticket.body_read(&body, &call.model, call.stream);
    drop(body);
    if let Some(refusal) = objection(wire, &head.headers, &call) {
        return finish(&mut ticket, refusal);
    }
    if call.script.hang {
        std::future::pending::<()>().await;
    }
    if !call.script.ttft.is_zero() {
        tokio::time::sleep(call.script.ttft).await;
    }
    let seen = log.count_model(scripted.unwrap_or(&call.model));
    if let Some(status) = call.script.failure(seen) {
        let message = format!("scripted failure {status} of {}", call.model);
        return finish(
            &mut ticket,
            failure(wire, status, &message, call.script.retry_after),
        );
    }
    if call.script.flex_busy > 0 {
        let flex = format!("flex of {}", call.model);
        if call.is_crowded_out(log.count_model(&flex)) {
            let head = response(wire, 429).header("content-type", "application/json");
            return finish(&mut ticket, head.body(full(openai::crowded_out())).unwrap());
        }
    }
    let wait = call.script.wait_ms;
    let mut response = if call.stream {
        stream((wire, endpoint), call, ticket)
    } else {
        whole((wire, endpoint), call, ticket).await
    };
    if let Some(wait) = wait {
        response
            .headers_mut()
            .insert("x-local-expected-wait-ms", wait.into());
    }
    response
}

/// What the real services object to before they look at the model.
fn objection(wire: Wire, headers: &HeaderMap, call: &Call) -> Option<Response<Body>> {
    let refuse = |status, message: &str| Some(failure(wire, status, message, None));
    match wire {
        Wire::Openai if !headers.contains_key("authorization") => refuse(
            401,
            "You didn't provide an API key. Send it as `Authorization: Bearer`.",
        ),
        Wire::Anthropic if !headers.contains_key("x-api-key") => refuse(401, "x-api-key header is required"),
        Wire::Anthropic if !headers.contains_key("anthropic-version") => {
            refuse(400, "anthropic-version: header is required")
        }
        Wire::Anthropic if call.max_tokens.is_none() => refuse(400, "max_tokens: Field required"),
        _ => None,
    }
}

fn stream((wire, endpoint): (Wire, &str), call: Call, ticket: Ticket) -> Response<Body> {
    ticket.first_byte(200);
    let (script, total) = (call.script.clone(), call.output_tokens());
    let call = Arc::new(call);
    let events: Box<dyn Iterator<Item = Event> + Send> = match (wire, endpoint) {
        (Wire::Openai, "/v1/chat/completions") => Box::new(openai::events(call)),
        (Wire::Openai, _) => plain::events(endpoint, call),
        (Wire::Anthropic, _) => Box::new(anthropic::events(call)),
    };
    let play = Play::new(events, script, total, ticket);
    response(wire, 200)
        .header("content-type", "text/event-stream; charset=utf-8")
        .body(play.boxed_unsync())
        .unwrap()
}

/// Generates for as long as the stream would have taken, then answers at once.
async fn whole((wire, endpoint): (Wire, &str), call: Call, mut ticket: Ticket) -> Response<Body> {
    for index in 0..call.output_tokens() {
        if index > 0 && !call.script.gap.is_zero() {
            tokio::time::sleep(call.script.gap).await;
        }
        if call.script.stall_after == Some(index) {
            std::future::pending::<()>().await;
        }
        ticket.token();
    }
    ticket.first_byte(200);
    let body = match (wire, endpoint) {
        (Wire::Openai, "/v1/chat/completions") => openai::whole(&call),
        (Wire::Openai, _) => openai::plain(endpoint, &call).to_string().into_bytes(),
        (Wire::Anthropic, _) => anthropic::whole(&call),
    };
    let head = response(wire, 200).header("content-type", "application/json");
    if call.script.cut_after.is_none() {
        ticket.end(Ended::Finished);
        return head.body(full(body)).unwrap();
    }
    let text = String::from_utf8(body).unwrap();
    let length = text.len();
    let script = super::Script {
        cut_after: Some(0),
        ..call.script
    };
    let play = Play::new(Box::new(std::iter::once(Event::token(text))), script, 0, ticket);
    head.header("content-length", length)
        .body(play.boxed_unsync())
        .unwrap()
}

/// Ends the ticket with an answer that is ready.
fn finish(ticket: &mut Ticket, response: Response<Body>) -> Response<Body> {
    ticket.first_byte(response.status().as_u16());
    ticket.end(Ended::Finished);
    response
}

fn failure(wire: Wire, status: u16, message: &str, retry_after: Option<u32>) -> Response<Body> {
    let body = match wire {
        Wire::Openai => openai::error(status, message),
        Wire::Anthropic => anthropic::error(status, message),
    };
    let mut head = response(wire, status).header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        head = head.header("retry-after", seconds);
    }
    head.body(full(body)).unwrap()
}

fn response(wire: Wire, status: u16) -> http::response::Builder {
    let head = Response::builder().status(StatusCode::from_u16(status).unwrap());
    match wire {
        Wire::Openai => head
            .header("x-request-id", "req_7d3b1f")
            .header("openai-processing-ms", "12"),
        Wire::Anthropic => head.header("request-id", "req_011CSHoEeqs5C35K2UUqR7Fy"),
    }
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    let body = serde_json::to_vec(value).unwrap();
    Response::builder()
        .header("content-type", "application/json")
        .body(full(body))
        .unwrap()
}

fn full(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body))
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn logged(headers: &HeaderMap) -> std::collections::BTreeMap<String, String> {
    LOGGED_HEADERS
        .iter()
        .filter_map(|name| Some((*name, headers.get(*name)?.to_str().ok()?)))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
