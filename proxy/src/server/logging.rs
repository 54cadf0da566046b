//! The application log: one line per event, in the format and with the component names of Envoy.
//!
//! A component is one of Envoy's loggers; every module of ours belongs to one. Levels can change while the process runs
//! (`/logging`), so they are atomics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::metadata::LevelFilter;
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

/// Components, and the modules whose lines they get; longest module prefix first where several fit.
const COMPONENTS: &[(&str, &[&str])] = &[
    ("admin", &["outrigger::admin"]),
    ("client", &["hyper::client"]),
    ("config", &["outrigger::discovery", "outrigger::config", "xds_client"]),
    ("conn_handler", &["outrigger::listener"]),
    ("connection", &["outrigger::tls", "rustls", "tokio_rustls"]),
    ("dns", &["outrigger::upstream::dns", "hickory"]),
    ("file", &["outrigger::access_log"]),
    ("filter", &["outrigger::network"]),
    ("grpc", &["tonic"]),
    ("http", &["outrigger::http", "hyper"]),
    ("http2", &["h2"]),
    ("main", &["outrigger"]),
    ("misc", &[]),
    ("pool", &["outrigger::upstream::pool"]),
    ("router", &["outrigger::http::routes", "outrigger::http::forward"]),
    ("stats", &["outrigger::stats"]),
    ("upstream", &["outrigger::upstream"]),
];

/// Index of the component that gets what no module claims.
const MISC: usize = 12;

static LEVELS: [AtomicU8; COMPONENTS.len()] = [const { AtomicU8::new(3) }; COMPONENTS.len()];

/// Envoy's level names by number; a line is written when its level is at least its component's.
const LEVEL_NAMES: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

fn parse_level(text: &str) -> Option<u8> {
    let text = if text == "warn" { "warning" } else { text };
    LEVEL_NAMES.iter().position(|n| *n == text).map(|n| n as u8)
}

fn number(level: &Level) -> u8 {
    match *level {
        Level::TRACE => 0,
        Level::DEBUG => 1,
        Level::INFO => 2,
        Level::WARN => 3,
        Level::ERROR => 4,
    }
}

fn component_of(target: &str) -> usize {
    COMPONENTS
        .iter()
        .enumerate()
        .flat_map(|(i, (_, modules))| modules.iter().map(move |m| (i, *m)))
        .filter(|(_, m)| target.strip_prefix(m).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
        .max_by_key(|(_, m)| m.len())
        .map_or(MISC, |(i, _)| i)
}

/// A change asked for by a flag or by `/logging`.
///
/// # Errors
/// The unknown level or component, by name; nothing was changed then.
pub fn set_levels(changes: &[(Option<&str>, &str)]) -> Result<(), String> {
    let mut parsed = Vec::new();
    for (component, level) in changes {
        let level = parse_level(level).ok_or_else(|| {
            format!("unknown log level '{level}': expected trace, debug, info, warning, error, critical or off")
        })?;
        let index = match component {
            None => None,
            // Envoy has many more loggers than we have components: the others are known and silent
            Some(name) if ENVOY_LOGGERS.contains(name) => COMPONENTS.iter().position(|(c, _)| c == name),
            Some(name) => return Err(format!("unknown logger '{name}'")),
        };
        parsed.push((component.is_some(), index, level));
    }
    for (named, index, level) in parsed {
        match (named, index) {
            (_, Some(i)) => LEVELS[i].store(level, Ordering::Relaxed),
            (false, None) => LEVELS.iter().for_each(|l| l.store(level, Ordering::Relaxed)),
            (true, None) => {}
        }
    }
    tracing::callsite::rebuild_interest_cache();
    Ok(())
}

/// Every component and its level.
pub fn levels() -> BTreeMap<&'static str, &'static str> {
    COMPONENTS
        .iter()
        .zip(&LEVELS)
        .map(|((name, _), level)| (*name, LEVEL_NAMES[usize::from(level.load(Ordering::Relaxed)).min(6)]))
        .collect()
}

/// Loggers of Envoy that a flag may name.
const ENVOY_LOGGERS: &[&str] = &[
    "admin",
    "alternate_protocols_cache",
    "aws",
    "assert",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "config",
    "connection",
    "conn_handler",
    "compression",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "dynamic_modules",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "golang",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "json_to_metadata",
    "kafka",
    "key_value_store",
    "lua",
    "local_rate_limit",
    "main",
    "matcher",
    "misc",
    "mongo",
    "multi_connection",
    "oauth2",
    "pool",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "rocketmq",
    "router",
    "runtime",
    "secret",
    "stats",
    "stats_sinks",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "upstream",
    "wasm",
    "websocket",
];

/// Reads `upstream:debug,config:trace`.
pub fn parse_component_levels(text: &str) -> Result<Vec<(Option<&str>, &str)>, String> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| match part.split_once(':') {
            Some((name, level)) => Ok((Some(name), level)),
            None => Err(format!("'{part}': expected component:level")),
        })
        .collect()
}

