//! Many streams at once. Each token says when the provider sent it, so that its delay is known without a second run, and
//! which one it is, so that order and loss show.

use super::pace::histogram;
use super::process;
use super::stack::Target;
use crate::fake::log::unix_ns;
use hdrhistogram::Histogram;
use memchr::memmem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What a burst of streams saw.
pub struct Burst {
    /// From the provider's send to the caller's read, in nanoseconds.
    pub delays: Histogram<u64>,
    /// Streams that were whole and in order.
    pub whole: u32,
    /// Processor time of the target for one stream; `None` for the provider itself.
    pub cpu_us: Option<f64>,
    /// Resident memory of the target with all streams running, and before.
    pub resident_kib: Option<(u64, u64)>,
}

/// A burst's size.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub streams: u32,
    pub tokens: u32,
    /// Over which the streams are started.
    pub ramp: Duration,
    /// When, after the start, all of them run.
    pub steady: Duration,
}

/// Runs the streams and waits for the last of them.
pub async fn burst(target: &Target, request: Arc<[u8]>, shape: Shape) -> Burst {
    let cpu = || target.pid.map_or(Duration::ZERO, process::cpu);
    let resident = || target.pid.map_or(0, process::resident_kib);
    let (cpu_before, resident_before) = (cpu(), resident());
    let mut running = JoinSet::new();
    for index in 0..shape.streams {
        let (address, request) = (target.address, request.clone());
        running.spawn(async move {
            tokio::time::sleep(shape.ramp * index / shape.streams).await;
            stream(address, &request, shape.tokens).await
        });
    }
    tokio::time::sleep(shape.steady).await;
    let resident_during = resident();
    let (mut delays, mut whole) = (histogram(), 0);
    while let Some(ended) = running.join_next().await {
        let (seen, is_whole) = ended.unwrap();
        delays += seen;
        whole += u32::from(is_whole);
    }
    let used = cpu() - cpu_before;
    Burst {
        delays,
        whole,
        cpu_us: target
            .pid
            .map(|_| used.as_secs_f64() * 1e6 / f64::from(shape.streams)),
        resident_kib: target.pid.map(|_| (resident_during, resident_before)),
    }
}

/// One stream: the delays of its tokens, and whether all of them came in their order, followed by the end.
async fn stream(address: SocketAddr, request: &[u8], tokens: u32) -> (Histogram<u64>, bool) {
    let mut delays = histogram();
    let mut expected = 0;
    let mut in_order = true;
    let mut ended = false;
    let read = async {
        let mut connection = TcpStream::connect(address).await?;
        connection.set_nodelay(true)?;
        connection.write_all(request).await?;
        let mut buffer = Vec::with_capacity(16 << 10);
        while !ended && connection.read_buf(&mut buffer).await? > 0 {
            let now = unix_ns();
            let mut used = 0;
            // A stamp is nineteen digits and a space; what is cut off is read with the rest of it.
            while let Some(at) = memmem::find(&buffer[used..], b"tok") {
                let token = &buffer[used + at..];
                let Some(space) = memchr::memchr(b' ', token) else {
                    break;
                };
                let text = std::str::from_utf8(&token[3..space]).unwrap_or_default();
                let (index, sent) = text.split_once('@').unwrap_or_default();
                in_order &= index.parse() == Ok(expected);
                expected += 1;
                delays.saturating_record(now.saturating_sub(sent.parse().unwrap_or(0)).max(1));
                used += at + space;
            }
            ended = memmem::find(&buffer[used..], b"[DONE]").is_some() && buffer.ends_with(b"0\r\n\r\n");
            // The end may come in two pieces.
            let keep = (buffer.len() - used).min(64);
            used = used.max(if memmem::find(&buffer[used..], b"tok").is_some() {
                used
            } else {
                buffer.len() - keep
            });
            buffer.drain(..used);
        }
        std::io::Result::Ok(())
    };
    let whole = read.await.is_ok();
    (delays, whole && ended && in_order && expected == tokens)
}
