//! Providers' batch APIs: send, find again, ask, cancel, fetch.
//!
//! Owns the calls and the order in which they are made. What each API calls things is its own file's: [`openai`] has files
//! and `/batches`, [`anthropic`] `/messages/batches`, [`gemini`] `batchGenerateContent`. They make calls and read answers
//! and do no I/O.
//!
//! Invariants: every step may be taken again. What a provider's batch is called is the pack's id wherever the provider
//! lets it have a name, so that it is found again; results are told apart by their keys, never by their order.

mod anthropic;
mod gemini;
mod openai;

use crate::config::batch::BatchApi;
use crate::upstream::Upstream;
use crate::upstream::control::Control;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

/// The most that is read of an answer that is not results.
const ANSWER_BYTES: usize = 4 << 20;
/// The most that is read of results.
const RESULT_BYTES: usize = 1 << 30;
/// Pages of a provider's list of batches that are looked through, 100 to a page.
const PAGES: usize = 50;

/// What went wrong between us and the provider.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("{0}")]
    Open(#[from] crate::upstream::OpenError),
    /// It understood, and does not want it.
    #[error("the provider refused with {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("the provider's answer cannot be read: {0}")]
    Unreadable(String),
}

impl RemoteError {
    /// To send the same again is no use.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status >= 400 && *status < 500 && *status != 429 && *status != 408 && *status != 409)
    }
}

/// How a batch stands.
#[derive(Debug)]
pub(super) enum Standing {
    Running,
    /// It has ended; where the results are.
    Ended(Vec<String>),
    /// It never ran.
    Failed(String),
}

/// One item's result.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered(u16, Bytes),
    /// Not answered, and not billed.
    Expired,
    Cancelled,
}

/// A request as it goes into a batch.
pub(super) struct Sent {
    pub(super) custom_id: String,
    pub(super) body: Bytes,
}

/// A batch that is looked for at the provider.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) pack: &'a str,
    /// It cannot be older.
    pub(super) since_unix_s: i64,
    /// Items in it.
    pub(super) items: i64,
    /// Batches that belong to other packs.
    pub(super) known: &'a [String],
}

/// Whether a batch was found again.
pub(super) enum Found {
    It(String),
    Nothing,
    /// One that runs may be it, or the list is longer than what was looked through.
    Perhaps,
}

/// Whether a batch of a provider's list is the wanted one.
#[derive(Debug, PartialEq, Eq)]
enum Likeness {
    Other,
    Same,
    /// Only its results tell; where they are.
    ByResults(String),
    /// Only its results will tell, and it still runs.
    Unclear,
}

/// How what is to be batched gets there.
enum Upload {
    /// It stands in the call that makes the batch.
    Unneeded,
    Whole(Control),
    /// A call that is answered with a URL in the field `place`, and one to that URL.
    Session {
        open: Control,
        place: &'static str,
        send: Control,
    },
}

/// What takes each result: its key, and what came of it.
type Each<'e> = &'e mut (dyn FnMut(&str, Outcome) + Send);

/// A provider's batch API: the calls to make, and what their answers mean.
trait Api: Send + Sync {
    /// A request as it goes into a batch; `body` is in the provider's dialect.
    ///
    /// # Errors
    /// There is no such request in this API's batches.
    fn item(&self, body: Bytes) -> Result<Bytes, String> {
        Ok(body)
    }

    fn upload(&self, name: (&str, &str), sent: &[Sent]) -> Upload;

    /// What makes the batch. `file`: as the upload is called, if there was one.
    fn create(&self, name: (&str, &str), file: &str, sent: &[Sent]) -> Control;

    /// A page of the batches there are. `after`: what the page before said comes next; empty at first.
    fn list(&self, after: &str) -> Control;

    /// The batches of a page, and what comes next. Here: the list is `data`, and its last batch is where the next page
    /// begins.
    fn listed<'v>(&self, page: &'v Value) -> (&'v [Value], Option<String>) {
        let batches = page["data"].as_array().map_or(&[][..], Vec::as_slice);
        let last = batches.last().and_then(|batch| batch["id"].as_str());
        let more = last.filter(|_| page["has_more"] == true);
        (batches, more.map(str::to_owned))
    }

    fn likeness(&self, batch: &Value, wanted: &Wanted<'_>) -> Likeness;

    /// What an upload or a batch is called there.
    fn id<'v>(&self, told: &'v Value) -> Option<&'v str> {
        told["id"].as_str()
    }

    fn ask(&self, batch: &str) -> Control;

    fn standing(&self, told: &Value) -> Standing;

    fn cancel(&self, batch: &str) -> Control;

    /// # Errors
    /// The place is none that can be asked.
    fn results(&self, place: &str) -> Result<Control, RemoteError>;

    /// Hands each result of what was at `place` to `each`, in whatever order they stand.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, place: &str, body: &Bytes, each: Each<'_>) -> Result<(), RemoteError>;
}

/// A provider's batch API, within reach.
pub(super) struct Remote<'a> {
    upstream: &'a Upstream,
    api: Box<dyn Api + 'a>,
}

