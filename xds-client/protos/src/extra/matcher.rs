//! Inputs and matchers of the generic matching tree (`xds.type.matcher.v3`) that Envoy's API does not import.

use super::name;
use crate::pb::xds::core::v3::CidrRange;
use crate::pb::xds::r#type::matcher::v3::matcher::OnMatch;
use crate::pb::xds::r#type::v3::CelExpression;

/// The attributes of an HTTP exchange, for a CEL matcher.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct HttpAttributesCelMatchInput {}

/// True exactly when the expression yields the boolean true.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CelMatcher {
    /// The expression.
    #[prost(message, optional, tag = "1")]
    pub expr_match: Option<CelExpression>,
    /// For people.
    #[prost(string, tag = "2")]
    pub description: String,
}

/// Matches an address by its longest prefix.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IpMatcher {
    /// The ranges; they may overlap.
    #[prost(message, repeated, tag = "1")]
    pub range_matchers: Vec<IpRangeMatcher>,
}

/// `IPMatcher.IPRangeMatcher`
#[derive(Clone, PartialEq, prost::Message)]
pub struct IpRangeMatcher {
    /// At least one.
    #[prost(message, repeated, tag = "1")]
    pub ranges: Vec<CidrRange>,
    /// What a match means.
    #[prost(message, optional, tag = "2")]
    pub on_match: Option<OnMatch>,
    /// No fall back to a shorter prefix when the nested match fails.
    #[prost(bool, tag = "3")]
    pub exclusive: bool,
}

/// Matches a server name by its longest suffix.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerNameMatcher {
    /// The domains.
    #[prost(message, repeated, tag = "1")]
    pub domain_matchers: Vec<DomainMatcher>,
}

/// `ServerNameMatcher.DomainMatcher`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DomainMatcher {
    /// At least one; `*` may stand as the leftmost label.
    #[prost(string, repeated, tag = "1")]
    pub domains: Vec<String>,
    /// What a match means.
    #[prost(message, optional, tag = "2")]
    pub on_match: Option<OnMatch>,
}

name!(HttpAttributesCelMatchInput, "xds.type.matcher.v3", "HttpAttributesCelMatchInput");
name!(CelMatcher, "xds.type.matcher.v3", "CelMatcher");
name!(IpMatcher, "xds.type.matcher.v3", "IPMatcher");
name!(IpRangeMatcher, "xds.type.matcher.v3", "IPMatcher.IPRangeMatcher");
name!(ServerNameMatcher, "xds.type.matcher.v3", "ServerNameMatcher");
name!(DomainMatcher, "xds.type.matcher.v3", "ServerNameMatcher.DomainMatcher");
