//! The texts that protobuf's JSON gives to durations, timestamps, bytes and floating-point numbers.

/// Seconds and nanoseconds, of one sign, as `Duration` and `Timestamp` hold them.
pub(crate) type Moment = (i64, i32);

/// The range of `google.protobuf.Duration`: ten thousand years.
const MAX_DURATION_S: i64 = 315_576_000_000;
/// 0001-01-01 and 9999-12-31, the range of `google.protobuf.Timestamp`.
const TIMESTAMP_S: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Up to nine digits of a fraction, as nanoseconds.
fn fraction(digits: &str) -> Option<i32> {
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scale = 10i32.pow(9 - u32::try_from(digits.len()).ok()?);
    Some(digits.parse::<i32>().ok()? * scale)
}

/// `1.5s`, `-0.25s`: a whole number of seconds, perhaps a fraction of up to nine digits, and the letter.
pub(crate) fn parse_duration(text: &str) -> Option<Moment> {
    let body = text.strip_suffix('s')?;
    let (negative, body) = body.strip_prefix('-').map_or((false, body), |rest| (true, rest));
    let (whole, nanos) = match body.split_once('.') {
        Some((whole, digits)) => (whole, fraction(digits)?),
        None => (body, 0),
    };
    if whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = whole.parse::<i64>().ok().filter(|s| *s <= MAX_DURATION_S)?;
    Some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// The fraction with as many digits as it needs out of 0, 3, 6 and 9.
fn print_fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    }
}

/// `0.250s`: as protobuf prints a duration.
pub(crate) fn print_duration((seconds, nanos): Moment) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", seconds.unsigned_abs(), print_fraction(nanos.unsigned_abs()))
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar.
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day since 1970-01-01.
fn date_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// `2026-11-22T19:00:00.5Z`, or with an offset like `+02:00` (RFC 3339).
pub(crate) fn parse_timestamp(text: &str) -> Option<Moment> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| text.as_bytes().get(*at) != Some(byte)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year < 1 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_from_date(year, month, day);
    if date_from_days(days) != (year, month, day) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(tail) = rest.strip_prefix('.') {
        let end = tail.bytes().position(|b| !b.is_ascii_digit())?;
        nanos = fraction(tail.get(..end)?)?;
        rest = tail.get(end..)?;
    }
    let offset = match rest.as_bytes() {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), a, b, b':', c, d] if [a, b, c, d].iter().all(|d| d.is_ascii_digit()) => {
            let two = |high: u8, low: u8| i64::from(high - b'0') * 10 + i64::from(low - b'0');
            let seconds = two(*a, *b) * 3_600 + two(*c, *d) * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    TIMESTAMP_S.contains(&seconds).then_some((seconds, nanos))
}

/// `2026-11-22T19:00:00.500Z`: as protobuf prints a timestamp.
pub(crate) fn print_timestamp((seconds, nanos): Moment) -> String {
    let seconds = seconds.clamp(*TIMESTAMP_S.start(), *TIMESTAMP_S.end());
    let (year, month, day) = date_from_days(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60,
        print_fraction(nanos.unsigned_abs())
    )
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding (RFC 4648 section 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0u32, |group, (at, byte)| group | u32::from(*byte) << (16 - 8 * at));
        for at in 0..4 {
            let letter = BASE64[(group >> (18 - 6 * at)) as usize & 63];
            out.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// Base64 in either alphabet (RFC 4648 sections 4 and 5), padded or not, as protobuf's JSON allows.
pub(crate) fn parse_base64(text: &str) -> Option<Vec<u8>> {
    let padded = text.len();
    let text = text.trim_end_matches('=');
    let whole = padded == text.len() || (padded.is_multiple_of(4) && padded - text.len() <= 2);
    if !whole || text.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.as_bytes().chunks(4) {
        let mut group = 0u32;
        for (at, byte) in chunk.iter().enumerate() {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return None,
            };
            group |= u32::from(value) << (18 - 6 * at);
        }
        let [_, a, b, c] = group.to_be_bytes();
        out.extend_from_slice([a, b, c].get(..chunk.len() - 1)?);
    }
    Some(out)
}

/// `fooBar` to `foo_bar`: a path of a field mask as messages hold it.
pub(crate) fn snake_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 4);
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// `foo_bar` to `fooBar`: a path of a field mask as JSON has it.
pub(crate) fn camel_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut upper = false;
    for c in path.chars() {
        match c {
            '_' => upper = true,
            c if std::mem::take(&mut upper) => out.push(c.to_ascii_uppercase()),
            c => out.push(c),
        }
    }
    out
}

