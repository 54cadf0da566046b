//! Times as access logs write them: strftime with Envoy's additions for fractions of a second.

use std::cell::Cell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A compiled time format.
#[derive(Debug, Clone)]
pub(super) struct TimeFormat {
    pieces: Vec<Piece>,
    local: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Literal(char),
    /// A conversion of strftime.
    Field(char),
    /// The first digits of the nanoseconds (`%3f`); 9 for `%f`.
    Fraction(u8),
    /// Seconds with this many digits after the point (`%E3S`), or as many as needed (`%E*S`).
    Seconds(Option<u8>),
    /// Envoy's default format, which has a faster way.
    Iso,
}

impl TimeFormat {
    /// `2026-11-22T20:09:26.473Z`, in UTC.
    pub fn iso() -> TimeFormat {
        TimeFormat { pieces: vec![Piece::Iso], local: false }
    }

    /// `2026-11-22T20:09:26.473+0000`, in the local time zone.
    pub fn local_iso() -> TimeFormat {
        TimeFormat::parse("%Y-%m-%dT%H:%M:%E3S%z", true)
    }

    /// Every text is a format: conversions that do not exist stand for themselves.
    pub fn parse(format: &str, local: bool) -> TimeFormat {
        let mut pieces = Vec::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                pieces.push(Piece::Literal(c));
                continue;
            }
            let mut ahead = rest.clone();
            let piece = match (ahead.next(), ahead.next(), ahead.next()) {
                (Some('f'), ..) => Some((Piece::Fraction(9), 1)),
                (Some(n @ '1'..='9'), Some('f'), _) => Some((Piece::Fraction(n as u8 - b'0'), 2)),
                (Some('E'), Some('*'), Some('S')) => Some((Piece::Seconds(None), 3)),
                (Some('E'), Some(n @ '0'..='9'), Some('S')) => Some((Piece::Seconds(Some(n as u8 - b'0')), 3)),
                (Some('%'), ..) => Some((Piece::Literal('%'), 1)),
                (Some(field), ..) if "YmdHMSsbBhaAejyDFRTZzpIckltnCuw".contains(field) => {
                    Some((Piece::Field(field), 1))
                }
                _ => None,
            };
            match piece {
                Some((piece, used)) => {
                    pieces.push(piece);
                    rest.by_ref().take(used).for_each(drop);
                }
                None => pieces.push(Piece::Literal('%')),
            }
        }
        TimeFormat { pieces, local }
    }

    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = (since.as_secs() as i64, since.subsec_nanos());
        if self.pieces == [Piece::Iso] {
            return write_iso(seconds, nanos, out);
        }
        let date = if self.local { Date::local(seconds) } else { Date::utc(seconds) };
        for piece in &self.pieces {
            match *piece {
                Piece::Literal(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                Piece::Field(field) => date.write(field, out),
                Piece::Fraction(digits) => write_fraction(nanos, digits, out),
                Piece::Seconds(digits) => {
                    date.write('S', out);
                    let digits = digits.unwrap_or_else(|| {
                        (0..=9).find(|d| nanos.is_multiple_of(10_u32.pow(9 - u32::from(*d)))).unwrap_or(9)
                    });
                    if digits > 0 {
                        out.push(b'.');
                        write_fraction(nanos, digits, out);
                    }
                }
                Piece::Iso => write_iso(seconds, nanos, out),
            }
        }
    }
}

/// Writes to a `Vec` cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{ let _ = write!($out, $($arg)*); }};
}

fn write_fraction(nanos: u32, digits: u8, out: &mut Vec<u8>) {
    put!(out, "{:0width$}", nanos / 10_u32.pow(9 - u32::from(digits.min(9))), width = usize::from(digits));
}

thread_local! {
    /// The second that was formatted last, and its text: many requests share it.
    static LAST: Cell<(i64, [u8; 19])> = const { Cell::new((i64::MIN, [0; 19])) };
}

fn write_iso(seconds: i64, nanos: u32, out: &mut Vec<u8>) {
    let (last, mut text) = LAST.get();
    if last != seconds {
        let date = Date::utc(seconds);
        let mut fresh = Vec::with_capacity(24);
        put!(
            fresh,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            date.year,
            date.month,
            date.day,
            date.hour,
            date.minute,
            date.second
        );
        match fresh.try_into() {
            Ok(fresh) => text = fresh,
            // A year of five digits.
            Err(long) => return out.extend_from_slice(&long),
        }
        LAST.set((seconds, text));
    }
    out.extend_from_slice(&text);
    let millis = nanos / 1_000_000;
    let digit = |n: u32| b'0' + (n % 10) as u8;
    out.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
}

/// A time taken apart.
struct Date {
    unix: i64,
    year: i64,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// 0 is Sunday.
    weekday: u32,
    /// 0 is 1 January.
    yearday: u32,
    /// Seconds east of UTC.
    offset: i64,
    local: bool,
}

