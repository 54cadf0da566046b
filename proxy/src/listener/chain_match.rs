//! The choice of a filter chain: Envoy's `FilterChainMatch`.
//!
//! Nine criteria, one after the other; at each the most specific value that any chain names is taken and all others are
//! out for good. There is no way back: a connection to a server name that has a chain never falls back to a chain for any
//! name, even if a later criterion then fails (listener_components.proto). Compiled to one map per criterion.

use crate::config::ConfigError;
use crate::config::model::{FilterChainConfig, FilterChainMatch, SourceType};
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// What is known of a connection.
pub(super) struct Facts<'a> {
    /// With the original destination restored.
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub direct_peer: SocketAddr,
    /// Lower case.
    pub server_name: Option<&'a str>,
    pub tls: bool,
    pub application_protocols: &'a [Box<str>],
}

/// Chains by position in their list.
#[derive(Default)]
pub(super) struct ChainMatch {
    ports: HashMap<Option<u16>, ByIp<ByName>>,
}

type ByName = ByText<ByTransport>;
type ByTransport = ByText<ByProtocol>;
type ByProtocol = ByText<ByIp<BySourceType>>;

/// Exact texts; `""` is any.
type ByText<T> = HashMap<Box<str>, T>;

#[derive(Default)]
struct BySourceType {
    local: Option<ByIp<ByPort>>,
    external: Option<ByIp<ByPort>>,
    any: Option<ByIp<ByPort>>,
}

/// Chain by source port; `None` is any.
type ByPort = HashMap<Option<u16>, usize>;

/// Longest prefix first.
struct ByIp<T> {
    lengths: Vec<(u8, HashMap<IpNet, T>)>,
    any: Option<T>,
}

impl<T> Default for ByIp<T> {
    fn default() -> Self {
        ByIp { lengths: Vec::new(), any: None }
    }
}

impl<T: Default> ByIp<T> {
    /// The place of a prefix; `None` is any address. One of length 0 is every address of its family.
    fn entry(&mut self, net: Option<IpNet>) -> &mut T {
        let Some(net) = net.map(|net| net.trunc()) else {
            return self.any.get_or_insert_default();
        };
        let length = net.prefix_len();
        let at = match self.lengths.binary_search_by(|(have, _)| length.cmp(have)) {
            Ok(at) => at,
            Err(at) => {
                self.lengths.insert(at, (length, HashMap::new()));
                at
            }
        };
        self.lengths[at].1.entry(net).or_default()
    }
}

impl<T> ByIp<T> {
    fn find(&self, ip: IpAddr) -> Option<&T> {
        let specific = self.lengths.iter().find_map(|(length, nets)| {
            // fails for lengths above 32 and an IPv4 address: no such prefix covers it
            let net = IpNet::new(ip, *length).ok()?;
            nets.get(&net.trunc())
        });
        specific.or(self.any.as_ref())
    }
}

impl ChainMatch {
    /// # Errors
    /// Chains that could not be told apart from others, and server names that cannot be matched.
    pub fn compile(chains: &[FilterChainConfig]) -> Result<ChainMatch, ConfigError> {
        let mut compiled = ChainMatch::default();
        let mut problems = Vec::new();
        for (at, chain) in chains.iter().enumerate() {
            let path = format!("filter_chains[{at}].filter_chain_match");
            if let Some(name) = chain.matcher.server_names.iter().find(|n| n.trim_start_matches("*.").contains('*')) {
                let message = format!("{name:?}: partial wildcards are not supported in server_names");
                problems.push(ConfigError::new(path, message));
                continue;
            }
            if let Err(taken) = compiled.insert(&chain.matcher, at) {
                let taken = &chains[taken];
                let message = if taken.matcher == chain.matcher {
                    format!(
                        "filter chain '{}' has the same matching rules defined as '{}'. duplicate matcher is: {:?}",
                        chain.name, taken.name, chain.matcher
                    )
                } else {
                    format!(
                        "multiple filter chains with overlapping matching rules are defined: '{}' and '{}'",
                        taken.name, chain.name
                    )
                };
                problems.push(ConfigError::new(path, message));
            }
        }
        ConfigError::all(problems).map_or(Ok(compiled), Err)
    }

