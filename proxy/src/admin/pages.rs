//! The paths, what they are for, and the small pages.

use super::query::{Target, parameters};
use super::reply::Reply;
use super::view::{AdminSource, ConfigDumpQuery, DrainOptions, LedgerQuery};
use super::{clusters, stats};
use crate::tls::CertificateDetails;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// A request, read completely.
pub(super) struct Request<'a> {
    pub method: &'a Method,
    pub target: Target,
    /// Empty unless it is a form.
    pub body: &'a str,
}

struct Page {
    path: &'static str,
    help: &'static str,
    /// Changes something, or takes a body: only by POST.
    mutates: bool,
    /// Parameters and their help.
    parameters: &'static [(&'static str, &'static str)],
    handle: fn(&dyn AdminSource, &Request<'_>) -> Reply,
}

const fn page(path: &'static str, help: &'static str, handle: fn(&dyn AdminSource, &Request<'_>) -> Reply) -> Page {
    Page { path, help, mutates: false, parameters: &[], handle }
}

const FILTER: (&str, &str) = ("filter", "Regular expression (Google re2) for filtering stats");
const USED_ONLY: (&str, &str) = ("usedonly", "Only include stats that have been written by system since restart");
const INVERT: (&str, &str) = ("invert_filter", "Invert the filter regex");

/// Sorted by path, as `/help` shows them.
const PAGES: &[Page] = &[
    page("/", "Admin home page", |_, _| home()),
    Page {
        mutates: true,
        parameters: &[("enable", "enable/disable the allocation profiler; One of (y, n)")],
        ..page("/allocprofiler", "enable/disable the allocation profiler (if supported)", |_, _| {
            unsupported("allocation profiler")
        })
    },
    page("/certs", "print certs on machine", |source, _| certs(source)),
    Page {
        parameters: &[("filter", "Regular expression (Google re2) for filtering clusters by name")],
        ..page("/clusters", "upstream cluster status", |source, request| clusters::clusters(source, &request.target))
    },
    Page {
        parameters: &[
            ("resource", "The resource to dump"),
            (
                "mask",
                "The mask to apply. When both resource and mask are specified, the mask is applied to every element in \
                 the desired repeated field so that only a subset of fields are returned. The mask is parsed as a \
                 Protobuf::FieldMask",
            ),
            (
                "name_regex",
                "Dump only the currently loaded configurations whose names match the specified regex. Can be used with \
                 both resource and mask query parameters.",
            ),
            (
                "include_eds",
                "Dump currently loaded configuration including EDS. See the response definition for more information",
            ),
        ],
        ..page("/config_dump", "dump current Envoy configs", config_dump)
    },
    page("/contention", "dump current Envoy mutex contention stats (if enabled)", |_, _| {
        Reply::text("Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.")
    }),
    Page {
        mutates: true,
        parameters: &[("enable", "enables the CPU profiler; One of (y, n)")],
        ..page("/cpuprofiler", "enable/disable the CPU profiler", |_, _| unsupported("cpu profiler"))
    },
    Page {
        mutates: true,
        parameters: &[
            (
                "graceful",
                "When draining listeners, enter a graceful drain period prior to closing listeners. This behaviour and \
                 duration is configurable via server options or CLI",
            ),
            (
                "skip_exit",
                "When draining listeners, drain the connections but never stop the listeners. The graceful parameter has \
                 no effect when this is set, since the drain period only delays stopping the listeners",
            ),
            (
                "inboundonly",
                "Drains all inbound listeners. traffic_direction field in envoy_v3_api_msg_config.listener.v3.Listener is \
                 used to determine whether a listener is inbound or outbound.",
            ),
        ],
        ..page("/drain_listeners", "drain listeners", drain_listeners)
    },
    Page {
        mutates: true,
        ..page("/healthcheck/fail", "cause the server to fail health checks", |source, _| {
            source.set_health_failed(true);
            Reply::ok()
        })
    },
    Page {
        mutates: true,
        ..page("/healthcheck/ok", "cause the server to pass health checks", |source, _| {
            source.set_health_failed(false);
            Reply::ok()
        })
    },
    page("/heap_dump", "dump current Envoy heap (if supported)", |_, _| unsupported("heap dump")),
    Page {
        mutates: true,
        parameters: &[("enable", "enable/disable the heap profiler; One of (y, n)")],
        ..page("/heapprofiler", "enable/disable the heap profiler", |_, _| unsupported("heap profiler"))
    },
    page("/help", "print out list of admin commands", |_, _| Reply::text(help())),
    page("/hot_restart_version", "print the hot restart compatibility version", |source, _| {
        Reply::text(source.hot_restart_version())
    }),
    Page {
        parameters: &[(
            "mask",
            "The desired component to dump unready targets. The mask is parsed as a Protobuf::FieldMask. For example, \
             get the unready targets of all listeners with /init_dump?mask=listener`",
        )],
        ..page("/init_dump", "dump current Envoy init manager information (experimental)", |source, request| {
            Reply::json(&source.init_dump(request.target.value("mask")))
        })
    },
    Page {
        parameters: &[
            ("type", "Only resources of this type; One of (lds, rds, srds, vhds, cds, eds, sds, ecds, rtds)"),
            (
                "state",
                "Only resources in this state; One of (requested, warming, running, draining, rejected, does_not_exist)",
            ),
            ("name_regex", "Only resources whose names match the specified regex"),
            ("format", "File format to use; One of (text, json)"),
        ],
        ..page("/ledger", "print every configuration resource and what became of it", ledger)
    },
    Page {
        parameters: &[("format", "File format to use; One of (text, json)")],
        ..page("/listeners", "print listener info", |source, request| clusters::listeners(source, &request.target))
    },
    Page {
        mutates: true,
        parameters: &[
            (
                "paths",
                "Change multiple logging levels by setting to \
                 <logger_name1>:<desired_level1>,<logger_name2>:<desired_level2>. If fine grain logging is enabled, use \
                 __FILE__ or a glob experision as the logger name. For example, source/common*:warning",
            ),
            (
                "group",
                "Change given logger group to desired level, set to <logger_group_name>:<desired_level>. \
                 logger_group_name must be a logger name.",
            ),
            (
                "level",
                "desired logging level, this will change all loggers's level; One of (, trace, debug, info, warning, \
                 error, critical, off)",
            ),
        ],
        ..page("/logging", "query/change logging levels", logging)
    },
    page("/memory", "print current allocation/heap usage", |source, _| memory(source)),
    page("/peak_heap_dump", "dump peak Envoy heap (if supported)", |_, _| unsupported("peak heap dump")),
    Page {
        mutates: true,
        ..page("/quitquitquit", "exit the server", |source, _| {
            source.quit();
            Reply::ok()
        })
    },
    page("/ready", "print server state, return 200 if LIVE, otherwise return 503", |source, _| {
        let state = source.state();
        let status = if state == "LIVE" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Reply::error(status, format!("{state}\n"))
    }),
    Page {
        mutates: true,
        ..page("/reopen_logs", "reopen access logs", |source, _| {
            source.reopen_logs();
            Reply::ok()
        })
    },
    Page {
        mutates: true,
        ..page("/reset_counters", "reset all counters to zero", |source, _| {
            source.registry().reset_counters();
            Reply::ok()
        })
    },
    page("/runtime", "print runtime values", |source, _| runtime(source)),
    Page {
        mutates: true,
        ..page(
            "/runtime_modify",
            "Adds or modifies runtime values as passed in query parameters. To delete a previously added key, use an \
             empty string as the value. Note that deletion only applies to overrides added via this endpoint; values \
             loaded from disk can be modified via override but not deleted. E.g. ?key1=value1&key2=value2...",
            runtime_modify,
        )
    },
    page("/server_info", "print server version/status information", |source, _| server_info(source)),
    Page {
        parameters: &[
            USED_ONLY,
            FILTER,
            INVERT,
            ("format", "Format to use; One of (html, active-html, text, json)"),
            ("type", "Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)"),
            ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, disjoint, detailed, summary)"),
        ],
        ..page("/stats", "print server stats", |source, request| stats::stats(source, &request.target))
    },
    Page {
        parameters: &[
            USED_ONLY,
            ("text_readouts", "Render text_readouts as new gaugues with value 0 (increases Prometheus data size)"),
            FILTER,
            INVERT,
            ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, summary)"),
        ],
        ..page("/stats/prometheus", "print server stats in prometheus format", |source, request| {
            stats::prometheus(source, &request.target)
        })
    },
    Page {
        mutates: true,
        ..page(
            "/v3/discovery:client_status",
            "client status discovery service (CSDS), also served by gRPC",
            |source, request| source.client_status_json(request.body).map_or_else(Reply::from, Reply::json_pieces),
        )
    },
];

