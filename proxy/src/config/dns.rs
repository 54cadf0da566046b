//! DNS of clusters: the fields of `Cluster`, and the extension `envoy.clusters.dns` that replaces them.

use super::context::{Context, Result};
use super::model::{DnsConfig, DnsFamily};
use super::pb::{cluster, core, extensions, google};
use extensions::clusters::{common::dns::v3 as common, dns::v3 as dns};
use std::time::Duration;

/// How often names are resolved when nothing else is said.
const REFRESH_RATE: Duration = Duration::from_secs(5);

const OWN_RESOLVER: &str = "names are resolved by the resolver of this process, by the system's configuration";

/// What `Cluster` says of DNS.
pub(super) struct DnsFields {
    pub refresh_rate: Option<google::Duration>,
    pub jitter: Option<google::Duration>,
    pub failure_refresh_rate: Option<cluster::cluster::RefreshRate>,
    pub respect_ttl: bool,
    pub family: i32,
    pub resolvers: Vec<core::Address>,
    pub use_tcp: bool,
    pub resolution: Option<core::DnsResolutionConfig>,
    pub resolver: Option<core::TypedExtensionConfig>,
}

/// Names the fields that are set on a cluster that resolves no names. Envoy ignores them there as well; the family is
/// left out, because control planes set it on every cluster.
pub(super) fn unused(fields: &DnsFields, cx: &mut Context) {
    const UNUSED: &str = "this cluster resolves no names by these fields";
    cx.no_effect("dns_refresh_rate", &fields.refresh_rate, UNUSED);
    cx.no_effect("dns_jitter", &fields.jitter, UNUSED);
    cx.no_effect("dns_failure_refresh_rate", &fields.failure_refresh_rate, UNUSED);
    cx.no_effect("respect_dns_ttl", &fields.respect_ttl, UNUSED);
    cx.no_effect("dns_resolvers", &fields.resolvers, UNUSED);
    cx.no_effect("use_tcp_for_dns_lookups", &fields.use_tcp, UNUSED);
    cx.no_effect("dns_resolution_config", &fields.resolution, UNUSED);
    cx.no_effect("typed_dns_resolver_config", &fields.resolver, UNUSED);
}

pub(super) fn by_fields(fields: DnsFields, cx: &mut Context) -> Result<DnsConfig> {
    use cluster::cluster::DnsLookupFamily as Family;
    let DnsFields {
        refresh_rate,
        jitter,
        failure_refresh_rate,
        respect_ttl,
        family,
        resolvers,
        use_tcp,
        resolution,
        resolver,
    } = fields;
    cx.no_effect("dns_jitter", &jitter, "names are resolved without jitter");
    cx.no_effect("dns_failure_refresh_rate", &failure_refresh_rate, "failed look-ups are repeated at the usual rate");
    cx.no_effect("dns_resolvers", &resolvers, OWN_RESOLVER);
    cx.no_effect("use_tcp_for_dns_lookups", &use_tcp, OWN_RESOLVER);
    cx.no_effect("dns_resolution_config", &resolution, OWN_RESOLVER);
    cx.no_effect("typed_dns_resolver_config", &resolver, OWN_RESOLVER);
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
pub(super) fn by_extension(message: dns::DnsCluster, cx: &mut Context) -> Result<(DnsConfig, bool)> {
    use common::DnsLookupFamily as Family;
    let dns::DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate,
    } = message;
    cx.no_effect("dns_jitter", &dns_jitter, "names are resolved without jitter");
    cx.no_effect(
        "dns_failure_refresh_rate",
        &dns_failure_refresh_rate,
        "failed look-ups are repeated at the usual rate",
    );
    cx.no_effect("typed_dns_resolver_config", &typed_dns_resolver_config, OWN_RESOLVER);
    cx.no_effect("dns_min_refresh_rate", &dns_min_refresh_rate, "the built-in least time between look-ups holds");
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
