//! What the tests of this room share: configurations and clusters without a control plane.

use super::cluster::{Cluster, Place};
use super::manager::ClusterManager;
use crate::config::model::*;
use crate::slots::{Kind, Store};
use crate::stats::Registry;
use crate::tls::Secrets;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

pub(super) fn endpoint(port: u16) -> Endpoint {
    endpoint_at(SocketAddr::from(([127, 0, 0, 1], port)))
}

pub(super) fn endpoint_at(address: SocketAddr) -> Endpoint {
    Endpoint {
        address: Address::Socket(address),
        hostname: Box::default(),
        health: HealthStatus::Healthy,
        weight: 1,
        metadata: None,
        check: None,
    }
}

pub(super) fn assignment(priorities: Vec<(u32, Vec<Endpoint>)>) -> LoadAssignment {
    let localities = priorities
        .into_iter()
        .map(|(priority, endpoints)| LocalityEndpoints { locality: Locality::default(), priority, endpoints })
        .collect();
    LoadAssignment { cluster_name: "c".into(), localities, overprovisioning_factor: 140 }
}

pub(super) fn registry() -> Registry {
    Registry::new(StatsConfig::default())
}

pub(super) fn secrets() -> Arc<Secrets> {
    Secrets::new(Store::new(Kind::Secret, mpsc::unbounded_channel().0))
}

pub(super) fn manager() -> (Arc<ClusterManager>, Arc<Store<LoadAssignment>>) {
    let assignments = Arc::new(Store::new(Kind::Assignment, mpsc::unbounded_channel().0));
    (ClusterManager::new(registry(), secrets(), Arc::clone(&assignments)), assignments)
}

/// A static cluster that belongs to no manager.
pub(super) fn cluster_with(endpoints: LoadAssignment, change: impl FnOnce(&mut ClusterConfig)) -> Arc<Cluster> {
    let mut config = ClusterConfig::new("c", ClusterDiscovery::Static(endpoints.clone()));
    change(&mut config);
    let place = Place {
        slot_id: 0,
        version: 1,
        added_via_api: false,
        registry: &registry(),
        secrets: &secrets(),
        running: None,
    };
    let cluster = Cluster::new(Arc::new(config), &place).unwrap();
    cluster.apply(&endpoints);
    Arc::new(cluster)
}
