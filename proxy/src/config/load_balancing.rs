//! How a cluster picks endpoints: `lb_policy` and its configurations, or the typed list that replaces them.

use super::answers::table;
use super::any;
use super::context::{Context, Result};
use super::model::LbPolicy;
use super::pb::{cluster, core, extensions, google};
use extensions::load_balancing_policies as policies;

/// Where Envoy's policies live.
const POLICIES: &str = "envoy.extensions.load_balancing_policies.";

/// Envoy's defaults of least request.
const CHOICE_COUNT: u32 = 2;
const ACTIVE_REQUEST_BIAS: f64 = 1.0;

/// What `lb_policy` and its oneof ask for.
pub(super) fn by_enum(
    policy: cluster::cluster::LbPolicy,
    config: Option<cluster::cluster::LbConfig>,
    cx: &mut Context,
) -> Result<LbPolicy> {
    use cluster::cluster::{LbConfig, LbPolicy as Policy, LeastRequestLbConfig, RoundRobinLbConfig};
    match (policy, config) {
        (Policy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: _ }))) => {
            Ok(LbPolicy::RoundRobin)
        }
        (Policy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            cx.at("least_request_lb_config", |cx| {
                let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config: _ } = config;
                least_request(choice_count, active_request_bias, cx)
            })
        }
        // A configuration of another policy than the one chosen: Envoy ignores it too.
        (Policy::RoundRobin, _) => Ok(LbPolicy::RoundRobin),
        (Policy::LeastRequest, _) => least_request(None, None, cx),
        (Policy::Random, _) => Ok(LbPolicy::Random),
        (Policy::ClusterProvided, _) => Ok(LbPolicy::ClusterProvided),
        (Policy::RingHash | Policy::Maglev, _) => {
            let meaning = "there is no consistent hashing yet: endpoints are picked at random, nothing sticks to one";
            cx.warn("lb_policy", format!("{}: {meaning}", policy.as_str_name()));
            Ok(LbPolicy::Random)
        }
        (Policy::LoadBalancingPolicyConfig, _) => {
            let found = policy.as_str_name();
            Err(cx.error_at(
                "lb_policy",
                format!("found {found}, expected ROUND_ROBIN, LEAST_REQUEST, RANDOM or CLUSTER_PROVIDED"),
            ))
        }
    }
}

/// The first policy of the list that exists here.
pub(super) fn by_list(message: cluster::LoadBalancingPolicy, cx: &mut Context) -> Result<LbPolicy> {
    let cluster::LoadBalancingPolicy { policies } = message;
    let mut unknown = Vec::new();
    for (i, policy) in policies.into_iter().enumerate() {
        let cluster::load_balancing_policy::Policy { typed_extension_config } = policy;
        let found = cx.at(&format!("policies[{i}].typed_extension_config"), |cx| {
            let extension = cx.required("", typed_extension_config)?;
            let (name, config) = any::typed_config(extension, cx)?;
            let kind = any::inner_type(&config, cx)?;
            let policy = typed_policy(&name, &kind, config, cx)?;
            if policy.is_none() {
                unknown.push(kind);
            }
            Ok(policy)
        })?;
        if let Some(policy) = found {
            return Ok(policy);
        }
    }
    // Envoy takes such a list; a cluster that spreads its load otherwise serves better than one that is refused.
    let is_policy = |kind: &&String| kind.starts_with(POLICIES) && table().find(kind).is_some();
    if let Some(first) = unknown.iter().find(is_policy) {
        let sticks = ["ring_hash.v3", "maglev.v3"].iter().any(|policy| first.contains(policy));
        let (policy, how) = if sticks { (LbPolicy::Random, "at random") } else { (LbPolicy::RoundRobin, "in turn") };
        cx.warn("policies", format!("none of them exists here: endpoints are picked {how}"));
        return Ok(policy);
    }
    Err(cx.error_at(
        "policies",
        format!(
            "didn't find a registered load balancer factory implementation with names from {unknown:?}, expected \
             round_robin, least_request, random or cluster_provided among them"
        ),
    ))
}

fn typed_policy(name: &str, kind: &str, config: google::Any, cx: &mut Context) -> Result<Option<LbPolicy>> {
    Ok(Some(match kind {
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
            let policies::round_robin::v3::RoundRobin { slow_start_config: _, locality_lb_config: _ } =
                any::unpack(config, cx)?;
            LbPolicy::RoundRobin
        }
        "envoy.extensions.load_balancing_policies.random.v3.Random" => {
            let policies::random::v3::Random { locality_lb_config: _ } = any::unpack(config, cx)?;
            LbPolicy::Random
        }
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
            let policies::cluster_provided::v3::ClusterProvided {} = any::unpack(config, cx)?;
            LbPolicy::ClusterProvided
        }
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
            let policies::least_request::v3::LeastRequest {
                choice_count,
                active_request_bias,
                slow_start_config: _,
                locality_lb_config: _,
                enable_full_scan: _,
                selection_method: _,
            } = any::unpack(config, cx)?;
            least_request(choice_count, active_request_bias, cx)?
        }
        // As Envoy passes over what it does not know: such a list ends with what every proxy has.
        _ if table().find(kind).is_none() => {
            cx.warn("", format!("{name} ({kind}) does not exist here: the next policy of the list is used"));
            return Ok(None);
        }
        _ if !kind.starts_with(POLICIES) => return Ok(None),
        _ => {
            cx.extension(name, kind)?;
            return Ok(None);
        }
    }))
}

fn least_request(
    choice_count: Option<google::UInt32Value>,
    active_request_bias: Option<core::RuntimeDouble>,
    cx: &Context,
) -> Result<LbPolicy> {
    let choice_count = choice_count.map_or(CHOICE_COUNT, |v| v.value);
    // `lb_policy` has a rule against it, the policy as an extension is not held to one: then as in Envoy one is two.
    let choice_count = choice_count.max(2);
    let active_request_bias = match active_request_bias {
        None => ACTIVE_REQUEST_BIAS,
        Some(core::RuntimeDouble { default_value, runtime_key }) => cx.runtime_number(&runtime_key, default_value),
    };
    if !(active_request_bias >= 0.0 && active_request_bias.is_finite()) {
        return Err(cx.error_at("active_request_bias", format!("found {active_request_bias}, expected 0 or more")));
    }
    Ok(LbPolicy::LeastRequest { choice_count, active_request_bias })
}
