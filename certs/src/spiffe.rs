//! SPIFFE identities: the text rules of the SPIFFE ID specification and nothing else.
//!
//! Source: SPIFFE-ID.md (spiffe/spiffe, standards), sections 2.1 to 2.4. Stricter than a URI parser on purpose: an
//! identity that two parties could read differently must not exist.

use std::fmt;
use std::str::FromStr;

/// The longest SPIFFE ID, in bytes (SPIFFE-ID section 2.3).
pub const MAX_ID_LEN: usize = 2048;
/// The longest trust domain name, in bytes (SPIFFE-ID section 2.1).
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID or a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The scheme is missing or another one.
    #[error("'{0}' is not a SPIFFE ID: it must begin with 'spiffe://' in lower case")]
    Scheme(String),
    /// `spiffe:///path`, or an empty trust domain.
    #[error("the trust domain is empty; expected a name such as 'cluster.local'")]
    EmptyTrustDomain,
    /// A character that may not stand in a trust domain; a port or user info shows up here too.
    #[error("trust domain '{0}' has the character '{1}'; only a-z, 0-9, '.', '-' and '_' are allowed")]
    TrustDomainCharacter(String, char),
    /// Longer than the specification allows.
    #[error("{what} is {found} bytes long; at most {limit} are allowed")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length in bytes.
        found: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// `//` inside the path, or a trailing slash.
    #[error("path '{0}' has an empty segment or a trailing slash")]
    EmptySegment(String),
    /// `.` or `..` as a path segment.
    #[error("path '{0}' has a relative segment ('.' or '..')")]
    RelativeSegment(String),
    /// A character that may not stand in a path; query and fragment show up here too.
    #[error("path '{0}' has the character '{1}'; only letters, digits, '.', '-' and '_' are allowed in a segment")]
    PathCharacter(String, char),
}

/// A trust domain: the name under which one authority's identities stand, such as `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The bare name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() {
            return Err(SpiffeIdError::EmptyTrustDomain);
        }
        if name.len() > MAX_TRUST_DOMAIN_LEN {
            let (found, limit) = (name.len(), MAX_TRUST_DOMAIN_LEN);
            return Err(SpiffeIdError::TooLong { what: "the trust domain", found, limit });
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        match name.chars().find(|&c| !allowed(c)) {
            Some(bad) => Err(SpiffeIdError::TrustDomainCharacter(name.to_owned(), bad)),
            None => Ok(Self(name.to_owned())),
        }
    }
}

/// A checked SPIFFE ID: `spiffe://<trust domain>[/<path>]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Empty, or begins with a slash.
    path: String,
}

impl SpiffeId {
    /// The identity of the trust domain itself (no path): what its CA certificate carries.
    pub fn of_trust_domain(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, path: String::new() }
    }

    /// The identity Istio gives a Kubernetes service account: `spiffe://<td>/ns/<namespace>/sa/<service account>`.
    pub fn of_service_account(td: &TrustDomain, namespace: &str, account: &str) -> Result<Self, SpiffeIdError> {
        format!("{SCHEME}{td}/ns/{namespace}/sa/{account}").parse()
    }

    /// The trust domain this identity stands in.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash, or an empty text.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID_LEN {
            let (found, limit) = (text.len(), MAX_ID_LEN);
            return Err(SpiffeIdError::TooLong { what: "the SPIFFE ID", found, limit });
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| SpiffeIdError::Scheme(text.to_owned()))?;
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = name.parse()?;
        check_path(path)?;
        Ok(Self { trust_domain, path: path.to_owned() })
    }
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    let Some(segments) = path.strip_prefix('/') else {
        return Ok(());
    };
    for segment in segments.split('/') {
        match segment {
            "" => return Err(SpiffeIdError::EmptySegment(path.to_owned())),
            "." | ".." => return Err(SpiffeIdError::RelativeSegment(path.to_owned())),
            _ => {}
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if let Some(bad) = segment.chars().find(|&c| !allowed(c)) {
            return Err(SpiffeIdError::PathCharacter(path.to_owned(), bad));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ids_print_as_they_were_written() {
        for text in
            ["spiffe://cluster.local", "spiffe://cluster.local/ns/default/sa/reviews", "spiffe://a_b-c.9/X.y_z-1/..."]
        {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        assert_eq!((id.trust_domain().as_str(), id.path()), ("td", "/ns/a/sa/b"));
        let td: TrustDomain = "td".parse().unwrap();
        assert_eq!(SpiffeId::of_service_account(&td, "a", "b").unwrap(), id);
        assert_eq!(SpiffeId::of_trust_domain(td).to_string(), "spiffe://td");
    }

    #[test]
    fn bad_ids_are_refused() {
        use SpiffeIdError::*;
        let refused = |text: &str| text.parse::<SpiffeId>().unwrap_err();
        for text in ["", "td/a", "http://td/a", "SPIFFE://td/a", "spiffe:/td", "spiffe:td"] {
            assert!(matches!(refused(text), Scheme(_)), "{text}");
        }
        assert_eq!(refused("spiffe://"), EmptyTrustDomain);
        assert_eq!(refused("spiffe:///a"), EmptyTrustDomain);
        for text in [
            "spiffe://Td/a",
            "spiffe://td:80/a",
            "spiffe://u@td/a",
            "spiffe://td?q",
            "spiffe://t%64",
            "spiffe://td#f",
            "spiffe://tä",
        ] {
            assert!(matches!(refused(text), TrustDomainCharacter(..)), "{text}");
        }
        for text in ["spiffe://td/", "spiffe://td//a", "spiffe://td/a/", "spiffe://td/a//b"] {
            assert!(matches!(refused(text), EmptySegment(_)), "{text}");
        }
        for text in ["spiffe://td/.", "spiffe://td/a/../b", "spiffe://td/./a"] {
            assert!(matches!(refused(text), RelativeSegment(_)), "{text}");
        }
        for text in ["spiffe://td/a?q=1", "spiffe://td/a#f", "spiffe://td/%41", "spiffe://td/a b", "spiffe://td/ä"] {
            assert!(matches!(refused(text), PathCharacter(..)), "{text}");
        }
        assert!(matches!(refused(&format!("spiffe://{}", "a".repeat(256))), TooLong { limit: 255, .. }));
        assert!(matches!(refused(&format!("spiffe://td/{}", "a".repeat(2048))), TooLong { limit: 2048, .. }));
    }
}
