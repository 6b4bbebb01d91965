//! Telling of a job's end: a signed POST, tried again with growing pauses. Only to hosts that the operator has named, so
//! that a caller cannot make the gateway call whom it likes.
//!
//! The signature is that of Standard Webhooks: `webhook-signature: v1,` and base64 of HMAC-SHA256 over id, time and body.

use super::{Desk, pack, requests};
use crate::clock;
use crate::config::{BaseUrl, Breaker, Provider};
use crate::gateway::Gateway;
use crate::upstream::Upstream;
use crate::upstream::control::Control;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use exchange::{Dialect, Refusal, RefusalKind};
use ledger::{Job, JobKind, Principal, StoreError};
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const TRIES: i64 = 8;
const PATIENCE: Duration = Duration::from_secs(10);
/// While one try runs nobody begins another.
pub(super) const TURN_US: i64 = 30_000_000;

/// Whom to tell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    url: String,
    /// What the signature is made with.
    secret: String,
}

/// What is stored of it.
///
/// # Errors
/// The operator does not allow that host, or the secret is no secret.
pub(super) fn sealed(gateway: &Gateway, ask: &Ask) -> Result<String, Refusal> {
    let invalid =
        |message: String, param: &str| Refusal::new(RefusalKind::InvalidRequest, message).param(param);
    let base = BaseUrl::parse(&ask.url).map_err(|problem| invalid(problem, "webhook.url"))?;
    let allowed = &gateway.config.batch.webhook_hosts;
    let with_port = format!("{}:{}", base.host, base.port);
    if !allowed
        .iter()
        .any(|host| *host == base.host || *host == with_port)
    {
        return Err(invalid(
            format!("webhooks to {} are not allowed", base.host),
            "webhook.url",
        )
        .hint("whoever runs the gateway can add the host to `batch.webhook_hosts`"));
    }
    if ask.secret.len() < 16 {
        return Err(invalid(
            "the secret is shorter than 16 characters".into(),
            "webhook.secret",
        ));
    }
    let text = serde_json::to_vec(ask).unwrap_or_default();
    let sealed = pack::seal(gateway, &text).unwrap_or_default();
    Ok(STANDARD.encode(sealed))
}

/// Tells of a job's end, once; what comes of it is written down.
pub(super) async fn tell(gateway: &Arc<Gateway>, job: Job, tries: i64) {
    let next_us = match send(gateway, &job).await {
        Ok(()) => 0,
        Err(problem) if tries >= TRIES => {
            tracing::warn!(
                problem,
                job = job.id,
                "nobody took the news of a job's end; it is not tried again"
            );
            0
        }
        Err(problem) => {
            tracing::info!(
                problem,
                job = job.id,
                tries,
                "nobody took the news of a job's end; it is tried again"
            );
            clock::unix_us() + (5_000_000 << (2 * tries.clamp(0, 6)))
        }
    };
    let stored: Result<(), StoreError> = gateway.batch.jobs.hooked(&job.id, next_us).await;
    if let Err(error) = stored {
        tracing::warn!(%error, job = job.id, "the news of a job's end may be told twice");
    }
}

async fn send(gateway: &Arc<Gateway>, job: &Job) -> Result<(), String> {
    let sealed = STANDARD.decode(&job.webhook).map_err(|error| error.to_string())?;
    let text = pack::open(gateway, Some(&sealed))?;
    let ask: Ask = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let base = BaseUrl::parse(&ask.url)?;
    // Nobody asks: the job is shown as its maker would see it.
    let desk = Desk {
        gateway: gateway.clone(),
        workflow: job.account.workflow.clone(),
        labels: job.labels.clone(),
        who: Arc::new(Principal::of(job.account.clone())),
        key_hash: job.key_hash.clone(),
    };
    let shown = match job.kind {
        JobKind::Request => requests::object(&desk, job)
            .await
            .map_err(|refusal| refusal.message)?,
        _ => json!({"id": job.id, "object": job.kind.as_str(), "status": job.state}),
    };
    let body = json!({"type": "job.ended", "data": shown}).to_string();
    let at = clock::unix_us() / 1_000_000;
    let id = format!("{}-end", job.id);
    let key = hmac::Key::new(hmac::HMAC_SHA256, ask.secret.as_bytes());
    let signature = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
    let upstream = Upstream::new(receiver(base)).map_err(|error| error.to_string())?;
    let call = Control {
        fields: vec![
            ("webhook-id", id),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", format!("v1,{}", STANDARD.encode(signature))),
        ],
        ..Control::post(String::new(), body.into())
    };
    let (status, _) = upstream
        .control(&call, 64 << 10)
        .await
        .map_err(|error| error.to_string())?;
    if (200..300).contains(&status) {
        Ok(())
    } else {
        Err(format!("it was answered with {status}"))
    }
}

fn receiver(base: BaseUrl) -> Provider {
    Provider {
        name: "webhook".into(),
        dialect: Dialect::OpenaiChat,
        base,
        credential: None,
        http2: false,
        reports_cost: false,
        reports_load: false,
        streams: false,
        connect_timeout: PATIENCE,
        first_byte_timeout: PATIENCE,
        gap_timeout: PATIENCE,
        max_in_flight: None,
        pace: limits::Rule::default(),
        max_queued: 0,
        breaker: Breaker {
            failures: 1,
            open: PATIENCE,
        },
        headers: Vec::new(),
        batch: None,
        flex: false,
        ca_file: None,
    }
}
