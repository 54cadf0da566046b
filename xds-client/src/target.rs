//! `target_uri` of Envoy's `google_grpc`: the names that gRPC gives to servers (gRPC docs, "gRPC Name Resolution").
//! What is not supported is refused by name. TLS is a handshake of the user's own.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::connect::{BoxIo, CONNECT_TIMEOUT, Connect, TcpConnector, UnixConnector, in_turn};

/// The port of a target that names none.
const DEFAULT_PORT: u16 = 443;

/// A server, by the name gRPC gives it.
///
/// | Form | Meaning |
/// |---|---|
/// | `host`, `host:port`, `dns:host:port`, `dns:///host:port` | a host by DNS; without a port, 443 |
/// | `ipv4:1.2.3.4:5`, `ipv4:1.2.3.4:5,1.2.3.5:5` | addresses, tried in turn |
/// | `ipv6:[::1]:5`, `ipv6:[::1]:5,[::2]:5` | addresses, tried in turn |
/// | `unix:path`, `unix:///path` | a Unix socket; the second form is absolute |
/// | `unix-abstract:name` | a Unix socket in Linux's abstract namespace |
///
/// ```
/// use xds_client::Target;
/// let target: Target = "dns:///xds.example.com:18000".parse().unwrap();
/// assert_eq!((target.authority(), target.host()), ("xds.example.com:18000", "xds.example.com"));
/// let error = "xds:///cluster".parse::<Target>().unwrap_err();
/// assert_eq!(error.to_string(), "target_uri: found \"xds:///cluster\", the scheme xds is not supported");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    addresses: Vec<Address>,
    authority: String,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    /// `host:port`.
    Tcp(String),
    /// A path, or `@` and a name.
    Unix(String),
}

/// How an address is reached; kept, as it remembers whose turn it is.
enum Way {
    Tcp(TcpConnector),
    Unix(UnixConnector),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Tcp(tcp) => f.write_str(&tcp.authority()),
            Way::Unix(_) => f.write_str("the Unix socket"),
        }
    }
}

impl Target {
    /// The `:authority` that gRPC sends: host and port, or `localhost` for a Unix socket.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The name that the server's certificate must carry: the host without its port; `localhost` for a Unix socket.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// A target that cannot be reached, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("target_uri: found {uri:?}, {problem}")]
pub struct TargetError {
    uri: String,
    problem: String,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(uri: &str) -> Result<Self, TargetError> {
        parse(uri).map_err(|problem| TargetError { uri: uri.into(), problem })
    }
}

fn parse(uri: &str) -> Result<Target, String> {
    let tcp = |addresses: Vec<(String, u16)>| {
        let (host, _) = addresses.first().ok_or("expected an address")?;
        let host = host.trim_matches(['[', ']']).to_string();
        let addresses: Vec<String> = addresses.into_iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let authority = addresses.first().cloned().unwrap_or_default();
        Ok(Target { addresses: addresses.into_iter().map(Address::Tcp).collect(), authority, host })
    };
    let unix = |path: String| Target {
        addresses: vec![Address::Unix(path)],
        authority: "localhost".into(),
        host: "localhost".into(),
    };
    match uri.split_once(':') {
        Some(("dns", rest)) => tcp(vec![host_port(dns_path(rest)?)?]),
        Some(("ipv4", rest)) => tcp(rest.split(',').map(ipv4).collect::<Result<_, _>>()?),
        Some(("ipv6", rest)) => tcp(rest.split(',').map(ipv6).collect::<Result<_, _>>()?),
        Some(("unix", rest)) => {
            let path = match rest.strip_prefix("//") {
                Some(path) if path.starts_with('/') => path,
                Some(_) => return Err("expected an absolute path after unix://".into()),
                None => rest,
            };
            if path.is_empty() || path.starts_with('@') || path.contains('\0') {
                return Err("expected a path".into());
            }
            Ok(unix(path.into()))
        }
        Some(("unix-abstract", "")) => Err("expected a name".into()),
        Some(("unix-abstract", name)) if name.contains('\0') => Err("expected a name without zero bytes".into()),
        Some(("unix-abstract", name)) => Ok(unix(format!("@{name}"))),
        Some((scheme @ ("xds" | "vsock" | "google-c2p" | "google-c2p-experimental" | "passthrough"), _)) => {
            Err(format!("the scheme {scheme} is not supported"))
        }
        Some((scheme, rest)) if rest.starts_with("//") => Err(format!("the scheme {scheme} is not supported")),
        // What has no scheme that gRPC knows is a name for DNS.
        _ => tcp(vec![host_port(uri)?]),
    }
}

/// `host:port` of `//server/host:port`, `///host:port`, `/host:port` or itself.
fn dns_path(rest: &str) -> Result<&str, String> {
    let Some(after) = rest.strip_prefix("//") else { return Ok(rest.strip_prefix('/').unwrap_or(rest)) };
    match after.split_once('/') {
        Some(("", path)) => Ok(path),
        Some((server, _)) => Err(format!("a DNS server of its own ({server}) is not supported")),
        None => Err("expected dns:///host:port".into()),
    }
}

fn host_port(text: &str) -> Result<(String, u16), String> {
    if text.starts_with('[') {
        return ipv6(text);
    }
    let (host, port) = match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => return ipv6(text),
        Some((host, port)) => (host, self::port(port)?),
        None => (text, DEFAULT_PORT),
    };
    // Neither a path nor a URL with user or query: those would be resolved as odd names.
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.is_empty() || !host.chars().all(legal) {
        return Err("expected a host and a port".into());
    }
    Ok((host.into(), port))
}

