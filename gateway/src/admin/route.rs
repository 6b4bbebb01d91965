//! Routes: what is where, who may, and what goes in and out, told by the types of the function that answers.

use super::problem::Problem;
use super::visitor::{May, Visitor};
use crate::gateway::Gateway;
use bytes::Bytes;
use http::Method;
use ledger::{Change, Ledger};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A request that may be answered.
#[derive(Clone)]
pub(crate) struct Call {
    pub(super) gateway: Arc<Gateway>,
    pub(super) who: Arc<Visitor>,
    pub(super) now_us: i64,
    /// What stands in the path, decoded.
    pub(super) parameters: Parameters,
}

impl Call {
    /// What stands in the path for a name of the route's.
    pub(super) fn parameter(&self, name: &str) -> &str {
        let found = self.parameters.iter().find(|(known, _)| *known == name);
        found.map_or("", |(_, value)| value)
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.gateway.ledger
    }

    /// Who changes something, and why they say they do.
    pub(super) fn change<'a>(&'a self, reason: &'a Option<String>) -> Change<'a> {
        Change {
            actor: &self.who.name,
            reason: reason.as_deref().unwrap_or(""),
            at_us: self.now_us,
        }
    }
}

pub(super) type Answer<T> = Result<T, Problem>;

/// What a route takes: a form of JSON (of the body, or of the query where there is no body), or text.
pub(super) trait Input: Sized {
    /// The media type of the body.
    const MEDIA: &'static str;
    fn schema(generator: &mut SchemaGenerator) -> Schema;
    /// # Errors
    /// What is wrong with it.
    fn read(raw: Raw<'_>) -> Answer<Self>;
}

#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    Query(&'a str),
    Body(&'a [u8]),
}

impl<T: DeserializeOwned + JsonSchema> Input for T {
    const MEDIA: &'static str = "application/json";

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }

    fn read(raw: Raw<'_>) -> Answer<Self> {
        match raw {
            Raw::Query(query) => serde_urlencoded::from_str(query)
                .map_err(|error| Problem::invalid(format!("the query cannot be read: {error}"))),
            Raw::Body(body) => {
                let body: &[u8] = match body.trim_ascii() {
                    [] => b"{}",
                    // A list would be taken for the fields in their order.
                    [b'{', ..] => body,
                    _ => return Err(Problem::invalid("the body is not a JSON object")),
                };
                serde_json::from_slice(body)
                    .map_err(|error| Problem::invalid(format!("the body cannot be read: {error}")))
            }
        }
    }
}

/// A body that is not JSON.
pub(super) struct Text(pub(super) String);

impl Input for Text {
    const MEDIA: &'static str = "application/yaml";

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<String>()
    }

    fn read(raw: Raw<'_>) -> Answer<Self> {
        let bytes = match raw {
            Raw::Query(query) => query.as_bytes(),
            Raw::Body(body) => body,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| Problem::invalid("the body is not UTF-8 text"))?;
        Ok(Self(text.to_owned()))
    }
}

/// What stands in a path for the names of a route's.
pub(super) type Parameters = Vec<(&'static str, String)>;
type Pending = Pin<Box<dyn Future<Output = Answer<Option<Value>>> + Send>>;

type Operation = dyn Fn(Call, Raw<'_>) -> Answer<Pending> + Send + Sync;

/// One operation.
pub(super) struct Route {
    pub(super) method: Method,
    /// With `{name}` for what varies.
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    pub(super) may: May,
    /// Of a good answer.
    pub(super) status: u16,
    pub(super) media: &'static str,
    pub(super) input: fn(&mut SchemaGenerator) -> Schema,
    pub(super) output: fn(&mut SchemaGenerator) -> Schema,
    run: Box<Operation>,
}

macro_rules! verb {
    ($name:ident, $method:ident, $status:literal) => {
        pub(super) fn $name<I, O, F, R>(path: &'static str, summary: &'static str, may: May, run: F) -> Self
        where
            I: Input + Send + 'static,
            O: Serialize + JsonSchema + 'static,
            F: Fn(Call, I) -> R + Send + Sync + 'static,
            R: Future<Output = Answer<O>> + Send + 'static,
        {
            Self::new((Method::$method, path, summary), (may, $status), run)
        }
    };
}

impl Route {
    verb!(get, GET, 200);
    // Makes something.
    verb!(create, POST, 201);
    // Does something to what is there.
    verb!(post, POST, 200);
    verb!(patch, PATCH, 200);
    verb!(delete, DELETE, 204);

    fn new<I, O, F, R>(
        (method, path, summary): (Method, &'static str, &'static str),
        (may, status): (May, u16),
        run: F,
    ) -> Self
    where
        I: Input + Send + 'static,
        O: Serialize + JsonSchema + 'static,
        F: Fn(Call, I) -> R + Send + Sync + 'static,
        R: Future<Output = Answer<O>> + Send + 'static,
    {
        Self {
            method,
            path,
            summary,
            may,
            status,
            media: I::MEDIA,
            input: I::schema,
            output: |generator| generator.subschema_for::<O>(),
            run: Box::new(move |call, raw| {
                let answer = run(call, I::read(raw)?);
                Ok(Box::pin(async move {
                    let value = serde_json::to_value(answer.await?);
                    let value =
                        value.map_err(|error| Problem::new(500, "internal_error", error.to_string()))?;
                    Ok((!value.is_null()).then_some(value))
                }))
            }),
        }
    }

    /// The input is the body, not the query.
    pub(super) fn has_body(&self) -> bool {
        self.method == Method::POST || self.method == Method::PATCH
    }

    /// The parameters in a path that is this route's.
    pub(super) fn matches(&self, path: &str) -> Option<Parameters> {
        let mut parameters = Vec::new();
        let (mut ours, mut theirs) = (self.path.split('/'), path.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return Some(parameters),
                (Some(own), Some(part)) => {
                    match own.strip_prefix('{').and_then(|own| own.strip_suffix('}')) {
                        Some(_) if part.is_empty() => return None,
                        Some(name) => {
                            let decoded = percent_encoding::percent_decode_str(part);
                            parameters.push((name, decoded.decode_utf8().ok()?.into_owned()));
                        }
                        None if own != part => return None,
                        None => {}
                    }
                }
                _ => return None,
            }
        }
    }

    /// # Errors
    /// The input cannot be read, or what the operation says is wrong.
    pub(super) async fn run(&self, call: Call, query: &str, body: &Bytes) -> Answer<Option<Value>> {
        let raw = if self.has_body() {
            Raw::Body(body)
        } else {
            Raw::Query(query)
        };
        (self.run)(call, raw)?.await
    }
}
