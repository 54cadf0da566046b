//! `envoy.config.bootstrap.v3.Bootstrap`.

use super::access_log::access_logs;
use super::address::address;
use super::context::{Context, Result};
use super::matcher::{string_list, string_match};
use super::model::{
    AccessLogConfig, AccessLogFormat, AccessLogSink, AdminConfig, Bootstrap, ConfigSource, LogFormat, Node,
    StatsConfig, StatsMatcher, StringMatch, TagSpecifier,
};
use super::pb::{bootstrap, core, metrics, types};
use super::source::{api_config_source, json_object, optional_source};
use super::static_resources::{self, StaticResources};
use crate::stats::{check_tag_regex, is_default_tag};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's default.
const STATS_FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// What we call ourselves to the control plane, and the version of Envoy whose API we speak.
const USER_AGENT: &str = "outrigger";
const API_VERSION: types::SemanticVersion = types::SemanticVersion { major_number: 1, minor_number: 40, patch: 0 };

/// `resources` is given the static resources that have no problems, whatever becomes of the rest.
pub(super) fn bootstrap(
    message: bootstrap::Bootstrap,
    resources: &mut StaticResources,
    cx: &mut Context,
) -> Result<Bootstrap> {
    let bootstrap::Bootstrap {
        node: node_message,
        node_context_params,
        static_resources,
        dynamic_resources,
        cluster_manager,
        hds_config,
        flags_path,
        stats_sinks,
        deferred_stat_options,
        stats_config: stats_message,
        stats_flush_interval,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime,
        admin,
        overload_manager,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        inline_headers,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        application_log_config,
        grpc_async_client_manager_config,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        stats_flush,
        stats_eviction,
    } = message;
    // Runtime first: what follows asks for its values.
    cx.runtime = cx.at("layered_runtime", |cx| runtime(layered_runtime.unwrap_or_default(), cx))?;

    const OWN_RESOLVER: &str = "names are resolved by the resolver of this process, by the system's configuration";
    cx.refuse("header_prefix", &header_prefix, "headers are called x-envoy-*")?;
    cx.refuse("certificate_provider_instances", &certificate_provider_instances, "there are no certificate providers")?;
    cx.refuse("default_socket_interface", &default_socket_interface, "sockets are the system's")?;
    cx.no_effect("node_context_params", &node_context_params, "xdstp names carry no parameters of the node");
    cx.no_effect("hds_config", &hds_config, "health is not checked for a management server");
    cx.no_effect("flags_path", &flags_path, "there are no flag files");
    cx.no_effect("stats_sinks", &stats_sinks, "stats are served by the admin interface, not pushed");
    // When stats are made is not visible: they are always made on first use.
    let _: Option<bootstrap::bootstrap::DeferredStatOptions> = deferred_stat_options;
    cx.no_effect("watchdog", &watchdog, "there is no watchdog");
    cx.no_effect("watchdogs", &watchdogs, "there is no watchdog");
    cx.no_effect("tracing", &tracing, "there is no tracing yet");
    cx.no_effect("overload_manager", &overload_manager, "there is no overload manager");
    cx.no_effect("enable_dispatcher_stats", &enable_dispatcher_stats, "no such stats are kept");
    cx.no_effect("stats_server_version_override", &stats_server_version_override, "server.version is our own");
    cx.no_effect("use_tcp_for_dns_lookups", &use_tcp_for_dns_lookups, OWN_RESOLVER);
    cx.no_effect("dns_resolution_config", &dns_resolution_config, OWN_RESOLVER);
    cx.no_effect("typed_dns_resolver_config", &typed_dns_resolver_config, OWN_RESOLVER);
    cx.no_effect("bootstrap_extensions", &bootstrap_extensions, "there are no bootstrap extensions");
    cx.no_effect("fatal_actions", &fatal_actions, "a fatal error ends the process at once");
    cx.no_effect("config_sources", &config_sources, "xdstp names are not resolved by authority");
    cx.no_effect("default_config_source", &default_config_source, "xdstp names are not resolved by authority");
    cx.no_effect("inline_headers", &inline_headers, "all headers are stored alike");
    cx.no_effect("perf_tracing_file_path", &perf_tracing_file_path, "no such trace is written");
    cx.no_effect("default_regex_engine", &default_regex_engine, "patterns are read as RE2's");
    cx.no_effect("xds_delegate_extension", &xds_delegate_extension, "resources are not kept across restarts");
    cx.no_effect("xds_config_tracker_extension", &xds_config_tracker_extension, "there are no such trackers");
    cx.no_effect("listener_manager", &listener_manager, "there is one listener manager");
    cx.no_effect("grpc_async_client_manager_config", &grpc_async_client_manager_config, "clients are kept");
    cx.no_effect("memory_allocator_manager", &memory_allocator_manager, "the allocator gives memory back by itself");
    cx.no_effect("enable_worker_cpu_affinity", &enable_worker_cpu_affinity, "the scheduler places the workers");
    cx.no_effect("stats_flush_on_admin", &stats_flush, "stats are flushed by time");
    cx.no_effect("stats_eviction_interval", &stats_eviction, "stats that are not used are kept");

    *resources = static_resources::convert(static_resources.unwrap_or_default(), cx);
    let dynamic = cx.at("dynamic_resources", |cx| dynamic_resources_of(dynamic_resources.unwrap_or_default(), cx))?;
    let local_cluster = cx.at("cluster_manager", |cx| local_cluster(cluster_manager.unwrap_or_default(), cx));
    Ok(Bootstrap {
        node: node(node_message.unwrap_or_default()),
        admin: admin.map(|message| cx.at("admin", |cx| admin_config(message, cx))).transpose()?.flatten(),
        clusters: resources.clusters.iter().map(|(_, cluster)| cluster.clone()).collect(),
        listeners: resources.listeners.iter().map(|(_, listener)| listener.clone()).collect(),
        secrets: resources.secrets.iter().map(|(_, secret)| secret.clone()).collect(),
        ads: dynamic.ads,
        cds: dynamic.cds,
        lds: dynamic.lds,
        stats: cx.at("stats_config", |cx| stats_config(stats_message.unwrap_or_default(), cx))?,
        stats_flush_interval: cx
            .positive("stats_flush_interval", stats_flush_interval)?
            .unwrap_or(STATS_FLUSH_INTERVAL),
        runtime: cx.runtime.clone(),
        log_format: log_format(application_log_config, cx)?,
        local_cluster,
    })
}