fn ipv4(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, self::port(port)?),
        None => (text, DEFAULT_PORT),
    };
    let address: Ipv4Addr = host.parse().map_err(|_| format!("{host:?} is no IPv4 address"))?;
    Ok((address.to_string(), port))
}

fn ipv6(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, DEFAULT_PORT),
        Some((host, port)) => (host, self::port(port.strip_prefix(':').unwrap_or_default())?),
        None => (text, DEFAULT_PORT),
    };
    let address: Ipv6Addr = host.parse().map_err(|_| format!("{host:?} is no IPv6 address"))?;
    Ok((format!("[{address}]"), port))
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{text:?} is no port")),
    }
}

/// Turns a plain byte stream into a secure one: TLS, for a user that has it.
pub trait Handshake: Send + Sync + 'static {
    /// Speaks the client's side over `io` to the server named `host`, which must prove that name.
    fn handshake(&self, io: BoxIo, host: &str) -> BoxFuture<'static, io::Result<BoxIo>>;
}

/// Connects to a [`Target`], trying its addresses one after the other, each with its share of the time; each attempt begins
/// with the next one.
///
/// ```
/// use std::sync::Arc;
/// use xds_client::{Connect, TargetConnector};
/// let connector = TargetConnector::new("unix:///run/xds.sock".parse()?).with_authority("xds");
/// assert_eq!((connector.authority().as_str(), connector.scheme()), ("xds", "http"));
/// # Ok::<(), xds_client::TargetError>(())
/// ```
#[derive(Clone)]
pub struct TargetConnector {
    target: Target,
    ways: Arc<[Way]>,
    turn: Arc<AtomicUsize>,
    authority: Option<String>,
    handshake: Option<Arc<dyn Handshake>>,
}

impl TargetConnector {
    /// A connector in plaintext.
    pub fn new(target: Target) -> Self {
        let ways = target.addresses.iter().map(|address| match address {
            Address::Tcp(address) => Way::Tcp(TcpConnector::new(address)),
            Address::Unix(path) => Way::Unix(UnixConnector::new(path)),
        });
        TargetConnector { ways: ways.collect(), target, turn: Arc::default(), authority: None, handshake: None }
    }

    /// Secures each connection before it is used: `channel_credentials`.
    pub fn with_handshake(mut self, handshake: Arc<dyn Handshake>) -> Self {
        self.handshake = Some(handshake);
        self
    }

    /// Sends this `:authority` instead of the target's.
    pub fn with_authority(mut self, authority: impl Into<String>) -> Self {
        self.authority = Some(authority.into());
        self
    }
}

impl fmt::Debug for TargetConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.handshake.is_some() { ", secured" } else { "" };
        write!(f, "TargetConnector({}{secure})", self.target.authority)
    }
}

impl Connect for TargetConnector {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>> {
        self.connect_within(CONNECT_TIMEOUT)
    }

