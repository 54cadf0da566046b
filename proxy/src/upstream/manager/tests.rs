use super::warming::Awaited;
use super::*;
use crate::config::model::{ConfigSource, ConfigSourceKind};
use crate::upstream::testing::{assignment, endpoint, manager};

fn run<F: Future<Output = ()>>(test: F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).unwrap();
    runtime.block_on(test);
}

async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn source() -> ConfigSource {
    ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: None }
}

fn eds(name: &str, service: &str, hash: u64) -> Arc<ClusterConfig> {
    let discovery = ClusterDiscovery::Eds { service_name: service.into(), source: source() };
    Arc::new(ClusterConfig { hash, ..ClusterConfig::new(name, discovery) })
}

fn fixed(name: &str, port: u16, hash: u64) -> Arc<ClusterConfig> {
    let discovery = ClusterDiscovery::Static(assignment(vec![(0, vec![endpoint(port)])]));
    Arc::new(ClusterConfig { hash, ..ClusterConfig::new(name, discovery) })
}

fn key(service: &str) -> Key {
    Key { name: service.into(), source: Some(source()) }
}

fn ports(cluster: &Cluster) -> Vec<String> {
    cluster.endpoints().hosts().map(|h| h.address.to_string()).collect()
}

fn give(store: &Store<LoadAssignment>, service: &str, of: &[u16]) {
    let endpoints = of.iter().map(|port| endpoint(*port)).collect();
    store.fill(&key(service), Arc::new(assignment(vec![(0, endpoints)])));
}

/// Thousands of clusters have such a task each.
#[test]
fn a_cluster_that_follows_its_endpoints_takes_little_memory() {
    run(async {
        let (manager, store) = manager();
        manager.add_or_update(fixed("a", 1, 1), true).unwrap();
        let cluster = manager.slot("a").load().unwrap();
        let slot = store.slot(key("svc"));
        let task = warm(Arc::downgrade(&manager), cluster, Awaited::Eds(Arc::downgrade(&slot)));
        assert!(size_of_val(&task) <= 576, "{} bytes", size_of_val(&task));
    });
}

#[test]
fn a_slot_outlives_its_cluster_and_an_equal_push_is_no_update() {
    run(async {
        let (manager, _) = manager();
        let slot = manager.slot("a");
        assert!(slot.load().is_none());
        assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Live));
        let first = slot.load().unwrap();
        assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Unchanged));
        assert!(Arc::ptr_eq(&first, &slot.load().unwrap()));
        first.stats().upstream_cx_total.add(3);
        assert_eq!(manager.add_or_update(fixed("a", 1, 2), true), Ok(Update::Live));
        let second = slot.load().unwrap();
        assert!(first.is_retired() && !second.is_retired());
        assert_eq!(second.stats().upstream_cx_total.value(), 3, "a new version counts on");
        let host = |c: &Cluster| Arc::clone(c.endpoints().hosts().next().unwrap());
        assert!(Arc::ptr_eq(&host(&first), &host(&second)) && !host(&second).is_removed());
        assert!(manager.remove("a") && !manager.remove("a"));
        assert!(!manager.has("a") && manager.clusters().is_empty());
        assert!(slot.load().is_some() && !second.is_retired(), "somebody still names it");
        manager.end_lingering("a");
        assert!(slot.load().is_none() && second.is_retired());
        let stats = &manager.stats;
        assert_eq!((stats.added.value(), stats.modified.value(), stats.removed.value()), (1, 1, 1));
        assert_eq!(stats.active.value(), 0);
    });
}

