//! The choice of a virtual host: exact domain, longest suffix, longest prefix, then `*`.

use crate::config::ConfigError;
use crate::config::model::VirtualHost;
use smallvec::SmallVec;
use std::collections::HashMap;

/// Domains of one length, so that a lookup is one hash per length and not one comparison per domain.
type ByLength = Vec<(usize, HashMap<Box<[u8]>, u32>)>;

/// Domains to indices of virtual hosts.
#[derive(Default)]
pub(super) struct Hosts {
    exact: HashMap<Box<[u8]>, u32>,
    /// `*.suffix` without the star; longest first.
    suffixes: ByLength,
    /// `prefix.*` without the star; longest first.
    prefixes: ByLength,
    any: Option<u32>,
    ignore_port: bool,
}

impl Hosts {
    pub fn compile(hosts: &[VirtualHost], ignore_port: bool) -> Result<Hosts, ConfigError> {
        let mut out = Hosts { ignore_port, ..Hosts::default() };
        let mut problems = Vec::new();
        for (index, host) in hosts.iter().enumerate() {
            for (place, domain) in host.domains.iter().enumerate() {
                let bytes = domain.as_bytes();
                let at = index as u32;
                let taken = match bytes {
                    b"*" => out.any.replace(at).is_some(),
                    [b'*', rest @ ..] => insert(&mut out.suffixes, rest, at),
                    [rest @ .., b'*'] => insert(&mut out.prefixes, rest, at),
                    exact => out.exact.insert(exact.into(), at).is_some(),
                };
                if taken {
                    let message = match domain.as_ref() {
                        "*" => "Only a single wildcard domain is permitted".to_owned(),
                        twin => {
                            format!("Only unique values for domains are permitted. Duplicate entry of domain {twin}")
                        }
                    };
                    problems.push(ConfigError::new(format!("virtual_hosts[{index}].domains[{place}]"), message));
                }
            }
        }
        if let Some(problems) = ConfigError::all(problems) {
            return Err(problems);
        }
        out.suffixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        out.prefixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        Ok(out)
    }

    /// The virtual host of this authority.
    pub fn find(&self, authority: &[u8]) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        let host = if self.ignore_port { without_port(authority) } else { authority };
        if !host.iter().any(u8::is_ascii_uppercase) {
            return self.find_lower(host);
        }
        let mut lower: SmallVec<[u8; 128]> = SmallVec::from_slice(host);
        lower.make_ascii_lowercase();
        self.find_lower(&lower)
    }

    fn find_lower(&self, host: &[u8]) -> Option<u32> {
        if let Some(index) = self.exact.get(host) {
            return Some(*index);
        }
        for (length, map) in &self.suffixes {
            // the star stands for at least one byte
            if host.len() > *length
                && let Some(index) = map.get(&host[host.len() - length..])
            {
                return Some(*index);
            }
        }
        for (length, map) in &self.prefixes {
            if host.len() > *length
                && let Some(index) = map.get(&host[..*length])
            {
                return Some(*index);
            }
        }
        self.any
    }
}

fn insert(lists: &mut ByLength, key: &[u8], index: u32) -> bool {
    match lists.iter_mut().find(|(length, _)| *length == key.len()) {
        Some((_, map)) => map.insert(key.into(), index).is_some(),
        None => {
            lists.push((key.len(), HashMap::from([(key.into(), index)])));
            false
        }
    }
}

/// The host of an authority; the brackets of an IPv6 address stay.
pub(in crate::http) fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|b| *b == b':') {
        Some(at) if !authority[at..].contains(&b']') && authority[at + 1..].iter().all(u8::is_ascii_digit) => {
            &authority[..at]
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{HeaderOps, RequireTls};

    pub(crate) fn vhost(name: &str, domains: &[&str]) -> VirtualHost {
        VirtualHost {
            name: name.into(),
            domains: domains.iter().map(|d| (*d).into()).collect(),
            routes: Vec::new(),
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            require_tls: RequireTls::None,
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
            retry_policy: None,
        }
    }

    #[test]
    fn exact_beats_suffix_beats_prefix_beats_any() {
        let list = [
            vhost("any", &["*"]),
            vhost("suffix", &["*.example.com"]),
            vhost("longer", &["*.b.example.com"]),
            vhost("prefix", &["www.*"]),
            vhost("exact", &["www.example.com", "x:8080"]),
        ];
        let hosts = Hosts::compile(&list, false).unwrap();
        let find = |authority: &str| hosts.find(authority.as_bytes()).map(|i| &*list[i as usize].name);
        assert_eq!(find("WWW.example.COM"), Some("exact"));
        assert_eq!(find("a.example.com"), Some("suffix"));
        assert_eq!(find("a.b.example.com"), Some("longer"));
        assert_eq!(find("www.other.org"), Some("prefix"));
        assert_eq!(find(".example.com"), Some("any"));
        assert_eq!(find("www.example.com:80"), Some("prefix"));
        assert_eq!((find("x:8080"), find("x"), find("")), (Some("exact"), Some("any"), Some("any")));
    }

    #[test]
    fn ports_can_be_ignored() {
        let hosts = Hosts::compile(&[vhost("v", &["a.b", "[::1]"])], true).unwrap();
        for authority in ["a.b", "a.b:80", "[::1]:8080", "[::1]"] {
            assert_eq!(hosts.find(authority.as_bytes()), Some(0), "{authority}");
        }
        assert_eq!(hosts.find(b"a.b:x"), None);
    }

    #[test]
    fn a_domain_in_two_places_is_refused() {
        for domain in ["*", "a", "*.a", "a.*"] {
            let error = Hosts::compile(&[vhost("v", &[domain]), vhost("w", &[domain])], false).err().unwrap();
            assert_eq!(error.path, "virtual_hosts[1].domains[0]");
        }
    }
}
