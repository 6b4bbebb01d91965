//! The server: connections, endpoints, and the end of an answer when its reader is gone.

use crate::api::{self, BadRequest, Chat, Reading, Whole, Writer};
use anyhow::Context;
use bytes::Bytes;
use engine::engine::{Engine, Event, SubmitError, Ticket};
use engine::text::{ChatTemplate, Tokenizer};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const BODY_BYTES: usize = 32 << 20;
/// Events that may wait for a slow reader; beyond it the reader counts as gone.
const EVENTS: usize = 4096;
/// An engine that has not moved for so long is not healthy.
const STILL: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(5);

type Body = BoxBody<Bytes, Infallible>;

pub(crate) struct Settings {
    pub(crate) model: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) threads: usize,
    pub(crate) kv_tokens: usize,
    pub(crate) name: Option<String>,
}

/// What is there once the model is loaded.
struct Model {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
}

struct Server {
    name: String,
    model: OnceLock<Model>,
    next: AtomicU64,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    let name = settings.name.clone().unwrap_or_else(|| name_of(&settings.model));
    let server = Arc::new(Server {
        name,
        model: OnceLock::new(),
        next: AtomicU64::new(1),
    });
    let mut out = std::io::stdout();
    writeln!(out, "listening on http://{}", listener.local_addr()?)?;
    out.flush()?;
    let loading = server.clone();
    let mut load = JoinSet::new();
    load.spawn_blocking(move || loading.load(&settings));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                stream.set_nodelay(true)?;
                let server = server.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| { let server = server.clone(); async move { Ok::<_, Infallible>(server.serve(request).await) } });
                    // A connection that breaks is its caller's affair.
                    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            },
            Some(loaded) = load.join_next() => loaded??,
            Some(_) = connections.join_next() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, async {
        while server.is_busy() {
            tokio::time::sleep(Duration::from_millis(10)).await
        }
    })
    .await;
    Ok(())
}

/// `smollm2-135m-instruct-q4_1.gguf` is `smollm2-135m-instruct`.
fn name_of(path: &std::path::Path) -> String {
    let stem = path
        .file_stem()
        .map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    let cut = stem
        .rfind("-q")
        .filter(|at| stem[at + 2..].starts_with(|c: char| c.is_ascii_digit()));
    cut.map_or(stem.clone(), |at| stem[..at].to_owned())
}

fn json_reply(status: u16, body: &Value) -> Response<Body> {
    reply(status, "application/json", body.to_string())
}

fn reply(status: u16, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static(kind));
    response
}

fn refused(bad: &BadRequest) -> Response<Body> {
    json_reply(
        400,
        &api::error(&bad.message, "invalid_request_error", bad.param, bad.code),
    )
}

impl Server {
    fn load(&self, settings: &Settings) -> anyhow::Result<()> {
        let loaded = engine::model::load(&settings.model, settings.threads)?;
        let tokenizer = Arc::new(loaded.tokenizer);
        let engine = Engine::start(
            loaded.backend,
            tokenizer.clone(),
            engine::engine::Settings {
                kv_tokens: settings.kv_tokens,
                ..Default::default()
            },
        )?;
        let _ = self.model.set(Model {
            engine,
            tokenizer,
            template: loaded.template,
        });
        Ok(())
    }

    fn is_busy(&self) -> bool {
        self.model
            .get()
            .is_some_and(|model| model.engine.metrics().running.load(Ordering::Relaxed) > 0)
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some(model) = self.model.get() else {
            return json_reply(
                503,
                &api::error("the model is loading", "server_error", None, Some("loading")),
            );
        };
        match (request.method(), path.as_str()) {
            (&Method::GET, "/health") => {
                let is_moving = model.engine.since_heartbeat() < STILL;
                let status = if is_moving {
                    "ok"
                } else {
                    "the engine does not move"
                };
                json_reply(if is_moving { 200 } else { 503 }, &json!({ "status": status }))
            }
            (&Method::GET, "/metrics") => reply(200, "text/plain; version=0.0.4", metrics(&model.engine)),
            (&Method::GET, "/v1/models") => {
                let context = model.engine.context_tokens;
                let entry = json!({ "id": self.name, "object": "model", "created": 0, "owned_by": "local", "context_length": context });
                json_reply(200, &json!({ "object": "list", "data": [entry] }))
            }
            (&Method::POST, "/v1/chat/completions" | "/tokenize") => {
                let body = match Limited::new(request.into_body(), BODY_BYTES).collect().await {
                    Ok(body) => body.to_bytes(),
                    Err(_) => {
                        let message = "the body is larger than 32 MiB or did not arrive";
                        return json_reply(413, &api::error(message, "invalid_request_error", None, None));
                    }
                };
                if path == "/tokenize" {
                    tokenize(model, &body)
                } else {
                    self.chat(body).await
                }
            }
            _ => json_reply(
                404,
                &api::error(
                    &format!("there is nothing at {path}"),
                    "invalid_request_error",
                    None,
                    None,
                ),
            ),
        }
    }

