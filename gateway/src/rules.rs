//! The policy in force and the fleet it speaks of, changed together, never by halves and never for the worse.
//!
//! Owns: reading the policy's file, judging a new text, adopting it. Refuses to know: requests. Invariants: an
//! exchange keeps the rules it began with; a text that has mistakes, in which lint finds an error, that names an unknown
//! provider or downgrades valuable work without approval leaves the rules as they are; a deployment that stays keeps its breaker, slots and queue.

use crate::clock;
use crate::fleet::{Billed, Fleet, Price};
use crate::prices::Pricing;
use crate::upstream::Upstream;
use arc_swap::ArcSwap;
use router_policies::{DocumentError, Finding, Policy, Severity, diff, lint};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A policy and its fleet.
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    pub(crate) fleet: Fleet,
    pub(crate) text: String,
}

/// Why a text was not adopted.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub(crate) struct Rejected(pub(crate) Vec<DocumentError>);

/// The rules in force and the way to new ones.
pub(crate) struct Rulebook {
    current: ArcSwap<Rules>,
    file: PathBuf,
    upstreams: Vec<Arc<Upstream>>,
    pricing: Arc<Pricing>,
    /// The last text that was judged, so that a bad one is told once; locked while one is judged.
    judged: Mutex<String>,
}

impl Rulebook {
    /// # Errors
    /// The policy names a provider that the configuration does not have.
    pub(crate) fn new(
        policy: Policy,
        (file, text): (PathBuf, String),
        (upstreams, pricing): (Vec<Arc<Upstream>>, Arc<Pricing>),
    ) -> anyhow::Result<Self> {
        let now = clock::unix_us();
        let fleet = Fleet::new(&policy, &upstreams, |billed| pricing.price(billed, now))?;
        let judged = Mutex::new(text.clone());
        let current = ArcSwap::from_pointee(Rules { policy, fleet, text });
        Ok(Self {
            current,
            file,
            upstreams,
            pricing,
            judged,
        })
    }

    pub(crate) fn now(&self) -> Arc<Rules> {
        self.current.load_full()
    }

    /// Looks at the file and adopts what has changed.
    pub(crate) fn look(&self) {
        let Ok(text) = std::fs::read_to_string(&self.file) else {
            // A file that is just being replaced; the next look finds it.
            return;
        };
        if *self.judged.lock().unwrap_or_else(PoisonError::into_inner) == text {
            return;
        }
        match self.adopt(text) {
            Ok(told) => tracing::info!(version = %told["version"], "the policy was read again"),
            Err(rejected) => {
                tracing::error!("{rejected}\nthe policy in force stays");
            }
        }
    }

    /// Adopts a text that came over the admin API, and keeps it in the file.
    ///
    /// # Errors
    /// The text is not fit, or the file cannot be written; the rules stay as they are.
    pub(crate) fn put(&self, text: &str) -> Result<Value, Rejected> {
        self.judge(text)?;
        let file = self.file.display().to_string();
        let kept = self.file.with_extension("new");
        let written = std::fs::write(&kept, text).and_then(|()| std::fs::rename(&kept, &self.file));
        written.map_err(|error| {
            Rejected(vec![
                DocumentError::at(&file, "", format!("cannot be written: {error}"))
                    .hint("the policy in force stays"),
            ])
        })?;
        self.adopt(text.to_owned())
    }

    fn base_url_of(&self, provider: &str) -> Option<String> {
        let mut known = self.upstreams.iter().map(|upstream| &upstream.settings);
        let settings = known.find(|settings| &*settings.name == provider)?;
        Some(settings.base.to_string())
    }

    fn adopt(&self, text: String) -> Result<Value, Rejected> {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        judged.clone_from(&text);
        let (rules, told) = self.judge(&text)?;
        self.current.store(Arc::new(rules));
        Ok(told)
    }

    /// New rules, and what to tell about them.
    fn judge(&self, text: &str) -> Result<(Rules, Value), Rejected> {
        let file = self.file.display().to_string();
        let policy = Policy::parse(text, &file).map_err(|errors| Rejected(errors.0))?;
        let old = self.now();
        let now = clock::unix_us();
        let fleet = Fleet::new(&policy, &self.upstreams, |billed| self.pricing.price(billed, now))
            .map_err(|error| Rejected(vec![DocumentError::at(&file, "deployments", error.to_string())]))?;
        let changes = diff(&old.policy, &policy);
        let unapproved = changes.moves.iter().filter(|one| one.needs_approval).map(|one| {
            let problem = format!(
                "`{}` is of {} value and would move to a weaker class",
                one.workflow, one.tier
            );
            DocumentError::at(&file, format!("workflows: {}", one.workflow), problem)
                .hint("name who agreed under `approved_by`")
        });
        let unapproved: Vec<_> = unapproved.collect();
        if !unapproved.is_empty() {
            return Err(Rejected(unapproved));
        }
        let priced = |provider: &str, model: &str| {
            let billed = Billed {
                provider: provider.into(),
                base_url: self.base_url_of(provider),
                model: model.into(),
            };
            !matches!(self.pricing.price(&billed, now), Price::Unknown)
        };
        let report = lint(&policy, text, Some(&priced));
        let errors = report
            .findings
            .iter()
            .filter(|one| one.severity == Severity::Error);
        let errors: Vec<DocumentError> = errors.map(|finding| mistake(finding, &file)).collect();
        if !errors.is_empty() {
            return Err(Rejected(errors));
        }
        let told = json!({ "version": policy.version(), "diff": changes, "findings": report.findings });
        let fleet = fleet.keeping(&old.fleet);
        let text = text.to_owned();
        Ok((Rules { policy, fleet, text }, told))
    }
}

/// A lint error as a mistake of the document.
fn mistake(finding: &Finding, file: &str) -> DocumentError {
    let problem = format!("{} ({})", finding.problem, finding.code);
    let mut mistake = DocumentError::at(file, &finding.path, problem).hint(&finding.hint);
    (mistake.line, mistake.column) = (finding.line, finding.column);
    mistake
}
