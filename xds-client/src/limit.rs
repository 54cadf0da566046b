//! A token bucket, without a clock of its own.

use std::time::{Duration, Instant};

use crate::options::RateLimit;

/// The longest wait for a token.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug)]
pub(crate) struct TokenBucket {
    limit: RateLimit,
    tokens: f64,
    /// When `tokens` was true.
    at: Instant,
}

impl TokenBucket {
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        let limit = RateLimit { burst: limit.burst.max(1), ..limit };
        TokenBucket { limit, tokens: f64::from(limit.burst), at: now }
    }

    /// Takes a token, or says after how long there will be one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let rate = self.limit.per_second.max(0.0);
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + filled).min(f64::from(self.limit.burst));
        self.at = now;
        // What is missing of a whole may be an error of rounding.
        if self.tokens > 1.0 - 1e-6 {
            self.tokens = (self.tokens - 1.0).max(0.0);
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((1.0 - self.tokens) / rate).unwrap_or(LONGEST).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(RateLimit::default(), start);
        assert!((0..100).all(|_| bucket.take(start).is_ok()));
        let wait = bucket.take(start).unwrap_err();
        assert_eq!(wait.as_millis(), 100);
        let mut now = start;
        for _ in 0..50 {
            now += wait;
            assert_eq!(bucket.take(now), Ok(()));
            assert!(bucket.take(now).is_err());
        }
        // What is saved up has an end.
        now += Duration::from_secs(1000);
        assert_eq!((0..200).filter(|_| bucket.take(now).is_ok()).count(), 100);
    }

    #[test]
    fn an_odd_limit_is_slow_rather_than_none() {
        let now = Instant::now();
        for per_second in [0.0, -1.0, f64::NAN, f64::MIN_POSITIVE] {
            let mut bucket = TokenBucket::new(RateLimit { burst: 0, per_second }, now);
            assert_eq!((bucket.take(now), bucket.take(now)), (Ok(()), Err(LONGEST)), "{per_second}");
        }
    }
}
