//! Connections that stop being HTTP: WebSocket and other upgrades, and CONNECT. After the switch bytes are copied both ways.

use super::exchange::Exchange;
use crate::config::model::{Forward, HcmConfig};
use crate::upstream::ResponseBody;
use http::{HeaderValue, Method};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// Bytes copied at a time and per direction: small messages are the rule, and an idle tunnel keeps both buffers.
const COPY_BUFFER: usize = 16 * 1024;

/// What kind of switch a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    Connect,
    /// The value of its `upgrade` header.
    Upgrade(HeaderValue),
}

impl Wish {
    /// HTTP/2 over cleartext is not an upgrade that a proxy makes: Envoy ignores the wish, and so do we.
    pub fn of(method: &Method, upgrade: Option<HeaderValue>) -> Wish {
        match upgrade {
            _ if *method == Method::CONNECT => Wish::Connect,
            Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"h2c") => Wish::Upgrade(value),
            _ => Wish::Nothing,
        }
    }

    pub fn is_websocket(&self) -> bool {
        matches!(self, Wish::Upgrade(kind) if kind.as_bytes().eq_ignore_ascii_case(b"websocket"))
    }

    /// Whether the route, or else the connection manager, allows it.
    pub fn is_allowed(&self, config: &HcmConfig, route: Option<&Forward>) -> bool {
        let kind: &[u8] = match self {
            Wish::Nothing => return true,
            Wish::Connect => b"connect",
            Wish::Upgrade(value) => value.as_bytes(),
        };
        let named = |name: &str| name.as_bytes().eq_ignore_ascii_case(kind);
        match route.and_then(|r| r.upgrades.iter().find(|(name, _)| named(name))) {
            Some((_, enabled)) => *enabled,
            None => config.upgrades.iter().any(|name| named(name)),
        }
    }
}

/// Copies bytes between the two sides until both have closed. The endpoint's response body is held so that its connection
/// stays counted.
pub(super) async fn tunnel(mut exchange: Box<Exchange>, client: OnUpgrade, endpoint: OnUpgrade, _held: ResponseBody) {
    let manager = exchange.down.manager.clone();
    manager.stats.count.downstream_cx_upgrades_total.inc();
    manager.stats.cx_upgrades_active.inc();
    if let Ok((client, endpoint)) = futures_util::future::try_join(client, endpoint).await {
        let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
        let copied =
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut endpoint, COPY_BUFFER, COPY_BUFFER).await;
        if let Ok((_, to_client)) = copied {
            exchange.bytes_sent = to_client;
            exchange.completes();
        }
    }
    manager.stats.cx_upgrades_active.dec();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2c_is_not_a_wish() {
        let value = |v: &'static str| Some(HeaderValue::from_static(v));
        assert_eq!(Wish::of(&Method::GET, value("h2c")), Wish::Nothing);
        assert_eq!(Wish::of(&Method::GET, value("WebSocket")), Wish::Upgrade(HeaderValue::from_static("WebSocket")));
        assert_eq!(Wish::of(&Method::CONNECT, None), Wish::Connect);
    }
}
