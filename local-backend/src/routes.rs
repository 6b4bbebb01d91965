//! What is served where. Owns the endpoints and their limits; refuses to know connections and the engine's insides.

use crate::api::chat::{self, Chat};
use crate::api::completions::{self, Completions};
use crate::api::messages::{self, Messages};
use crate::api::responses::{self, Responses};
use crate::api::{Ask, BadRequest, Head, Writer, bad, fields, json_of};
use crate::caller::Callers;
use crate::generate::{Context, Generation};
use crate::registry::{Model, Registry};
use crate::reply::{self, Body, Refusal, Shape, json};
use bytes::Bytes;
use engine::engine::{Order, Standing};
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// An engine that has not moved for so long is not healthy.
const STILL: Duration = Duration::from_secs(10);
/// For a body to arrive.
const BODY: Duration = Duration::from_secs(60);
/// Bodies from here on are read and tokenized where they hold up nobody's tokens.
const LONG: usize = 16 << 10;
/// Texts that are embedded at once.
const INPUTS: usize = 256;

pub(crate) struct Service {
    pub(crate) callers: Callers,
    pub(crate) registry: Arc<Registry>,
    pub(crate) nanodollars_per_hour: u64,
    pub(crate) max_body_bytes: usize,
    pub(crate) ending: watch::Receiver<bool>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) next: AtomicU64,
}

/// The APIs that generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Chat,
    Completions,
    Messages,
    Responses,
}

impl Api {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completions),
            "/v1/messages" => Some(Self::Messages),
            "/v1/responses" => Some(Self::Responses),
            _ => None,
        }
    }

    fn read(self, body: &Value, model: &Model, order: &Order) -> Result<Ask, BadRequest> {
        let mut ask = match self {
            Self::Chat => chat::read(body, model, order)?,
            Self::Completions => completions::read(body, model, order)?,
            Self::Messages => chat::read(&messages::to_chat(body)?, model, order)?,
            Self::Responses => chat::read(&responses::to_chat(body)?, model, order)?,
        };
        ask.stream = body["stream"] == true;
        Ok(ask)
    }

    fn writer(self, head: Head, ask: &Ask) -> Box<dyn Writer> {
        match self {
            Self::Chat => Box::new(Chat::new(head, ask)),
            Self::Completions => Box::new(Completions::new(head, ask)),
            Self::Messages => Box::new(Messages::new(head, ask)),
            Self::Responses => Box::new(Responses::new(head, ask)),
        }
    }
}

