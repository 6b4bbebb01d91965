//! Who pays. Accounts form a tree org › team › workflow › key; any depth between org and key may be absent.

use crate::BackendClass;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The path from the organisation down to whoever called. Shown as `acme/search/nightly/ci`, with `-` for absent parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountPath {
    pub org: Arc<str>,
    pub team: Option<Arc<str>>,
    pub workflow: Option<Arc<str>>,
    pub key: Option<Arc<str>>,
}

impl AccountPath {
    /// Every account on the path, outermost first: the org, then its team, and so on. Each is an account of its own
    /// with budgets of its own.
    pub fn ancestry(&self) -> Vec<AccountPath> {
        let org = AccountPath {
            org: self.org.clone(),
            team: None,
            workflow: None,
            key: None,
        };
        let mut path = vec![org.clone()];
        if self.team.is_some() {
            path.push(AccountPath {
                team: self.team.clone(),
                ..org.clone()
            });
        }
        if self.workflow.is_some() {
            path.push(AccountPath {
                team: self.team.clone(),
                workflow: self.workflow.clone(),
                ..org
            });
        }
        if self.key.is_some() {
            path.push(self.clone());
        }
        path
    }
}

/// The text is not the path of an account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an account: write org/team/workflow/key, with `-` for a level in between that is absent"
)]
pub struct NotAnAccount(Box<str>);

/// Reads what `Display` writes.
impl std::str::FromStr for AccountPath {
    type Err = NotAnAccount;

    fn from_str(text: &str) -> Result<Self, NotAnAccount> {
        let wrong = || NotAnAccount(text.into());
        let mut parts = text.split('/');
        let mut next = || match parts.next() {
            None | Some("-") => Ok(None),
            Some(part) if is_account_name(part) => Ok(Some(Arc::from(part))),
            Some(_) => Err(wrong()),
        };
        let path = Self {
            org: next()?.ok_or_else(wrong)?,
            team: next()?,
            workflow: next()?,
            key: next()?,
        };
        if parts.next().is_some() || path.to_string() != text {
            return Err(wrong());
        }
        Ok(path)
    }
}

/// A name can be one level of a path: not empty, not `-`, without `/` and control characters.
pub fn is_account_name(name: &str) -> bool {
    !(name.is_empty() || name == "-" || name.contains('/') || name.contains(char::is_control))
}

impl std::fmt::Display for AccountPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |part: &Option<Arc<str>>| part.clone().unwrap_or_else(|| "-".into());
        let text = format!(
            "{}/{}/{}/{}",
            self.org,
            part(&self.team),
            part(&self.workflow),
            part(&self.key)
        );
        f.write_str(text.trim_end_matches("/-"))
    }
}

/// What a key may use. Empty lists allow everything; a pattern may end in `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    pub models: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<BackendClass>,
}

impl Grants {
    pub fn allows_class(&self, class: BackendClass) -> bool {
        self.classes.is_empty() || self.classes.contains(&class)
    }

    pub fn allows_model(&self, model: &str) -> bool {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => model.starts_with(prefix),
            None => pattern == model,
        };
        self.models.is_empty() || self.models.iter().any(|pattern| matches(pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(team: Option<&str>, workflow: Option<&str>, key: Option<&str>) -> AccountPath {
        let part = |part: Option<&str>| part.map(Arc::from);
        AccountPath {
            org: "acme".into(),
            team: part(team),
            workflow: part(workflow),
            key: part(key),
        }
    }

    #[test]
    fn ancestry_lists_only_the_levels_that_exist() {
        let shown: Vec<String> = path(Some("search"), None, Some("ci"))
            .ancestry()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, ["acme", "acme/search", "acme/search/-/ci"]);
    }

    #[test]
    fn a_path_is_read_as_it_is_shown() {
        for text in [
            "acme",
            "acme/search",
            "acme/search/-/ci",
            "acme/-/-/ci",
            "acme/search/nightly",
        ] {
            assert_eq!(text.parse::<AccountPath>().unwrap().to_string(), text);
        }
        for text in ["", "-", "/x", "acme/", "acme/-", "acme//x", "a/b/c/d/e", "a/b\n"] {
            assert!(text.parse::<AccountPath>().is_err(), "{text}");
        }
    }

    #[test]
    fn grants_match_whole_names_and_prefixes() {
        let grants = Grants {
            models: vec!["gpt-4o".into(), "claude-*".into()],
            classes: vec![BackendClass::Cheap],
        };
        assert!(grants.allows_class(BackendClass::Cheap) && !grants.allows_class(BackendClass::Frontier));
        assert!(grants.allows_model("gpt-4o") && grants.allows_model("claude-sonnet-4-5"));
        assert!(!grants.allows_model("gpt-4o-mini"));
        assert!(Grants::default().allows_model("anything"));
    }
}
