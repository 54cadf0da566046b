//! `envoy.config.bootstrap.v3.Bootstrap`.

use super::access_log::access_logs;
use super::address::{address, socket_options};
use super::answers::{Answer, runtime_key};
use super::any;
use super::checked::{self, StaticResources};
use super::context::{Context, Result, Servers};
use super::matcher::{string_list, string_match};
use super::model::{
    AccessLogConfig, AccessLogFormat, AccessLogSink, AdminConfig, Bootstrap, ConfigSource, LogFormat, Node,
    StatsConfig, StatsMatcher, StringMatch, TagSpecifier,
};
use super::pb::{bootstrap, core, google, metrics, runtime, types};
use super::source::{api_config_source, json_object, optional_source};
use super::{ProblemKind, Resource};
use crate::runtime::{DiskLayer, Layer, LayerSource, Runtime, Values};
use crate::stats::{check_tag_regex, is_default_tag};
use serde_json::Value as Json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xds_protos::pb::xds::core::v3::ContextParams;

/// Of a runtime key that nothing reads.
pub const UNREAD: &str = "Envoy has no such key, and no runtime_key of the configuration names it";

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
        node_context_params: _,
        static_resources,
        dynamic_resources,
        cluster_manager,
        hds_config: _,
        flags_path: _,
        stats_sinks,
        deferred_stat_options,
        stats_config: stats_message,
        stats_flush_interval,
        watchdog: _,
        watchdogs: _,
        tracing: _,
        layered_runtime,
        admin,
        overload_manager: _,
        enable_dispatcher_stats: _,
        header_prefix: _,
        stats_server_version_override: _,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config: _,
        typed_dns_resolver_config: _,
        bootstrap_extensions: _,
        fatal_actions: _,
        config_sources: _,
        default_config_source: _,
        default_socket_interface: _,
        certificate_provider_instances: _,
        inline_headers: _,
        perf_tracing_file_path: _,
        default_regex_engine: _,
        xds_delegate_extension: _,
        xds_config_tracker_extension: _,
        listener_manager: _,
        application_log_config,
        grpc_async_client_manager_config: _,
        memory_allocator_manager: _,
        enable_worker_cpu_affinity: _,
        stats_flush: _,
        stats_eviction: _,
    } = message;
    let service_cluster = match &cx.service_cluster {
        Some(name) => name.clone(),
        None => node_message.as_ref().map(|node| node.cluster.clone()).unwrap_or_default(),
    };
    if cx.check_sources {
        let static_resources = static_resources.as_ref();
        let ads = dynamic_resources.as_ref().and_then(|dynamic| dynamic.ads_config.as_ref());
        ads_server_is_known(static_resources, ads, cx);
        cx.servers = Some(servers(static_resources, ads.is_some()));
    }
    // Runtime first: what follows asks for its values.
    let (layers, rtds) = {
        let read = cx.at("layered_runtime", |cx| runtime(layered_runtime.unwrap_or_default(), &service_cluster, cx));
        cx.part(read)
    };
    cx.runtime = Arc::new(Runtime::new(layers));

    let bootstrap::bootstrap::DeferredStatOptions { enable_deferred_creation_stats: _ } =
        deferred_stat_options.unwrap_or_default();
    let sinks = cx.each("stats_sinks", stats_sinks, stats_sink);
    cx.part(sinks);

    *resources = checked::convert(static_resources.unwrap_or_default(), cx);
    let dynamic = dynamic_resources.unwrap_or_default();
    let dynamic = cx.at("dynamic_resources", |cx| dynamic_resources_of(dynamic, cx));
    let dynamic = cx.part(dynamic);
    let admin = admin.map(|message| cx.at("admin", |cx| admin_config(message, cx))).transpose();
    let stats = cx.at("stats_config", |cx| stats_config(stats_message.unwrap_or_default(), cx));
    let log_format = log_format(application_log_config, cx);
    let log_format = cx.part(log_format);
    local_cluster(cluster_manager.unwrap_or_default(), &resources.cluster_names, cx);
    let built = Bootstrap {
        node: node(node_message.unwrap_or_default()),
        admin: cx.part(admin).flatten(),
        clusters: resources.clusters.iter().map(|(_, cluster)| cluster.clone()).collect(),
        listeners: resources.listeners.iter().map(|(_, listener)| listener.clone()).collect(),
        secrets: resources.secrets.iter().map(|(_, secret)| secret.clone()).collect(),
        ads: dynamic.ads,
        cds: dynamic.cds,
        lds: dynamic.lds,
        stats: stats?,
        stats_flush_interval: cx
            .positive("stats_flush_interval", stats_flush_interval)?
            .unwrap_or(STATS_FLUSH_INTERVAL),
        runtime: cx.runtime.clone(),
        rtds,
        log_format,
    };
    if built.cds.is_none() && built.lds.is_none() {
        unread_keys(cx);
    }
    Ok(built)
}