/// Answers any request.
pub(super) fn answer(source: &dyn AdminSource, request: &Request<'_>) -> Reply {
    match PAGES.iter().find(|page| page.path == request.target.path) {
        None => Reply::error(StatusCode::NOT_FOUND, format!("invalid path. {}", help())),
        Some(page) if page.mutates && request.method != Method::POST => Reply::error(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("Method {} not allowed, POST required.", request.method),
        ),
        Some(page) => (page.handle)(source, request),
    }
}

fn help() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for page in PAGES {
        let post = if page.mutates { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", page.path, page.help);
        for (name, help) in page.parameters {
            let _ = writeln!(out, "      {name}: {help}");
        }
    }
    out
}

/// A table of links and buttons.
fn home() -> Reply {
    let mut rows = String::new();
    for page in PAGES.iter().filter(|page| page.path != "/") {
        let (name, help) = (&page.path[1..], html(page.help));
        let action = if page.mutates {
            format!("<form action=\"{name}\" method=\"post\"><button>{name}</button></form>")
        } else {
            format!("<a href=\"{name}\">{name}</a>")
        };
        let _ = writeln!(rows, "<tr><td>{action}</td><td>{help}</td></tr>");
    }
    Reply::html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Outrigger Admin</title></head>\n\
         <body>\n<h1>Outrigger admin</h1>\n<table>\n<tr><th>Command</th><th>Description</th></tr>\n{rows}</table>\n\
         </body>\n</html>\n"
    ))
}

