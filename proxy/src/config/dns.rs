//! DNS of clusters: the fields of `Cluster`, and the extension `envoy.clusters.dns` that replaces them.

use super::context::{Context, Result};
use super::model::{DnsConfig, DnsFamily};
use super::pb::{cluster, extensions, google};
use extensions::clusters::{common::dns::v3 as common, dns::v3 as dns};
use std::time::Duration;

/// How often names are resolved when nothing else is said.
const REFRESH_RATE: Duration = Duration::from_secs(5);

/// What `Cluster` says of DNS.
pub(super) struct DnsFields {
    pub refresh_rate: Option<google::Duration>,
    pub respect_ttl: bool,
    pub family: i32,
}

/// Names the fields that are set on a cluster that resolves no names. Envoy ignores them there as well; the family is
/// left out, because control planes set it on every cluster.
pub(super) fn unused(fields: &DnsFields, cx: &mut Context) {
    const UNUSED: &str = "this cluster resolves no names by these fields";
    cx.no_effect("dns_refresh_rate", &fields.refresh_rate, UNUSED);
    cx.no_effect("respect_dns_ttl", &fields.respect_ttl, UNUSED);
}

pub(super) fn by_fields(fields: DnsFields, cx: &Context) -> Result<DnsConfig> {
    use cluster::cluster::DnsLookupFamily as Family;
    let DnsFields { refresh_rate, respect_ttl, family } = fields;
    Ok(DnsConfig {
        refresh_rate: refresh("dns_refresh_rate", refresh_rate, cx)?,
        respect_ttl,
        family: match cx.enumeration("dns_lookup_family", family)? {
            Family::Auto => DnsFamily::Auto,
            Family::V4Only => DnsFamily::V4Only,
            Family::V6Only => DnsFamily::V6Only,
            Family::V4Preferred => DnsFamily::V4Preferred,
            Family::All => DnsFamily::All,
        },
    })
}

/// The configuration, and whether all addresses make one endpoint (`LOGICAL_DNS`).
pub(super) fn by_extension(message: dns::DnsCluster, cx: &Context) -> Result<(DnsConfig, bool)> {
    use common::DnsLookupFamily as Family;
    let dns::DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate: _,
        respect_dns_ttl,
        dns_jitter: _,
        typed_dns_resolver_config: _,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate: _,
    } = message;
    let dns = DnsConfig {
        refresh_rate: refresh("dns_refresh_rate", dns_refresh_rate, cx)?,
        respect_ttl: respect_dns_ttl,
        family: match cx.enumeration("dns_lookup_family", dns_lookup_family)? {
            Family::Unspecified | Family::Auto => DnsFamily::Auto,
            Family::V4Only => DnsFamily::V4Only,
            Family::V6Only => DnsFamily::V6Only,
            Family::V4Preferred => DnsFamily::V4Preferred,
            Family::All => DnsFamily::All,
        },
    };
    Ok((dns, all_addresses_in_single_endpoint))
}

/// Envoy's rule: more than a millisecond.
fn refresh(field: &str, value: Option<google::Duration>, cx: &Context) -> Result<Duration> {
    match cx.duration(field, value)? {
        Some(set) if set <= Duration::from_millis(1) => {
            Err(cx.error_at(field, format!("found {set:?}, expected more than 1ms")))
        }
        other => Ok(other.unwrap_or(REFRESH_RATE)),
    }
}