/// A floating-point number in a string: digits, hexadecimal ones too, or protobuf's three names; white space around it
/// does not count.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let (sign, magnitude) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if let Some(digits) = magnitude.strip_prefix("0x").or_else(|| magnitude.strip_prefix("0X")) {
        return hexadecimal(digits).map(|value| sign * value).filter(|value| value.is_finite());
    }
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ if text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) => {
            text.parse().ok().filter(|value: &f64| value.is_finite())
        }
        _ => None,
    }
}

/// `1.8p3`: hexadecimal digits, and a power of two in decimal ones.
fn hexadecimal(text: &str) -> Option<f64> {
    let (digits, power) = match text.split_once(['p', 'P']) {
        Some((digits, power)) => (digits, power.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut value = 0.0;
    for digit in whole.chars().chain(fraction.chars()) {
        value = value * 16.0 + f64::from(digit.to_digit(16)?);
    }
    let shift = power.checked_sub(i32::try_from(fraction.len()).ok()?.checked_mul(4)?)?;
    (!whole.is_empty() || !fraction.is_empty()).then(|| value * 2f64.powi(shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floating_point_numbers_come_in_many_spellings() {
        for (text, value) in
            [("1e3", 1_000.0), (" 0.5\n", 0.5), ("+.5", 0.5), ("0x10", 16.0), ("-0x1.8p1", -3.0), ("0x.8", 0.5)]
        {
            assert_eq!(parse_float(text), Some(value), "{text}");
        }
        assert!(parse_float("NaN").is_some_and(f64::is_nan));
        for text in ["", "x", "0x", "0x1p", "0xg", "1_0", "1 0", "1e400", "0x1p5000", "inf", "1f"] {
            assert_eq!(parse_float(text), None, "{text}");
        }
    }

    #[test]
    fn durations_read_and_print_as_protobuf_does() {
        for (text, moment, printed) in [
            ("1s", (1, 0), "1s"),
            ("0.25s", (0, 250_000_000), "0.250s"),
            ("-1.5s", (-1, -500_000_000), "-1.500s"),
            ("0.000001s", (0, 1_000), "0.000001s"),
            ("3.123456789s", (3, 123_456_789), "3.123456789s"),
        ] {
            assert_eq!(parse_duration(text), Some(moment), "{text}");
            assert_eq!(print_duration(moment), printed);
        }
        for text in ["1", "250ms", "s", ".5s", "1.s", "1.0000000001s", "+1s", " 1s", "1e3s", "999999999999s", "--1s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn timestamps_read_and_print_as_protobuf_does() {
        for (text, moment, printed) in [
            ("1970-01-01T00:00:00Z", (0, 0), "1970-01-01T00:00:00Z"),
            ("2024-02-29T23:59:59.5Z", (1_709_251_199, 500_000_000), "2024-02-29T23:59:59.500Z"),
            ("2026-11-22T20:00:00+01:00", (1_795_374_000, 0), "2026-11-22T19:00:00Z"),
            ("0001-01-01T00:00:00Z", (-62_135_596_800, 0), "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse_timestamp(text), Some(moment), "{text}");
            assert_eq!(print_timestamp(moment), printed);
        }
        for text in [
            "",
            "2026-11-22t00:00:00z",
            "2026-11-22",
            "2023-02-29T00:00:00Z",
            "2026-11-22T25:00:00Z",
            "2026-11-22T00:00:00",
            "2026-11-22Té",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
    }

    #[test]
    fn base64_is_read_in_both_alphabets() {
        for (bytes, text) in [(&b""[..], ""), (b"a", "YQ=="), (b"ab", "YWI="), (b"abc", "YWJj"), (b"\xfb\xff", "+/8=")]
        {
            assert_eq!(base64(bytes), text);
            assert_eq!(parse_base64(text).as_deref(), Some(bytes));
            assert_eq!(parse_base64(text.trim_end_matches('=')).as_deref(), Some(bytes));
        }
        assert_eq!(parse_base64("-_8").as_deref(), Some(&b"\xfb\xff"[..]));
        for text in ["a", "a b=", "=", "====", "YQ=", "YWI==", "YQ==YQ=="] {
            assert_eq!(parse_base64(text), None, "{text}");
        }
    }
}
