//! `/clusters` and `/listeners`.

use super::query::Target;
use super::query::{filter, one_line};
use super::reply::Reply;
use super::view::AdminSource;
use crate::config::model::{Address, HealthStatus, Thresholds};
use crate::upstream::{ClusterStatus, HostStatus, OutlierStatus};
use http::StatusCode;
use serde_json::{Map, Value, json};
use std::fmt::Write;

pub(super) fn clusters(source: &dyn AdminSource, target: &Target) -> Reply {
    let filter = match target.value("filter").map(filter).transpose() {
        Ok(filter) => filter,
        Err(error) => return Reply::error(StatusCode::BAD_REQUEST, error),
    };
    let shown = move |cluster: &ClusterStatus| filter.as_ref().is_none_or(|filter| filter.is_match(&cluster.name));
    let clusters = source.clusters().filter(shown);
    if target.value("format") == Some("json") {
        return Reply::json_list("cluster_statuses", clusters.map(|cluster| cluster_json(&cluster)));
    }
    Reply::text_pieces(clusters.map(|cluster| {
        let mut out = String::new();
        cluster_text(&cluster, &mut out);
        out
    }))
}

fn cluster_text(cluster: &ClusterStatus, out: &mut String) {
    let name = one_line(&cluster.name);
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{name}::{key}::{value}");
    };
    line("observability_name", &one_line(&cluster.observability_name));
    if let Some(outlier) = &cluster.outlier {
        line("outlier::success_rate_average", &outlier.success_rate_average);
        line("outlier::success_rate_ejection_threshold", &outlier.success_rate_ejection_threshold);
        line("outlier::local_origin_success_rate_average", &outlier.local_origin_success_rate_average);
        line(
            "outlier::local_origin_success_rate_ejection_threshold",
            &outlier.local_origin_success_rate_ejection_threshold,
        );
    }
    for (priority, limits) in ["default", "high"].into_iter().zip(&cluster.thresholds) {
        line(&format!("{priority}_priority::max_connections"), &limits.max_connections);
        line(&format!("{priority}_priority::max_pending_requests"), &limits.max_pending_requests);
        line(&format!("{priority}_priority::max_requests"), &limits.max_requests);
        line(&format!("{priority}_priority::max_retries"), &limits.max_retries);
    }
    line("added_via_api", &cluster.added_via_api);
    if let Some(name) = cluster.eds_service_name.as_ref().filter(|name| !name.is_empty()) {
        line("eds_service_name", &one_line(name));
    }
    for host in &cluster.hosts {
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(out, "{name}::{}::{key}::{value}", host.address.0);
        };
        line("cx_active", &host.cx_active);
        line("cx_connect_fail", &host.cx_connect_fail);
        line("cx_total", &host.cx_total);
        line("rq_active", &host.rq_active);
        line("rq_error", &host.rq_error);
        line("rq_pending_active", &host.rq_pending_active);
        line("rq_success", &host.rq_success);
        line("rq_timeout", &host.rq_timeout);
        line("rq_total", &host.rq_total);
        line("hostname", &one_line(&host.hostname));
        line("health_flags", &host.health);
        line("weight", &host.weight);
        line("region", &one_line(&host.locality.region));
        line("zone", &one_line(&host.locality.zone));
        line("sub_zone", &one_line(&host.locality.sub_zone));
        line("canary", &host.canary);
        line("priority", &host.priority);
        line("success_rate", &host.success_rate);
        line("local_origin_success_rate", &host.local_origin_success_rate);
    }
}

/// A JSON object as protobuf prints a message: fields with their default value are left out.
#[derive(Default)]
struct Message(Map<String, Value>);

