//! Budgets that have passed a threshold: told in the log by the gateway that noticed, and sent to the webhook by whichever
//! gateway takes the alert out of the store first.
//!
//! An alert waits in the store until the webhook has taken it, so that neither a restart nor a receiver that is away loses
//! it. It is sent once; only a gateway that dies between the receiver's answer and noting it can make that twice, under the
//! same `webhook-id`. Signed as Standard Webhooks has it: HMAC-SHA256 over `id.timestamp.body`.

use crate::admin::alert_document;
use crate::clock;
use crate::config::Webhook;
use crate::fetch;
use crate::gateway::Gateway;
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ledger::{Alert, StoredAlert};
use ring::hmac;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// How long the receiver has to answer.
const WITHIN: Duration = Duration::from_secs(10);
/// For how long an alert that is being sent is nobody else's.
const HOLD_US: i64 = 60_000_000;
/// An alert older than this is no longer news: three days.
const OLD_US: i64 = 3 * 86_400_000_000;
/// Between looks for alerts that others raised, or that are to be tried again.
const LOOK: Duration = Duration::from_secs(2);
/// The first wait after a failure; each is twice the one before.
const WAIT_US: i64 = 1_000_000;
const LONGEST_WAIT_US: i64 = 600_000_000;

/// Tells of alerts until the gateway stops.
pub(crate) async fn run(gateway: Arc<Gateway>, mut stop: watch::Receiver<bool>) {
    let mut raised = gateway.ledger.alerts();
    let sender = gateway
        .config
        .webhook
        .clone()
        .map(|webhook| Arc::new(Sender::new(webhook)));
    loop {
        let next = async {
            match &mut raised {
                Some(raised) => log(raised).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = next => {}
            () = sleep(LOOK), if sender.is_some() => {}
        }
        if let Some(sender) = &sender {
            sender.send_all(&gateway).await;
        }
    }
}

/// Waits for an alert that this gateway raised.
async fn log(raised: &mut mpsc::Receiver<Alert>) {
    match raised.recv().await {
        Some(alert) => {
            let Alert {
                budget,
                threshold,
                spent,
                limit,
                ..
            } = alert;
            tracing::warn!(budget, threshold, %spent, %limit, "a budget has passed one of its thresholds");
        }
        None => std::future::pending().await,
    }
}

struct Sender {
    webhook: Webhook,
    key: hmac::Key,
    agent: ureq::Agent,
}

impl Sender {
    fn new(webhook: Webhook) -> Self {
        let text = webhook.secret.expose();
        let encoded = text.strip_prefix("whsec_");
        let decoded = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
        let bytes = decoded.unwrap_or_else(|| text.as_bytes().to_vec());
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
            webhook,
            agent: fetch::agent(WITHIN),
        }
    }

    /// Sends what there is to send now.
    async fn send_all(self: &Arc<Self>, gateway: &Gateway) {
        loop {
            let alert = match gateway.ledger.claim_alert(HOLD_US, OLD_US).await {
                Ok(Some(alert)) => alert,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "alerts cannot be read; it is tried again");
                    return;
                }
            };
            let (sender, sent) = (self.clone(), alert.clone());
            let post = tokio::task::spawn_blocking(move || sender.post(&sent, clock::unix_us()));
            let posted = post.await.unwrap_or_else(|error| Err(error.into()));
            let noted = match posted {
                Ok(()) => gateway.ledger.alert_delivered(&alert.alert).await,
                Err(error) => {
                    let wait_us = wait_us(alert.tries);
                    tracing::warn!(
                        budget = alert.alert.budget,
                        tries = alert.tries,
                        wait_s = wait_us / 1_000_000,
                        "the webhook did not take an alert: {error:#}; it is tried again"
                    );
                    gateway.ledger.alert_again(&alert.alert, wait_us).await
                }
            };
            if let Err(error) = noted {
                tracing::warn!(%error, "what became of an alert could not be noted; it may be sent again");
                return;
            }
        }
    }

    fn post(&self, alert: &StoredAlert, now_us: i64) -> anyhow::Result<()> {
        let id = id(&alert.alert);
        let body =
            json!({ "type": "budget.threshold_passed", "id": id, "data": alert_document(alert.clone())? });
        let (body, timestamp) = (body.to_string(), (now_us / 1_000_000).to_string());
        let signature = self.signature(&id, &timestamp, &body);
        let request = ureq::http::Request::post(self.webhook.url.expose())
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp)
            .header("webhook-signature", signature)
            .body(body)?;
        let answer = self.agent.run(request).context("it cannot be reached")?;
        anyhow::ensure!(answer.status().is_success(), "it answered {}", answer.status());
        Ok(())
    }

    fn signature(&self, id: &str, timestamp: &str, body: &str) -> String {
        let signed = format!("{id}.{timestamp}.{body}");
        let tag = hmac::sign(&self.key, signed.as_bytes());
        format!("v1,{}", STANDARD.encode(tag))
    }
}

/// The same for the same alert, whoever sends it and however often.
fn id(alert: &Alert) -> String {
    let named = format!(
        "{}\n{}\n{}",
        alert.budget, alert.window_starts_us, alert.threshold
    );
    let hash = Sha256::digest(named);
    let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("alert_{hex}")
}

/// After so many tries.
fn wait_us(tries: i64) -> i64 {
    let doublings = u32::try_from(tries.clamp(1, 20) - 1).unwrap_or(0);
    (WAIT_US << doublings).min(LONGEST_WAIT_US)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let webhook = |secret| Webhook {
            url: Secret::plain("http://127.0.0.1"),
            secret: Secret::plain(secret),
        };
        // The example of the Standard Webhooks specification's reference libraries.
        let sender = Sender::new(webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
        let signature = sender.signature(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn waits_double_and_have_an_end() {
        assert_eq!(
            [1, 2, 4, 90].map(wait_us),
            [1_000_000, 2_000_000, 8_000_000, 600_000_000]
        );
    }
}
