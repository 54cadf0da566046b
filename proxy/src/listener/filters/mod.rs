//! Listener filters: what is learned of a connection before a filter chain is chosen. They only peek: every byte is still
//! there for whoever serves the connection.

pub(super) mod http_inspector;
pub(super) mod original_dst;
pub(super) mod tls_inspector;

use crate::config::model::{ListenerFilterConfig, ListenerFilterPredicate};
use crate::net::Socket;
use crate::stats::{Counter, Histogram, Registry, Unit};
use http_inspector::Http;
use socket2::SockRef;
use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use tls_inspector::NotTls;
use tokio::io::Interest;

/// What an inspector says of the bytes so far.
pub(super) enum Verdict<T> {
    More,
    Done(T),
}

/// What the inspectors found.
#[derive(Debug, Default)]
pub(super) struct Detected {
    pub tls: bool,
    /// Lower case.
    pub server_name: Option<Box<str>>,
    pub application_protocols: Vec<Box<str>>,
}

/// Why there is nothing to serve.
#[derive(Debug)]
pub(super) enum FilterError {
    RemoteClosed,
    Io,
}

/// Stats of all inspectors of the process.
pub(super) struct InspectorStats {
    tls_found: Counter,
    tls_not_found: Counter,
    client_hello_too_large: Counter,
    alpn_found: Counter,
    alpn_not_found: Counter,
    sni_found: Counter,
    sni_not_found: Counter,
    bytes_processed: Histogram,
    http10_found: Counter,
    http11_found: Counter,
    http2_found: Counter,
    http_not_found: Counter,
    http_read_error: Counter,
}

impl InspectorStats {
    pub fn new(registry: &Registry) -> InspectorStats {
        let tls = registry.scope("tls_inspector.");
        let http = registry.scope("http_inspector.");
        InspectorStats {
            tls_found: tls.counter("tls_found"),
            tls_not_found: tls.counter("tls_not_found"),
            client_hello_too_large: tls.counter("client_hello_too_large"),
            alpn_found: tls.counter("alpn_found"),
            alpn_not_found: tls.counter("alpn_not_found"),
            sni_found: tls.counter("sni_found"),
            sni_not_found: tls.counter("sni_not_found"),
            bytes_processed: tls.histogram("bytes_processed", Unit::Bytes),
            http10_found: http.counter("http10_found"),
            http11_found: http.counter("http11_found"),
            http2_found: http.counter("http2_found"),
            http_not_found: http.counter("http_not_found"),
            http_read_error: http.counter("read_error"),
        }
    }
}

/// Whether the filter is left out for this destination port.
fn is_disabled(predicate: &ListenerFilterPredicate, port: u16) -> bool {
    match predicate {
        ListenerFilterPredicate::Never => false,
        ListenerFilterPredicate::Always => true,
        ListenerFilterPredicate::DestinationPort { start, end } => *start <= port && u32::from(port) < *end,
        ListenerFilterPredicate::Not(inner) => !is_disabled(inner, port),
        ListenerFilterPredicate::And(all) => all.iter().all(|p| is_disabled(p, port)),
        ListenerFilterPredicate::Or(any) => any.iter().any(|p| is_disabled(p, port)),
    }
}

/// Runs the inspectors in their order. What was found before the caller's time limit cut this short stays in `detected`.
///
/// # Errors
/// The connection ended first.
pub(super) async fn inspect(
    filters: &[ListenerFilterConfig],
    socket: &Socket,
    destination_port: u16,
    stats: &InspectorStats,
    detected: &mut Detected,
) -> Result<(), FilterError> {
    for filter in filters {
        match filter {
            // done at once when the connection was accepted, and replaced by what was delivered
            ListenerFilterConfig::OriginalDst | ListenerFilterConfig::Dynamic(..) => {}
            ListenerFilterConfig::TlsInspector(disabled) if !is_disabled(disabled, destination_port) => {
                let (hello, seen) = peek_until(socket, tls_inspector::inspect).await?;
                stats.bytes_processed.record(seen as u64);
                match hello {
                    Ok(hello) => {
                        stats.tls_found.inc();
                        let alpn = if hello.alpn.is_empty() { &stats.alpn_not_found } else { &stats.alpn_found };
                        alpn.inc();
                        let sni = if hello.server_name.is_some() { &stats.sni_found } else { &stats.sni_not_found };
                        sni.inc();
                        detected.tls = true;
                        detected.server_name = hello.server_name;
                        detected.application_protocols = hello.alpn;
                    }
                    Err(why) => {
                        stats.tls_not_found.inc();
                        if why == NotTls::TooLarge {
                            stats.client_hello_too_large.inc();
                        }
                    }
                }
            }
            // what is encrypted needs no look
            ListenerFilterConfig::HttpInspector(disabled)
                if !detected.tls && !is_disabled(disabled, destination_port) =>
            {
                let found = peek_until(socket, http_inspector::inspect).await;
                let (http, _) = found.inspect_err(|_| stats.http_read_error.inc())?;
                let counter = match http {
                    Http::V1_0 => &stats.http10_found,
                    Http::V1_1 => &stats.http11_found,
                    Http::V2 => &stats.http2_found,
                    Http::No => &stats.http_not_found,
                };
                counter.inc();
                detected.application_protocols = http.protocol().map(Box::from).into_iter().collect();
            }
            ListenerFilterConfig::TlsInspector(_) | ListenerFilterConfig::HttpInspector(_) => {}
        }
    }
    Ok(())
}