/// What sources may refer to, known before any of them is converted: one may stand before what it refers to.
fn servers(resources: Option<&bootstrap::bootstrap::StaticResources>, ads: bool) -> Servers {
    use super::pb::cluster::cluster::{ClusterDiscoveryType, DiscoveryType};
    let by_server = |cluster: &super::pb::cluster::Cluster| {
        let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
        let source = cluster.eds_cluster_config.as_ref().and_then(|eds| eds.eds_config.as_ref());
        let kind = source.and_then(|source| source.config_source_specifier.as_ref());
        use core::config_source::ConfigSourceSpecifier::{Path, PathConfigSource};
        cluster.cluster_discovery_type == Some(eds) && !matches!(kind, Some(Path(_) | PathConfigSource(_)))
    };
    let clusters = resources.into_iter().flat_map(|resources| &resources.clusters);
    let clusters = clusters.filter(|cluster| !by_server(cluster)).map(|cluster| cluster.name.as_str().into());
    Servers { clusters: clusters.collect(), ads }
}

/// The aggregated stream's cluster must be static; that it has endpoints is not asked.
fn ads_server_is_known(
    resources: Option<&bootstrap::bootstrap::StaticResources>,
    ads: Option<&core::ApiConfigSource>,
    cx: &Context,
) {
    use core::grpc_service::TargetSpecifier;
    let services = ads.into_iter().flat_map(|ads| ads.grpc_services.iter().take(1));
    for name in services.filter_map(|service| match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) => Some(&target.cluster_name),
        _ => None,
    }) {
        let known = resources.is_some_and(|resources| resources.clusters.iter().any(|cluster| cluster.name == *name));
        if !known {
            cx.record_all([cx.error_at(
                "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name",
                format!("Unknown gRPC client cluster '{name}'"),
            )]);
        }
    }
}

/// The node as it was written, with our own name and the version of the API.
fn node(message: core::Node) -> Node {
    use core::node::UserAgentVersionType;
    let core::Node {
        id,
        cluster,
        metadata,
        dynamic_parameters,
        locality,
        user_agent_name: _,
        extensions: _,
        client_features,
        listening_addresses,
        user_agent_version_type: _,
    } = message;
    let version = core::BuildVersion { version: Some(API_VERSION), metadata: None };
    let same = |ContextParams { params }| ContextParams { params };
    Node {
        id: id.clone(),
        cluster: cluster.clone(),
        zone: locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default(),
        message: core::Node {
            id,
            cluster,
            metadata,
            dynamic_parameters: dynamic_parameters.into_iter().map(|(of, message)| (of, same(message))).collect(),
            locality,
            user_agent_name: USER_AGENT.to_owned(),
            extensions: Vec::new(),
            client_features,
            listening_addresses,
            user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(version)),
        },
    }
}

/// Each sink has its answer in the table; there is none that stats are pushed to.
fn stats_sink(message: metrics::StatsSink, cx: &mut Context) -> Result<()> {
    let metrics::StatsSink { name, config_type } = message;
    let metrics::stats_sink::ConfigType::TypedConfig(config) = cx.required("typed_config", config_type)?;
    let kind = any::inner_type(&config, cx)?;
    cx.extension(&name, &kind).map(drop)
}

#[derive(Default)]
struct Dynamic {
    ads: Option<Arc<super::model::ApiConfigSource>>,
    cds: Option<ConfigSource>,
    lds: Option<ConfigSource>,
}

fn dynamic_resources_of(message: bootstrap::bootstrap::DynamicResources, cx: &mut Context) -> Result<Dynamic> {
    let bootstrap::bootstrap::DynamicResources {
        lds_config,
        lds_resources_locator: _,
        cds_config,
        cds_resources_locator: _,
        ads_config,
    } = message;
    let ads = ads_config.map(|message| cx.at("ads_config", |cx| api_config_source(message, cx))).transpose();
    let cds = optional_source(cds_config, "cds_config", cx);
    let lds = optional_source(lds_config, "lds_config", cx);
    Ok(Dynamic { ads: cx.part(ads).map(Arc::new), cds: cx.part(cds), lds: cx.part(lds) })
}