enum Format {
    Text(String),
    Json(Vec<(String, String)>),
}

struct Log {
    format: OnceLock<Format>,
    default_format: String,
    sink: Mutex<Sink>,
    escape: bool,
}

enum Sink {
    Stderr,
    File(std::fs::File),
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts logging; later calls do nothing (one log per process).
///
/// # Errors
/// A log file that cannot be opened.
pub fn start(format: &str, escape: bool, path: Option<&Path>) -> Result<(), String> {
    let sink = match path {
        None => Sink::Stderr,
        Some(path) => std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(Sink::File)
            .map_err(|e| format!("--log-path {}: {e}", path.display()))?,
    };
    let log = Log { format: OnceLock::new(), default_format: format.to_owned(), sink: Mutex::new(sink), escape };
    if LOG.set(log).is_ok() {
        // a subscriber that somebody set before us (a test's) stays
        let _ = tracing::subscriber::set_global_default(Lines);
        std::panic::set_hook(Box::new(|panic| tracing::error!("panic: {panic}")));
    }
    Ok(())
}

/// The bootstrap's format (`application_log_config`), in force from now on.
pub fn set_format(format: &crate::config::model::LogFormat) {
    use crate::config::model::LogFormat;
    if let Some(log) = LOG.get() {
        let format = match format {
            LogFormat::Text(t) => Format::Text(t.clone()),
            LogFormat::Json(j) => Format::Json(j.clone()),
        };
        // the first bootstrap's format stays: there is one bootstrap per process
        let _ = log.format.set(format);
    }
}

/// The subscriber: no spans, only lines.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number(metadata.level()) >= LEVELS[component_of(metadata.target())].load(Ordering::Relaxed)
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // re-asked through rebuild_interest_cache when a level changes
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let lowest = LEVELS.iter().map(|l| l.load(Ordering::Relaxed)).min().unwrap_or(6);
        Some(match lowest {
            0 => LevelFilter::TRACE,
            1 => LevelFilter::DEBUG,
            2 => LevelFilter::INFO,
            3 => LevelFilter::WARN,
            4 => LevelFilter::ERROR,
            _ => LevelFilter::OFF,
        })
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let Some(log) = LOG.get() else { return };
        let mut message = Message::default();
        event.record(&mut message);
        let mut text = message.text;
        text.push_str(&message.fields);
        if log.escape {
            text = text.escape_default().to_string();
        }
        let line = Line {
            time: OffsetDateTime::from(SystemTime::now()),
            level: number(event.metadata().level()),
            component: COMPONENTS[component_of(event.metadata().target())].0,
            file: event.metadata().file().unwrap_or_default(),
            line: event.metadata().line().unwrap_or_default(),
            text: &text,
        };
        let mut out = String::with_capacity(text.len() + 80);
        match log.format.get() {
            Some(Format::Text(format)) => line.text(format, &mut out),
            Some(Format::Json(fields)) => line.json(fields, &mut out),
            None => line.text(&log.default_format, &mut out),
        }
        out.push('\n');
        let mut sink = log.sink.lock().unwrap_or_else(PoisonError::into_inner);
        // a log that cannot be written has nowhere to say so
        let _ = match &mut *sink {
            Sink::Stderr => std::io::stderr().write_all(out.as_bytes()),
            Sink::File(file) => file.write_all(out.as_bytes()),
        };
    }
}

#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // writing to a String cannot fail
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.text, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

struct Line<'a> {
    time: OffsetDateTime,
    level: u8,
    component: &'a str,
    file: &'a str,
    line: u32,
    text: &'a str,
}

