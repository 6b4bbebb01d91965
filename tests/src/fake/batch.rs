//! Batch endpoints of fake providers, with their whole state machines: OpenAI's files and `/batches`, Anthropic's
//! `/messages/batches`, Gemini's files and `batchGenerateContent`. Scripted by the model name of a batch's first item, and counted, so that a test can compare what
//! was given, answered and billed with what a gateway believes.
//!
//! Time passes by the clock: a batch is looked at when somebody asks, and is then as far as its age says. Items are done
//! one after the other over its length, in an order of their own; what is done when it is cancelled or expires is answered
//! and billed, the rest is not.

mod anthropic;
mod gemini;
mod openai;

pub(super) use anthropic::answer as answer_anthropic;
pub(super) use gemini::answer as answer_gemini;
pub(super) use openai::answer as answer_openai;

use super::call::Call;
use super::log::unix_us;
use super::script::Script;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Between a cancel and its end.
const CANCEL_US: i64 = 100_000;

/// How an item came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fate {
    Open,
    Succeeded,
    Errored,
    Expired,
    Cancelled,
}

#[derive(Debug, Serialize)]
pub(super) struct Item {
    pub(super) custom_id: String,
    #[serde(skip)]
    pub(super) body: Vec<u8>,
    /// The text of its last message, by which a test knows it again.
    text: String,
    pub(super) fate: Fate,
    input_tokens: u64,
    output_tokens: u64,
    /// Of a thousandth of the batch's length: when it is done.
    done_at: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Phase {
    pub(super) const fn is_over(self) -> bool {
        matches!(
            self,
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled
        )
    }
}

/// A batch of any kind.
#[derive(Debug, Serialize)]
pub(super) struct Batch {
    pub(super) id: String,
    pub(super) input_file: String,
    pub(super) metadata: Value,
    pub(super) endpoint: String,
    pub(super) phase: Phase,
    #[serde(skip)]
    script: Script,
    pub(super) created_us: i64,
    pub(super) cancel_us: Option<i64>,
    pub(super) ended_us: Option<i64>,
    pub(super) items: Vec<Item>,
}

/// Everything batched at one fake.
#[derive(Debug, Default)]
pub struct Batches(Mutex<Inner>);

#[derive(Debug, Default)]
pub(super) struct Inner {
    count: u64,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) batches: Vec<Batch>,
    /// Errors that the first tries of an item get, by its text.
    tries: BTreeMap<String, u32>,
}

impl Batches {
    pub(super) fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.0.lock().unwrap();
        let now = unix_us();
        let inner = &mut *inner;
        for batch in &mut inner.batches {
            batch.advance(now, &mut inner.tries);
        }
        work(inner)
    }

    pub(super) fn shown(&self) -> Value {
        self.locked(|inner| json!({"files": inner.files.len(), "batches": inner.batches}))
    }

    pub(super) fn reset(&self) {
        *self.0.lock().unwrap() = Inner::default();
    }
}

impl Inner {
    pub(super) fn id(&mut self, prefix: &str) -> String {
        self.count += 1;
        format!("{prefix}{:024x}", self.count)
    }

    pub(super) fn find(&mut self, id: &str) -> Option<&mut Batch> {
        self.batches.iter_mut().find(|batch| batch.id == id)
    }

    /// Takes a batch of these items.
    pub(super) fn make(&mut self, prefix: &str, items: Vec<(String, Vec<u8>)>) -> Result<&mut Batch, String> {
        let first = items.first().map(|(_, body)| model(body)).unwrap_or_default();
        let script = Script::parse(&first)?;
        let count = items.len() as i64;
        let item = |(at, (custom_id, body)): (usize, (String, Vec<u8>))| Item {
            custom_id,
            text: text(&body),
            body,
            fate: Fate::Open,
            input_tokens: 0,
            output_tokens: 0,
            // Every second one first, so that results are out of order.
            done_at: {
                let at = at as i64;
                let turn = if at % 2 == 0 { at / 2 + count / 2 } else { at / 2 };
                300 + 700 * (turn + 1) / (count + 1)
            },
        };
        let batch = Batch {
            id: self.id(prefix),
            input_file: String::new(),
            metadata: Value::Null,
            endpoint: String::new(),
            phase: Phase::Validating,
            script,
            created_us: unix_us(),
            cancel_us: None,
            ended_us: None,
            items: items.into_iter().enumerate().map(item).collect(),
        };
        self.batches.push(batch);
        Ok(self.batches.last_mut().unwrap())
    }
}