/// Room for the largest ClientHello with its record headers; shared by all connections of the thread, because a peek
/// is over before anybody else runs.
const PEEK_BYTES: usize = tls_inspector::MAX_CLIENT_HELLO + 1024;

thread_local! {
    static PEEKED: RefCell<Vec<MaybeUninit<u8>>> = RefCell::new(vec![MaybeUninit::uninit(); PEEK_BYTES]);
}

/// Peeks, and judges, each time that more bytes have come. Says how many bytes the verdict took.
async fn peek_until<T>(socket: &Socket, judge: impl Fn(&[u8]) -> Verdict<T>) -> Result<(T, usize), FilterError> {
    let mut closed = false;
    loop {
        let verdict = PEEKED.with_borrow_mut(|buffer| {
            let received = peek(socket, buffer)?;
            // SAFETY: `peek` says that the first `received` bytes were written, and it never says more than the length.
            let bytes = unsafe { buffer[..received].assume_init_ref() };
            Ok::<_, io::Error>((judge(bytes), received))
        });
        match verdict {
            Ok((Verdict::Done(verdict), received)) => return Ok((verdict, received)),
            // a peek never ends a stream that still has bytes: that it is closed shows in its readiness
            Ok((Verdict::More, received)) if received == 0 || closed || received == PEEK_BYTES => {
                return Err(FilterError::RemoteClosed);
            }
            Ok((Verdict::More, _)) => forget_readiness(socket),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(FilterError::Io),
        }
        let ready = match socket {
            Socket::Tcp(s) => s.ready(Interest::READABLE).await,
            Socket::Unix(s) => s.ready(Interest::READABLE).await,
        };
        closed = ready.map_err(|_| FilterError::Io)?.is_read_closed();
    }
}

fn peek(socket: &Socket, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    match socket {
        Socket::Tcp(s) => s.try_io(Interest::READABLE, || SockRef::from(s).peek(buffer)),
        Socket::Unix(s) => s.try_io(Interest::READABLE, || SockRef::from(s).peek(buffer)),
    }
}

/// Bytes that stay unread keep a socket readable for tokio, and waiting would spin. Claiming that a read would block makes
/// tokio forget; epoll is edge-triggered, so the next segment (or the end) raises readiness anew, also one that
/// arrived meanwhile.
fn forget_readiness(socket: &Socket) {
    let pretend = || -> io::Result<()> { Err(io::ErrorKind::WouldBlock.into()) };
    // the answer is the error above
    let _ = match socket {
        Socket::Tcp(s) => s.try_io(Interest::READABLE, pretend),
        Socket::Unix(s) => s.try_io(Interest::READABLE, pretend),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::StatsConfig;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        (client, Socket::Tcp(listener.accept().await.unwrap().0))
    }

    fn both() -> [ListenerFilterConfig; 2] {
        let never = ListenerFilterPredicate::Never;
        [ListenerFilterConfig::TlsInspector(never.clone()), ListenerFilterConfig::HttpInspector(never)]
    }

    /// Sends the parts one by one; says what was detected, and that every byte is still there.
    async fn detect(parts: &[&[u8]]) -> Result<Detected, FilterError> {
        let (mut client, mut socket) = pair().await;
        let stats = InspectorStats::new(&Registry::new(StatsConfig::default()));
        let whole = parts.concat();
        let sending = async {
            for part in parts {
                client.write_all(part).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            client.shutdown().await.unwrap();
        };
        let mut detected = Detected::default();
        let filters = both();
        let (result, ()) = tokio::join!(inspect(&filters, &socket, 80, &stats, &mut detected), sending);
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, whole);
        result.map(|()| detected)
    }

    #[tokio::test]
    async fn both_inspectors_see_bytes_in_pieces_and_consume_none() {
        let hello = tls_inspector::tests::client_hello("a.example.com", &["istio"]);
        let tls = detect(&[&hello[..3], &hello[3..100], &hello[100..]]).await.unwrap();
        assert_eq!((tls.tls, tls.server_name.as_deref()), (true, Some("a.example.com")));
        assert_eq!(tls.application_protocols, ["istio".into()]);
        let http = detect(&[b"GE", b"T / HT", b"TP/1.1\r\n", b"\r\n"]).await.unwrap();
        assert_eq!((http.tls, http.application_protocols), (false, vec!["http/1.1".into()]));
        let other = detect(&[b"\x00\x01"]).await.unwrap();
        assert!(!other.tls && other.application_protocols.is_empty());
    }

    #[tokio::test]
    async fn a_peer_that_leaves_is_noticed_with_bytes_unread() {
        assert!(matches!(detect(&[b"GE"]).await, Err(FilterError::RemoteClosed)));
        assert!(matches!(detect(&[]).await, Err(FilterError::RemoteClosed)));
    }

    #[test]
    fn predicates_leave_filters_out_by_port() {
        let range = |start, end| ListenerFilterPredicate::DestinationPort { start, end };
        let either = ListenerFilterPredicate::Or(vec![range(80, 81), range(443, 444)]);
        assert!(is_disabled(&either, 443) && !is_disabled(&either, 81));
        assert!(is_disabled(&range(65535, 65536), 65535));
        assert!(!is_disabled(&ListenerFilterPredicate::Not(Box::new(either.clone())), 80));
        assert!(!is_disabled(&ListenerFilterPredicate::And(vec![either, range(80, 90)]), 443));
    }
}
