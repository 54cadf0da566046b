//! Short names for the packages of Envoy's messages that conversion reads.

pub(super) use xds_protos::pb::envoy::config::accesslog::v3 as accesslog;
pub(super) use xds_protos::pb::envoy::config::bootstrap::v3 as bootstrap;
pub(super) use xds_protos::pb::envoy::config::cluster::v3 as cluster;
pub(super) use xds_protos::pb::envoy::config::core::v3 as core;
pub(super) use xds_protos::pb::envoy::config::endpoint::v3 as endpoint;
pub(super) use xds_protos::pb::envoy::config::listener::v3 as listener;
pub(super) use xds_protos::pb::envoy::config::metrics::v3 as metrics;
pub(super) use xds_protos::pb::envoy::config::route::v3 as route;
pub(super) use xds_protos::pb::envoy::extensions;
pub(super) use xds_protos::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
pub(super) use xds_protos::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
pub(super) use xds_protos::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
pub(super) use xds_protos::pb::envoy::service::runtime::v3 as runtime;
pub(super) use xds_protos::pb::envoy::r#type::matcher::v3 as matcher;
pub(super) use xds_protos::pb::envoy::r#type::v3 as types;
pub(super) use xds_protos::pb::google::protobuf as google;