/// Text inside HTML.
pub(super) fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn unsupported(what: &str) -> Reply {
    Reply::error(StatusCode::NOT_IMPLEMENTED, format!("The current build does not support {what}\n"))
}

fn config_dump(source: &dyn AdminSource, request: &Request<'_>) -> Reply {
    let value = |name| request.target.value(name).map(str::to_owned);
    let query = ConfigDumpQuery {
        resource: value("resource"),
        mask: value("mask"),
        name_regex: value("name_regex"),
        include_eds: request.target.has("include_eds"),
    };
    // Envoy names no character set here
    let refused = |refusal| Reply { content_type: "text/plain", ..Reply::from(refusal) };
    source.config_dump(&query).map_or_else(refused, Reply::json_pieces)
}

fn ledger(source: &dyn AdminSource, request: &Request<'_>) -> Reply {
    let value = |name| request.target.value(name).map(str::to_owned);
    let json = request.target.value("format") == Some("json");
    let query = LedgerQuery { api: value("type"), state: value("state"), name_regex: value("name_regex"), json };
    match source.ledger(&query) {
        Err(refusal) => refusal.into(),
        Ok(page) if json => Reply::compact_json(page),
        Ok(page) => Reply::text(page),
    }
}

fn drain_listeners(source: &dyn AdminSource, request: &Request<'_>) -> Reply {
    let options = DrainOptions {
        graceful: request.target.has("graceful"),
        skip_exit: request.target.has("skip_exit"),
        inbound_only: request.target.has("inboundonly"),
    };
    if options.skip_exit && !options.graceful {
        return Reply::error(StatusCode::BAD_REQUEST, "skip_exit requires graceful\n");
    }
    source.drain_listeners(options);
    Reply::ok()
}

const LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

const LOGGING_USAGE: &str = "usage: /logging?<name>=<level> (change single level)\n\
    usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
    usage: /logging?level=<level> (change all levels)\n\
    usage: /logging?group=<group_name>:<level> (change group of loggers)\n\
    levels: trace debug info warning error critical off \n";

fn logging(source: &dyn AdminSource, request: &Request<'_>) -> Reply {
    let mut out = String::new();
    let changed = change_levels(source, &request.target.parameters);
    if let Err(error) = &changed {
        let _ = writeln!(out, "error: {error}\n\n{LOGGING_USAGE}");
        out.pop();
    }
    out.push_str("active loggers:\n");
    for (name, level) in source.log_levels() {
        let _ = writeln!(out, "  {name}: {level}");
    }
    out.push('\n');
    Reply::error(if changed.is_ok() { StatusCode::OK } else { StatusCode::BAD_REQUEST }, out)
}