impl Date {
    /// Proleptic Gregorian calendar, from days since 1970-03-01 shifted to eras of 400 years.
    fn utc(unix: i64) -> Date {
        let (days, rest) = (unix.div_euclid(86_400), unix.rem_euclid(86_400) as u32);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let yearday = before[month as usize - 1] + day - 1 + u32::from(leap && month > 2);
        Date {
            unix,
            year,
            month,
            day,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
            weekday: (days + 4).rem_euclid(7) as u32,
            yearday,
            offset: 0,
            local: false,
        }
    }

    fn local(unix: i64) -> Date {
        let time: libc::time_t = unix;
        let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
        // SAFETY: both pointers are to live values of the right type; zeroes are a valid `tm`; localtime_r writes no
        // further than the `tm` and keeps neither pointer.
        let offset = unsafe {
            libc::localtime_r(&time, parts.as_mut_ptr());
            parts.assume_init().tm_gmtoff
        };
        Date { unix, offset, local: true, ..Date::utc(unix + offset) }
    }

    fn write(&self, field: char, out: &mut Vec<u8>) {
        let weekday = DAYS[self.weekday as usize % 7];
        let month = MONTHS[(self.month as usize + 11) % 12];
        let hour12 = (self.hour + 11) % 12 + 1;
        match field {
            'Y' => put!(out, "{:04}", self.year),
            'C' => put!(out, "{:02}", self.year / 100),
            'y' => put!(out, "{:02}", self.year % 100),
            'm' => put!(out, "{:02}", self.month),
            'd' => put!(out, "{:02}", self.day),
            'e' => put!(out, "{:2}", self.day),
            'j' => put!(out, "{:03}", self.yearday + 1),
            'H' => put!(out, "{:02}", self.hour),
            'k' => put!(out, "{:2}", self.hour),
            'I' => put!(out, "{hour12:02}"),
            'l' => put!(out, "{hour12:2}"),
            'M' => put!(out, "{:02}", self.minute),
            'S' => put!(out, "{:02}", self.second),
            's' => put!(out, "{}", self.unix),
            'p' => out.extend_from_slice(if self.hour < 12 { b"AM" } else { b"PM" }),
            'a' => out.extend_from_slice(&weekday.as_bytes()[..3]),
            'A' => out.extend_from_slice(weekday.as_bytes()),
            'b' | 'h' => out.extend_from_slice(&month.as_bytes()[..3]),
            'B' => out.extend_from_slice(month.as_bytes()),
            'u' => put!(out, "{}", (self.weekday + 6) % 7 + 1),
            'w' => put!(out, "{}", self.weekday),
            'D' => put!(out, "{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'F' => put!(out, "{:04}-{:02}-{:02}", self.year, self.month, self.day),
            'R' => put!(out, "{:02}:{:02}", self.hour, self.minute),
            'T' => put!(out, "{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'c' => {
                put!(out, "{} {} {:2} ", &weekday[..3], &month[..3], self.day);
                put!(out, "{:02}:{:02}:{:02} {:04}", self.hour, self.minute, self.second, self.year);
            }
            'z' => {
                let minutes = self.offset.abs() / 60;
                put!(out, "{}{:02}{:02}", if self.offset < 0 { '-' } else { '+' }, minutes / 60, minutes % 60);
            }
            'Z' if !self.local || self.offset == 0 => out.extend_from_slice(b"UTC"),
            'Z' => self.write('z', out),
            't' => out.push(b'\t'),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(format: &TimeFormat) -> String {
        let mut out = Vec::new();
        format.write(UNIX_EPOCH + Duration::new(1_795_378_166, 473_978_000), &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    /// The expected texts are Envoy's for this instant.
    #[test]
    fn formats_are_those_of_envoy() {
        assert_eq!(at(&TimeFormat::iso()), "2026-11-22T20:09:26.473Z");
        let utc = |format| at(&TimeFormat::parse(format, false));
        assert_eq!(utc("%Y/%m/%dT%H:%M:%S%z"), "2026/11/22T20:09:26+0000");
        assert_eq!(utc("%s %f %3f %6f %9f %1f"), "1795378166 473978000 473 473978 473978000 4");
        assert_eq!(utc("%s.%3f %E3S %E*S"), "1795378166.473 26.473 26.473978");
        assert_eq!(
            utc("%b %e %j %a %A %B %y %D %F %R %T %Z %p %I"),
            "Nov 22 326 Sun Sunday November 26 11/22/26 2026-11-22 20:09 20:09:26 UTC PM 08"
        );
        assert_eq!(utc("%d%c"), "22Sun Nov 22 20:09:26 2026");
        assert_eq!(utc("%%Y %Q"), "%Y %Q");
    }

    #[test]
    fn days_are_counted_over_leap_years() {
        let utc = |unix| {
            let mut out = Vec::new();
            TimeFormat::parse("%F %j %u", false).write(UNIX_EPOCH + Duration::from_secs(unix), &mut out);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(utc(0), "1970-01-01 001 4");
        assert_eq!(utc(1_709_164_800), "2024-02-29 060 4");
        assert_eq!(utc(1_735_603_200), "2024-12-31 366 2");
    }
}