/// The node as it was written, with our own name and the version of the API.
fn node(mut message: core::Node) -> Node {
    message.user_agent_name = USER_AGENT.to_owned();
    message.user_agent_version_type =
        Some(core::node::UserAgentVersionType::UserAgentBuildVersion(core::BuildVersion {
            version: Some(API_VERSION),
            metadata: None,
        }));
    Node {
        id: message.id.clone(),
        cluster: message.cluster.clone(),
        zone: message.locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default(),
        message,
    }
}

struct Dynamic {
    ads: Option<Arc<super::model::ApiConfigSource>>,
    cds: Option<ConfigSource>,
    lds: Option<ConfigSource>,
}

fn dynamic_resources_of(message: bootstrap::bootstrap::DynamicResources, cx: &mut Context) -> Result<Dynamic> {
    let bootstrap::bootstrap::DynamicResources {
        lds_config,
        lds_resources_locator,
        cds_config,
        cds_resources_locator,
        ads_config,
    } = message;
    cx.refuse("lds_resources_locator", &lds_resources_locator, "use lds_config")?;
    cx.refuse("cds_resources_locator", &cds_resources_locator, "use cds_config")?;
    Ok(Dynamic {
        ads: ads_config
            .map(|message| cx.at("ads_config", |cx| api_config_source(message, cx)))
            .transpose()?
            .map(Arc::new),
        cds: optional_source(cds_config, "cds_config", cx)?,
        lds: optional_source(lds_config, "lds_config", cx)?,
    })
}