impl Line<'_> {
    /// spdlog's pattern flags (spdlog wiki, "Custom formatting"), with Envoy's `%j`, `%_` and `%*`.
    fn text(&self, format: &str, out: &mut String) {
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let t = &self.time;
            // writing to a String cannot fail
            let _ = match chars.next() {
                Some('Y') => write!(out, "{}", t.year()),
                Some('m') => write!(out, "{:02}", u8::from(t.month())),
                Some('d') => write!(out, "{:02}", t.day()),
                Some('H') => write!(out, "{:02}", t.hour()),
                Some('M') => write!(out, "{:02}", t.minute()),
                Some('S') => write!(out, "{:02}", t.second()),
                Some('T') => write!(out, "{:02}:{:02}:{:02}", t.hour(), t.minute(), t.second()),
                Some('D') => write!(out, "{:02}/{:02}/{:02}", u8::from(t.month()), t.day(), t.year() % 100),
                Some('e') => write!(out, "{:03}", t.millisecond()),
                Some('f') => write!(out, "{:06}", t.microsecond()),
                Some('F') => write!(out, "{:09}", t.nanosecond()),
                Some('E') => write!(out, "{}", t.unix_timestamp()),
                Some('z') => write!(out, "+00:00"),
                Some('t') => write!(out, "{}", rustix::thread::gettid().as_raw_nonzero()),
                Some('P') => write!(out, "{}", std::process::id()),
                Some('l') => write!(out, "{}", LEVEL_NAMES[usize::from(self.level)]),
                Some('L') => write!(out, "{}", &LEVEL_NAMES[usize::from(self.level)][..1].to_uppercase()),
                Some('n') => write!(out, "{}", self.component),
                Some('v' | '_') => write!(out, "{}", self.text),
                Some('j') => {
                    let quoted = serde_json::Value::from(self.text).to_string();
                    write!(out, "{}", quoted.trim_matches('"'))
                }
                Some('g' | 's') => write!(out, "{}", self.file),
                Some('#') => write!(out, "{}", self.line),
                Some('@') => write!(out, "{}:{}", self.file, self.line),
                Some('%') => write!(out, "%"),
                Some(other) => write!(out, "%{other}"),
                None => write!(out, "%"),
            };
        }
    }

    fn json(&self, fields: &[(String, String)], out: &mut String) {
        let object = fields.iter().map(|(key, format)| {
            let mut value = String::new();
            // the value becomes a JSON string as a whole, so the message is not escaped a second time
            self.text(&format.replace("%j", "%v"), &mut value);
            (key.clone(), serde_json::Value::from(value))
        });
        out.push_str(&serde_json::Value::Object(object.collect()).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line<'_> {
        let time = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        Line { time, level: 3, component: "config", file: "a.rs", line: 7, text }
    }

    #[test]
    fn a_line_follows_the_pattern() {
        let mut out = String::new();
        line("hello").text("[%Y-%m-%d %T.%e][%l][%n] [%g:%#] %v 100%%", &mut out);
        assert_eq!(out, "[2023-11-14 22:13:20.000][warning][config] [a.rs:7] hello 100%");
    }

    #[test]
    fn a_json_line_is_json() {
        let mut out = String::new();
        line("say \"hi\"").json(&[("level".into(), "%l".into()), ("msg".into(), "%j".into())], &mut out);
        assert_eq!(out, r#"{"level":"warning","msg":"say \"hi\""}"#);
    }

    #[test]
    fn modules_belong_to_components() {
        let name = |target| COMPONENTS[component_of(target)].0;
        assert_eq!(name("outrigger::upstream::pool::http1"), "pool");
        assert_eq!(name("outrigger::upstream::cluster"), "upstream");
        assert_eq!(name("outrigger"), "main");
        assert_eq!(name("somebody_else"), "misc");
        assert_eq!(COMPONENTS[MISC].0, "misc");
    }

    #[test]
    fn unknown_names_change_nothing() {
        assert!(set_levels(&[(Some("nonsense"), "debug")]).unwrap_err().contains("nonsense"));
        assert!(set_levels(&[(None, "loud")]).unwrap_err().contains("loud"));
        assert!(set_levels(&[(Some("misc"), "error"), (Some("lua"), "debug")]).is_ok());
        assert_eq!(levels()["misc"], "error");
    }
}
