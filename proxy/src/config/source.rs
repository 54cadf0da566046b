//! Where things come from: xDS sources, bytes of a `DataSource`, metadata.

use super::context::{Context, Result};
use super::model::{
    ApiConfigSource, ConfigSource, ConfigSourceKind, DataSource, GrpcTarget, PathSource, Polling, RequestLimit,
};
use super::pb::{core, google};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's `initial_fetch_timeout` when the message has none.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Envoy's `request_timeout` of REST.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Largest file or variable that a `DataSource` may read: certificates and bodies are far smaller.
const MAX_DATA_SOURCE: u64 = 16 << 20;

pub(super) fn config_source(message: core::ConfigSource, cx: &mut Context) -> Result<ConfigSource> {
    use core::config_source::ConfigSourceSpecifier as Kind;
    let core::ConfigSource { authorities: _, initial_fetch_timeout, resource_api_version, config_source_specifier } =
        message;
    // As Envoy: whatever stands there, resources are of V3.
    cx.enumeration::<core::ApiVersion>("resource_api_version", resource_api_version)?;
    let initial_fetch_timeout =
        cx.timeout("initial_fetch_timeout", initial_fetch_timeout, Some(INITIAL_FETCH_TIMEOUT))?;
    let kind = match cx.required("config_source_specifier", config_source_specifier)? {
        Kind::Ads(core::AggregatedConfigSource {}) => ConfigSourceKind::Ads,
        Kind::ApiConfigSource(api) => {
            ConfigSourceKind::Api(Arc::new(cx.at("api_config_source", |cx| api_config_source(api, cx))?))
        }
        Kind::Path(path) => {
            let path = cx.resolve(&cx.non_empty("path", path)?);
            ConfigSourceKind::Path(Arc::new(PathSource { path, watched_directory: None }))
        }
        Kind::PathConfigSource(source) => {
            let core::PathConfigSource { path, watched_directory, poll_interval: _ } = source;
            let path = cx.resolve(&cx.non_empty("path_config_source.path", path)?);
            let watched_directory = match watched_directory {
                Some(core::WatchedDirectory { path, watch_modify: _ }) => {
                    Some(cx.resolve(&cx.non_empty("path_config_source.watched_directory.path", path)?))
                }
                None => None,
            };
            ConfigSourceKind::Path(Arc::new(PathSource { path, watched_directory }))
        }
        Kind::Self_(_) => return Err(cx.error_at("self", "is not supported")),
    };
    Ok(ConfigSource { kind, initial_fetch_timeout })
}

/// A source in an optional field.
pub(super) fn optional_source(
    message: Option<core::ConfigSource>,
    field: &str,
    cx: &mut Context,
) -> Result<Option<ConfigSource>> {
    message.map(|message| cx.at(field, |cx| config_source(message, cx))).transpose()
}

pub(super) fn api_config_source(message: core::ApiConfigSource, cx: &mut Context) -> Result<ApiConfigSource> {
    use core::api_config_source::ApiType;
    let core::ApiConfigSource {
        api_type,
        transport_api_version,
        cluster_names,
        grpc_services,
        refresh_delay,
        request_timeout,
        rate_limit_settings,
        set_node_on_first_message_only,
        config_validators: _,
    } = message;
    let (delta, polls) = match cx.enumeration::<ApiType>("api_type", api_type)? {
        ApiType::Grpc => (false, false),
        ApiType::DeltaGrpc => (true, false),
        ApiType::Rest => (false, true),
        other => {
            let found = other.as_str_name();
            return Err(cx.error_at("api_type", format!("found {found}, expected GRPC, DELTA_GRPC or REST")));
        }
    };
    // AUTO, which is also what its absence means, is V3 to Envoy; V2 is gone.
    if cx.enumeration::<core::ApiVersion>("transport_api_version", transport_api_version)? == core::ApiVersion::V2 {
        return Err(cx.error_at("transport_api_version", "found V2, expected V3"));
    }
    if polls {
        if !grpc_services.is_empty() {
            return Err(
                cx.error_at("grpc_services", "is not supported: a REST source names its cluster in cluster_names")
            );
        }
        let [name] = cluster_names.as_slice() else {
            return Err(cx.error_at("cluster_names", format!("found {}, expected one name", cluster_names.len())));
        };
        let name = cx.non_empty("cluster_names[0]", name.clone())?.into();
        let refresh_delay = cx.required("refresh_delay", cx.positive("refresh_delay", refresh_delay)?)?;
        let request_timeout = cx.positive("request_timeout", request_timeout)?.unwrap_or(REQUEST_TIMEOUT);
        let target = GrpcTarget::Cluster { name, authority: None };
        if rate_limit_settings.is_some() {
            cx.warn("rate_limit_settings", "refresh_delay limits requests to a REST service");
        }
        let polling = Some(Polling { refresh_delay, request_timeout });
        return Ok(ApiConfigSource { delta, target, set_node_on_first_message_only, polling, rate_limit: None });
    }
    if !cluster_names.is_empty() {
        return Err(cx.error_at("cluster_names", "is not supported: a gRPC source names its cluster in grpc_services"));
    }
    for (field, value) in [("refresh_delay", refresh_delay), ("request_timeout", request_timeout)] {
        if value.is_some() {
            cx.warn(field, "only REST polls");
        }
    }
    let mut services = grpc_services.into_iter();
    let service = cx.required("grpc_services", services.next())?;
    if services.next().is_some() {
        let message = "(AGGREGATED_)(DELTA_)GRPC must have no more than 1 gRPC services specified";
        cx.record_all([cx.error_at("grpc_services", message)]);
    }
    let target = cx.at("grpc_services[0]", |cx| grpc_service(service, cx))?;
    let rate_limit = rate_limit_settings.map(|limit| cx.at("rate_limit_settings", |cx| request_limit(limit, cx)));
    let rate_limit = rate_limit.transpose()?;
    Ok(ApiConfigSource { delta, target, set_node_on_first_message_only, polling: None, rate_limit })
}