fn change_levels(source: &dyn AdminSource, parameters: &[(String, String)]) -> Result<(), String> {
    let Some((key, value)) = parameters.first() else { return Ok(()) };
    let mut changes = Vec::new();
    match key.as_str() {
        "level" => changes.push((None, value.as_str())),
        "paths" | "group" => {
            for pair in value.split(',') {
                let (name, level) = pair.split_once(':').ok_or("empty logger name or empty logger level")?;
                changes.push((Some(name), level));
            }
        }
        name => changes.push((Some(name), value.as_str())),
    }
    if changes.iter().any(|(_, level)| !LEVELS.contains(level)) {
        return Err("unknown logger level".into());
    }
    source.set_log_levels(&changes).map_err(|_| "unknown logger name".into())
}

fn memory(source: &dyn AdminSource) -> Reply {
    let memory = source.memory();
    Reply::json(&json!({
        "allocated": memory.allocated.to_string(),
        "heap_size": memory.heap_size.to_string(),
        "pageheap_unmapped": memory.pageheap_unmapped.to_string(),
        "pageheap_free": memory.pageheap_free.to_string(),
        "total_thread_cache": memory.total_thread_cache.to_string(),
        "total_physical_bytes": memory.total_physical_bytes.to_string(),
    }))
}

fn runtime(source: &dyn AdminSource) -> Reply {
    let runtime = source.runtime();
    let entry = |(key, layers, value): (String, Vec<String>, String)| {
        (key, json!({ "layer_values": layers, "final_value": value }))
    };
    let entries: serde_json::Map<String, Value> = runtime.entries.into_iter().map(entry).collect();
    Reply::json(&json!({ "entries": entries, "layers": runtime.layers }))
}

fn runtime_modify(source: &dyn AdminSource, request: &Request<'_>) -> Reply {
    let mut values = request.target.parameters.clone();
    if values.is_empty() {
        values = parameters(request.body);
    }
    if values.is_empty() {
        return Reply::error(
            StatusCode::BAD_REQUEST,
            "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       or send the parameters as form values\n\
             use an empty value to remove a previously added override",
        );
    }
    source.modify_runtime(&values).map_or_else(Reply::from, |()| Reply::ok())
}

fn server_info(source: &dyn AdminSource) -> Reply {
    let info = source.server_info();
    let seconds = |duration: Duration| format!("{}s", duration.as_secs());
    Reply::json(&json!({
        "version": info.version,
        "state": source.state(),
        "uptime_current_epoch": seconds(info.uptime_current_epoch),
        "uptime_all_epochs": seconds(info.uptime_all_epochs),
        "hot_restart_version": source.hot_restart_version(),
        "command_line_options": info.command_line_options,
        "node": info.node,
        "hot_restart_initializing": false,
    }))
}

/// `envoy.admin.v3.Certificates`.
fn certs(source: &dyn AdminSource) -> Reply {
    let list = |details: &[CertificateDetails]| details.iter().map(certificate).collect::<Vec<Value>>();
    let entry =
        |view: &crate::tls::CertificateView| json!({ "ca_cert": list(&view.ca), "cert_chain": list(&view.chain) });
    let views = source.certificates();
    Reply::json(&json!({ "certificates": views.iter().map(entry).collect::<Vec<Value>>() }))
}

fn certificate(details: &CertificateDetails) -> Value {
    let certificate = &details.certificate;
    let names = [("dns", &certificate.dns_sans), ("uri", &certificate.uri_sans), ("ip_address", &certificate.ip_sans)];
    let names = names.into_iter().flat_map(|(kind, names)| names.iter().map(move |name| json!({ kind: name })));
    let left = certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    json!({
        "path": details.path,
        "serial_number": certificate.serial,
        "subject_alt_names": names.collect::<Vec<Value>>(),
        "days_until_expiration": (left.as_secs() / 86_400).to_string(),
        "valid_from": rfc3339(certificate.not_before),
        "expiration_time": rfc3339(certificate.not_after),
    })
}

fn rfc3339(time: SystemTime) -> String {
    time::OffsetDateTime::from(time).format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
