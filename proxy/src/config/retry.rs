//! `envoy.config.route.v3.RetryPolicy`.

use super::any;
use super::context::{Context, Result};
use super::model::{RetryOn, RetryPolicy};
use super::pb::{extensions, route};
use std::sync::Arc;
use std::time::Duration;
use xds_protos::nearest;

/// Envoy's base of the exponential back-off, and how often it may grow.
const BASE_INTERVAL: Duration = Duration::from_millis(25);
const MAX_OVER_BASE: u32 = 10;

pub(super) fn retry_policy(message: route::RetryPolicy, cx: &mut Context) -> Result<Arc<RetryPolicy>> {
    let route::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout: _,
        retry_priority: _,
        retry_host_predicate,
        retry_options_predicates: _,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off: _,
        retriable_headers: _,
        retriable_request_headers: _,
        refresh_cluster_on_retry: _,
    } = message;
    let predicates = cx.each("retry_host_predicate", retry_host_predicate, host_predicate)?;
    let (base_interval, max_interval) =
        cx.at("retry_back_off", |cx| back_off(retry_back_off.unwrap_or_default(), cx))?;
    let retriable_status_codes = cx.each("retriable_status_codes", retriable_status_codes, |code, cx| {
        u16::try_from(code).map_err(|_| cx.error(format!("found {code}, expected a status code")))
    })?;
    Ok(Arc::new(RetryPolicy {
        on: conditions(&retry_on, cx),
        num_retries: num_retries.map_or(1, |v| v.value),
        per_try_timeout: cx.timeout("per_try_timeout", per_try_timeout, None)?,
        retriable_status_codes,
        base_interval,
        max_interval,
        avoid_previous_hosts: predicates.contains(&true),
        // where every endpoint has been tried, each pick is in vain: more of them would only burn time
        host_selection_max_attempts: u32::try_from(host_selection_retry_max_attempts.clamp(1, 100)).unwrap_or(1),
    }))
}

/// Whether the predicate is `previous_hosts`, the one that exists.
fn host_predicate(message: route::retry_policy::RetryHostPredicate, cx: &mut Context) -> Result<bool> {
    use extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
    use route::retry_policy::{RetryHostPredicate, retry_host_predicate::ConfigType};
    let RetryHostPredicate { name, config_type } = message;
    let Some(ConfigType::TypedConfig(config)) = config_type else {
        // A name alone has chosen nothing since Envoy 1.22.
        return Err(cx.error(format!("Didn't find a registered implementation for '{name}' with type URL: ''")));
    };
    cx.at("typed_config", |cx| {
        let exists = cx.extension(&name, &any::inner_type(&config, cx)?)?;
        if exists {
            let PreviousHostsPredicate {} = any::unpack(config, cx)?;
        }
        Ok(exists)
    })
}

fn back_off(message: route::retry_policy::RetryBackOff, cx: &Context) -> Result<(Duration, Duration)> {
    let route::retry_policy::RetryBackOff { base_interval, max_interval } = message;
    // Envoy takes less than a millisecond for one.
    let at_least = |interval: Duration| interval.max(Duration::from_millis(1));
    let base = cx.positive("base_interval", base_interval)?.map_or(BASE_INTERVAL, at_least);
    let max = cx.positive("max_interval", max_interval)?.map_or(base.saturating_mul(MAX_OVER_BASE), at_least);
    if max < base {
        return Err(cx.error_at("max_interval", format!("found {max:?}, expected at least base_interval, {base:?}")));
    }
    Ok((base, max))
}

/// What `retry_on` may hold.
const CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "envoy-ratelimited",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "retriable-headers",
    "http3-post-connect-failure",
];

/// The conditions of `retry_on`; Envoy ignores names that it does not know, we say which.
fn conditions(retry_on: &str, cx: &mut Context) -> RetryOn {
    let mut on = RetryOn::default();
    for token in retry_on.split(',').map(str::trim).filter(|token| !token.is_empty()) {
        match token {
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "refused-stream" => on.refused_stream = true,
            "retriable-status-codes" => on.retriable_status_codes = true,
            "envoy-ratelimited" => on.envoy_ratelimited = true,
            "cancelled" => on.grpc_cancelled = true,
            "deadline-exceeded" => on.grpc_deadline_exceeded = true,
            "internal" => on.grpc_internal = true,
            "resource-exhausted" => on.grpc_resource_exhausted = true,
            "unavailable" => on.grpc_unavailable = true,
            "retriable-headers" | "http3-post-connect-failure" => {
                cx.warn("retry_on", format!("{token} does not cause a retry"));
            }
            unknown => {
                let near = cx.meant(|| nearest(unknown, CONDITIONS.into_iter()));
                cx.warn("retry_on", format!("{unknown} is no known condition{near}"));
            }
        }
    }
    on
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pb::google;

    #[test]
    fn istios_default_is_understood() {
        let mut cx = Context::default();
        let message = route::RetryPolicy {
            retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes".into(),
            num_retries: Some(google::UInt32Value { value: 2 }),
            host_selection_retry_max_attempts: 5,
            ..Default::default()
        };
        let policy = retry_policy(message, &mut cx).unwrap();
        assert!(policy.on.connect_failure && policy.on.refused_stream && policy.on.grpc_unavailable);
        assert!(policy.on.grpc_cancelled && policy.on.retriable_status_codes && !policy.on.server_error);
        assert_eq!((policy.num_retries, policy.host_selection_max_attempts), (2, 5));
        assert_eq!((policy.base_interval.as_millis(), policy.max_interval.as_millis()), (25, 250));
        assert!(cx.notices.warnings.is_empty());
    }

    #[test]
    fn unknown_conditions_are_named() {
        let mut cx = Context::default();
        let message = route::RetryPolicy { retry_on: "foo,5xx,conect-failure".into(), ..Default::default() };
        let policy = retry_policy(message, &mut cx).unwrap();
        assert!(policy.on.server_error);
        assert_eq!((policy.num_retries, policy.host_selection_max_attempts), (1, 1));
        let said: Vec<String> = cx.notices.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "retry_on: foo is no known condition",
                "retry_on: conect-failure is no known condition (did you mean \"connect-failure\"?)"
            ]
        );
    }
}
