//! The load generator: kept-alive HTTP/1.1 connections, closed loop (as fast as answers come) or open loop (at a rate, with
//! latency counted from when each request was due).

use crate::origin::find;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where to send requests
    #[arg(long)]
    pub target: SocketAddr,
    #[arg(long, default_value = "/")]
    pub path: String,
    #[arg(long, default_value = "bench.example")]
    pub host: String,
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Requests per second in all; without it each connection sends as soon as it has its answer
    #[arg(long)]
    pub rate: Option<f64>,
}

/// What the load saw.
#[derive(Debug)]
pub struct Outcome {
    pub answered: u64,
    pub failed: u64,
    pub elapsed: Duration,
    /// Microseconds.
    pub latency: Histogram<u64>,
}

impl Outcome {
    pub fn to_json(&self) -> Value {
        let at = |q| self.latency.value_at_quantile(q) as f64 / 1000.0;
        json!({
            "answered": self.answered,
            "failed": self.failed,
            "rps": self.answered as f64 / self.elapsed.as_secs_f64(),
            "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "p999_ms": at(0.999),
        })
    }
}

/// Sends load for the time asked for.
///
/// # Errors
/// No connection at all can be made.
pub async fn run(options: &Options) -> io::Result<Outcome> {
    let request =
        format!("GET {} HTTP/1.1\r\nhost: {}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n", options.path, options.host);
    let latency = Histogram::new_with_bounds(1, 60_000_000, 3).map_err(io::Error::other)?;
    let outcome = Rc::new(RefCell::new(Outcome { answered: 0, failed: 0, elapsed: Duration::ZERO, latency }));
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(options.seconds);
    let interval = options.rate.map(|rate| Duration::from_secs_f64(options.connections as f64 / rate));
    let local = tokio::task::LocalSet::new();
    for k in 0..options.connections {
        let mut connection =
            Connection { stream: TcpStream::connect(options.target).await?, buffer: vec![0; 16 * 1024] };
        connection.stream.set_nodelay(true)?;
        let (request, outcome, target) = (request.clone(), outcome.clone(), options.target);
        // connections of an open loop take turns
        let first = began + interval.map_or(Duration::ZERO, |i| i.mul_f64(k as f64 / options.connections as f64));
        local.spawn_local(async move {
            let mut due = first;
            while due < end {
                // from when latency counts: a request that waited for its connection waited for the proxy, but what
                // the timer adds to a pause (it has a millisecond of grain) is ours
                let mut from = due;
                if interval.is_none() {
                    due = Instant::now();
                    from = due;
                } else if Instant::now() < due {
                    tokio::time::sleep_until(due).await;
                    from = Instant::now();
                }
                match connection.exchange(request.as_bytes()).await {
                    Ok(()) => {
                        let mut outcome = outcome.borrow_mut();
                        outcome.answered += 1;
                        outcome.latency.saturating_record(from.elapsed().as_micros() as u64);
                    }
                    Err(_) => {
                        outcome.borrow_mut().failed += 1;
                        match TcpStream::connect(target).await {
                            Ok(stream) => connection.stream = stream,
                            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                        }
                    }
                }
                due = interval.map_or_else(Instant::now, |i| due + i);
            }
        });
    }
    local.await;
    let mut outcome =
        Rc::into_inner(outcome).ok_or_else(|| io::Error::other("a connection is still running"))?.into_inner();
    outcome.elapsed = began.elapsed();
    Ok(outcome)
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// One request and its whole answer, which must be a 200 with a content-length.
    async fn exchange(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await?;
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut filled = 0;
        let mut whole = None;
        loop {
            let n = self.stream.read(&mut self.buffer[filled..]).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += n;
            if whole.is_none()
                && let Some(head) = find(&self.buffer[..filled], b"\r\n\r\n")
            {
                let text = std::str::from_utf8(&self.buffer[..head]).map_err(|_| bad("headers are not ASCII"))?;
                if !text.starts_with("HTTP/1.1 200") {
                    return Err(bad("not a 200"));
                }
                let length = text
                    .lines()
                    .filter_map(|l| l.split_once(':'))
                    .find(|(k, _)| k.eq_ignore_ascii_case("content-length"))
                    .and_then(|(_, v)| v.trim().parse::<usize>().ok())
                    .ok_or_else(|| bad("no content-length"))?;
                whole = Some(head + 4 + length);
            }
            match whole {
                Some(whole) if filled == whole => return Ok(()),
                Some(whole) if filled > whole => return Err(bad("bytes after the answer")),
                _ if filled == self.buffer.len() => return Err(bad("answer over 16 KiB")),
                _ => {}
            }
        }
    }
}