    async fn chat(&self, body: Bytes) -> Response<Body> {
        let Some(model) = self.model.get() else {
            return json_reply(503, &json!({}));
        };
        // Short prompts tokenize in microseconds; a long one must not hold up everybody's tokens.
        let read = || {
            let context_tokens = model.engine.context_tokens;
            Chat::read(
                &body,
                &Reading {
                    tokenizer: &model.tokenizer,
                    template: model.template.as_ref(),
                    context_tokens,
                },
            )
        };
        let chat = if body.len() > 16 << 10 {
            tokio::task::block_in_place(read)
        } else {
            read()
        };
        let chat = match chat {
            Ok(chat) => chat,
            Err(bad) => return refused(&bad),
        };
        let (sender, receiver) = mpsc::channel(EVENTS);
        let sink = Box::new(move |event| sender.try_send(event).is_ok());
        let mut writer = Writer::new(self.next.fetch_add(1, Ordering::Relaxed), &self.name, &chat);
        let ticket = match model.engine.submit(chat.engine, sink) {
            Ok(ticket) => ticket,
            Err(error) => {
                let status = if error == SubmitError::Full { 429 } else { 503 };
                return json_reply(
                    status,
                    &api::error(&error.to_string(), "server_error", None, None),
                );
            }
        };
        let mut events = Events {
            receiver,
            _ticket: ticket,
        };
        if chat.stream {
            return stream(events, writer);
        }
        let mut whole = Whole::default();
        while let Some(event) = events.receiver.recv().await {
            if let Some(answer) = writer.whole(&mut whole, event) {
                let status = if answer["error"].is_object() { 500 } else { 200 };
                return json_reply(status, &answer);
            }
        }
        json_reply(500, &api::error("the engine stopped", "server_error", None, None))
    }
}

/// Events of a request, which ends when nobody holds this any more: hyper drops it when the caller hangs up.
struct Events {
    receiver: mpsc::Receiver<Event>,
    _ticket: Ticket,
}

fn stream(events: Events, writer: Writer) -> Response<Body> {
    let state = Some((events, writer));
    let frames = futures(state);
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        http::HeaderValue::from_static("text/event-stream"),
    );
    headers.insert("cache-control", http::HeaderValue::from_static("no-cache"));
    response
}

/// One frame per event, and those that are there already with it.
fn futures(
    state: Option<(Events, Writer)>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync {
    futures_util::stream::unfold(state, |state| async move {
        let (mut events, mut writer) = state?;
        let mut event = events.receiver.recv().await?;
        let mut out = String::new();
        loop {
            let is_last = !matches!(event, Event::Text { .. });
            out.push_str(&writer.stream(event));
            if is_last {
                return Some((Ok(Frame::data(Bytes::from(out))), None));
            }
            match events.receiver.try_recv() {
                Ok(next) => event = next,
                Err(_) => return Some((Ok(Frame::data(Bytes::from(out))), Some((events, writer)))),
            }
        }
    })
}

fn tokenize(model: &Model, body: &[u8]) -> Response<Body> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match body["content"].as_str() {
        Some(text) => json_reply(
            200,
            &json!({ "tokens": model.tokenizer.encode(text, body["parse_special"] != false) }),
        ),
        None => refused(&BadRequest {
            message: "`content` must be a text".into(),
            param: Some("content"),
            code: None,
        }),
    }
}

fn metrics(engine: &Engine) -> String {
    let metrics = engine.metrics();
    let mut out = String::new();
    for (name, kind, value) in [
        ("running_requests", "gauge", &metrics.running),
        ("waiting_requests", "gauge", &metrics.waiting),
        ("kv_blocks_used", "gauge", &metrics.blocks_used),
        ("kv_blocks", "gauge", &metrics.blocks_total),
        ("prompt_tokens_total", "counter", &metrics.prompt_tokens),
        ("cached_tokens_total", "counter", &metrics.prefix_hits),
        ("output_tokens_total", "counter", &metrics.output_tokens),
        ("finished_requests_total", "counter", &metrics.finished_stop),
        ("cancelled_requests_total", "counter", &metrics.cancelled_decode),
        ("preempted_requests_total", "counter", &metrics.preempted),
        ("steps_total", "counter", &metrics.steps),
        ("step_microseconds_total", "counter", &metrics.busy_us),
    ] {
        let _ = write!(
            out,
            "# TYPE local_{name} {kind}\nlocal_{name} {}\n",
            value.load(Ordering::Relaxed)
        );
    }
    out
}