/// The cluster that this process is an endpoint of must be there, as in Envoy; no zone is preferred by it.
fn local_cluster(message: bootstrap::ClusterManager, clusters: &[String], cx: &mut Context) {
    let bootstrap::ClusterManager {
        local_cluster_name,
        outlier_detection: _,
        upstream_bind_config: _,
        load_stats_config: _,
        enable_deferred_cluster_creation: _,
    } = message;
    if local_cluster_name.is_empty() {
        return;
    }
    cx.at("cluster_manager", |cx| match clusters.contains(&local_cluster_name) {
        true => cx.warn("local_cluster_name", "no zone is preferred: traffic goes to all zones alike"),
        false => cx.record_all([
            cx.error_at("local_cluster_name", format!("local cluster '{local_cluster_name}' must be defined"))
        ]),
    });
}

fn admin_config(message: bootstrap::Admin, cx: &mut Context) -> Result<Option<AdminConfig>> {
    let bootstrap::Admin {
        access_log,
        access_log_path,
        profile_path: _,
        address: admin_address,
        socket_options: options,
        ignore_global_conn_limit: _,
        allow_paths: _,
    } = message;
    socket_options(options, cx)?;
    let mut access_log = access_logs(access_log, "access_log", cx)?;
    if !access_log_path.is_empty() {
        // Where it is served, the file is opened; a folder that is not there would end that.
        let folder = cx.resolve(&access_log_path).parent().map(Path::to_owned).unwrap_or_default();
        if !folder.as_os_str().is_empty() && !folder.is_dir() {
            let message = format!("unable to open file '{access_log_path}': No such file or directory");
            cx.record_all([cx.error_at("access_log_path", message)]);
        }
        let sink = AccessLogSink::File(cx.resolve(&access_log_path));
        access_log.push(AccessLogConfig { filter: None, sink, format: AccessLogFormat::Default });
    }
    // Without an address there is no admin interface, and nothing else of this message matters.
    if admin_address.is_none() {
        return Ok(None);
    }
    Ok(Some(AdminConfig { address: address(admin_address, "address", cx)?, access_log }))
}

/// The layers in order, and where the values of RTDS layers come from: resource names and sources.
type RuntimeLayers = (Vec<Layer>, Vec<(Arc<str>, ConfigSource)>);

fn runtime(message: bootstrap::LayeredRuntime, service_cluster: &str, cx: &mut Context) -> Result<RuntimeLayers> {
    use bootstrap::runtime_layer::{AdminLayer, LayerSpecifier, RtdsLayer};
    let bootstrap::LayeredRuntime { layers } = message;
    let mut rtds = Vec::new();
    let mut names = HashSet::new();
    let mut layers = cx.each("layers", layers, |layer, cx| {
        let bootstrap::RuntimeLayer { name, layer_specifier } = layer;
        let name = cx.non_empty("name", name)?;
        if !names.insert(name.clone()) {
            cx.record_all([cx.error_at("name", format!("Duplicate layer name: {name}"))]);
        }
        let source = match cx.required("layer_specifier", layer_specifier)? {
            LayerSpecifier::StaticLayer(fields) => cx.at("static_layer", |cx| -> Result<_> {
                let values = flat(&fields, cx)?;
                known_keys(&values, cx);
                Ok(LayerSource::Static(values))
            })?,
            LayerSpecifier::AdminLayer(AdminLayer {}) => LayerSource::Admin,
            LayerSpecifier::DiskLayer(layer) => {
                LayerSource::Disk(cx.at("disk_layer", |cx| disk_layer(layer, service_cluster, cx)))
            }
            LayerSpecifier::RtdsLayer(layer) => cx.at("rtds_layer", |cx| {
                let RtdsLayer { name, rtds_config } = layer;
                let name = cx.non_empty("name", name)?;
                let source = optional_source(rtds_config, "rtds_config", cx)?;
                let source = cx.required("rtds_config", source)?;
                rtds.push((name.as_str().into(), source));
                Ok(LayerSource::Rtds(name))
            })?,
        };
        Ok(Layer { name, source })
    })?;
    let admin = layers.iter().filter(|layer| matches!(layer.source, LayerSource::Admin)).count();
    if admin > 1 {
        return Err(
            cx.error_at("layers", "Too many admin layers specified in LayeredRuntime, at most one may be specified")
        );
    }
    if layers.is_empty() {
        layers.push(Layer { name: String::new(), source: LayerSource::Admin });
    }
    Ok((layers, rtds))
}

