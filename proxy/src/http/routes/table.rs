//! The table itself: everything of a route configuration that can be computed before the first request.

use super::hosts::Hosts;
use super::matcher::{self, RequestView};
use super::ops::Ops;
use crate::config::model::{
    ClusterChoice, Forward, PathMatch, Route, RouteAction, RouteConfig, VirtualHost, WeightedCluster,
};
use crate::config::{ConfigError, both, each_of};
use crate::http::names;
use crate::http::upstream_stats::RouteStats;
use crate::services::Services;
use crate::upstream::ClusterSlot;
use http::{HeaderMap, HeaderValue};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// Unknown clusters for which the name is looked for that was probably meant: each costs a look at all names.
const MAX_SUGGESTIONS: usize = 5;

/// From this many routes on, exact paths are looked up by hash.
const INDEX_FROM: usize = 8;

/// A compiled route configuration: virtual hosts indexed, header formats compiled, clusters bound to their slots.
pub struct RouteTable {
    pub config: Arc<RouteConfig>,
    hosts: Hosts,
    compiled: Vec<CompiledHost>,
    request_ops: Ops,
    response_ops: Ops,
}

struct CompiledHost {
    request_ops: Ops,
    response_ops: Ops,
    routes: Vec<CompiledRoute>,
    index: Option<Index>,
}

/// Routes by exact path, and all others; both in order.
struct Index {
    exact: HashMap<Box<[u8]>, Vec<u32>>,
    others: Vec<u32>,
}

struct CompiledRoute {
    request_ops: Ops,
    response_ops: Ops,
    targets: Targets,
    expected_timeout: Option<HeaderValue>,
    stats: Option<RouteStats>,
}

/// Where a route's requests may go.
pub(in crate::http) enum Targets {
    /// Not a forwarding route.
    Nowhere,
    One(Arc<ClusterSlot>),
    Weighted {
        total: u64,
        entries: Vec<Weighted>,
    },
    /// Named by a request header.
    Header,
}

pub(in crate::http) struct Weighted {
    weight: u64,
    pub slot: Arc<ClusterSlot>,
    request_ops: Ops,
    response_ops: Ops,
}

impl RouteTable {
    /// # Errors
    /// Duplicate domains, bad header formats; unknown clusters when `validate_clusters` is set.
    pub fn compile(config: Arc<RouteConfig>, services: &Arc<Services>) -> Result<Arc<RouteTable>, ConfigError> {
        let hosts = Hosts::compile(&config.virtual_hosts, config.ignore_port_in_host_matching);
        let suggestions = Cell::new(MAX_SUGGESTIONS);
        let compiled =
            each_of("virtual_hosts", &config.virtual_hosts, |host| compile_host(host, &config, services, &suggestions));
        let ops = both(request_ops(&config.request_headers), response_ops(&config.response_headers));
        let ((hosts, compiled), (request_ops, response_ops)) = both(both(hosts, compiled), ops)?;
        Ok(Arc::new(RouteTable { compiled, hosts, request_ops, response_ops, config }))
    }

    /// The slots of the clusters that its routes name, some more than once.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<ClusterSlot>> {
        self.compiled.iter().flat_map(|host| &host.routes).flat_map(|route| {
            let (one, weighted) = match &route.targets {
                Targets::One(slot) => (Some(slot), None),
                Targets::Weighted { entries, .. } => (None, Some(entries)),
                Targets::Nowhere | Targets::Header => (None, None),
            };
            one.into_iter().chain(weighted.into_iter().flatten().map(|entry| &entry.slot))
        })
    }

    /// The route of a request: its virtual host, then the first route that matches.
    pub(in crate::http) fn select(self: &Arc<Self>, view: &RequestView<'_>) -> Option<Selected> {
        let vhost = self.hosts.find(view.authority)? as usize;
        let (config, host) = (self.config.virtual_hosts.get(vhost)?, self.compiled.get(vhost)?);
        let mut path = view.bare_path();
        if self.config.ignore_path_parameters_in_path_matching {
            path = matcher::without_parameters(path);
        }
        let fits = |i: &u32| config.routes.get(*i as usize).is_some_and(|r| matcher::matches(&r.matcher, path, view));
        let route = match &host.index {
            None => (0..config.routes.len() as u32).find(fits),
            Some(index) => {
                let exact = index.exact.get(path).and_then(|list| list.iter().copied().find(fits));
                let before = exact.unwrap_or(u32::MAX);
                index.others.iter().copied().take_while(|i| *i < before).find(fits).or(exact)
            }
        }?;
        let mut selected = Selected { table: self.clone(), vhost: vhost as u32, route, weighted: None };
        if let Targets::Weighted { total, entries } = selected.targets() {
            selected.weighted = pick(entries, *total, view.random);
        }
        Some(selected)
    }
}