/// Envoy's defaults are 100 requests at once and 10 per second.
fn request_limit(message: core::RateLimitSettings, cx: &mut Context) -> Result<RequestLimit> {
    let core::RateLimitSettings { max_tokens, fill_rate } = message;
    let fill_rate = fill_rate.map_or(10.0, |rate| rate.value);
    if !(fill_rate > 0.0 && fill_rate.is_finite()) {
        return Err(cx.error_at("fill_rate", format!("found {fill_rate}, expected more than 0")));
    }
    let per_kilosecond = ((fill_rate * 1000.0) as u64).max(1);
    Ok(RequestLimit { max_tokens: max_tokens.map_or(100, |tokens| tokens.value), per_kilosecond })
}

fn grpc_service(message: core::GrpcService, cx: &mut Context) -> Result<GrpcTarget> {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let core::GrpcService { timeout: _, initial_metadata: _, retry_policy: _, target_specifier } = message;
    match cx.required("target_specifier", target_specifier)? {
        TargetSpecifier::EnvoyGrpc(envoy) => cx.at("envoy_grpc", |cx| {
            let EnvoyGrpc {
                cluster_name,
                authority,
                retry_policy: _,
                max_receive_message_length: _,
                skip_envoy_headers: _,
            } = envoy;
            let name = cx.non_empty("cluster_name", cluster_name)?.into();
            Ok(GrpcTarget::Cluster { name, authority: (!authority.is_empty()).then(|| authority.into()) })
        }),
        TargetSpecifier::GoogleGrpc(google) => cx.at("google_grpc", |cx| google_grpc(google, cx)),
    }
}

fn google_grpc(message: core::grpc_service::GoogleGrpc, cx: &Context) -> Result<GrpcTarget> {
    let core::grpc_service::GoogleGrpc {
        target_uri,
        channel_credentials: _,
        channel_credentials_plugin: _,
        call_credentials: _,
        call_credentials_plugin: _,
        stat_prefix: _,
        credentials_factory_name: _,
        config: _,
        per_stream_buffer_limit_bytes: _,
        channel_args: _,
    } = message;
    Ok(GrpcTarget::Uri(cx.non_empty("target_uri", target_uri)?.into()))
}

/// Reads the bytes of a `DataSource`.
pub(super) fn data_source(message: core::DataSource, cx: &Context) -> Result<DataSource> {
    use core::data_source::Specifier;
    let core::DataSource { watched_directory: _, specifier } = message;
    match cx.required("specifier", specifier)? {
        Specifier::InlineBytes(bytes) => Ok(DataSource { bytes: bytes.into(), path: None }),
        Specifier::InlineString(text) => Ok(DataSource { bytes: text.into_bytes().into(), path: None }),
        Specifier::Filename(name) => {
            let path = cx.resolve(&cx.non_empty("filename", name)?);
            let fail = |e: std::io::Error| cx.error_at("filename", format!("cannot read {}: {e}", path.display()));
            let file = std::fs::File::open(&path).map_err(fail)?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_DATA_SOURCE + 1), &mut bytes)
                .map_err(fail)?;
            if bytes.len() as u64 > MAX_DATA_SOURCE {
                return Err(
                    cx.error_at("filename", format!("{} has more than {MAX_DATA_SOURCE} bytes", path.display()))
                );
            }
            Ok(DataSource { bytes: bytes.into(), path: Some(path) })
        }
        Specifier::EnvironmentVariable(name) => match std::env::var(&name) {
            Ok(text) => Ok(DataSource { bytes: text.into_bytes().into(), path: None }),
            Err(_) => {
                Err(cx.error_at("environment_variable", format!("found no variable {name:?} in the environment")))
            }
        },
    }
}

/// `filter_metadata` by filter name. `typed_filter_metadata` has no reader.
pub(super) fn metadata(message: Option<core::Metadata>) -> BTreeMap<String, Json> {
    let Some(core::Metadata { filter_metadata, typed_filter_metadata: _ }) = message else { return BTreeMap::new() };
    filter_metadata.into_iter().map(|(name, fields)| (name, xds_protos::struct_to_json(&fields))).collect()
}

/// A `Struct` as JSON, its members sorted by name so that equal messages give equal values.
pub(super) fn json_object(message: &google::Struct) -> serde_json::Map<String, Json> {
    match xds_protos::struct_to_json(message) {
        Json::Object(members) => members,
        _ => serde_json::Map::new(),
    }
}