fn local_cluster(message: bootstrap::ClusterManager, cx: &mut Context) -> Option<Arc<str>> {
    let bootstrap::ClusterManager {
        local_cluster_name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        // When clusters are made is not visible: they cost little until they are used.
        enable_deferred_cluster_creation: _,
    } = message;
    cx.no_effect("outlier_detection", &outlier_detection, "endpoints are not ejected yet");
    cx.no_effect("upstream_bind_config", &upstream_bind_config, "only a cluster's own upstream_bind_config is used");
    cx.no_effect("load_stats_config", &load_stats_config, "loads are not reported");
    (!local_cluster_name.is_empty()).then(|| local_cluster_name.into())
}

fn admin_config(message: bootstrap::Admin, cx: &mut Context) -> Result<Option<AdminConfig>> {
    let bootstrap::Admin {
        access_log,
        access_log_path,
        profile_path,
        address: admin_address,
        socket_options,
        ignore_global_conn_limit,
        allow_paths,
    } = message;
    // Without an address there is no admin interface, and nothing else of this message matters.
    if admin_address.is_none() {
        return Ok(None);
    }
    cx.refuse("allow_paths", &allow_paths, "all paths of the admin interface would be open")?;
    cx.no_effect("profile_path", &profile_path, "no profiles are written");
    cx.no_effect("socket_options", &socket_options, "raw socket options are not set");
    cx.no_effect("ignore_global_conn_limit", &ignore_global_conn_limit, "there is no global connection limit");
    let mut access_log = access_logs(access_log, "access_log", cx)?;
    if !access_log_path.is_empty() {
        let sink = AccessLogSink::File(cx.resolve(&access_log_path));
        access_log.push(AccessLogConfig { filter: None, sink, format: AccessLogFormat::Default });
    }
    Ok(Some(AdminConfig { address: address(admin_address, "address", cx)?, access_log }))
}

/// Static layers, later over earlier ones. Values that have structure are kept; nested keys are joined with dots.
fn runtime(message: bootstrap::LayeredRuntime, cx: &mut Context) -> Result<BTreeMap<String, Json>> {
    use bootstrap::runtime_layer::{AdminLayer, LayerSpecifier};
    let bootstrap::LayeredRuntime { layers } = message;
    let mut values = BTreeMap::new();
    cx.each("layers", layers, |layer, cx| {
        let bootstrap::RuntimeLayer { name, layer_specifier } = layer;
        cx.non_empty("name", name)?;
        match cx.required("layer_specifier", layer_specifier)? {
            LayerSpecifier::StaticLayer(fields) => flatten("", xds_protos::struct_to_json(&fields), &mut values),
            LayerSpecifier::AdminLayer(AdminLayer {}) => {}
            LayerSpecifier::DiskLayer(_) => cx.warn("disk_layer", "runtime values are not read from files"),
            LayerSpecifier::RtdsLayer(_) => cx.warn("rtds_layer", "runtime values do not come by RTDS yet"),
        }
        Ok(())
    })?;
    Ok(values)
}

fn flatten(prefix: &str, value: Json, values: &mut BTreeMap<String, Json>) {
    match value {
        // A fraction is one value, though it is written as an object.
        Json::Object(fields) if !fields.contains_key("numerator") => {
            for (name, value) in fields {
                let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&key, value, values);
            }
        }
        value => {
            values.insert(prefix.to_owned(), value);
        }
    }
}

fn log_format(message: Option<bootstrap::bootstrap::ApplicationLogConfig>, cx: &Context) -> Result<Option<LogFormat>> {
    use bootstrap::bootstrap::application_log_config::{self, log_format::LogFormat as Kind};
    let Some(message) = message else { return Ok(None) };
    let bootstrap::bootstrap::ApplicationLogConfig { log_format } = message;
    let Some(application_log_config::LogFormat { log_format }) = log_format else { return Ok(None) };
    match log_format {
        None => Ok(None),
        Some(Kind::TextFormat(text)) => Ok(Some(LogFormat::Text(text))),
        Some(Kind::JsonFormat(fields)) => {
            let fields = json_object(&fields).into_iter().map(|(name, value)| match value {
                Json::String(format) => Ok((name, format)),
                other => Err(cx.error_at(
                    &format!("application_log_config.log_format.json_format.{name}"),
                    format!("found {other}, expected a string"),
                )),
            });
            Ok(Some(LogFormat::Json(fields.collect::<Result<_>>()?)))
        }
    }
}

