//! The settings about others: who is told of alerts, and whose tokens are accepted.

use super::document::{self, SigningAlgorithm};
use super::mistakes::Mistakes;
use super::{Issuer, Secret, Webhook};
use exchange::{Grants, is_account_name};
use std::path::Path;

/// The shortest secret that is accepted, in characters.
const SHORTEST: usize = 16;

fn is_url(text: &str) -> bool {
    let uri = text.parse::<http::Uri>();
    uri.is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
}

impl document::Alerts {
    pub(super) fn resolve(&self, folder: &Path, mistakes: &mut Mistakes<'_>) -> Option<Webhook> {
        let url = self.webhook_url.as_ref()?;
        let url = if url.starts_with("env:") || url.starts_with("file:") {
            mistakes.keep("alerts.webhook_url", Secret::resolve(url, folder))
        } else {
            Some(Secret::plain(url))
        };
        if url.as_ref().is_some_and(|url| !is_url(url.expose())) {
            mistakes.add("alerts.webhook_url", "must begin with http:// or https://");
        }
        let Some(reference) = &self.secret else {
            let hint =
                "set `alerts.secret` to `env:NAME` or `file:PATH`; `openssl rand -hex 32` makes a good one";
            mistakes.hinted("alerts", "has a webhook, but no secret to sign with", hint);
            return None;
        };
        let secret = mistakes.keep("alerts.secret", Secret::resolve(reference, folder))?;
        if secret.expose().chars().count() < SHORTEST {
            let problem = format!("is shorter than {SHORTEST} characters");
            mistakes.hinted(
                "alerts.secret",
                problem,
                "`openssl rand -hex 32` makes a good one",
            );
        }
        Some(Webhook { url: url?, secret })
    }
}

pub(super) fn issuers(written: &[document::Issuer], mistakes: &mut Mistakes<'_>) -> Vec<Issuer> {
    let mut issuers: Vec<Issuer> = Vec::new();
    for (index, one) in written.iter().enumerate() {
        let at = |key: &str| format!("oidc[{index}].{key}");
        for (key, url) in [("issuer", Some(&one.issuer)), ("jwks_url", one.jwks_url.as_ref())] {
            if url.is_some_and(|url| !is_url(url)) {
                mistakes.add(at(key), "must begin with http:// or https://");
            }
        }
        if issuers.iter().any(|other| other.issuer == one.issuer) {
            mistakes.add(at("issuer"), "is there twice");
        }
        if one.audiences.is_empty() {
            let hint = "name what its tokens for this gateway have in `aud`";
            mistakes.hinted(
                at("audiences"),
                "is empty: tokens for anybody would be accepted",
                hint,
            );
        }
        if one.algorithms.is_empty() {
            mistakes.add(at("algorithms"), "is empty: no token would be accepted");
        }
        match (&one.org, &one.org_claim) {
            (Some(org), None) if !is_account_name(org) => {
                mistakes.add(
                    at("org"),
                    "is no name: it must not be empty or `-` or contain `/`",
                );
            }
            (Some(_), None) | (None, Some(_)) => {}
            _ => {
                mistakes.add(format!("oidc[{index}]"), "needs one of `org` and `org_claim`");
            }
        }
        issuers.push(Issuer {
            issuer: one.issuer.clone(),
            audiences: one.audiences.clone(),
            jwks_url: one.jwks_url.clone(),
            algorithms: one.algorithms.clone(),
            leeway_s: one.leeway_s,
            org: one.org.clone(),
            org_claim: one.org_claim.clone(),
            team_claim: one.team_claim.clone(),
            workflow_claim: one.workflow_claim.clone(),
            user_claim: one.user_claim.clone(),
            grants: Grants {
                models: one.models.iter().map(|model| model.as_str().into()).collect(),
                classes: one.classes.clone(),
            },
        });
    }
    issuers
}

impl SigningAlgorithm {
    pub(crate) const fn jwt(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm;
        match self {
            Self::RS256 => Algorithm::RS256,
            Self::RS384 => Algorithm::RS384,
            Self::RS512 => Algorithm::RS512,
            Self::PS256 => Algorithm::PS256,
            Self::PS384 => Algorithm::PS384,
            Self::PS512 => Algorithm::PS512,
            Self::ES256 => Algorithm::ES256,
            Self::ES384 => Algorithm::ES384,
            Self::EdDSA => Algorithm::EdDSA,
        }
    }
}
