//! Whether and when a failed attempt is tried again (Envoy's "router" filter: `x-envoy-retry-on`, `x-envoy-retry-grpc-on`).

use super::names;
use crate::config::model::RetryPolicy;
use crate::upstream::{SendErrorKind, UpstreamErrorKind};
use http::{HeaderMap, StatusCode};
use std::time::Duration;

/// What an attempt ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection.
    Connect(UpstreamErrorKind),
    /// A connection, but no response headers. `unsent`: no byte of the request had left.
    Send(SendErrorKind, bool),
    PerTryTimeout,
}

/// Whether the policy wants another attempt after this failure.
pub(super) fn wants_after_failure(policy: &RetryPolicy, failure: Failure) -> bool {
    let on = &policy.on;
    let any_reset = on.reset || on.server_error || on.gateway_error;
    match failure {
        Failure::Connect(UpstreamErrorKind::ConnectionFailure | UpstreamErrorKind::ConnectTimeout) => {
            on.connect_failure || on.reset_before_request || any_reset
        }
        // a breaker that is open must not be hit again, and where no host is healthy another try finds none
        Failure::Connect(UpstreamErrorKind::Overflow | UpstreamErrorKind::NoHealthyUpstream) => false,
        Failure::Send(SendErrorKind::RefusedStream, _) => on.refused_stream || any_reset,
        Failure::Send(_, unsent) => any_reset || (unsent && on.reset_before_request),
        Failure::PerTryTimeout => any_reset,
    }
}

/// Whether the policy wants another attempt instead of this response. gRPC statuses count only in headers.
pub(super) fn wants_after_response(policy: &RetryPolicy, status: StatusCode, headers: &HeaderMap) -> bool {
    if headers.contains_key(&names::X_ENVOY_RATELIMITED) {
        return policy.on.envoy_ratelimited;
    }
    let on = &policy.on;
    let code = status.as_u16();
    if (on.server_error && (500..600).contains(&code))
        || (on.gateway_error && (502..=504).contains(&code))
        || (on.retriable_4xx && code == 409)
        || (on.retriable_status_codes && policy.retriable_status_codes.contains(&code))
    {
        return true;
    }
    let any_grpc = on.grpc_cancelled
        || on.grpc_deadline_exceeded
        || on.grpc_internal
        || on.grpc_resource_exhausted
        || on.grpc_unavailable;
    any_grpc
        && match grpc_status(headers) {
            Some(1) => on.grpc_cancelled,
            Some(4) => on.grpc_deadline_exceeded,
            Some(8) => on.grpc_resource_exhausted,
            Some(13) => on.grpc_internal,
            Some(14) => on.grpc_unavailable,
            _ => false,
        }
}

/// `grpc-status` of headers or trailers.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(&names::GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// The pause before attempt `retry` (1 is the first retry): uniform in `[0, (2^retry - 1) * base)`, capped.
pub(super) fn back_off(policy: &RetryPolicy, retry: u32) -> Duration {
    let factor = 1_u32.checked_shl(retry.min(31)).map_or(u32::MAX, |f| f.saturating_sub(1)).max(1);
    let bound = policy.base_interval.saturating_mul(factor).min(policy.max_interval);
    let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 { Duration::ZERO } else { Duration::from_nanos(fastrand::u64(..nanos)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::RetryOn;

    fn policy(on: RetryOn) -> RetryPolicy {
        RetryPolicy {
            on,
            num_retries: 1,
            per_try_timeout: None,
            retriable_status_codes: vec![404],
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            avoid_previous_hosts: false,
            host_selection_max_attempts: 1,
        }
    }

    #[test]
    fn each_condition_answers_for_its_own_statuses() {
        let none = HeaderMap::new();
        let ask = |on, code| wants_after_response(&policy(on), StatusCode::from_u16(code).unwrap(), &none);
        let server = RetryOn { server_error: true, ..RetryOn::default() };
        let gateway = RetryOn { gateway_error: true, ..RetryOn::default() };
        let codes = RetryOn { retriable_status_codes: true, ..RetryOn::default() };
        assert!(ask(server, 500) && !ask(server, 404) && !ask(gateway, 500) && ask(gateway, 504));
        assert!(ask(codes, 404) && !ask(RetryOn::default(), 404));
        assert!(ask(RetryOn { retriable_4xx: true, ..RetryOn::default() }, 409));
    }

    #[test]
    fn rate_limited_responses_are_not_retried_and_grpc_statuses_are() {
        let mut headers = HeaderMap::new();
        headers.insert(names::GRPC_STATUS, "14".parse().unwrap());
        let on = policy(RetryOn { grpc_unavailable: true, server_error: true, ..RetryOn::default() });
        assert!(wants_after_response(&on, StatusCode::OK, &headers));
        headers.insert(names::X_ENVOY_RATELIMITED, names::TRUE);
        assert!(!wants_after_response(&on, StatusCode::SERVICE_UNAVAILABLE, &headers));
        let on = policy(RetryOn { envoy_ratelimited: true, ..RetryOn::default() });
        assert!(wants_after_response(&on, StatusCode::TOO_MANY_REQUESTS, &headers));
        assert!(!wants_after_response(&on, StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new()));
    }

    #[test]
    fn failures_are_retried_by_what_was_lost() {
        let connect = policy(RetryOn { connect_failure: true, ..RetryOn::default() });
        assert!(wants_after_failure(&connect, Failure::Connect(UpstreamErrorKind::ConnectTimeout)));
        assert!(!wants_after_failure(&connect, Failure::Send(SendErrorKind::ConnectionTermination, true)));
        let before = policy(RetryOn { reset_before_request: true, ..RetryOn::default() });
        assert!(wants_after_failure(&before, Failure::Send(SendErrorKind::ConnectionTermination, true)));
        assert!(!wants_after_failure(&before, Failure::Send(SendErrorKind::ConnectionTermination, false)));
        let reset = policy(RetryOn { reset: true, ..RetryOn::default() });
        assert!(wants_after_failure(&reset, Failure::PerTryTimeout));
        assert!(!wants_after_failure(&reset, Failure::Connect(UpstreamErrorKind::Overflow)));
    }

    #[test]
    fn the_back_off_stays_under_its_cap() {
        let p = policy(RetryOn::default());
        for retry in [1, 2, 5, 31, 32, u32::MAX] {
            assert!(back_off(&p, retry) < p.max_interval);
        }
        assert!(back_off(&p, 1) < p.base_interval);
    }
}