#[test]
fn a_removed_cluster_ends_with_the_last_route_that_names_it() {
    run(async {
        let (manager, _) = manager();
        let (one, other) = (manager.slot("a"), manager.slot("a"));
        manager.add_or_update(fixed("a", 1, 1), true).unwrap();
        let cluster = one.load().unwrap();
        assert!(manager.remove("a"));
        drop(one);
        assert!(!cluster.is_retired());
        drop(other);
        assert!(cluster.is_retired());

        manager.add_or_update(fixed("a", 1, 1), true).unwrap();
        let unnamed = manager.slot("a").load().unwrap();
        assert!(manager.remove("a"));
        assert!(unnamed.is_retired(), "nobody named it");
        assert!(manager.state().slots.is_empty(), "nothing is left of it");
    });
}

#[test]
fn a_cluster_that_comes_back_is_served_by_what_was_removed_until_it_is_warm() {
    run(async {
        let (manager, store) = manager();
        let slot = manager.slot("a");
        manager.add_or_update(fixed("a", 1, 1), true).unwrap();
        let first = slot.load().unwrap();
        assert!(manager.remove("a"));
        assert_eq!(manager.add_or_update(eds("a", "svc", 2), true), Ok(Update::Warming));
        manager.end_lingering("a");
        assert!(Arc::ptr_eq(&slot.load().unwrap(), &first) && manager.clusters().is_empty());
        // equal to what was removed, and yet nothing that runs
        assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Live));
        assert!(first.is_retired() && manager.clusters().len() == 1);
        give(&store, "svc", &[9]);
        settle().await;
        assert_eq!(ports(&slot.load().unwrap()), ["127.0.0.1:1"]);
    });
}

#[test]
fn endpoints_are_let_go_of_at_once_when_their_cluster_is_removed() {
    run(async {
        let (manager, store) = manager();
        let slot = manager.slot("a");
        manager.add_or_update(eds("a", "svc", 1), true).unwrap();
        assert!(store.get(&key("svc")).is_some());
        settle().await;
        assert!(manager.remove("a") && store.get(&key("svc")).is_none(), "while it warms");
        manager.add_or_update(eds("a", "svc", 1), true).unwrap();
        give(&store, "svc", &[1]);
        manager.all_warm().await;
        settle().await;
        assert!(manager.remove("a") && store.get(&key("svc")).is_none(), "while it runs");
        assert!(slot.load().is_some());
    });
}

#[test]
fn an_eds_cluster_warms_until_its_endpoints_arrive() {
    run(async {
        let (manager, store) = manager();
        assert_eq!(manager.add_or_update(eds("a", "svc", 1), true), Ok(Update::Warming));
        assert_eq!(manager.add_or_update(eds("a", "svc", 1), true), Ok(Update::Unchanged));
        settle().await;
        assert_eq!((manager.warming(), manager.stats.warming.value()), (vec!["a".into()], 1));
        assert!(manager.slot("a").load().is_none());
        give(&store, "svc", &[1, 2]);
        manager.all_warm().await;
        let cluster = manager.slot("a").load().unwrap();
        assert_eq!(ports(&cluster), ["127.0.0.1:1", "127.0.0.1:2"]);
        let kept = Arc::clone(cluster.endpoints().hosts().nth(1).unwrap());
        give(&store, "svc", &[2, 3]);
        settle().await;
        assert_eq!(ports(&cluster), ["127.0.0.1:2", "127.0.0.1:3"]);
        assert!(Arc::ptr_eq(cluster.endpoints().hosts().next().unwrap(), &kept));
        manager.assignment_failed("svc", AssignmentFailure::Empty);
        settle().await;
        assert_eq!(ports(&cluster).len(), 2, "an assignment that goes away changes nothing");
        assert_eq!(cluster.update_stats().rare().update_empty.value(), 1);
    });
}