impl Service {
    pub(crate) async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match self.answer(request, &path).await {
            Ok(response) => response,
            Err(refusal) => refusal.reply(Shape::of(&path)),
        }
    }

    async fn answer(&self, request: Request<Incoming>, path: &str) -> Result<Response<Body>, Refusal> {
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            "/health" if is_get => return Ok(self.health()),
            "/metrics" if is_get => {
                let text = crate::metrics::render(&self.registry.list(), self.nanodollars_per_hour);
                return Ok(reply::text(200, "text/plain; version=0.0.4", text));
            }
            _ => {}
        }
        let order = self.callers.order(request.headers())?;
        if *self.draining.borrow() {
            return Err(Refusal::new(503, "the server is shutting down")
                .coded("shutting_down")
                .after(5));
        }
        if is_get {
            return match path {
                "/slots" => self.slots().await,
                "/v1/models" => Ok(self.models()),
                path => match path.strip_prefix("/v1/models/") {
                    Some(name) => self.model(name),
                    None => Err(unknown(request.method(), path)),
                },
            };
        }
        let is_known = Api::of(path).is_some()
            || matches!(
                path,
                "/v1/embeddings"
                    | "/v1/messages/count_tokens"
                    | "/tokenize"
                    | "/detokenize"
                    | "/apply-template"
            );
        if *request.method() != Method::POST || !is_known {
            return Err(unknown(request.method(), path));
        }
        let body = self.body(request).await?;
        let arrived = Instant::now();
        let value = off_thread(body.len(), || json_of(&body))?;
        let name = &value["model"];
        if !name.is_string() && !name.is_null() {
            return Err(bad("`model` must be a text", "model").into());
        }
        let model = self.registry.get(name.as_str()).await?;
        match (Api::of(path), path) {
            (Some(_), _) if !model.info.generates => Err(Refusal::new(
                400,
                format!("`{}` makes embeddings only", model.name),
            )
            .coded("no_generation")),
            (Some(api), _) => {
                let ask = off_thread(body.len(), || api.read(&value, &model, &order))?;
                self.generate(api, &model, (ask, arrived)).await
            }
            (None, "/v1/embeddings") => embeddings(&value, &model).await,
            (None, _) => Ok(json(
                200,
                &off_thread(body.len(), || texts(path, &value, &model))?,
            )),
        }
    }

    async fn body(&self, request: Request<Incoming>) -> Result<Bytes, Refusal> {
        let most = self.max_body_bytes;
        let too_large = || {
            Refusal::new(
                413,
                format!("the body is larger than {most} bytes: `max_body_bytes`"),
            )
        };
        let told = request
            .headers()
            .get("content-length")
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if told.is_some_and(|told| told > most) {
            return Err(too_large());
        }
        let collected = tokio::time::timeout(BODY, Limited::new(request.into_body(), most).collect()).await;
        match collected {
            Err(_) => Err(Refusal::new(408, "the body did not arrive in time")),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(Refusal::new(400, "the body broke off")),
            Ok(Ok(body)) => Ok(body.to_bytes()),
        }
    }

    async fn generate(
        &self,
        api: Api,
        model: &Arc<Model>,
        (ask, arrived): (Ask, Instant),
    ) -> Result<Response<Body>, Refusal> {
        let created = fields::clock_nanos() / 1_000_000_000;
        let head = Head {
            id: format!("{created:x}{:04x}", self.next.fetch_add(1, Ordering::Relaxed)),
            model: model.name.clone(),
            created,
        };
        let mut writer = api.writer(head, &ask);
        let is_stream = ask.stream;
        let context = Context {
            nanodollars_per_hour: self.nanodollars_per_hour,
            ending: self.ending.clone(),
            tokenize_ms: arrived.elapsed().as_secs_f64() * 1e3,
        };
        let load = model.engine.load();
        let generation = Generation::start(model, ask, context);
        let generation = generation.map_err(|error| reply::not_taken(error, load.expected_wait_ms))?;
        let mut response = match is_stream {
            true => stream(generation, writer),
            false => match generation.whole(&mut *writer).await {
                Ok((answer, summary)) => {
                    let mut response = json(200, &answer);
                    let cost = HeaderValue::from(summary.nanodollars);
                    response.headers_mut().insert("x-local-cost-nanodollars", cost);
                    response
                }
                Err(why) if *self.ending.borrow() => {
                    return Err(Refusal::new(503, why).coded("shutting_down").after(5));
                }
                Err(why) => return Err(Refusal::new(500, why)),
            },
        };
        tell_load(response.headers_mut(), model);
        Ok(response)
    }

    /// Proves that every loaded engine moves, not only that this process answers.
    fn health(&self) -> Response<Body> {
        let listed = self.registry.list();
        let mut status = if listed.iter().any(|listed| listed.state == "ready") {
            "ok"
        } else {
            "loading"
        };
        let mut models = Vec::new();
        for listed in &listed {
            let mut shown = json!({ "id": listed.name, "state": listed.state, "progress": listed.progress, "problem": listed.problem });
            if let Some(model) = &listed.model {
                let since = model.engine.since_heartbeat();
                shown["since_heartbeat_ms"] = (since.as_millis() as u64).into();
                shown["steps"] = model.engine.metrics().steps.load(Ordering::Relaxed).into();
                if since > STILL {
                    status = "an engine does not move";
                }
            }
            models.push(shown);
        }
        // A server of models that are loaded on demand is well without any.
        if status == "loading" && listed.iter().all(|listed| listed.state == "unloaded") {
            status = "ok";
        }
        if *self.draining.borrow() {
            status = "shutting down";
        }
        json(
            if status == "ok" { 200 } else { 503 },
            &json!({ "status": status, "models": models }),
        )
    }

    async fn slots(&self) -> Result<Response<Body>, Refusal> {
        let mut shown = Vec::new();
        for listed in self.registry.list() {
            let Some(model) = listed.model else { continue };
            let (tell, told) = oneshot::channel();
            let tell = Box::new(move |standing| drop(tell.send(standing)));
            let asked = model.engine.standing(tell).is_ok();
            let standing = if asked {
                told.await.unwrap_or_default()
            } else {
                Standing::default()
            };
            shown.push(json!({ "model": listed.name, "load": model.engine.load(), "slots": standing.slots, "tenants": standing.tenants }));
        }
        Ok(json(200, &json!({ "models": shown })))
    }

    fn models(&self) -> Response<Body> {
        let data: Vec<Value> = self.registry.list().iter().map(entry).collect();
        json(
            200,
            &json!({ "object": "list", "data": data, "has_more": false,
            "first_id": data.first().map(|model| model["id"].clone()), "last_id": data.last().map(|model| model["id"].clone()) }),
        )
    }

    fn model(&self, name: &str) -> Result<Response<Body>, Refusal> {
        let listed = self
            .registry
            .list()
            .into_iter()
            .find(|listed| listed.name == name);
        let missing = || {
            Refusal::new(404, format!("there is no model `{name}`: see /v1/models")).coded("model_not_found")
        };
        Ok(json(200, &entry(&listed.ok_or_else(missing)?)))
    }
}

