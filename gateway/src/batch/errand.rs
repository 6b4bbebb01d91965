//! A job's own call: a connection inside the process, served like any other. No second pipeline.

use crate::client::{Client, Errand};
use crate::gateway::Gateway;
use crate::settle::Settled;
use crate::upstream::exchange_http1;
use bytes::Bytes;
use exchange::{RequestId, Surface};
use ledger::{Labels, Principal};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::duplex;
use tokio::time::timeout;

/// What the pipes between the two ends hold.
const PIPE_BYTES: usize = 64 << 10;

/// A call to make.
pub(super) struct Call {
    pub(super) who: Arc<Principal>,
    pub(super) surface: Surface,
    pub(super) body: Bytes,
    pub(super) background: bool,
    /// Longer than this it is not waited for; the provider is then stopped.
    pub(super) patience: Duration,
    /// As its job was declared.
    pub(super) workflow: Option<Arc<str>>,
    pub(super) labels: Labels,
}

/// What came of it.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) body: Bytes,
    /// Nothing was charged where there is none.
    pub(super) settled: Option<Settled>,
    pub(super) request: Option<RequestId>,
    pub(super) deployment: Option<String>,
    /// The code of the gateway's own refusal.
    pub(super) refusal: Option<String>,
}

/// Calls the pipeline on a job's behalf.
pub(super) async fn call(gateway: &Arc<Gateway>, call: Call) -> Answered {
    let (ours, theirs) = duplex(PIPE_BYTES);
    let path = call.surface.endpoint();
    let length = call.body.len();
    let workflow = call.workflow.as_ref();
    let workflow = workflow.map_or_else(String::new, |name| format!("x-tollgate-workflow: {name}\r\n"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: job\r\ncontent-type: application/json\r\n{workflow}content-length: {length}\r\n\r\n"
    );
    let errand = Errand {
        who: call.who,
        background: call.background,
        labels: call.labels,
        settled: None,
        request: None,
    };
    let served = serve(gateway, Box::new(theirs), errand);
    // Whoever stops waiting hangs up, and the pipeline sees to the rest as for any caller.
    let asked = timeout(call.patience, ask(Box::new(ours), head.into_bytes(), call.body));
    let (errand, answer) = tokio::join!(served, asked);
    let nothing = |status| (status, Bytes::new(), [None, None]);
    let answer = answer.map_or(nothing(408), |answer| answer.unwrap_or(nothing(500)));
    let (status, body, [deployment, refusal]) = answer;
    let (settled, request) = errand.map_or((None, None), |errand| (errand.settled, errand.request));
    Answered {
        status,
        body,
        settled,
        request,
        deployment,
        refusal,
    }
}

async fn serve(gateway: &Arc<Gateway>, stream: Stream, errand: Errand) -> Option<Errand> {
    let mut session = ServerSession::new_http1(stream);
    if !matches!(session.read_request().await, Ok(true)) {
        return None;
    }
    session.set_keepalive(None);
    let _running = gateway.running.clone();
    let mut client = Client::new(session);
    client.errand = Some(errand);
    Box::pin(crate::serve::serve(gateway, &mut client)).await;
    client.errand.take()
}

/// Status, body, and who answered or which refusal it was.
type Whole = (u16, Bytes, [Option<String>; 2]);

async fn ask(stream: Stream, head: Vec<u8>, body: Bytes) -> pingora_error::Result<Whole> {
    let mut session = exchange_http1(stream, head, body).await?;
    let head = session.response_header();
    let status = head.map_or(500, |head| head.status.as_u16());
    let told = ["x-tollgate-deployment", "x-tollgate-refusal"]
        .map(|name| head.and_then(|head| Some(head.headers.get(name)?.to_str().ok()?.to_owned())));
    let mut whole = Vec::new();
    while let Some(piece) = session.read_response_body().await? {
        whole.extend_from_slice(&piece);
    }
    Ok((status, whole.into(), told))
}