fn disk_layer(message: bootstrap::runtime_layer::DiskLayer, service_cluster: &str, cx: &mut Context) -> DiskLayer {
    let bootstrap::runtime_layer::DiskLayer { symlink_root, subdirectory, append_service_cluster } = message;
    // The link itself may come later; the folder that it stands in is watched from the start.
    let root = cx.resolve(&symlink_root);
    if !symlink_root.contains('/') {
        cx.record_all([
            cx.error_at("symlink_root", format!("invalid file path {symlink_root}, expected one with a folder"))
        ]);
    } else if !root.parent().is_none_or(Path::is_dir) {
        let message = format!("unable to add filesystem watch for file {symlink_root}: No such file or directory");
        cx.record_all([cx.error_at("symlink_root", message)]);
    }
    let mut subdirectory = PathBuf::from(subdirectory);
    if append_service_cluster {
        subdirectory.push(service_cluster);
    }
    DiskLayer { symlink_root: root, subdirectory }
}

/// `envoy.service.runtime.v3.Runtime`: the values of an RTDS layer.
pub(super) fn runtime_layer(message: runtime::Runtime, cx: &mut Context) -> Result<Resource> {
    let runtime::Runtime { name, layer } = message;
    let name = cx.non_empty("name", name)?.into();
    let values = cx.at("layer", |cx| -> Result<_> {
        let values = layer.as_ref().map(|fields| flat(fields, cx)).transpose()?.unwrap_or_default();
        known_keys(&values, cx);
        Ok(values)
    })?;
    Ok(Resource::Runtime { name, values })
}

/// What the table says of keys that Envoy itself reads. Those that it does not have are for configuration to name.
fn known_keys(values: &Values, cx: &mut Context) {
    for key in values.keys() {
        match runtime_key(key) {
            Some(Answer::Warn { meaning, .. }) => cx.warn(key, meaning),
            Some(Answer::Reject { reason, .. }) => {
                let problem = cx.error_at(key, format!("is not supported: {reason}"));
                cx.record_all([problem.of_kind(ProblemKind::Unsupported)]);
            }
            Some(Answer::Act { .. } | Answer::Idle { .. }) | None => {}
        }
    }
}

/// Keys of the bootstrap's own layers that no field of it names, when nothing can come that does.
fn unread_keys(cx: &mut Context) {
    for key in unread(&cx.runtime) {
        cx.warn("layered_runtime", format!("{UNREAD}: {key}"));
    }
}

/// Keys that have a value, and that neither Envoy nor any configuration so far reads.
pub fn unread(runtime: &Runtime) -> Vec<String> {
    let mut keys = runtime.unread();
    keys.retain(|key| runtime_key(key).is_none());
    keys
}

/// Values that have structure are kept; nested keys are joined with dots.
fn flat(fields: &google::Struct, cx: &Context) -> Result<Values> {
    let mut values = Values::new();
    flatten("", xds_protos::struct_to_json(fields), &mut values)
        .map_err(|key| cx.error_at(&key, format!("Invalid runtime entry value for {key}")))?;
    Ok(values)
}

/// # Errors
/// The key of a value that is none: runtime knows no lists and no null.
fn flatten(prefix: &str, value: Json, values: &mut Values) -> std::result::Result<(), String> {
    match value {
        // A fraction is one value, though it is written as an object.
        Json::Object(fields) if !fields.contains_key("numerator") => {
            for (name, value) in fields {
                let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&key, value, values)?;
            }
        }
        Json::Null | Json::Array(_) => return Err(prefix.to_owned()),
        value => {
            values.insert(prefix.to_owned(), value);
        }
    }
    Ok(())
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
                Json::String(format) if format.contains("%v") || format.contains("%_") => {
                    let found = if format.contains("%v") { "%v" } else { "%_" };
                    Err(cx.error_at(
                        &format!("application_log_config.log_format.json_format.{name}"),
                        format!("Usage of {found} is unavailable for JSON log formats"),
                    ))
                }
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
        allow_default_tag_overrides: _,
    } = message;
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
    let metrics::HistogramBucketSettings { r#match, mut buckets, bins: _ } = message;
    if buckets.iter().any(|bound| !(bound.is_finite() && *bound > 0.0)) {
        return Err(cx.error_at("buckets", "found a bound that is no positive number, expected numbers above 0"));
    }
    buckets.sort_by(f64::total_cmp);
    buckets.dedup();
    let message = cx.required("match", r#match)?;
    Ok((cx.at("match", |cx| string_match(message, cx))?, buckets))
}
