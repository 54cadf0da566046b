//! A value between bounds, in a list or equal to a constant: the rules that numbers, durations and times share, in the
//! wording of protoc-gen-validate.

/// What such a value must be. Where a lower bound lies above the upper one, the value must be outside of both.
pub(super) struct Bounds<T> {
    pub(super) constant: Option<T>,
    pub(super) low: Option<Edge<T>>,
    pub(super) high: Option<Edge<T>>,
    pub(super) allowed: Vec<T>,
    pub(super) banned: Vec<T>,
    /// Zero passes whatever else is said.
    pub(super) ignore_empty: bool,
    /// How a bound is written.
    pub(super) show: fn(&T) -> String,
}

/// An end of a range.
pub(super) struct Edge<T> {
    pub(super) value: T,
    /// Whether the bound itself is within.
    pub(super) closed: bool,
}

impl<T> Edge<T> {
    /// The stricter wording wins, as in the generated code: `lt` before `lte`.
    pub(super) fn either(open: Option<T>, closed: Option<T>) -> Option<Edge<T>> {
        let closed = closed.map(|value| Edge { value, closed: true });
        open.map(|value| Edge { value, closed: false }).or(closed)
    }
}

impl<T> Bounds<T> {
    /// Everything is within.
    pub(super) fn none() -> Bounds<T> {
        let (constant, low, high, allowed, banned) = (None, None, None, Vec::new(), Vec::new());
        Bounds { constant, low, high, allowed, banned, ignore_empty: false, show: |_| String::new() }
    }
}

impl<T: PartialOrd> Bounds<T> {
    /// What is wrong with the value.
    pub(super) fn fault(&self, value: &T) -> Option<String> {
        let show = self.show;
        if let Some(constant) = self.constant.as_ref().filter(|constant| *constant != value) {
            return Some(format!("value must equal {}", show(constant)));
        }
        if let Some(reason) = self.range(value) {
            return Some(reason);
        }
        if !self.allowed.is_empty() && !self.allowed.contains(value) {
            return Some(format!("value must be in list {}", list(&self.allowed, show)));
        }
        self.banned.contains(value).then(|| format!("value must not be in list {}", list(&self.banned, show)))
    }

    fn range(&self, value: &T) -> Option<String> {
        let show = self.show;
        let too_low = |edge: &Edge<T>| if edge.closed { *value < edge.value } else { *value <= edge.value };
        let too_high = |edge: &Edge<T>| if edge.closed { *value > edge.value } else { *value >= edge.value };
        match (&self.low, &self.high) {
            (None, None) => None,
            (Some(low), Some(high)) if high.value > low.value => (too_low(low) || too_high(high)).then(|| {
                let (open, close) = (if low.closed { '[' } else { '(' }, if high.closed { ']' } else { ')' });
                format!("value must be inside range {open}{}, {}{close}", show(&low.value), show(&high.value))
            }),
            (Some(low), Some(high)) => (too_low(low) && too_high(high)).then(|| {
                let (open, close) = (if high.closed { '(' } else { '[' }, if low.closed { ')' } else { ']' });
                format!("value must be outside range {open}{}, {}{close}", show(&high.value), show(&low.value))
            }),
            (Some(low), None) => too_low(low).then(|| {
                let than = if low.closed { "greater than or equal to" } else { "greater than" };
                format!("value must be {than} {}", show(&low.value))
            }),
            (None, Some(high)) => too_high(high).then(|| {
                let than = if high.closed { "less than or equal to" } else { "less than" };
                format!("value must be {than} {}", show(&high.value))
            }),
        }
    }
}

/// A list as Go prints one.
pub(super) fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" "))
}

/// Nanoseconds as Go prints a duration: `1m30s`, `1.5s`, `250ms`, `0s`.
pub(super) fn duration(nanos: &i128) -> String {
    const SECOND: u128 = 1_000_000_000;
    let sign = if *nanos < 0 { "-" } else { "" };
    let magnitude = nanos.unsigned_abs();
    let decimal = |value: u128, unit: u128| {
        let text = format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match magnitude {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{magnitude}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", decimal(magnitude, 1_000)),
        1_000_000..SECOND => format!("{sign}{}ms", decimal(magnitude, 1_000_000)),
        _ => {
            let minutes = magnitude / (60 * SECOND);
            let seconds = decimal(magnitude % (60 * SECOND), SECOND);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(low: Option<Edge<i128>>, high: Option<Edge<i128>>, value: i128) -> String {
        let (allowed, banned) = (Vec::new(), Vec::new());
        let bounds = Bounds { constant: None, low, high, allowed, banned, ignore_empty: false, show: i128::to_string };
        bounds.fault(&value).unwrap_or_default()
    }

    #[test]
    fn ranges() {
        let (open, closed) = (|value| Some(Edge { value, closed: false }), |value| Some(Edge { value, closed: true }));
        assert_eq!(fault(open(1), None, 1), "value must be greater than 1");
        assert_eq!(fault(closed(1), None, 0), "value must be greater than or equal to 1");
        assert_eq!(fault(None, open(1), 1), "value must be less than 1");
        assert_eq!(fault(None, closed(1), 2), "value must be less than or equal to 1");
        assert_eq!(fault(open(1), open(3), 3), "value must be inside range (1, 3)");
        assert_eq!(fault(closed(1), closed(3), 0), "value must be inside range [1, 3]");
        assert_eq!(fault(open(3), open(1), 2), "value must be outside range [1, 3]");
        assert_eq!(fault(closed(3), closed(1), 2), "value must be outside range (1, 3)");
        for (low, high, value) in
            [(open(1), open(3), 2), (closed(1), closed(3), 3), (open(3), open(1), 4), (closed(3), closed(1), 3)]
        {
            assert_eq!(fault(low, high, value), "");
        }
    }

    #[test]
    fn lists_and_constants() {
        let (allowed, banned) = (vec![1.0, 2.0], vec![3.0]);
        let mut bounds = Bounds {
            constant: None,
            low: None,
            high: None,
            allowed,
            banned,
            ignore_empty: false,
            show: f64::to_string,
        };
        assert_eq!(bounds.fault(&5.0).as_deref(), Some("value must be in list [1 2]"));
        bounds.allowed.clear();
        assert_eq!(bounds.fault(&3.0).as_deref(), Some("value must not be in list [3]"));
        bounds.constant = Some(0.5);
        assert_eq!(bounds.fault(&3.0).as_deref(), Some("value must equal 0.5"));
        assert_eq!(bounds.fault(&0.5), None);
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (3_661_000_000_000, "1h1m1s"),
            (-1_000_000_000, "-1s"),
        ] {
            assert_eq!(duration(&nanos), text);
        }
    }
}
