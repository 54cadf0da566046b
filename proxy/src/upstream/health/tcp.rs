//! TCP health checks: being connected, or bytes sent and bytes expected.

use super::state::{Failure, Verdict};
use super::target::Target;
use super::{Kept, contains_in_order};
use crate::config::model::TcpCheck;
use crate::net::Transport;
use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes that are searched for the expected ones. Envoy has no such bound.
const MAX_RECEIVED: usize = 1 << 20;

const BROKEN: (Verdict, Option<Kept>) = (Verdict::Fail(Failure::Network), None);

/// One check, unbounded in time: the caller sets the bound.
pub(super) async fn run(check: &TcpCheck, target: &Target, kept: Option<Kept>) -> (Verdict, Option<Kept>) {
    let mut stream = match kept.and_then(quiet) {
        Some(stream) => stream,
        None => match target.connect().await {
            Ok(stream) => stream,
            Err(_) => return BROKEN,
        },
    };
    if stream.write_all(&check.send).await.is_err() || stream.flush().await.is_err() {
        return BROKEN;
    }
    let passed = (Verdict::Pass { degraded: false }, None);
    if check.receive.is_empty() {
        // how the connection ends is not asked for
        let _ = stream.shutdown().await;
        return passed;
    }
    let mut received = BytesMut::new();
    while !contains_in_order(&check.receive, &received) {
        match stream.read_buf(&mut received).await {
            Ok(n) if n > 0 && received.len() <= MAX_RECEIVED => {}
            _ => return BROKEN,
        }
    }
    (passed.0, Some(Kept::Tcp(stream)))
}

/// A connection that is open and over which nothing came since the last check.
fn quiet(kept: Kept) -> Option<Transport> {
    let Kept::Tcp(mut stream) = kept else { return None };
    let mut byte = [0];
    let waits = stream.read(&mut byte).now_or_never().is_none();
    waits.then_some(stream)
}
