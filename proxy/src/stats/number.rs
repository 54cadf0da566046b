//! Floating-point numbers as C and C++ print them, which is how Envoy's admin pages print them.

/// `%.<digits>g`: at most that many significant digits, no trailing zeros, an exponent when it is below -4 or not below
/// `digits`.
pub(super) fn general(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "nan".into() } else { if value > 0.0 { "inf" } else { "-inf" }.into() };
    }
    let scientific = format!("{:.*e}", digits.max(1) - 1, value);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent < -4 || exponent >= digits as i32 {
        return with_exponent(trim(mantissa), exponent);
    }
    let places = (digits as i32 - 1 - exponent).max(0) as usize;
    trim(&format!("{value:.places$}")).to_owned()
}

/// The fewest digits that read back as the same number, positional.
pub(super) fn shortest(value: f64) -> String {
    match value {
        v if v.is_nan() => "nan".into(),
        v if v != 0.0 && !(1e-4..1e16).contains(&v.abs()) => {
            let scientific = format!("{v:e}");
            let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            with_exponent(mantissa, exponent.parse().unwrap_or(0))
        }
        v => format!("{v}"),
    }
}

/// As JSON shows numbers: positional or with an exponent, whichever is shorter (`3e+05`, `1800000`); no number is `null`.
pub(super) fn json(value: f64) -> String {
    if !value.is_finite() {
        return "null".into();
    }
    let positional = format!("{value}");
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let scientific = with_exponent(mantissa, exponent.parse().unwrap_or(0));
    if scientific.len() < positional.len() { scientific } else { positional }
}

fn trim(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

fn with_exponent(mantissa: &str, exponent: i32) -> String {
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_c_prints_them() {
        assert_eq!(general(100.037_513_913_394_29, 32), "100.03751391339429233084956649691");
        assert_eq!(general(2.048_780_487_804_878, 32), "2.0487804878048780921062643756159");
        assert_eq!(general(3_600_000.0, 32), "3600000");
        assert_eq!([0.5, 300_000.0, 1_800_000.0].map(|v| general(v, 6)), ["0.5", "300000", "1.8e+06"]);
        assert_eq!(general(0.0, 32), "0");
        assert_eq!([1.0333333333333334, f64::NAN, 215.0].map(shortest), ["1.0333333333333334", "nan", "215"]);
        assert_eq!([300_000.0, 60_000.0, 1_800_000.0, f64::NAN].map(json), ["3e+05", "60000", "1800000", "null"]);
    }
}