    fn insert(&mut self, matcher: &FilterChainMatch, chain: usize) -> Result<(), usize> {
        let by_destination = self.ports.entry(matcher.destination_port).or_default();
        for destination in nets(&matcher.prefix_ranges) {
            let by_name = by_destination.entry(destination);
            for name in texts(&matcher.server_names) {
                // `*.a.b` is kept as `.a.b`: what a lookup cuts off a name, label by label
                let by_transport = by_name.entry(name.strip_prefix('*').unwrap_or(name).into()).or_default();
                let by_protocol = by_transport.entry(matcher.transport_protocol.clone()).or_default();
                for protocol in texts(&matcher.application_protocols) {
                    let by_direct = by_protocol.entry(protocol.into()).or_default();
                    for direct in nets(&matcher.direct_source_prefix_ranges) {
                        let by_type = by_direct.entry(direct);
                        let by_source = match matcher.source_type {
                            SourceType::Any => &mut by_type.any,
                            SourceType::SameIpOrLoopback => &mut by_type.local,
                            SourceType::External => &mut by_type.external,
                        }
                        .get_or_insert_default();
                        for source in nets(&matcher.source_prefix_ranges) {
                            let by_port = by_source.entry(source);
                            for port in ports(&matcher.source_ports) {
                                if let Some(taken) = by_port.insert(port, chain) {
                                    return Err(taken);
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Position of the chain for a connection; `None`: the default one, if there is one.
    pub fn find(&self, facts: &Facts<'_>) -> Option<usize> {
        let by_destination = self.ports.get(&Some(facts.local.port())).or_else(|| self.ports.get(&None))?;
        let by_name = by_destination.find(facts.local.ip())?;
        let by_transport = find_name(by_name, facts.server_name)?;
        let transport = if facts.tls { "tls" } else { "raw_buffer" };
        let by_protocol = by_transport.get(transport).or_else(|| by_transport.get(""))?;
        let named = facts.application_protocols.iter().find_map(|protocol| by_protocol.get(protocol));
        let by_direct = named.or_else(|| by_protocol.get(""))?;
        let by_type = by_direct.find(facts.direct_peer.ip())?;
        let is_local = facts.local.ip() == facts.peer.ip() || facts.peer.ip().is_loopback();
        let specific = if is_local { &by_type.local } else { &by_type.external };
        let by_port = specific.as_ref().or(by_type.any.as_ref())?.find(facts.peer.ip())?;
        by_port.get(&Some(facts.peer.port())).or_else(|| by_port.get(&None)).copied()
    }
}

fn find_name<'a>(by_name: &'a ByName, name: Option<&str>) -> Option<&'a ByTransport> {
    if let Some(name) = name {
        if let Some(exact) = by_name.get(name) {
            return Some(exact);
        }
        // `www.a.b` -> `.a.b` -> `.b`
        let suffix = name.match_indices('.').find_map(|(at, _)| by_name.get(&name[at..]));
        if suffix.is_some() {
            return suffix;
        }
    }
    by_name.get("")
}

fn nets(all: &[IpNet]) -> impl Iterator<Item = Option<IpNet>> {
    all.iter().copied().map(Some).chain(all.is_empty().then_some(None))
}

fn ports(all: &[u16]) -> impl Iterator<Item = Option<u16>> {
    all.iter().copied().map(Some).chain(all.is_empty().then_some(None))
}

fn texts(all: &[Box<str>]) -> impl Iterator<Item = &str> {
    all.iter().map(|text| &**text).chain(all.is_empty().then_some(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::DownstreamTransport;

    fn chain(name: &str, matcher: FilterChainMatch) -> FilterChainConfig {
        FilterChainConfig {
            name: name.into(),
            matcher,
            transport: DownstreamTransport::Raw,
            transport_connect_timeout: None,
            filters: Vec::new(),
            terminal: 0,
            hash: 0,
        }
    }

    fn any() -> FilterChainMatch {
        FilterChainMatch::default()
    }

    fn names(all: &[&str]) -> FilterChainMatch {
        FilterChainMatch { server_names: all.iter().map(|n| (*n).into()).collect(), ..any() }
    }

    struct Conn {
        local: &'static str,
        peer: &'static str,
        sni: Option<&'static str>,
        tls: bool,
        alpn: Vec<Box<str>>,
    }

    fn conn() -> Conn {
        Conn { local: "10.0.0.1:80", peer: "10.0.0.9:1234", sni: None, tls: false, alpn: Vec::new() }
    }

    fn find(chains: &[FilterChainMatch], c: &Conn) -> Option<usize> {
        let chains: Vec<_> = chains.iter().map(|m| chain("c", m.clone())).collect();
        let peer = c.peer.parse().unwrap();
        ChainMatch::compile(&chains).unwrap().find(&Facts {
            local: c.local.parse().unwrap(),
            peer,
            direct_peer: peer,
            server_name: c.sni,
            tls: c.tls,
            application_protocols: &c.alpn,
        })
    }

    #[test]
    fn everything_of_one_family_is_not_everything() {
        let net = |net: &str| FilterChainMatch { prefix_ranges: vec![net.parse().unwrap()], ..any() };
        let chains = [any(), net("0.0.0.0/0"), net("::/0")];
        assert_eq!(find(&chains, &conn()), Some(1));
        assert_eq!(find(&chains, &Conn { local: "[fd00::1]:80", peer: "[fd00::2]:1", ..conn() }), Some(2));
        assert_eq!(find(&[any(), net("::/0")], &conn()), Some(0));
    }

    #[test]
    fn the_most_specific_destination_wins_whatever_the_order() {
        let net = |nets: &[&str]| FilterChainMatch {
            prefix_ranges: nets.iter().map(|n| n.parse().unwrap()).collect(),
            ..any()
        };
        let chains = [any(), net(&["10.0.0.0/8"]), net(&["10.0.0.1/32", "fd00::/8"])];
        let at = |local| find(&chains, &Conn { local, ..conn() });
        assert_eq!((at("10.0.0.1:1"), at("10.9.0.1:1"), at("11.0.0.1:1")), (Some(2), Some(1), Some(0)));
        assert_eq!((at("[fd00::1]:1"), at("[fe00::1]:1")), (Some(2), Some(0)));
    }

    #[test]
    fn there_is_no_way_back_to_a_less_specific_value() {
        // port 80 has a chain, for other addresses only: the chain for any port is out
        let port = FilterChainMatch {
            destination_port: Some(80),
            prefix_ranges: vec!["192.168.0.0/16".parse().unwrap()],
            ..any()
        };
        assert_eq!(find(&[port.clone(), any()], &conn()), None);
        assert_eq!(find(&[port, any()], &Conn { local: "10.0.0.1:81", ..conn() }), Some(1));
        // a server name of a chain for TLS with another protocol
        let exact = FilterChainMatch { application_protocols: vec!["h2".into()], ..names(&["a.b"]) };
        let c = Conn { sni: Some("a.b"), tls: true, alpn: vec!["http/1.1".into()], ..conn() };
        assert_eq!(find(&[exact.clone(), names(&["*.b"]), any()], &c), None);
        let c = Conn { alpn: vec!["http/1.1".into(), "h2".into()], ..c };
        assert_eq!(find(&[exact, names(&["*.b"]), any()], &c), Some(0));
    }

    #[test]
    fn server_names_are_searched_by_suffix() {
        let chains = [any(), names(&["*.b", "x.y"]), names(&["*.a.b"]), names(&["www.a.b"])];
        let at = |sni| find(&chains, &Conn { sni, tls: true, ..conn() });
        assert_eq!((at(Some("www.a.b")), at(Some("x.a.b")), at(Some("z.b"))), (Some(3), Some(2), Some(1)));
        assert_eq!((at(Some("a.b")), at(Some("b")), at(None), at(Some("x.y"))), (Some(1), Some(0), Some(0), Some(1)));
    }

    #[test]
    fn the_permissive_inbound_of_a_sidecar() {
        let with = |transport: &str, alpn: &[&str]| FilterChainMatch {
            transport_protocol: transport.into(),
            application_protocols: alpn.iter().map(|a| (*a).into()).collect(),
            ..any()
        };
        let chains = [
            with("tls", &["istio-http/1.0", "istio-http/1.1", "istio-h2"]),
            with("raw_buffer", &["http/1.1", "h2c"]),
            with("tls", &["istio-peer-exchange", "istio"]),
            with("raw_buffer", &[]),
            with("tls", &[]),
        ];
        let at = |tls, alpn: &[&str]| {
            find(&chains, &Conn { tls, alpn: alpn.iter().map(|a| (*a).into()).collect(), ..conn() })
        };
        assert_eq!((at(true, &["istio-h2"]), at(false, &["http/1.1"])), (Some(0), Some(1)));
        assert_eq!((at(true, &["istio"]), at(false, &[]), at(true, &["h2"])), (Some(2), Some(3), Some(4)));
    }

    #[test]
    fn sources_are_told_apart() {
        let of = |source_type, nets: &[&str], ports: &[u16]| FilterChainMatch {
            source_type,
            source_prefix_ranges: nets.iter().map(|n| n.parse().unwrap()).collect(),
            source_ports: ports.to_vec(),
            ..any()
        };
        let chains = [
            of(SourceType::Any, &[], &[]),
            of(SourceType::SameIpOrLoopback, &[], &[]),
            of(SourceType::External, &["10.0.0.9/32"], &[]),
            of(SourceType::External, &["10.0.0.9/32"], &[7]),
        ];
        let at = |peer| find(&chains, &Conn { peer, ..conn() });
        assert_eq!((at("127.0.0.1:5"), at("10.0.0.1:5")), (Some(1), Some(1)));
        assert_eq!((at("10.0.0.9:5"), at("10.0.0.9:7")), (Some(2), Some(3)));
        // external has chains, none for this source: the one for any type is out
        assert_eq!(at("10.0.0.8:5"), None);
        let direct = FilterChainMatch { direct_source_prefix_ranges: vec!["10.0.0.9/32".parse().unwrap()], ..any() };
        assert_eq!(find(&[any(), direct], &conn()), Some(1));
    }

    #[test]
    fn chains_that_cannot_be_told_apart_are_refused() {
        let error = |a, b| ChainMatch::compile(&[chain("y", a), chain("x", b)]).err().unwrap().to_string();
        let same = error(names(&["a"]), names(&["a"]));
        assert!(same.contains("filter chain 'x' has the same matching rules defined as 'y'. duplicate matcher is: "));
        assert!(error(names(&["a", "b"]), names(&["b"])).contains("overlapping matching rules"));
        assert!(error(any(), names(&["a*.b"])).contains("partial wildcards"));
    }
}
