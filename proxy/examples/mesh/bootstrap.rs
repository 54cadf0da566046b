//! What a sidecar is started with, as pilot-agent writes it: who it is, where its control plane and its certificates
//! are, and how finely it measures. Everything else comes over xDS.

use std::net::SocketAddr;
use std::path::Path;

use outrigger_tests::config::SDS_CLUSTER;

use crate::resources::Pod;
use crate::stats::BOUNDS;

/// The bootstrap of a pod's sidecar, as YAML.
pub fn yaml(pod: Pod, admin: SocketAddr, ads: SocketAddr, sds: &Path) -> String {
    let bounds = BOUNDS.map(|bound| bound.to_string()).join(", ");
    let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
         { '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: { http2_protocol_options: {} } }";
    format!(
        "\
node:
  id: 'sidecar~10.0.0.1~{pod}.default~default.svc.cluster.local'
  cluster: {pod}.default
  metadata: {{ NAMESPACE: default, SERVICE_ACCOUNT: {account}, CLUSTER_ID: Kubernetes }}
admin:
  address: {{ socket_address: {{ address: '{admin_ip}', port_value: {admin_port} }} }}
stats_flush_interval: 1s
stats_config:
  histogram_bucket_settings:
  - {{ match: {{ prefix: 'http.' }}, buckets: [{bounds}] }}
  - {{ match: {{ prefix: 'cluster.' }}, buckets: [{bounds}] }}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{ envoy_grpc: {{ cluster_name: xds-grpc }} }}]
  cds_config: {{ ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3 }}
  lds_config: {{ ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3 }}
static_resources:
  clusters:
  - name: xds-grpc
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options: {{ {http2} }}
    load_assignment:
      cluster_name: xds-grpc
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: '{ads_ip}', port_value: {ads_port} }} }} }}
  - name: {SDS_CLUSTER}
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options: {{ {http2} }}
    load_assignment:
      cluster_name: {SDS_CLUSTER}
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ pipe: {{ path: '{sds}' }} }} }}
",
        pod = pod.name(),
        account = pod.account(),
        admin_ip = admin.ip(),
        admin_port = admin.port(),
        ads_ip = ads.ip(),
        ads_port = ads.port(),
        sds = sds.display(),
    )
}