fn unknown(method: &Method, path: &str) -> Refusal {
    Refusal::new(404, format!("there is no {method} {path} here"))
}

fn entry(listed: &crate::registry::Listed) -> Value {
    let mut entry = json!({ "id": listed.name, "object": "model", "type": "model", "display_name": listed.name,
        "created": 0, "created_at": "1970-01-01T00:00:00Z", "owned_by": "local", "state": listed.state, "progress": listed.progress });
    if let Some(model) = &listed.model {
        entry["context_length"] = model.engine.context_tokens.into();
        entry["architecture"] = model.info.architecture.as_str().into();
        entry["memory_bytes"] = model.bytes().into();
    }
    entry
}

/// Long work makes way for others' tokens.
fn off_thread<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes > LONG {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// How busy the model is, for whoever routes.
fn tell_load(headers: &mut HeaderMap, model: &Model) {
    let load = model.engine.load();
    headers.insert("x-local-running", HeaderValue::from(load.running));
    headers.insert("x-local-waiting", HeaderValue::from(load.waiting));
    headers.insert(
        "x-local-expected-wait-ms",
        HeaderValue::from(load.expected_wait_ms),
    );
}

fn stream(generation: Generation, writer: Box<dyn Writer>) -> Response<Body> {
    let frames = futures_util::stream::unfold(Some((generation, writer)), |state| async move {
        let (mut generation, mut writer) = state?;
        let (out, is_last) = generation.stream(&mut *writer).await;
        let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(out)));
        Some((frame, (!is_last).then_some((generation, writer))))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("text/event-stream"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    response
}

/// The endpoints that turn text into tokens and back.
fn texts(path: &str, body: &Value, model: &Model) -> Result<Value, BadRequest> {
    match path {
        "/detokenize" => detokenize(body, model),
        "/apply-template" => Ok(json!({ "prompt": chat::prompt(body, model, tools_of(body))? })),
        "/v1/messages/count_tokens" => {
            let mut body = body.clone();
            body["max_tokens"] = 1.into();
            let chat = messages::to_chat(&body)?;
            let text = chat::prompt(&chat, model, tools_of(&chat))?;
            Ok(json!({ "input_tokens": model.tokenizer.encode(&text, true).len() }))
        }
        _ => tokenize(body, model),
    }
}

fn tools_of(body: &Value) -> Option<&Value> {
    Some(&body["tools"]).filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()))
}

/// llama.cpp's `content`, vLLM's `prompt`, or the messages of a conversation.
fn tokenize(body: &Value, model: &Model) -> Result<Value, BadRequest> {
    let tokens = match body["content"].as_str().or(body["prompt"].as_str()) {
        Some(text) => {
            let mut tokens = model.tokenizer.encode(text, body["parse_special"] != false);
            if body["add_special"] == true {
                tokens.splice(0..0, model.info.bos);
            }
            tokens
        }
        None if body["messages"].is_array() => model
            .tokenizer
            .encode(&chat::prompt(body, model, tools_of(body))?, true),
        None => return Err(bad("`content`, `prompt` or `messages` is needed", "content")),
    };
    let mut out =
        json!({ "tokens": tokens, "count": tokens.len(), "max_model_len": model.engine.context_tokens });
    if body["with_pieces"] == true {
        let piece = |id: &u32| json!({ "id": id, "piece": String::from_utf8_lossy(model.tokenizer.decode_token(*id)) });
        out["tokens"] = tokens.iter().map(piece).collect::<Vec<_>>().into();
    }
    Ok(out)
}