    fn connect_within(&self, limit: Duration) -> BoxFuture<'static, io::Result<BoxIo>> {
        let (ways, handshake, host) = (self.ways.clone(), self.handshake.clone(), self.target.host.clone());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            in_turn(&ways, turn, limit, |way, share| {
                let connecting = match way {
                    Way::Tcp(tcp) => tcp.connect_within(share),
                    Way::Unix(unix) => unix.connect_within(share),
                };
                let (handshake, host) = (handshake.clone(), host.clone());
                Box::pin(async move {
                    let io = connecting.await?;
                    match handshake {
                        Some(secure) => secure.handshake(io, &host).await,
                        None => Ok(io),
                    }
                })
            })
            .await
        })
    }

    fn scheme(&self) -> &'static str {
        if self.handshake.is_some() { "https" } else { "http" }
    }

    fn authority(&self) -> String {
        self.authority.clone().unwrap_or_else(|| self.target.authority.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(uri: &str) -> (Vec<String>, String) {
        let target: Target = uri.parse().unwrap_or_else(|e| panic!("{e}"));
        let addresses = target.addresses.iter().map(|a| match a {
            Address::Tcp(address) => address.clone(),
            Address::Unix(path) => format!("unix {path}"),
        });
        (addresses.collect(), target.authority.clone())
    }

    #[test]
    fn every_form_of_grpc_is_read() {
        for (uri, address) in [
            ("xds.svc:15010", "xds.svc:15010"),
            ("xds.svc", "xds.svc:443"),
            ("localhost:80", "localhost:80"),
            ("dns:xds.svc:15010", "xds.svc:15010"),
            ("dns:///xds.svc:15010", "xds.svc:15010"),
            ("dns:///xds.svc", "xds.svc:443"),
            ("ipv4:1.2.3.4:5", "1.2.3.4:5"),
            ("ipv4:1.2.3.4", "1.2.3.4:443"),
            ("ipv6:[::1]:5", "[::1]:5"),
            ("ipv6:::1", "[::1]:443"),
            ("[::1]:5", "[::1]:5"),
            ("dns:///[::1]:5", "[::1]:5"),
        ] {
            assert_eq!(reached(uri), (vec![address.to_string()], address.to_string()), "{uri}");
        }
        for (uri, path) in [
            ("unix:run/xds.sock", "unix run/xds.sock"),
            ("unix:/run/xds.sock", "unix /run/xds.sock"),
            ("unix:///run/xds.sock", "unix /run/xds.sock"),
            ("unix-abstract:xds", "unix @xds"),
        ] {
            assert_eq!(reached(uri), (vec![path.to_string()], "localhost".to_string()), "{uri}");
        }
        assert_eq!(reached("ipv4:1.2.3.4:5,5.6.7.8").0, ["1.2.3.4:5", "5.6.7.8:443"]);
        assert_eq!("dns:///[::1]:5".parse::<Target>().unwrap().host(), "::1");
    }

    #[test]
    fn what_cannot_be_reached_is_refused_by_name() {
        for (uri, why) in [
            ("", "expected a host"),
            ("dns:", "expected a host"),
            ("dns://8.8.8.8/xds.svc", "DNS server of its own (8.8.8.8)"),
            ("dns://xds.svc", "expected dns:///"),
            ("ipv4:xds.svc:5", "no IPv4 address"),
            ("ipv4:1.2.3.4:0", "no port"),
            ("ipv6:[::1]5", "no port"),
            ("ipv6:1.2.3.4:5", "no IPv6 address"),
            ("unix:", "expected a path"),
            ("unix://run/xds.sock", "absolute path"),
            ("unix-abstract:", "expected a name"),
            ("vsock:1:2", "scheme vsock"),
            ("http://xds.svc:80", "scheme http"),
            ("xds.svc:http", "no port"),
            ("a b:80", "expected a host"),
        ] {
            let error = uri.parse::<Target>().expect_err(uri).to_string();
            assert!(error.contains(why) && error.contains(&format!("{uri:?}")), "{uri}: {error}");
        }
    }

    #[tokio::test]
    async fn addresses_are_tried_in_order_and_connections_secured_for_the_host() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        /// Says the host's name instead of a secret.
        struct Naming;
        impl Handshake for Naming {
            fn handshake(&self, mut io: BoxIo, host: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
                let host = host.to_string();
                Box::pin(async move {
                    io.write_all(host.as_bytes()).await?;
                    Ok(io)
                })
            }
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target: Target = format!("ipv4:127.0.0.1:1,127.0.0.1:{port}").parse().unwrap();
        let connector = TargetConnector::new(target).with_handshake(Arc::new(Naming));
        drop(connector.connect().await.unwrap());
        let mut said = String::new();
        listener.accept().await.unwrap().0.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "127.0.0.1");
        assert_eq!(connector.scheme(), "https");
        let nobody = TargetConnector::new("ipv4:127.0.0.1:1".parse().unwrap());
        let error = nobody.connect().await.err().unwrap().to_string();
        assert!(error.starts_with("connecting to 127.0.0.1:1: "), "{error}");
    }
}
