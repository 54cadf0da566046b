//! TCP through the proxy.

use outrigger_tests::origin::{TcpBehaviour, TcpOrigin};
use outrigger_tests::proxy::Proxy;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;

async fn bed(behaviour: TcpBehaviour) -> (TcpOrigin, Proxy, SocketAddr) {
    let origin = TcpOrigin::start("v1", behaviour).unwrap();
    let proxy = start(&tcp_front("tcp", "cluster: a"), &cluster("a", &[origin.address()], "")).await;
    let front = address(&proxy, "tcp").await;
    (origin, proxy, front)
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted() {
    let (origin, proxy, front) = bed(TcpBehaviour::Echo).await;
    let mut stream = TcpStream::connect(front).await.unwrap();
    let mut echo = [0; 5];
    for _ in 0..3 {
        stream.write_all(b"hello").await.unwrap();
        soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"hello");
    }
    assert_eq!(stat(&proxy, "tcp.tcp.downstream_cx_total").await, 1);
    assert_eq!(stat(&proxy, "cluster.a.upstream_cx_active").await, 1);
    drop(stream);
    eventually("the upstream connection to close", || async { origin.open_connections() == 0 }).await;
    proxy.wait_stat("cluster.a.upstream_cx_active", |v| v == 0).await.unwrap();
    for (name, expected) in [
        ("tcp.tcp.downstream_cx_rx_bytes_total", 15),
        ("tcp.tcp.downstream_cx_tx_bytes_total", 15),
        ("cluster.a.upstream_cx_rx_bytes_total", 15),
        ("cluster.a.upstream_cx_tx_bytes_total", 15),
        ("cluster.a.upstream_cx_total", 1),
    ] {
        assert_eq!(stat(&proxy, name).await, expected, "{name}");
    }
}

#[tokio::test]
async fn a_client_may_close_its_half_first() {
    let (_origin, _proxy, front) = bed(TcpBehaviour::CountUntilEof).await;
    let mut stream = TcpStream::connect(front).await.unwrap();
    stream.write_all(&[b'x'; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "v1 100000\n");
}

#[tokio::test]
async fn a_server_may_close_its_half_first() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = start(&tcp_front("tcp", "cluster: a"), &cluster("a", &[listener.local_addr().unwrap()], "")).await;
    let front = address(&proxy, "tcp").await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest.len()
    });
    let mut stream = TcpStream::connect(front).await.unwrap();
    let mut answer = String::new();
    soon("the server's end", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "bye");
    stream.write_all(&[b'x'; 50_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(soon("the rest", server).await.unwrap(), 50_000);
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let (_origin, _proxy, front) = bed(TcpBehaviour::Greet).await;
    let mut stream = TcpStream::connect(front).await.unwrap();
    let mut greeting = [0; 3];
    soon("the greeting", stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"v1\n");
}

#[tokio::test]
async fn big_transfers_arrive_intact() {
    const SIZE: usize = 64 << 20;
    let (_origin, _proxy, front) = bed(TcpBehaviour::Echo).await;
    let (mut read, mut write) = TcpStream::connect(front).await.unwrap().into_split();
    // A period that divides no buffer size shows bytes out of place.
    let byte = |at: usize| (at % 251) as u8;
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while sent < SIZE {
            let chunk: Vec<u8> = (sent..SIZE.min(sent + 262_144)).map(byte).collect();
            write.write_all(&chunk).await.unwrap();
            sent += chunk.len();
        }
        write.shutdown().await.unwrap();
    });
    let mut buffer = vec![0; 262_144];
    let mut received = 0;
    loop {
        let n = soon("more bytes", read.read(&mut buffer)).await.unwrap();
        if n == 0 {
            break;
        }
        assert!(buffer[..n].iter().enumerate().all(|(i, b)| *b == byte(received + i)), "wrong bytes after {received}");
        received += n;
    }
    sender.await.unwrap();
    assert_eq!(received, SIZE);
}

#[tokio::test]
async fn connections_are_spread_by_weight() {
    let (v1, v2) =
        (TcpOrigin::start("v1", TcpBehaviour::Greet).unwrap(), TcpOrigin::start("v2", TcpBehaviour::Greet).unwrap());
    let clusters = cluster("v1", &[v1.address()], "") + &cluster("v2", &[v2.address()], "");
    let fields = "weighted_clusters: { clusters: [{ name: v1, weight: 80 }, { name: v2, weight: 20 }] }";
    let proxy = start(&tcp_front("tcp", fields), &clusters).await;
    let front = address(&proxy, "tcp").await;
    for _ in 0..300 {
        let mut stream = TcpStream::connect(front).await.unwrap();
        soon("the greeting", stream.read_u8()).await.unwrap();
    }
    // Binomial(300, 0.2) has a standard deviation of 6.9; five of them around the mean.
    assert!((26..=94).contains(&v2.connections()), "{} of 300", v2.connections());
    assert_eq!(v1.connections() + v2.connections(), 300);
}

#[tokio::test]
async fn a_dead_upstream_closes_the_client() {
    let clusters = cluster("down", &[dead_address()], "") + &cluster("empty", &[], "");
    let fronts = tcp_front("down", "cluster: down") + &tcp_front("empty", "cluster: empty");
    let proxy = start(&fronts, &clusters).await;
    for name in ["down", "empty"] {
        let mut stream = TcpStream::connect(address(&proxy, name).await).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon("the proxy to close", stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty());
    }
    assert_eq!(stat(&proxy, "cluster.down.upstream_cx_connect_fail").await, 1);
    assert_eq!(stat(&proxy, "cluster.empty.upstream_cx_none_healthy").await, 1);
}

#[tokio::test]
async fn an_upstream_that_closes_or_resets_ends_the_connection() {
    let (origin, proxy, front) = bed(TcpBehaviour::Close).await;
    for behaviour in [TcpBehaviour::Close, TcpBehaviour::Reset] {
        origin.set(behaviour);
        let mut stream = TcpStream::connect(front).await.unwrap();
        let _ = soon("the end", stream.read_u8()).await.unwrap_err();
    }
    origin.set(TcpBehaviour::Echo);
    let mut stream = TcpStream::connect(front).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    assert_eq!(stat(&proxy, "cluster.a.upstream_cx_total").await, 3);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let origin = TcpOrigin::start("v1", TcpBehaviour::Echo).unwrap();
    let fronts = tcp_front("tcp", "cluster: a, idle_timeout: 0.2s");
    let proxy = start(&fronts, &cluster("a", &[origin.address()], "")).await;
    let mut stream = TcpStream::connect(address(&proxy, "tcp").await).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    let _ = soon("the proxy to close", stream.read_u8()).await.unwrap_err();
    assert_eq!(stat(&proxy, "tcp.tcp.idle_timeout").await, 1);
    eventually("the upstream to be closed", || async { origin.open_connections() == 0 }).await;
}
