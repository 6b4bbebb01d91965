//! What backends say of their own queues: in the heads of their answers, and when they are asked, every second.
//!
//! Owns: how long a request would wait at a backend, as last told. Refuses to know: what a decision makes of it.
//! Invariants: what was told grows old, since a queue that nobody joins gets shorter by a second each second; a backend
//! that says nothing has no queue.

use crate::clock;
use crate::gateway::Gateway;
use crate::upstream::Upstream;
use crate::upstream::control::{Control, Root};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Milliseconds that a request would wait which came now, as our own engine tells it.
pub(crate) const WAIT_HEADER: &str = "x-local-expected-wait-ms";
/// How often backends are asked, and how long for.
const LOOK: Duration = Duration::from_secs(1);
/// The most that is read of an answer: a line of some 300 bytes for each request that runs there.
const ANSWER_BYTES: usize = 4 << 20;

/// A backend's queue for one model.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// When a request that came at the time of telling would run, on the monotonic clock; 0: at once.
    clear_at_ms: AtomicU64,
}

impl Queue {
    /// Milliseconds until a request that came now would run.
    pub(crate) fn wait_ms(&self) -> u32 {
        match self.clear_at_ms.load(Ordering::Relaxed) {
            0 => 0,
            clear => u32::try_from(clear.saturating_sub(clock::monotonic_ms())).unwrap_or(u32::MAX),
        }
    }

    /// Takes what the head of an answer tells; one that tells nothing changes nothing.
    pub(crate) fn heard(&self, told: Option<&str>) {
        if let Some(wait) = told.and_then(|told| told.trim().parse().ok()) {
            self.told(wait);
        }
    }

    fn told(&self, wait_ms: u64) {
        let clear = match wait_ms {
            0 => 0,
            wait => clock::monotonic_ms().saturating_add(wait),
        };
        self.clear_at_ms.store(clear, Ordering::Relaxed);
    }
}

/// The part of `/slots` that is of use here.
#[derive(Deserialize)]
struct Slots {
    models: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    model: String,
    load: Load,
}

#[derive(Deserialize)]
struct Load {
    expected_wait_ms: u64,
}

/// Asks the backends that report their load until the process is to stop. One that does not answer is not the worse for
/// it here: calls and the breaker find that out.
pub(crate) async fn watch(gateway: Arc<Gateway>, mut stop: Receiver<bool>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            _ = look.tick() => {}
        }
        let rules = gateway.rules.now();
        let mut asked: Vec<&Arc<Upstream>> = Vec::new();
        for deployment in rules.fleet.iter() {
            let upstream = &deployment.upstream;
            if upstream.settings.reports_load && !asked.iter().any(|known| Arc::ptr_eq(known, upstream)) {
                asked.push(upstream);
            }
        }
        join_all(asked.into_iter().map(|upstream| async {
            let Some(slots) = ask(upstream).await else {
                return;
            };
            for deployment in rules
                .fleet
                .iter()
                .filter(|one| Arc::ptr_eq(&one.upstream, upstream))
            {
                let mut listed = slots.models.iter();
                if let Some(listed) = listed.find(|listed| *deployment.model == listed.model) {
                    deployment.queue.told(listed.load.expected_wait_ms);
                }
            }
        }))
        .await;
    }
}

async fn ask(upstream: &Upstream) -> Option<Slots> {
    let call = Control {
        root: Root::Origin,
        ..Control::get("/slots".into())
    };
    let (status, body): (u16, Bytes) = match timeout(LOOK, upstream.control(&call, ANSWER_BYTES)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => return None,
    };
    let read = serde_json::from_slice(&body);
    if status != 200 || read.is_err() {
        let provider = &upstream.settings.name;
        tracing::debug!(%provider, status, "its `/slots` says nothing of its load");
    }
    read.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_grows_old_and_nonsense_changes_nothing() {
        let queue = Queue::default();
        assert_eq!(queue.wait_ms(), 0);
        queue.heard(Some("30000"));
        assert!((29_000..=30_000).contains(&queue.wait_ms()));
        queue.heard(None);
        queue.heard(Some("soon"));
        assert!(queue.wait_ms() > 29_000);
        queue.heard(Some("0"));
        assert_eq!(queue.wait_ms(), 0);
        queue.told(1);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(queue.wait_ms(), 0);
        queue.told(u64::MAX);
        assert_eq!(queue.wait_ms(), u32::MAX);
    }

    #[test]
    fn slots_are_read_as_our_engine_writes_them() {
        let text = r#"{"models": [{"model": "m", "load": {"running": 3, "waiting": 2, "slots": 1,
            "expected_wait_ms": 4500}, "slots": [], "tenants": []}]}"#;
        let slots: Slots = serde_json::from_str(text).unwrap();
        assert_eq!(
            (&*slots.models[0].model, slots.models[0].load.expected_wait_ms),
            ("m", 4500)
        );
    }
}
