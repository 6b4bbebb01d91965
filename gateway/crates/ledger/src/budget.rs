//! What a budget is: an amount per window on one account, hard or soft, for all of its traffic or for some.

use crate::window::{Period, Zone};
use exchange::{AccountPath, BackendClass, Money};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What happens at the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// What does not fit is refused.
    #[default]
    Hard,
    /// Nothing is refused; the thresholds raise alerts.
    Soft,
}

/// Which of the account's traffic counts. Empty lists mean all; what is listed must all match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scope {
    /// Models as the provider or the caller names them; a name may end in `*`.
    pub models: Vec<Box<str>>,
    pub classes: Vec<BackendClass>,
    /// Labels that the caller declared.
    pub tags: Vec<(Box<str>, Box<str>)>,
}

impl Scope {
    /// It depends on where the request goes, which is not known before it is decided.
    pub fn needs_target(&self) -> bool {
        !self.models.is_empty() || !self.classes.is_empty()
    }

    pub fn matches_labels(&self, labels: &[(Box<str>, Box<str>)]) -> bool {
        self.tags.iter().all(|tag| labels.contains(tag))
    }

    pub fn matches_target(&self, target: Target<'_>) -> bool {
        let is = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        };
        let models = self.models.is_empty()
            || self
                .models
                .iter()
                .any(|pattern| is(pattern, target.model) || is(pattern, target.model_asked));
        models && (self.classes.is_empty() || self.classes.contains(&target.class))
    }

    /// Short, and the same for the same scope; empty for all traffic.
    fn tag(&self) -> String {
        let mut parts: Vec<String> = self.models.iter().map(|model| format!("model={model}")).collect();
        parts.extend(self.classes.iter().map(|class| format!("class={class}")));
        parts.extend(self.tags.iter().map(|(key, value)| format!("tag.{key}={value}")));
        parts.sort_unstable();
        parts.join("&")
    }
}

/// Where an attempt goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub model: &'a str,
    pub model_asked: &'a str,
    pub class: BackendClass,
}

/// More money for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Increase {
    pub amount: Money,
    /// Microseconds since the epoch.
    pub until_us: i64,
}

/// A limit per window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetSpec {
    pub limit: Money,
    pub period: Period,
    pub zone: Zone,
    pub enforcement: Enforcement,
    /// Percent of the limit, each raising one alert per window.
    pub thresholds: Vec<u16>,
    pub scope: Scope,
    pub increase: Increase,
}

/// A budget on its account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Unique, and readable: `acme/search month`.
    pub id: Arc<str>,
    pub account: AccountPath,
    pub spec: BudgetSpec,
}

impl Budget {
    pub fn new(account: AccountPath, spec: BudgetSpec) -> Self {
        let mut id = format!("{account} {}", spec.period.as_str());
        if spec.zone != Zone::default() {
            id.push_str(&format!(" {}", spec.zone.name()));
        }
        if spec.enforcement == Enforcement::Soft {
            id.push_str(" soft");
        }
        if spec.scope != Scope::default() {
            id.push_str(&format!(" {}", spec.scope.tag()));
        }
        Self {
            id: id.into(),
            account,
            spec,
        }
    }

    /// The limit at a moment.
    pub fn limit(&self, unix_us: i64) -> Money {
        let increase = self.spec.increase;
        if unix_us < increase.until_us {
            self.spec.limit.plus(increase.amount)
        } else {
            self.spec.limit
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_matches_models_classes_and_tags_together() {
        let scope = Scope {
            models: vec!["gpt-4o*".into()],
            classes: vec![BackendClass::Frontier],
            tags: vec![("env".into(), "prod".into())],
        };
        let target = |model, class| Target {
            model,
            model_asked: "auto",
            class,
        };
        assert!(scope.matches_target(target("gpt-4o-mini", BackendClass::Frontier)));
        assert!(!scope.matches_target(target("gpt-4o-mini", BackendClass::Cheap)));
        assert!(!scope.matches_target(target("claude", BackendClass::Frontier)));
        assert!(scope.matches_labels(&[("a".into(), "b".into()), ("env".into(), "prod".into())]));
        assert!(!scope.matches_labels(&[("env".into(), "test".into())]));
        assert!(Scope::default().matches_target(target("x", BackendClass::Local)));
    }

    #[test]
    fn an_increase_ends_by_itself() {
        let account = AccountPath {
            org: "acme".into(),
            team: None,
            workflow: None,
            key: None,
        };
        let spec = BudgetSpec {
            limit: Money::from_dollars(10),
            increase: Increase {
                amount: Money::from_dollars(5),
                until_us: 100,
            },
            ..BudgetSpec::default()
        };
        let budget = Budget::new(account, spec);
        assert_eq!(
            (&*budget.id, budget.limit(99)),
            ("acme day", Money::from_dollars(15))
        );
        assert_eq!(budget.limit(100), Money::from_dollars(10));
    }
}
