//! Who uses the admin API, and what they may: the configuration's key, stored keys with a role, or, on loopback without
//! any key, whoever is on the machine.

use super::problem::Problem;
use crate::client::Client;
use crate::clock;
use crate::gateway::Gateway;
use exchange::{AccountPath, KeyHash};
use ledger::{NotAccepted, Role, Subtree};
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// What a route asks of its visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum May {
    /// Everybody who is let in; of a team owner's subtree alone.
    Read,
    /// Administrators, and team owners within their subtree.
    Change,
    Administer,
}

/// Somebody who has been let in.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    /// For the audit trail.
    pub(super) name: String,
    pub(super) role: Role,
    /// What a team owner owns.
    own: Option<AccountPath>,
    /// SHA-256 of what was shown, to tell visitors apart.
    pub(super) hash: KeyHash,
}

impl Visitor {
    /// # Errors
    /// Nobody who may come in, and why.
    pub(super) fn of(gateway: &Gateway, client: &Client) -> Result<Self, Problem> {
        let shown = client
            .header("authorization")
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let hash = KeyHash(Sha256::digest(shown.unwrap_or_default()).into());
        let visitor = |name: String, role, own| Self {
            name,
            role,
            own,
            hash,
        };
        let master = gateway.config.admin.key.as_ref();
        match (shown, master) {
            // Hashes are compared, so that the time taken tells nothing of the key.
            (Some(_), Some(key)) if hash.0 == <[u8; 32]>::from(Sha256::digest(key.expose())) => {
                Ok(visitor("the configuration's admin key".into(), Role::Admin, None))
            }
            (None, None) => {
                keeps_browsers_out(client)?;
                Ok(visitor("anyone on this machine".into(), Role::Admin, None))
            }
            (None, Some(_)) => Err(unknown("send an admin key as `Authorization: Bearer`")),
            (Some(_), _) => {
                let operator = gateway.ledger.operator(&hash, clock::unix_us());
                let operator = operator.map_err(|reason| match reason {
                    NotAccepted::OtherRole => {
                        Problem::forbidden("the key calls models; it does not administer")
                            .hint("an admin key has the role `admin`, `finance` or `team_owner`")
                    }
                    reason => unknown(&reason.to_string()),
                })?;
                let peer = client.session.client_addr().and_then(|address| address.as_inet());
                if !operator.principal.may_come_from(peer.map(|address| address.ip())) {
                    return Err(Problem::forbidden("the key may not be used from there"));
                }
                let own = (operator.role == Role::TeamOwner).then(|| AccountPath {
                    key: None,
                    ..AccountPath::clone(&operator.principal.account)
                });
                let name = format!(
                    "{} ({}, key {})",
                    operator.name,
                    operator.role.as_str(),
                    operator.id
                );
                Ok(visitor(name, operator.role, own))
            }
        }
    }

    /// # Errors
    /// The role does not allow it.
    pub(super) fn must(&self, may: May) -> Result<(), Problem> {
        let fits = match may {
            May::Read => true,
            May::Change => matches!(self.role, Role::Admin | Role::TeamOwner),
            May::Administer => self.role == Role::Admin,
        };
        if fits {
            return Ok(());
        }
        let role = self.role.as_str();
        Err(
            Problem::forbidden(format!("the role `{role}` does not allow this"))
                .hint("ask an administrator, or use a key with another role"),
        )
    }

    /// What the visitor sees of what it asks for: all of its own where it asks for nothing.
    ///
    /// # Errors
    /// It asks for what is not its own.
    pub(super) fn sees(&self, asked: Option<&AccountPath>) -> Result<Subtree, Problem> {
        let own = || self.own.clone().map_or_else(Subtree::everything, Subtree::of);
        match asked {
            None => Ok(own()),
            Some(path) => {
                self.must_own(path)?;
                Ok(Subtree::of(path.clone()))
            }
        }
    }

    /// # Errors
    /// It sees a part alone.
    pub(super) fn must_see_everything(&self) -> Result<(), Problem> {
        match &self.own {
            None => Ok(()),
            Some(own) => Err(Problem::forbidden(format!(
                "the key sees {own} alone, and this is about all"
            ))),
        }
    }

    /// Another's is as good as absent: whoever asks learns nothing from the answer.
    ///
    /// # Errors
    /// It is not within what the visitor owns.
    pub(super) fn must_own(&self, path: &AccountPath) -> Result<(), Problem> {
        let own = self.own.clone().map_or_else(Subtree::everything, Subtree::of);
        if own.holds(path) {
            Ok(())
        } else {
            Err(Problem::missing(format!("account {path}")))
        }
    }

    /// What lies on an account is set by whoever is above it, so that no one raises their own budget.
    ///
    /// # Errors
    /// It is the visitor's own account, or not below it.
    pub(super) fn must_be_above(&self, path: &AccountPath) -> Result<(), Problem> {
        self.must_own(path)?;
        if self.own.as_ref() == Some(path) {
            return Err(
                Problem::forbidden(format!("{path} is yours, and set by those above it"))
                    .hint("a team owner sets what is below its own account"),
            );
        }
        Ok(())
    }
}

fn unknown(detail: &str) -> Problem {
    Problem::new(401, "unauthenticated", detail).hint(
        "the configuration's `admin.key`, or a key made with the role `admin`, `finance` or `team_owner`",
    )
}

/// Without a key the listener is on loopback; but a page in a browser on this machine reaches that too, by its address or
/// under a name that is made to resolve to it.
fn keeps_browsers_out(client: &Client) -> Result<(), Problem> {
    let named = client.header("host").or_else(|| {
        let uri = &client.session.req_header().uri;
        uri.authority().map(http::uri::Authority::as_str)
    });
    let host = named.map_or("", |host| match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    });
    let is_here = host.is_empty() || host == "localhost" || host.parse::<IpAddr>().is_ok();
    if is_here && client.header("origin").is_none() {
        return Ok(());
    }
    Err(
        Problem::forbidden("requests of web pages are not answered without an admin key")
            .hint("set `admin.key` in the configuration"),
    )
}