#[test]
fn the_running_version_serves_while_the_next_one_warms() {
    run(async {
        let (manager, store) = manager();
        let slot = manager.slot("a");
        manager.add_or_update(fixed("a", 1, 1), true).unwrap();
        let first = slot.load().unwrap();
        manager.add_or_update(eds("a", "svc", 2), true).unwrap();
        manager.add_or_update(eds("a", "other", 3), true).unwrap();
        settle().await;
        assert!(Arc::ptr_eq(&slot.load().unwrap(), &first) && !first.is_retired());
        give(&store, "svc", &[9]);
        settle().await;
        assert!(Arc::ptr_eq(&slot.load().unwrap(), &first), "that version is wanted no more");
        give(&store, "other", &[1]);
        manager.all_warm().await;
        let next = slot.load().unwrap();
        assert_eq!((next.config.hash, ports(&next)), (3, vec!["127.0.0.1:1".to_owned()]));
    });
}

#[test]
fn going_back_to_what_runs_ends_the_warming() {
    run(async {
        let (manager, _store) = manager();
        manager.add_or_update(fixed("a", 1, 1), true).unwrap();
        manager.add_or_update(eds("a", "svc", 2), true).unwrap();
        assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Unchanged));
        manager.all_warm().await;
    });
}

#[test]
fn a_cluster_with_known_endpoints_is_live_at_once() {
    run(async {
        let (manager, store) = manager();
        manager.add_or_update(eds("a", "svc", 1), true).unwrap();
        give(&store, "svc", &[1]);
        manager.all_warm().await;
        assert_eq!(manager.add_or_update(eds("a", "svc", 2), true), Ok(Update::Live));
        let cluster = manager.slot("a").load().unwrap();
        give(&store, "svc", &[1, 2]);
        settle().await;
        assert_eq!(ports(&cluster).len(), 2);
    });
}

#[test]
fn an_endpoint_set_that_never_comes_ends_the_warming_empty() {
    run(async {
        let (manager, store) = manager();
        manager.add_or_update(eds("a", "svc", 1), true).unwrap();
        settle().await;
        store.give_up(&key("svc"));
        manager.all_warm().await;
        assert!(ports(&manager.slot("a").load().unwrap()).is_empty());
    });
}

#[test]
fn clusters_of_the_bootstrap_are_not_for_the_api() {
    run(async {
        let (manager, _) = manager();
        manager.add_or_update(fixed("a", 1, 1), false).unwrap();
        assert_eq!(manager.add_or_update(fixed("a", 2, 2), true), Ok(Update::Unchanged));
        assert!(!manager.remove("a"));
        let [status] = &manager.statuses().collect::<Vec<_>>()[..] else { panic!("one cluster") };
        assert_eq!((&*status.name, status.added_via_api, status.hosts.len()), ("a", false, 1));
        assert_eq!((&*status.hosts[0].health.to_string(), status.hosts[0].success_rate), ("healthy", -1.0));
    });
}

#[test]
fn the_xds_client_gets_a_counted_connection() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (manager, _) = manager();
        assert!(manager.xds_connector("xds", None, true).is_none());
        let port = listener.local_addr().unwrap().port();
        manager.add_or_update(fixed("xds", port, 1), false).unwrap();
        let connector = manager.xds_connector("xds", None, true).unwrap();
        assert_eq!((connector.authority().as_str(), connector.scheme()), ("xds", "http"));
        let polls = manager.xds_connector("xds", Some("api.example.com".into()), false).unwrap();
        assert_eq!(polls.authority(), "api.example.com");
        let stream = connector.connect().await.unwrap();
        let cluster = manager.slot("xds").load().unwrap();
        let stats = cluster.stats();
        assert_eq!((stats.upstream_cx_active.value(), stats.upstream_cx_http2_total.value()), (1, 1));
        drop(polls.connect().await.unwrap());
        assert_eq!((stats.upstream_cx_http1_total.value(), stats.upstream_cx_http2_total.value()), (1, 1));
        drop((stream, listener));
        assert_eq!(stats.upstream_cx_active.value(), 0);
        assert!(connector.connect().await.is_err());
        assert_eq!((stats.upstream_cx_connect_fail.value(), stats.upstream_cx_active.value()), (1, 0));
    });
}