/// `random % total`, counted off along the entries.
fn pick(entries: &[Weighted], total: u64, random: u64) -> Option<u32> {
    let mut left = random.checked_rem(total)?;
    for (i, entry) in entries.iter().enumerate() {
        if left < entry.weight {
            return Some(i as u32);
        }
        left -= entry.weight;
    }
    None
}

fn request_ops(ops: &crate::config::model::HeaderOps) -> Result<Ops, ConfigError> {
    Ops::compile(ops).map_err(|e| e.inside("request_headers_to_add"))
}

fn response_ops(ops: &crate::config::model::HeaderOps) -> Result<Ops, ConfigError> {
    Ops::compile(ops).map_err(|e| e.inside("response_headers_to_add"))
}

fn compile_host(
    host: &VirtualHost,
    config: &RouteConfig,
    services: &Arc<Services>,
    suggestions: &Cell<usize>,
) -> Result<CompiledHost, ConfigError> {
    let routes = each_of("routes", &host.routes, |route| compile_route(route, host, config, services, suggestions));
    let ops = both(request_ops(&host.request_headers), response_ops(&host.response_headers));
    let (routes, (request_ops, response_ops)) = both(routes, ops)?;
    Ok(CompiledHost {
        request_ops,
        response_ops,
        routes,
        index: (host.routes.len() >= INDEX_FROM).then(|| index(&host.routes)),
    })
}

fn index(routes: &[Route]) -> Index {
    let mut index = Index { exact: HashMap::new(), others: Vec::new() };
    for (i, route) in routes.iter().enumerate() {
        match &route.matcher.path {
            PathMatch::Exact { value, ignore_case: false } => {
                index.exact.entry(value.as_bytes().into()).or_default().push(i as u32);
            }
            _ => index.others.push(i as u32),
        }
    }
    index
}

fn compile_route(
    route: &Route,
    host: &VirtualHost,
    config: &RouteConfig,
    services: &Arc<Services>,
    suggestions: &Cell<usize>,
) -> Result<CompiledRoute, ConfigError> {
    let (targets, expected_timeout) = match &route.action {
        RouteAction::Forward(forward) => (
            targets(forward, config.validate_clusters, services, suggestions).map_err(|e| e.inside("route")),
            expected_timeout(forward, host),
        ),
        RouteAction::Redirect(_) | RouteAction::Direct(_) => (Ok(Targets::Nowhere), None),
    };
    let ops = both(request_ops(&route.request_headers), response_ops(&route.response_headers));
    let (targets, (request_ops, response_ops)) = both(targets, ops)?;
    Ok(CompiledRoute {
        request_ops,
        response_ops,
        targets,
        expected_timeout,
        stats: route.stat_prefix.as_ref().map(|prefix| {
            RouteStats::resolve(&services.registry.scope(&format!("vhost.{}.route.{prefix}.", host.name)))
        }),
    })
}

fn targets(
    forward: &Forward,
    validate: bool,
    services: &Arc<Services>,
    suggestions: &Cell<usize>,
) -> Result<Targets, ConfigError> {
    let bind = |name: &Arc<str>, field: &str, kind: &str| {
        if validate && !services.clusters.has(name) {
            let near = match suggestions.get().checked_sub(1) {
                Some(left) => {
                    suggestions.set(left);
                    services.clusters.nearest(name).map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default()
                }
                None => String::new(),
            };
            return Err(ConfigError::new(field, format!("route: unknown {kind} '{name}'{near}")));
        }
        Ok(services.clusters.slot(name))
    };
    Ok(match &forward.cluster {
        ClusterChoice::Name(name) => Targets::One(bind(name, "cluster", "cluster")?),
        ClusterChoice::Header(_) => Targets::Header,
        ClusterChoice::Weighted(list) => {
            let bind = |name: &Arc<str>| bind(name, "name", "weighted cluster");
            let entries = each_of("weighted_clusters.clusters", list, |entry| weighted(entry, &bind))?;
            let total: u64 = entries.iter().map(|e| e.weight).sum();
            if total == 0 {
                return Err(ConfigError::new("weighted_clusters", "the weights add up to 0; at least 1 is needed"));
            }
            Targets::Weighted { total, entries }
        }
    })
}

