//! What changes between two policies: where each workflow is served, and which rules came, went or changed.
//!
//! Invariant: a workflow of high or critical value that moves to a weaker class without `approved_by` in the new
//! document is an error, here as at the gateway's door.

use crate::lint::{Standing, standings, strength};
use crate::policy::Policy;
use crate::table::table;
use exchange::{BackendClass, Money, Thinking, ValueTier};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where one workflow was and is served; `None`: nowhere, or the workflow is not in that policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Move {
    pub workflow: Arc<str>,
    pub tier: ValueTier,
    pub from: Option<Place>,
    pub to: Option<Place>,
    /// It moved to a weaker class.
    pub is_downgrade: bool,
    /// It may not: it is of high value, and nobody agreed.
    pub needs_approval: bool,
    pub approved_by: Option<Arc<str>>,
}

/// Where a workflow is served.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    pub deployment: Arc<str>,
    pub class: BackendClass,
    pub thinking: Option<Thinking>,
    pub success_ppm: u32,
    /// Of one request, at the policy's own prices.
    pub price: Money,
}

/// All that changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    pub from_version: Arc<str>,
    pub to_version: Arc<str>,
    /// Workflows that are served differently.
    pub moves: Vec<Move>,
    /// (kind, name) of rules and deployments only in the new policy, only in the old one, and in both but different.
    pub added: Vec<(String, Arc<str>)>,
    pub removed: Vec<(String, Arc<str>)>,
    pub changed: Vec<(String, Arc<str>)>,
}

impl Diff {
    pub fn needs_approval(&self) -> bool {
        self.moves.iter().any(|one| one.needs_approval)
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut out = format!("{} -> {}\n", self.from_version, self.to_version);
        for (word, list) in [
            ("added", &self.added),
            ("removed", &self.removed),
            ("changed", &self.changed),
        ] {
            for (kind, name) in list {
                out.push_str(&format!("{word:8} {kind} {name}\n"));
            }
        }
        if self.moves.is_empty() {
            out.push_str("every workflow is served as before\n");
            return out;
        }
        let shown = |place: &Option<Place>| {
            place.as_ref().map_or(vec!["-".to_owned(); 3], |place| {
                let thinking = place
                    .thinking
                    .map_or(String::new(), |level| format!(", thinks {level}"));
                vec![
                    format!("{} ({}{thinking})", place.deployment, place.class),
                    format!("{:.3}", f64::from(place.success_ppm) / 1e6),
                    place.price.to_string(),
                ]
            })
        };
        let rows: Vec<Vec<String>> = self
            .moves
            .iter()
            .map(|one| {
                let mut row = vec![one.workflow.to_string(), one.tier.to_string()];
                row.extend(shown(&one.from));
                row.extend(shown(&one.to));
                row.push(match (one.is_downgrade, &one.approved_by) {
                    (true, Some(who)) => format!("downgrade, approved by {who}"),
                    (true, None) if one.needs_approval => "DOWNGRADE WITHOUT `approved_by`".into(),
                    (true, None) => "downgrade".into(),
                    (false, _) => String::new(),
                });
                row
            })
            .collect();
        out.push_str(&table(
            &["workflow", "value", "was", "P", "price", "is", "P", "price", ""],
            &rows,
        ));
        out
    }
}

/// Compares two policies.
pub fn diff(old: &Policy, new: &Policy) -> Diff {
    let (before, after) = (by_name(old), by_name(new));
    let mut names: Vec<&Arc<str>> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let moves = names
        .into_iter()
        .filter_map(|name| moved(before.get(name), after.get(name)));
    let (old_parts, new_parts) = (parts(old), parts(new));
    let only = |these: &BTreeMap<(String, Arc<str>), String>, those: &BTreeMap<_, _>| {
        these
            .keys()
            .filter(|key| !those.contains_key(*key))
            .cloned()
            .collect()
    };
    Diff {
        from_version: old.version().clone(),
        to_version: new.version().clone(),
        moves: moves.collect(),
        added: only(&new_parts, &old_parts),
        removed: only(&old_parts, &new_parts),
        changed: new_parts
            .iter()
            .filter(|(key, part)| old_parts.get(*key).is_some_and(|old| old != *part))
            .map(|(key, _)| key.clone())
            .collect(),
    }
}

fn by_name(policy: &Policy) -> BTreeMap<Arc<str>, Standing> {
    standings(policy)
        .into_iter()
        .map(|one| (one.workflow.clone(), one))
        .collect()
}

fn moved(before: Option<&Standing>, after: Option<&Standing>) -> Option<Move> {
    let place = |standing: Option<&Standing>| {
        let standing = standing?;
        Some(Place {
            deployment: standing.deployment.clone()?,
            class: standing.class?,
            thinking: standing.thinking,
            success_ppm: standing.success_ppm,
            price: standing.price,
        })
    };
    let (from, to) = (place(before), place(after));
    let now = after.or(before)?;
    if from == to {
        return None;
    }
    let is_downgrade = match (&from, &to) {
        (Some(from), Some(to)) => strength(to.class) < strength(from.class),
        (Some(_), None) => after.is_some(),
        _ => false,
    };
    // What was valuable stays so for this question: lowering the tier and the class at once is a downgrade too.
    let tier = now
        .tier
        .max(before.map_or(ValueTier::Unvalued, |before| before.tier));
    Some(Move {
        workflow: now.workflow.clone(),
        tier,
        is_downgrade,
        needs_approval: is_downgrade && tier >= ValueTier::High && now.approved_by.is_none(),
        approved_by: now.approved_by.clone(),
        from,
        to,
    })
}

/// Every named part of a document, as text to compare.
fn parts(policy: &Policy) -> BTreeMap<(String, Arc<str>), String> {
    let document = &policy.document;
    let mut parts = BTreeMap::new();
    let mut add = |kind: &str, name: &Arc<str>, part: String| {
        parts.insert((kind.to_owned(), name.clone()), part);
    };
    document
        .deployments
        .iter()
        .for_each(|one| add("deployment", &one.id, format!("{one:?}")));
    document
        .workflows
        .iter()
        .for_each(|one| add("workflow", &one.name, format!("{one:?}")));
    document
        .value
        .iter()
        .for_each(|one| add("value rule", &one.name, format!("{one:?}")));
    document
        .latency
        .iter()
        .for_each(|one| add("latency rule", &one.name, format!("{one:?}")));
    document
        .thinking
        .iter()
        .for_each(|one| add("thinking rule", &one.name, format!("{one:?}")));
    document
        .routes
        .iter()
        .for_each(|one| add("route", &one.name, format!("{one:?}")));
    document
        .teams
        .iter()
        .for_each(|(name, one)| add("team", name, format!("{one:?}")));
    let settings = [
        ("objective", format!("{:?}", document.objective)),
        ("value_tiers", format!("{:?}", document.value_tiers)),
        ("latency_tiers", format!("{:?}", document.latency_tiers)),
        ("floors", format!("{:?}", document.floors)),
        (
            "aliases",
            format!("{:?} {:?}", document.virtual_models, document.aliases),
        ),
        ("named_models", format!("{:?}", document.named_models)),
    ];
    settings
        .into_iter()
        .for_each(|(name, part)| add("setting", &name.into(), part));
    parts
}