impl<'a> Remote<'a> {
    /// `model`: as the provider calls it.
    pub(super) fn new(upstream: &'a Upstream, api: BatchApi, model: &'a str) -> Self {
        let api: Box<dyn Api + 'a> = match api {
            BatchApi::Openai => Box::new(openai::Openai),
            BatchApi::Anthropic => Box::new(anthropic::Anthropic),
            BatchApi::Gemini => {
                let base = upstream.settings.base.path.as_str();
                Box::new(gemini::Gemini { base, model })
            }
        };
        Self { upstream, api }
    }

    /// A request as it goes into a batch; `body` is in the provider's dialect.
    ///
    /// # Errors
    /// There is no such request in this API's batches.
    pub(super) fn item(&self, body: Bytes) -> Result<Bytes, String> {
        self.api.item(body)
    }

    /// Uploads what is to be batched, where the API wants that apart; its name there, else nothing. `name`: the pack, and
    /// the endpoint that its items are for.
    pub(super) async fn upload(&self, name: (&str, &str), sent: &[Sent]) -> Result<String, RemoteError> {
        match self.api.upload(name, sent) {
            Upload::Unneeded => Ok(String::new()),
            Upload::Whole(call) => self.named(&call).await,
            Upload::Session { open, place, send } => {
                let path = self.upload_place(&open, place).await?;
                self.named(&Control { path, ..send }).await
            }
        }
    }

    /// The path and query of the URL that a call is answered with. The host stays the provider's: its key goes nowhere else.
    async fn upload_place(&self, open: &Control, field: &str) -> Result<String, RemoteError> {
        let told = self.upstream.control_told(open, ANSWER_BYTES).await?;
        if !(200..300).contains(&told.status) {
            return Err(refused(told.status, &told.body));
        }
        let place = told.fields.get(field).and_then(|value| value.to_str().ok());
        let place = place.and_then(|place| place.parse::<http::Uri>().ok());
        let path = place.and_then(|place| place.into_parts().path_and_query);
        path.map(|path| path.to_string())
            .ok_or_else(|| RemoteError::Unreadable(format!("it has no URL in `{field}`")))
    }

    /// Makes the batch; its name there.
    pub(super) async fn create(
        &self,
        name: (&str, &str),
        file: &str,
        sent: &[Sent],
    ) -> Result<String, RemoteError> {
        self.named(&self.api.create(name, file, sent)).await
    }

    /// The batch that a pack was made into, should it have been: by its name, or, where the API keeps none, by what its
    /// results speak of.
    pub(super) async fn find(&self, wanted: &Wanted<'_>) -> Result<Found, RemoteError> {
        let mut after = String::new();
        for _ in 0..PAGES {
            let page = self.call_up_to(&self.api.list(&after), RESULT_BYTES).await?;
            let page: Value = parse(&page)?;
            let (batches, next) = self.api.listed(&page);
            for batch in batches {
                let ours = match self.api.likeness(batch, wanted) {
                    Likeness::Other => false,
                    Likeness::Same => true,
                    Likeness::Unclear => return Ok(Found::Perhaps),
                    Likeness::ByResults(place) => self.speaks_of(wanted.pack, place).await?,
                };
                if ours {
                    return Ok(Found::It(self.id(batch)?));
                }
            }
            match next.filter(|next| !next.is_empty()) {
                Some(next) => after = next,
                None => return Ok(Found::Nothing),
            }
        }
        Ok(Found::Perhaps)
    }

    async fn speaks_of(&self, pack: &str, place: String) -> Result<bool, RemoteError> {
        let mut ours = false;
        self.results(&[place], |custom_id, _| ours |= custom_id.starts_with(pack))
            .await?;
        Ok(ours)
    }

    pub(super) async fn standing(&self, batch: &str) -> Result<Standing, RemoteError> {
        // An operation may hold its results.
        let told = self.call_up_to(&self.api.ask(batch), RESULT_BYTES).await?;
        Ok(self.api.standing(&parse(&told)?))
    }

    pub(super) async fn cancel(&self, batch: &str) -> Result<(), RemoteError> {
        match self.call(&self.api.cancel(batch)).await {
            // It has ended meanwhile.
            Err(RemoteError::Refused {
                status: 400 | 409, ..
            }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Hands each result to `each`, in whatever order they stand.
    pub(super) async fn results(
        &self,
        places: &[String],
        mut each: impl FnMut(&str, Outcome) + Send,
    ) -> Result<(), RemoteError> {
        for place in places {
            let call = self.api.results(place)?;
            let body = self.call_up_to(&call, RESULT_BYTES).await?;
            self.api.read(place, &body, &mut each)?;
        }
        Ok(())
    }

    async fn named(&self, call: &Control) -> Result<String, RemoteError> {
        self.id(&parse(&self.call(call).await?)?)
    }

    fn id(&self, told: &Value) -> Result<String, RemoteError> {
        let id = self.api.id(told).filter(|id| !id.is_empty());
        id.map(str::to_owned)
            .ok_or_else(|| RemoteError::Unreadable("it has no id".into()))
    }

    async fn call(&self, call: &Control) -> Result<Bytes, RemoteError> {
        self.call_up_to(call, ANSWER_BYTES).await
    }

    async fn call_up_to(&self, call: &Control, limit: usize) -> Result<Bytes, RemoteError> {
        let (status, body) = self.upstream.control(call, limit).await?;
        if (200..300).contains(&status) {
            Ok(body)
        } else {
            Err(refused(status, &body))
        }
    }
}

fn refused(status: u16, body: &[u8]) -> RemoteError {
    let told: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = told["error"]["message"]
        .as_str()
        .unwrap_or("it does not say why")
        .to_owned();
    RemoteError::Refused { status, message }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, RemoteError> {
    serde_json::from_slice(body).map_err(|error| RemoteError::Unreadable(error.to_string()))
}

/// The lines of a body of results.
fn lines(body: &Bytes) -> impl Iterator<Item = Bytes> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| body.slice_ref(line))
}

/// A body on one line, however its caller wrote the JSON: line ends stand only between tokens.
fn one_line(body: &[u8]) -> impl Iterator<Item = u8> {
    body.iter().map(|byte| {
        if matches!(byte, b'\n' | b'\r') {
            b' '
        } else {
            *byte
        }
    })
}