fn stats_config(message: metrics::StatsConfig, cx: &mut Context) -> Result<StatsConfig> {
    let metrics::StatsConfig {
        stats_tags,
        use_all_default_tags,
        stats_matcher,
        histogram_bucket_settings,
        allow_default_tag_overrides,
    } = message;
    cx.no_effect_flag("allow_default_tag_overrides", &allow_default_tag_overrides, "default tags keep their meaning");
    Ok(StatsConfig {
        use_all_default_tags: use_all_default_tags.is_none_or(|v| v.value),
        tags: cx.each("stats_tags", stats_tags, tag)?,
        matcher: match stats_matcher {
            None => StatsMatcher::All,
            Some(message) => cx.at("stats_matcher", |cx| matcher(message, cx))?,
        },
        histogram_buckets: cx.each("histogram_bucket_settings", histogram_bucket_settings, buckets)?,
    })
}

/// The pattern is checked where it will be compiled: tags may look ahead, which other patterns may not.
fn tag(message: metrics::TagSpecifier, cx: &mut Context) -> Result<TagSpecifier> {
    use metrics::tag_specifier::TagValue;
    let metrics::TagSpecifier { tag_name, tag_value } = message;
    let name = cx.non_empty("tag_name", tag_name)?;
    Ok(match tag_value {
        None => default_tag(name, cx)?,
        Some(TagValue::Regex(regex)) if regex.is_empty() => default_tag(name, cx)?,
        Some(TagValue::Regex(regex)) => {
            check_tag_regex(&regex).map_err(|e| cx.error_at("regex", format!("{regex:?}: {e}")))?;
            TagSpecifier::Regex { name, regex }
        }
        Some(TagValue::FixedValue(value)) => TagSpecifier::Fixed { name, value },
    })
}

fn default_tag(name: String, cx: &Context) -> Result<TagSpecifier> {
    if is_default_tag(&name) {
        return Ok(TagSpecifier::Default { name });
    }
    Err(cx
        .error_at("tag_name", format!("No regex specified for tag specifier and no default regex for name: '{name}'")))
}

fn matcher(message: metrics::StatsMatcher, cx: &mut Context) -> Result<StatsMatcher> {
    use metrics::stats_matcher::StatsMatcher as Kind;
    let metrics::StatsMatcher { stats_matcher } = message;
    Ok(match cx.required("stats_matcher", stats_matcher)? {
        Kind::RejectAll(true) => StatsMatcher::None,
        Kind::RejectAll(false) => StatsMatcher::All,
        Kind::InclusionList(list) => StatsMatcher::Inclusion(cx.at("inclusion_list", |cx| string_list(list, cx))?),
        Kind::ExclusionList(list) => StatsMatcher::Exclusion(cx.at("exclusion_list", |cx| string_list(list, cx))?),
    })
}

fn buckets(message: metrics::HistogramBucketSettings, cx: &mut Context) -> Result<(StringMatch, Vec<f64>)> {
    let metrics::HistogramBucketSettings { r#match, mut buckets, bins } = message;
    cx.no_effect("bins", &bins, "histograms have the built-in resolution");
    if buckets.iter().any(|bound| !(bound.is_finite() && *bound > 0.0)) {
        return Err(cx.error_at("buckets", "found a bound that is no positive number, expected numbers above 0"));
    }
    buckets.sort_by(f64::total_cmp);
    buckets.dedup();
    let message = cx.required("match", r#match)?;
    Ok((cx.at("match", |cx| string_match(message, cx))?, buckets))
}