impl Batch {
    fn advance(&mut self, now: i64, tries: &mut BTreeMap<String, u32>) {
        if self.phase.is_over() {
            return;
        }
        let plan = self.script.batch;
        let length = i64::try_from(plan.length.as_micros()).unwrap().max(1);
        let age = now - self.created_us;
        if plan.fails {
            return self.end(Phase::Failed, now, (0, tries));
        }
        let part = (1000 * age / length).min(1000);
        if let Some(cancelled) = self.cancel_us
            && now >= cancelled + CANCEL_US
            && !plan.deaf
        {
            let part = (1000 * (cancelled - self.created_us) / length).min(1000);
            let part = if plan.never {
                part.min(plan.part_permille)
            } else {
                part
            };
            return self.end(Phase::Cancelled, now, (part, tries));
        }
        self.phase = match part {
            ..1000 if self.cancel_us.is_some() => Phase::Cancelling,
            _ if self.cancel_us.is_some() && !plan.deaf => Phase::Cancelling,
            ..100 => Phase::Validating,
            100..900 => Phase::InProgress,
            900..1000 => Phase::Finalizing,
            _ if plan.never => Phase::InProgress,
            _ if plan.expires => return self.end(Phase::Expired, now, (plan.part_permille, tries)),
            _ => return self.end(Phase::Completed, now, (1000, tries)),
        };
    }

    fn end(&mut self, phase: Phase, now: i64, (part, tries): (i64, &mut BTreeMap<String, u32>)) {
        self.phase = phase;
        self.ended_us = Some(now);
        for (at, item) in self.items.iter_mut().enumerate() {
            if item.done_at > part {
                item.fate = if phase == Phase::Cancelled {
                    Fate::Cancelled
                } else {
                    Fate::Expired
                };
                continue;
            }
            let Ok(call) = Call::read(at as u64, &item.body, None) else {
                item.fate = Fate::Errored;
                continue;
            };
            let call = call.at(&self.endpoint);
            let seen = tries.entry(item.text.clone()).or_default();
            *seen += 1;
            if call.script.failure(*seen - 1).is_some() {
                item.fate = Fate::Errored;
                continue;
            }
            item.fate = Fate::Succeeded;
            item.input_tokens = call.input_tokens;
            item.output_tokens = call.reported_output();
        }
    }

    pub(super) fn count(&self, fate: Fate) -> usize {
        self.items.iter().filter(|item| item.fate == fate).count()
    }
}

impl Item {
    pub(super) fn call(&self, at: usize) -> Call {
        let name = format!("{}{at}", self.custom_id);
        let id = name.bytes().fold(1u64, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        Call::read(id, &self.body, None).unwrap()
    }

    pub(super) fn status(&self) -> u16 {
        Script::parse(&model(&self.body))
            .ok()
            .and_then(|script| script.status)
            .unwrap_or(500)
    }
}

fn model(body: &[u8]) -> String {
    let read: Value = serde_json::from_slice(body).unwrap_or_default();
    read["model"].as_str().unwrap_or_default().to_owned()
}

fn text(body: &[u8]) -> String {
    let read: Value = serde_json::from_slice(body).unwrap_or_default();
    let plain = [&read["input"], &read["prompt"], &read["input"][0]];
    if let Some(text) = plain.iter().find_map(|value| value.as_str()) {
        return text.to_owned();
    }
    let last = read["messages"].as_array().and_then(|messages| messages.last());
    let content = last.map(|message| message["content"].clone()).unwrap_or_default();
    match content.as_str() {
        Some(text) => text.to_owned(),
        None => content[0]["text"].as_str().unwrap_or_default().to_owned(),
    }
}