impl Message {
    fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Message {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn set_unless_default<T: Default + PartialEq + Into<Value>>(&mut self, key: &str, value: T) -> &mut Message {
        if value == T::default() { self } else { self.set(key, value) }
    }

    fn take(&mut self) -> Value {
        Value::Object(std::mem::take(&mut self.0))
    }
}

/// `envoy.admin.v3.ClusterStatus`.
fn cluster_json(cluster: &ClusterStatus) -> Value {
    let mut message = Message::default();
    message.set("name", &*cluster.name).set_unless_default("added_via_api", cluster.added_via_api);
    if let Some(OutlierStatus { success_rate_ejection_threshold: threshold, .. }) = cluster.outlier
        && threshold >= 0.0
    {
        message.set("success_rate_ejection_threshold", json!({ "value": threshold }));
    }
    if !cluster.hosts.is_empty() {
        message.set("host_statuses", cluster.hosts.iter().map(host_json).collect::<Vec<_>>());
    }
    let [default, high] = &cluster.thresholds;
    let breakers = [thresholds(default, None), thresholds(high, Some("HIGH"))];
    message.set("circuit_breakers", json!({ "thresholds": breakers }));
    message.set("observability_name", &*cluster.observability_name);
    message.set_unless_default("eds_service_name", cluster.eds_service_name.as_deref().unwrap_or_default());
    message.take()
}

fn thresholds(limits: &Thresholds, priority: Option<&str>) -> Value {
    let mut message = Message::default();
    if let Some(priority) = priority {
        message.set("priority", priority);
    }
    message.set("max_connections", limits.max_connections).set("max_pending_requests", limits.max_pending_requests);
    message.set("max_requests", limits.max_requests).set("max_retries", limits.max_retries);
    message.take()
}

/// `envoy.admin.v3.HostStatus`.
fn host_json(host: &HostStatus) -> Value {
    let stat = |gauge: bool, name: &str, value: u64| {
        let mut message = Message::default();
        if gauge {
            message.set("type", "GAUGE");
        }
        if value > 0 {
            message.set("value", value.to_string());
        }
        message.set("name", name).take()
    };
    let stats = vec![
        stat(false, "cx_connect_fail", host.cx_connect_fail),
        stat(false, "cx_total", host.cx_total),
        stat(false, "rq_error", host.rq_error),
        stat(false, "rq_success", host.rq_success),
        stat(false, "rq_timeout", host.rq_timeout),
        stat(false, "rq_total", host.rq_total),
        stat(true, "cx_active", host.cx_active),
        stat(true, "rq_active", host.rq_active),
        stat(true, "rq_pending_active", host.rq_pending_active),
    ];
    let health = &host.health;
    let status = match health.eds {
        HealthStatus::Unknown | HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Unhealthy | HealthStatus::Timeout => "UNHEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Draining => "DRAINING",
    };
    let health = Message::default()
        .set_unless_default("failed_active_health_check", health.failed_active_check)
        .set_unless_default("failed_outlier_check", health.failed_outlier_check)
        .set("eds_health_status", status)
        .set_unless_default("failed_active_degraded_check", health.degraded_active_check)
        .set_unless_default("pending_dynamic_removal", health.pending_dynamic_removal)
        .set_unless_default("pending_active_hc", health.pending_active_check)
        .set_unless_default("excluded_via_immediate_hc_fail", health.excluded_via_immediate_check_fail)
        .set_unless_default("active_hc_timeout", health.active_check_timeout)
        .take();
    let locality = Message::default()
        .set_unless_default("region", &*host.locality.region)
        .set_unless_default("zone", &*host.locality.zone)
        .set_unless_default("sub_zone", &*host.locality.sub_zone)
        .take();
    let mut message = Message::default();
    message.set("address", address(&host.address.0)).set("stats", stats).set("health_status", health);
    if host.success_rate >= 0.0 {
        message.set("success_rate", json!({ "value": host.success_rate }));
    }
    message.set_unless_default("weight", host.weight).set_unless_default("hostname", &*host.hostname);
    message.set_unless_default("priority", host.priority);
    if host.local_origin_success_rate >= 0.0 {
        message.set("local_origin_success_rate", json!({ "value": host.local_origin_success_rate }));
    }
    message.set("locality", locality).take()
}

/// `envoy.config.core.v3.Address`.
fn address(address: &Address) -> Value {
    match address {
        Address::Socket(socket) => {
            let mut message = Message::default();
            message.set("address", socket.ip().to_string()).set("port_value", socket.port());
            json!({ "socket_address": message.take() })
        }
        Address::Pipe { path, mode } => {
            let mut message = Message::default();
            message.set("path", path.display().to_string()).set_unless_default("mode", *mode);
            json!({ "pipe": message.take() })
        }
    }
}

pub(super) fn listeners(source: &dyn AdminSource, target: &Target) -> Reply {
    let listeners = source.listeners();
    if target.value("format") != Some("json") {
        let mut out = String::new();
        for listener in &listeners {
            for address in std::iter::once(&listener.address).chain(&listener.additional_addresses) {
                let _ = writeln!(out, "{}::{address}", one_line(&listener.name));
            }
        }
        return Reply::text(out);
    }
    let status = |listener: &super::view::ListenerView| {
        let mut message = Message::default();
        message.set("name", listener.name.as_str()).set("local_address", address(&listener.address));
        if !listener.additional_addresses.is_empty() {
            let more: Vec<Value> = listener.additional_addresses.iter().map(address).collect();
            message.set("additional_local_addresses", more);
        }
        message.take()
    };
    let statuses: Vec<Value> = listeners.iter().map(status).collect();
    Reply::json_list("listener_statuses", statuses.into_iter())
}
