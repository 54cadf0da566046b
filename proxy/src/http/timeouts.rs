//! When an exchange has waited too long, and for what.

use std::time::Duration;
use tokio::time::Instant;

/// What ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// The route's `timeout`: from the end of the request to the end of the response.
    Route,
    PerTry,
    /// `stream_idle_timeout`: no byte in either direction.
    Idle,
    /// `request_timeout`: the request has not arrived as a whole.
    Request,
    /// `max_stream_duration`, or the deadline of `grpc-timeout`.
    Duration,
}

/// The timeouts of one exchange.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Timeouts {
    pub route: Option<Duration>,
    pub idle: Option<Duration>,
    pub per_try_until: Option<Instant>,
    pub request_until: Option<Instant>,
    pub stream_until: Option<Instant>,
}

impl Timeouts {
    /// What has expired, or else when to look again. `request_ended` is the instant of the request's last byte.
    pub fn check(
        &self,
        now: Instant,
        request_ended: Option<Instant>,
        last_activity: Instant,
    ) -> Result<Option<Instant>, Expired> {
        let mut next: Option<Instant> = None;
        let mut due = |at: Option<Instant>, kind: Expired| match at {
            Some(at) if at <= now => Err(kind),
            Some(at) => {
                next = Some(next.map_or(at, |n| n.min(at)));
                Ok(())
            }
            None => Ok(()),
        };
        due(self.stream_until, Expired::Duration)?;
        match request_ended {
            // the route's timeout has not begun; looking again after its length is never too late
            None => {
                due(self.request_until, Expired::Request)?;
                due(self.route.and_then(|route| now.checked_add(route)), Expired::Route)?;
            }
            Some(ended) => due(self.route.and_then(|route| ended.checked_add(route)), Expired::Route)?,
        }
        due(self.per_try_until, Expired::PerTry)?;
        due(self.idle.and_then(|idle| last_activity.checked_add(idle)), Expired::Idle)?;
        Ok(next)
    }
}

/// The duration of a `grpc-timeout` header (gRPC over HTTP/2, "Requests"): at most eight digits and a unit.
pub(super) fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0_u64, |n, d| n * 10 + u64::from(d - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_route_timeout_begins_with_the_end_of_the_request() {
        let start = Instant::now();
        let t = Timeouts { route: Some(15 * SECOND), ..Timeouts::default() };
        let late = start + 20 * SECOND;
        assert_eq!(t.check(late, None, start), Ok(Some(late + 15 * SECOND)));
        assert_eq!(t.check(late, Some(start + 10 * SECOND), start), Ok(Some(start + 25 * SECOND)));
        assert_eq!(t.check(late, Some(start), start), Err(Expired::Route));
    }

    #[test]
    fn activity_moves_the_idle_timeout() {
        let start = Instant::now();
        let t = Timeouts { idle: Some(5 * SECOND), ..Timeouts::default() };
        assert_eq!(t.check(start + 6 * SECOND, None, start + 2 * SECOND), Ok(Some(start + 7 * SECOND)));
        assert_eq!(t.check(start + 6 * SECOND, None, start), Err(Expired::Idle));
    }

    #[test]
    fn grpc_timeouts_are_read_with_their_units_and_refused_when_too_long() {
        assert_eq!(grpc_timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in [&b""[..], b"1", b"S", b"123456789S", b"-1S", b"1x"] {
            assert_eq!(grpc_timeout(bad), None, "{bad:?}");
        }
    }
}
