//! The accounts that have limits, found by a request's path without a copy of any name.

use exchange::AccountPath;
use limits::{Path, SubjectId};
use std::collections::HashMap;
use std::sync::Arc;

/// Organisations with limits on them or below.
#[derive(Debug, Default)]
pub(super) struct Tree(HashMap<Arc<str>, Level>);

#[derive(Debug, Default)]
struct Level {
    subject: Option<SubjectId>,
    teams: HashMap<Arc<str>, Level>,
    workflows: HashMap<Arc<str>, Level>,
    keys: HashMap<Arc<str>, Level>,
}

impl Tree {
    pub(super) fn grow<'a>(subjects: impl Iterator<Item = (&'a AccountPath, SubjectId)>) -> Self {
        let mut tree = Self::default();
        for (account, subject) in subjects {
            let mut level = tree.0.entry(account.org.clone()).or_default();
            if let Some(team) = &account.team {
                level = level.teams.entry(team.clone()).or_default();
            }
            if let Some(workflow) = &account.workflow {
                level = level.workflows.entry(workflow.clone()).or_default();
            }
            if let Some(key) = &account.key {
                level = level.keys.entry(key.clone()).or_default();
            }
            level.subject = Some(subject);
        }
        tree
    }

    /// The limited accounts on the way from the organisation down.
    pub(super) fn path(&self, account: &AccountPath) -> Path {
        let mut path = Path::new();
        let mut at = self.0.get(&*account.org);
        let mut step = |level: Option<&Level>| path.extend(level.and_then(|level| level.subject));
        step(at);
        if let Some(team) = &account.team {
            at = at.and_then(|level| level.teams.get(&**team));
            step(at);
        }
        if let Some(workflow) = &account.workflow {
            at = at.and_then(|level| level.workflows.get(&**workflow));
            step(at);
        }
        if let Some(key) = &account.key {
            at = at.and_then(|level| level.keys.get(&**key));
            step(at);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(parts: [&str; 4]) -> AccountPath {
        let part = |name: &str| (name != "-").then(|| name.into());
        AccountPath {
            org: parts[0].into(),
            team: part(parts[1]),
            workflow: part(parts[2]),
            key: part(parts[3]),
        }
    }

    #[test]
    fn a_request_meets_every_limit_above_it_and_none_beside_it() {
        let limited = [
            ["acme", "-", "-", "-"],
            ["acme", "search", "-", "ci"],
            ["acme", "search", "nightly", "-"],
            ["acme", "other", "-", "-"],
        ];
        let limited = limited.map(account);
        let tree = Tree::grow(limited.iter().zip((0..).map(SubjectId)));
        let names = |parts| -> Vec<String> {
            let path = tree.path(&account(parts));
            path.iter().map(|id| limited[id.0 as usize].to_string()).collect()
        };
        assert_eq!(names(["acme", "search", "-", "ci"]), ["acme", "acme/search/-/ci"]);
        assert_eq!(
            names(["acme", "search", "nightly", "x"]),
            ["acme", "acme/search/nightly"]
        );
        assert_eq!(names(["acme", "new", "-", "ci"]), ["acme"]);
        assert!(names(["free", "-", "-", "k"]).is_empty() && names(["unknown", "-", "-", "-"]).is_empty());
    }
}
