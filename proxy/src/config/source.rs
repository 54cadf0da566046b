//! Where things come from: xDS sources, bytes of a `DataSource`, metadata.

use super::any::{type_name, unpack};
use super::context::{Context, Result};
use super::headers::{header_name, header_value};
use super::model::{
    ApiConfigSource, ConfigSource, ConfigSourceKind, DataSource, GrpcTarget, PathSource, Polling, RequestLimit,
    SslCredentials,
};
use super::pb::extensions::grpc_service::channel_credentials::insecure::v3::InsecureCredentials;
use super::pb::{core, google};
use http::{HeaderName, HeaderValue};
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
    there_is(&kind, cx)?;
    Ok(ConfigSource { kind, initial_fetch_timeout })
}

/// Refuses a source that nothing can ever come from, in Envoy's words.
fn there_is(kind: &ConfigSourceKind, cx: &Context) -> Result<()> {
    let Some(servers) = &cx.servers else { return Ok(()) };
    match kind {
        ConfigSourceKind::Ads if !servers.ads => {
            Err(cx.error_at("ads", "ADS must be configured to support an ADS config source: the bootstrap has no ads_config"))
        }
        ConfigSourceKind::Api(api) => match &api.target {
            GrpcTarget::Cluster { name, .. } if !servers.clusters.contains(name) => Err(cx.error_at(
                "api_config_source",
                format!(
                    "envoy.config.core.v3.ApiConfigSource must have a statically defined non-EDS cluster: '{name}' does not exist, was added via api, or is an EDS cluster"
                ),
            )),
            _ => Ok(()),
        },
        ConfigSourceKind::Path(file) if !file.path.exists() => {
            let message =
                format!("paths must refer to an existing path in the system: '{}' does not exist", file.path.display());
            Err(cx.error_at("path_config_source", message))
        }
        _ => Ok(()),
    }
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
        let (rate_limit, metadata) = (None, Vec::new());
        return Ok(ApiConfigSource { delta, target, set_node_on_first_message_only, polling, rate_limit, metadata });
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
    let (target, metadata) = cx.at("grpc_services[0]", |cx| grpc_service(service, cx))?;
    let rate_limit = rate_limit_settings.map(|limit| cx.at("rate_limit_settings", |cx| request_limit(limit, cx)));
    let rate_limit = rate_limit.transpose()?;
    Ok(ApiConfigSource { delta, target, set_node_on_first_message_only, polling: None, rate_limit, metadata })
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

/// The server, and what is sent with each stream to it.
fn grpc_service(message: core::GrpcService, cx: &mut Context) -> Result<(GrpcTarget, Vec<(HeaderName, HeaderValue)>)> {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let core::GrpcService { timeout: _, initial_metadata, retry_policy: _, target_specifier } = message;
    let metadata = initial_metadata
        .into_iter()
        .enumerate()
        .map(|(n, header)| cx.at(&format!("initial_metadata[{n}]"), |cx| static_header(header, cx)));
    let metadata = metadata.collect::<Result<_>>()?;
    let target = match cx.required("target_specifier", target_specifier)? {
        TargetSpecifier::EnvoyGrpc(envoy) => cx.at("envoy_grpc", |cx| {
            let EnvoyGrpc {
                cluster_name,
                authority,
                retry_policy: _,
                max_receive_message_length: _,
                skip_envoy_headers: _,
            } = envoy;
            let name = cx.non_empty("cluster_name", cluster_name)?.into();
            if !authority.is_empty() && authority.parse::<http::uri::Authority>().is_err() {
                return Err(cx.error_at("authority", format!("found {authority:?}, expected host or host:port")));
            }
            Ok(GrpcTarget::Cluster { name, authority: (!authority.is_empty()).then(|| authority.into()) })
        }),
        TargetSpecifier::GoogleGrpc(google) => cx.at("google_grpc", |cx| google_grpc(google, cx)),
    };
    Ok((target?, metadata))
}

/// A header of a fixed value: there is no request that it could be made from.
fn static_header(message: core::HeaderValue, cx: &mut Context) -> Result<(HeaderName, HeaderValue)> {
    let core::HeaderValue { key, value, raw_value } = message;
    let name = header_name(&key, "key", cx)?;
    let value = match (value.is_empty(), raw_value.is_empty()) {
        (false, false) => return Err(cx.error_at("value", "found both value and raw_value, expected one of them")),
        (true, false) => {
            let value = HeaderValue::from_bytes(&raw_value);
            return value.map(|value| (name, value)).map_err(|_| cx.error_at("raw_value", "is no header value"));
        }
        (_, true) => value,
    };
    let literal = value.replace("%%", "");
    if literal.contains('%') {
        return Err(cx.error_at("value", format!("found {value:?}, expected a value without % operators (%% is a %)")));
    }
    Ok((name, header_value(&value.replace("%%", "%"), "value", cx)?))
}

fn google_grpc(google: core::grpc_service::GoogleGrpc, cx: &mut Context) -> Result<GrpcTarget> {
    use core::grpc_service::google_grpc::ChannelCredentials;
    use core::grpc_service::google_grpc::channel_credentials::CredentialSpecifier;
    let core::grpc_service::GoogleGrpc {
        target_uri,
        channel_credentials,
        channel_credentials_plugin,
        call_credentials: _,
        call_credentials_plugin: _,
        stat_prefix: _,
        credentials_factory_name: _,
        config: _,
        per_stream_buffer_limit_bytes: _,
        channel_args: _,
    } = google;
    let uri = cx.non_empty("target_uri", target_uri)?.into();
    if !channel_credentials_plugin.is_empty() {
        // Envoy takes the first that it knows; what it would take must not be passed over.
        for (n, plugin) in channel_credentials_plugin.into_iter().enumerate() {
            cx.at(&format!("channel_credentials_plugin[{n}]"), |cx| {
                let found = type_name(&plugin.type_url).to_owned();
                let InsecureCredentials {} = unpack(plugin, cx).map_err(|_| {
                    cx.error_at("@type", format!("found {found}, expected InsecureCredentials (or ssl_credentials)"))
                })?;
                Ok(())
            })?;
        }
        return Ok(GrpcTarget::Uri { uri, credentials: None });
    }
    let Some(ChannelCredentials { credential_specifier }) = channel_credentials else {
        return Ok(GrpcTarget::Uri { uri, credentials: None });
    };
    let credentials =
        cx.at("channel_credentials", |cx| match cx.required("credential_specifier", credential_specifier)? {
            CredentialSpecifier::SslCredentials(ssl) => cx.at("ssl_credentials", |cx| ssl_credentials(ssl, cx)),
            CredentialSpecifier::GoogleDefault(_) => Err(cx.error_at("google_default", "is not supported")),
            CredentialSpecifier::LocalCredentials(_) => Err(cx.error_at("local_credentials", "is not supported")),
        })?;
    Ok(GrpcTarget::Uri { uri, credentials: Some(Arc::new(credentials)) })
}

fn ssl_credentials(
    message: core::grpc_service::google_grpc::SslCredentials,
    cx: &mut Context,
) -> Result<SslCredentials> {
    let core::grpc_service::google_grpc::SslCredentials { root_certs, private_key, cert_chain } = message;
    let Some(root_certs) = root_certs else {
        let text =
            "is missing: no roots are built in, name the certificates of the CA (/etc/ssl/certs/ca-certificates.crt?)";
        return Err(cx.error_at("root_certs", text));
    };
    let root_certs = cx.at("root_certs", |cx| data_source(root_certs, cx))?;
    let identity = match (cert_chain, private_key) {
        (None, None) => None,
        (Some(chain), Some(key)) => {
            let chain = cx.at("cert_chain", |cx| data_source(chain, cx))?;
            Some((chain, cx.at("private_key", |cx| data_source(key, cx))?))
        }
        (Some(_), None) => return Err(cx.error_at("private_key", "is missing beside cert_chain")),
        (None, Some(_)) => return Err(cx.error_at("cert_chain", "is missing beside private_key")),
    };
    Ok(SslCredentials { root_certs, identity })
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

#[cfg(test)]
mod tests {
    use super::*;
    use xds_protos::{Descriptors, Format, ParseOptions};

    fn source(service: &str) -> std::result::Result<ApiConfigSource, String> {
        let text = format!("{{ api_type: GRPC, transport_api_version: V3, grpc_services: [{{ {service} }}] }}");
        let parsed = Descriptors::shared().parse_as(&text, Format::Yaml, ParseOptions::default());
        let (message, _) = parsed.unwrap_or_else(|errors| panic!("{text}: {}", errors[0]));
        api_config_source(message, &mut Context::default()).map_err(|e| e.to_string())
    }

    fn google(fields: &str) -> std::result::Result<GrpcTarget, String> {
        source(&format!("google_grpc: {{ stat_prefix: x, target_uri: 'xds:1', {fields} }}")).map(|api| api.target)
    }

    #[test]
    fn credentials_of_a_google_grpc_target_act_or_are_refused() {
        let plain = GrpcTarget::Uri { uri: "xds:1".into(), credentials: None };
        assert_eq!(google(""), Ok(plain.clone()));
        let plugin = |name: &str| {
            let package = "envoy.extensions.grpc_service.channel_credentials";
            google(&format!("channel_credentials_plugin: [{{ '@type': type.googleapis.com/{package}.{name} }}]"))
        };
        assert_eq!(plugin("insecure.v3.InsecureCredentials"), Ok(plain));
        let error = plugin("google_default.v3.GoogleDefaultCredentials").unwrap_err();
        assert!(error.contains("channel_credentials_plugin[0]") && error.contains("GoogleDefault"), "{error}");

        let ssl = |fields: &str| google(&format!("channel_credentials: {{ ssl_credentials: {{ {fields} }} }}"));
        let data = |text: &str| DataSource { bytes: text.to_owned().into_bytes().into(), path: None };
        let roots = "root_certs: { inline_string: roots }";
        let chain = "cert_chain: { inline_string: chain }";
        let key = "private_key: { inline_string: key }";
        let secure = |identity| {
            let credentials = Some(Arc::new(SslCredentials { root_certs: data("roots"), identity }));
            Ok(GrpcTarget::Uri { uri: "xds:1".into(), credentials })
        };
        assert_eq!(ssl(roots), secure(None));
        assert_eq!(ssl(&format!("{roots}, {chain}, {key}")), secure(Some((data("chain"), data("key")))));
        for (fields, at) in [
            (String::new(), "ssl_credentials.root_certs"),
            (format!("{roots}, {chain}"), "ssl_credentials.private_key"),
            (format!("{roots}, {key}"), "ssl_credentials.cert_chain"),
        ] {
            let error = ssl(&fields).unwrap_err();
            assert!(error.contains(&format!("grpc_services[0].google_grpc.channel_credentials.{at}")), "{error}");
        }
        for other in ["google_default: {}", "local_credentials: {}"] {
            let error = google(&format!("channel_credentials: {{ {other} }}")).unwrap_err();
            assert!(error.contains("is not supported"), "{error}");
        }
    }

    #[test]
    fn metadata_of_a_service_is_fixed() {
        let of = |headers: &str| {
            source(&format!("envoy_grpc: {{ cluster_name: a }}, initial_metadata: [{headers}]")).map(|api| api.metadata)
        };
        let header = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        assert_eq!(
            of("{ key: a, value: '10%%' }, { key: a, raw_value: dHdv }"),
            Ok(vec![header("a", "10%"), header("a", "two")])
        );
        for bad in ["{ key: a, value: '%ENVIRONMENT(X)%' }", "{ key: 'a b', value: x }", "{ key: a, raw_value: AAo= }"]
        {
            assert!(of(bad).unwrap_err().contains("initial_metadata[0]"), "{bad}");
        }
        let error = source("envoy_grpc: { cluster_name: a, authority: 'a b' }").unwrap_err();
        assert!(error.contains("envoy_grpc.authority"), "{error}");
    }
}