fn detokenize(body: &Value, model: &Model) -> Result<Value, BadRequest> {
    let vocabulary = model.tokenizer.vocabulary() as u64;
    let ids = body["tokens"].as_array().and_then(|ids| {
        ids.iter()
            .map(|id| id.as_u64().filter(|id| *id < vocabulary).map(|id| id as u32))
            .collect::<Option<Vec<u32>>>()
    });
    let ids = ids.ok_or_else(|| {
        bad(
            format!("`tokens` must be a list of token ids below {vocabulary}"),
            "tokens",
        )
    })?;
    let bytes: Vec<u8> = ids
        .iter()
        .flat_map(|id| model.tokenizer.decode_token(*id))
        .copied()
        .collect();
    let text = String::from_utf8_lossy(&bytes);
    Ok(json!({ "content": text, "prompt": text }))
}

async fn embeddings(body: &Value, model: &Arc<Model>) -> Result<Response<Body>, Refusal> {
    let no_embedder =
        || Refusal::new(400, format!("`{}` makes no embeddings", model.name)).coded("no_embeddings");
    if !model.info.embeds {
        return Err(no_embedder());
    }
    let inputs = inputs(&body["input"], model)?;
    let dimensions = body["dimensions"].as_u64().map(|count| count as usize);
    let is_base64 = match body["encoding_format"].as_str() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(bad("`encoding_format` must be float or base64", "encoding_format").into()),
    };
    let count: usize = inputs.iter().map(Vec::len).sum();
    let (tell, told) = oneshot::channel();
    let ticket = model
        .engine
        .embed(inputs, Box::new(move |vectors| drop(tell.send(vectors))));
    let _ticket = ticket.map_err(|error| reply::not_taken(error, 1000))?;
    let vectors = told
        .await
        .map_err(|_| Refusal::new(500, "the engine gave this request up"))?;
    let no_embedder =
        || Refusal::new(400, format!("`{}` makes no embeddings", model.name)).coded("no_embeddings");
    let vectors = vectors.ok_or_else(no_embedder)?;
    let mut data = Vec::new();
    for (index, vector) in vectors.into_iter().enumerate() {
        let vector = shortened(vector, dimensions)?;
        let embedding = if is_base64 {
            base64(&vector).into()
        } else {
            json!(vector)
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": embedding }));
    }
    let usage = json!({ "prompt_tokens": count, "total_tokens": count });
    Ok(json(
        200,
        &json!({ "object": "list", "data": data, "model": model.name, "usage": usage }),
    ))
}

/// One or several texts, each framed as the model wants it and cut to what it reads; or tokens as they are.
fn inputs(given: &Value, model: &Model) -> Result<Vec<Vec<u32>>, BadRequest> {
    let wrong = || {
        bad(
            "`input` must be a text, tokens, or a list of either, and not empty",
            "input",
        )
    };
    let vocabulary = model.tokenizer.vocabulary() as u64;
    let one = |given: &Value| match given {
        Value::String(text) => Ok(model.tokenizer.encode_framed(text, model.engine.context_tokens)),
        Value::Array(ids) if !ids.is_empty() => {
            let id = |id: &Value| id.as_u64().filter(|id| *id < vocabulary).map(|id| id as u32);
            ids.iter().map(id).collect::<Option<_>>().ok_or_else(wrong)
        }
        _ => Err(wrong()),
    };
    match given {
        Value::Array(list) if list.iter().any(|entry| entry.is_string() || entry.is_array()) => {
            match list.len() {
                0..=INPUTS => list.iter().map(one).collect(),
                _ => Err(bad(format!("at most {INPUTS} inputs are taken at once"), "input")),
            }
        }
        given => Ok(vec![one(given)?]),
    }
}

/// The first `dimensions` of a vector, of length 1 again.
fn shortened(mut vector: Vec<f32>, dimensions: Option<usize>) -> Result<Vec<f32>, BadRequest> {
    let Some(dimensions) = dimensions else {
        return Ok(vector);
    };
    if dimensions == 0 || dimensions > vector.len() {
        return Err(bad(
            format!("`dimensions` must be from 1 to {}", vector.len()),
            "dimensions",
        ));
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
    Ok(vector)
}

fn base64(vector: &[f32]) -> String {
    use base64::Engine as _;
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_vectors_have_length_one() {
        assert_eq!(shortened(vec![0.6, 0.8, 0.0], Some(1)).unwrap(), [1.0]);
        assert_eq!(shortened(vec![0.6, 0.8], None).unwrap(), [0.6, 0.8]);
        assert!(shortened(vec![1.0], Some(2)).is_err() && shortened(vec![1.0], Some(0)).is_err());
        assert_eq!(base64(&[1.0]), "AACAPw==");
    }
}
