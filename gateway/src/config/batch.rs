//! What the batch tier runs on.

use super::BaseUrl;
use super::document;
use super::mistakes::Mistakes;
use super::secret::Secret;
use ::batch::{FlushRules, Rescue};
use exchange::{Dialect, Surface};
use std::path::Path;
use std::time::Duration;

/// The shortest content key that is accepted, in characters.
const CONTENT_KEY: usize = 16;

pub(crate) use super::document::BatchApi;

/// The batch tier's settings, resolved.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) content_key: Option<Secret>,
    pub(crate) keep: Duration,
    pub(crate) poll: Duration,
    pub(crate) flush: FlushRules,
    pub(crate) rescue: Rescue,
    pub(crate) flex_again_us: i64,
    pub(crate) cancel: Duration,
    /// From 0 to 1.
    pub(crate) give_up: f64,
    pub(crate) trims: bool,
    pub(crate) webhook_hosts: Vec<String>,
}

impl Batch {
    /// Giving up on flex costs so much of an item's time: two pauses before it is asked again.
    pub(crate) const fn flex_leave_us(&self) -> i64 {
        self.flex_again_us.saturating_mul(2)
    }
}

impl BatchApi {
    /// Requests to this endpoint can be in its batches.
    pub(crate) const fn takes(self, surface: Surface) -> bool {
        match self {
            Self::Openai | Self::Anthropic => true,
            Self::Gemini => !surface.is_plain(),
        }
    }

    /// Its items are put into a form of its own, and not all that its provider takes at once can be.
    pub(crate) const fn has_own_form(self) -> bool {
        matches!(self, Self::Gemini)
    }

    /// What a provider has to be for this to be its batch API: its dialect, and where its base URL ends.
    const fn needs(self) -> (Dialect, &'static str) {
        match self {
            Self::Openai => (Dialect::OpenaiChat, ""),
            Self::Anthropic => (Dialect::Anthropic, ""),
            Self::Gemini => (Dialect::OpenaiChat, "/openai"),
        }
    }

    /// Whether a provider can have it. `at`: the provider's path in the document.
    pub(super) fn check(self, at: &str, (dialect, base): (Dialect, &BaseUrl), mistakes: &mut Mistakes<'_>) {
        let (needed, end) = self.needs();
        let name = match self {
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
        };
        if dialect != needed {
            let problem = format!("`{name}` is not for a provider that speaks {dialect}");
            let hint = format!("write `dialect: {needed}`, or leave `batch` out");
            mistakes.hinted(format!("{at}.batch"), problem, &hint);
        } else if !base.path.ends_with(end) {
            let problem = format!("of a provider with `batch: {name}` must end in `{end}`");
            let hint = "Gemini's batches stand beside its surface that speaks openai_chat: \
                        https://generativelanguage.googleapis.com/v1beta/openai";
            mistakes.hinted(format!("{at}.base_url"), problem, hint);
        }
    }
}

impl document::Batch {
    pub(super) fn resolve(&self, folder: &Path, mistakes: &mut Mistakes<'_>) -> Batch {
        let reference = self.content_key.as_ref();
        let content_key = reference
            .and_then(|reference| mistakes.keep("batch.content_key", Secret::resolve(reference, folder)));
        if content_key
            .as_ref()
            .is_some_and(|key| key.expose().len() < CONTENT_KEY)
        {
            mistakes.hinted(
                "batch.content_key",
                format!("is shorter than {CONTENT_KEY} characters"),
                "`openssl rand -hex 32` makes a good one",
            );
        }
        for (key, value) in [
            ("poll_ms", self.poll_ms),
            ("flex_again_ms", self.flex_again_ms),
            ("rescue_call_ms", self.rescue_call_ms),
            ("parallel", u64::from(self.parallel)),
            ("pack_items", self.pack_items as u64),
            ("pack_mib", self.pack_mib as u64),
            ("keep_hours", self.keep_hours),
        ] {
            if value == 0 {
                mistakes.add(format!("batch.{key}"), "must be above 0");
            }
        }
        let micros = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000);
        Batch {
            content_key,
            keep: Duration::from_secs(self.keep_hours.saturating_mul(3600)),
            poll: Duration::from_millis(self.poll_ms),
            flush: FlushRules {
                items: self.pack_items as u64,
                bytes: (self.pack_mib as u64) << 20,
                age_us: micros(self.gather_ms),
                slack_part: 20,
            },
            rescue: Rescue {
                call_us: micros(self.rescue_call_ms),
                parallel: self.parallel,
                margin_us: micros(self.poll_ms.saturating_mul(2)),
            },
            flex_again_us: micros(self.flex_again_ms),
            cancel: Duration::from_millis(self.cancel_ms),
            give_up: f64::from(self.give_up_percent.min(100)) / 100.0,
            trims: self.over_budget == document::OverBudget::Trim,
            webhook_hosts: self.webhook_hosts.clone(),
        }
    }
}