fn weighted(
    entry: &WeightedCluster,
    bind: &impl Fn(&Arc<str>) -> Result<Arc<ClusterSlot>, ConfigError>,
) -> Result<Weighted, ConfigError> {
    let ops = both(request_ops(&entry.request_headers), response_ops(&entry.response_headers));
    let (slot, (request_ops, response_ops)) = both(bind(&entry.name), ops)?;
    Ok(Weighted { weight: u64::from(entry.weight), slot, request_ops, response_ops })
}

/// Value of `x-envoy-expected-rq-timeout-ms`: the shorter of the timeouts of the request and of one try.
fn expected_timeout(forward: &Forward, host: &VirtualHost) -> Option<HeaderValue> {
    let policy = forward.retry_policy.as_ref().or(host.retry_policy.as_ref());
    let per_try = policy.and_then(|p| p.per_try_timeout);
    let timeout = match (forward.timeout, per_try) {
        (Some(route), Some(per_try)) => Some(route.min(per_try)),
        (route, per_try) => route.or(per_try),
    }?;
    Some(names::number(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)))
}

/// A route that a request was given, with its table.
#[derive(Clone)]
pub(in crate::http) struct Selected {
    table: Arc<RouteTable>,
    vhost: u32,
    route: u32,
    weighted: Option<u32>,
}

// the indices come from `select` on the same, immutable table
#[allow(clippy::indexing_slicing)]
impl Selected {
    pub fn vhost(&self) -> &VirtualHost {
        &self.table.config.virtual_hosts[self.vhost as usize]
    }

    pub fn route(&self) -> &Route {
        &self.vhost().routes[self.route as usize]
    }

    fn host_compiled(&self) -> &CompiledHost {
        &self.table.compiled[self.vhost as usize]
    }

    fn compiled(&self) -> &CompiledRoute {
        &self.host_compiled().routes[self.route as usize]
    }

    pub fn targets(&self) -> &Targets {
        &self.compiled().targets
    }

    pub fn expected_timeout(&self) -> Option<&HeaderValue> {
        self.compiled().expected_timeout.as_ref()
    }

    pub fn stats(&self) -> Option<&RouteStats> {
        self.compiled().stats.as_ref()
    }

    /// The weighted entry that was picked: compiled and as configured.
    pub fn weighted(&self) -> Option<(&Weighted, &WeightedCluster)> {
        let i = self.weighted? as usize;
        let Targets::Weighted { entries, .. } = self.targets() else { return None };
        let RouteAction::Forward(forward) = &self.route().action else { return None };
        let ClusterChoice::Weighted(list) = &forward.cluster else { return None };
        Some((entries.get(i)?, list.get(i)?))
    }

    /// Levels in the order in which they run; by default from the most specific to the least, so that the table's wins.
    fn levels<'a>(&'a self, level: impl Fn(Level<'a>) -> &'a Ops) -> impl Iterator<Item = &'a Ops> {
        let mut list = [
            self.weighted().map(|(entry, _)| level(Level::Weighted(entry))),
            Some(level(Level::Route(self.compiled()))),
            Some(level(Level::Host(self.host_compiled()))),
            Some(level(Level::Table(&self.table))),
        ];
        if self.table.config.most_specific_header_mutations_wins {
            list.reverse();
        }
        list.into_iter().flatten().filter(|ops| !ops.is_empty())
    }

    pub fn request_ops(&self) -> impl Iterator<Item = &Ops> {
        self.levels(|level| match level {
            Level::Weighted(l) => &l.request_ops,
            Level::Route(l) => &l.request_ops,
            Level::Host(l) => &l.request_ops,
            Level::Table(l) => &l.request_ops,
        })
    }

    pub fn response_ops(&self) -> impl Iterator<Item = &Ops> {
        self.levels(|level| match level {
            Level::Weighted(l) => &l.response_ops,
            Level::Route(l) => &l.response_ops,
            Level::Host(l) => &l.response_ops,
            Level::Table(l) => &l.response_ops,
        })
    }

    /// Applies the response operations of every level.
    pub fn change_response(&self, headers: &mut HeaderMap, templates: &dyn super::Templates) {
        for ops in self.response_ops() {
            ops.apply(headers, templates);
        }
    }
}

enum Level<'a> {
    Weighted(&'a Weighted),
    Route(&'a CompiledRoute),
    Host(&'a CompiledHost),
    Table(&'a RouteTable),
}
