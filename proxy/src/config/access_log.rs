//! Access loggers and their filters.

use super::any;
use super::context::{Context, Result};
use super::matcher;
use super::model::{AccessLogConfig, AccessLogFilter, AccessLogFormat, AccessLogSink, Comparison};
use super::pb::{accesslog, core, extensions};
use super::source::{data_source, json_object};
use super::{pb, route_match};

use extensions::access_loggers::file::v3::FileAccessLog;
use extensions::access_loggers::stream::v3::{StderrAccessLog, StdoutAccessLog};
use xds_protos::nearest;

/// Short names of response flags that a filter may ask for (the list of `ResponseFlagFilter`).
const FLAGS: [&str; 30] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX", "SI", "IH",
    "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR", "UDO",
];

/// Filters may nest; deeper than this is refused.
const MAX_DEPTH: usize = 16;

/// The loggers of one place; those of a kind that does not exist here are left out with a warning.
pub(super) fn access_logs(
    messages: Vec<accesslog::AccessLog>,
    field: &str,
    cx: &mut Context,
) -> Result<Vec<AccessLogConfig>> {
    Ok(cx.each(field, messages, access_log)?.into_iter().flatten().collect())
}

fn access_log(message: accesslog::AccessLog, cx: &mut Context) -> Result<Option<AccessLogConfig>> {
    use accesslog::access_log::ConfigType;
    let accesslog::AccessLog { name, filter, config_type } = message;
    let ConfigType::TypedConfig(config) = cx.required("typed_config", config_type)?;
    let filter = filter.map(|filter| cx.at("filter", |cx| access_log_filter(filter, 0, cx))).transpose()?;
    let kind = any::inner_type(&config, cx)?;
    let logger = cx.at("typed_config", |cx| -> Result<_> {
        Ok(match kind.as_str() {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => Some(file(any::unpack(config, cx)?, cx)?),
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                use extensions::access_loggers::stream::v3::stdout_access_log::AccessLogFormat::LogFormat;
                let StdoutAccessLog { access_log_format } = any::unpack(config, cx)?;
                Some((AccessLogSink::Stdout, log_format(access_log_format.map(|LogFormat(f)| f), cx)?))
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                use extensions::access_loggers::stream::v3::stderr_access_log::AccessLogFormat::LogFormat;
                let StderrAccessLog { access_log_format } = any::unpack(config, cx)?;
                Some((AccessLogSink::Stderr, log_format(access_log_format.map(|LogFormat(f)| f), cx)?))
            }
            kind => {
                cx.extension(&name, kind)?;
                None
            }
        })
    })?;
    if logger.is_none() {
        cx.leave_out();
    }
    Ok(logger.map(|(sink, format)| AccessLogConfig { filter, sink, format }))
}

fn file(message: FileAccessLog, cx: &mut Context) -> Result<(AccessLogSink, AccessLogFormat)> {
    use extensions::access_loggers::file::v3::file_access_log::AccessLogFormat as Format;
    let FileAccessLog { path, access_log_format } = message;
    let path = cx.non_empty("path", path)?;
    let sink = match path.as_str() {
        "/dev/stdout" => AccessLogSink::Stdout,
        "/dev/stderr" => AccessLogSink::Stderr,
        _ => AccessLogSink::File(cx.resolve(&path)),
    };
    let format = match access_log_format {
        None => AccessLogFormat::Default,
        Some(Format::Format(text)) if text.is_empty() => AccessLogFormat::Default,
        Some(Format::Format(format)) => AccessLogFormat::Text { format, omit_empty: false },
        Some(Format::JsonFormat(fields) | Format::TypedJsonFormat(fields)) => {
            AccessLogFormat::Json { format: json_object(&fields), omit_empty: false }
        }
        Some(Format::LogFormat(format)) => log_format(Some(format), cx)?,
    };
    Ok((sink, format))
}

fn log_format(message: Option<core::SubstitutionFormatString>, cx: &mut Context) -> Result<AccessLogFormat> {
    let Some(message) = message else { return Ok(AccessLogFormat::Default) };
    cx.at("log_format", |cx| format_string(message, cx))
}

/// A format string of any kind.
fn format_string(message: core::SubstitutionFormatString, cx: &mut Context) -> Result<AccessLogFormat> {
    use core::substitution_format_string::Format;
    let core::SubstitutionFormatString { omit_empty_values, content_type: _, formatters, json_format_options, format } =
        message;
    // There are no command operators but the built-in ones: the table says what a formatter would have added.
    cx.each("formatters", formatters, |extension, cx| {
        let (name, config) = any::typed_config(extension, cx)?;
        let kind = any::inner_type(&config, cx)?;
        cx.extension(&name, &kind)
    })?;
    let core::JsonFormatOptions { sort_properties: _ } = json_format_options.unwrap_or_default();
    let omit_empty = omit_empty_values;
    Ok(match cx.required("format", format)? {
        Format::TextFormat(format) => AccessLogFormat::Text { format, omit_empty },
        Format::JsonFormat(fields) => AccessLogFormat::Json { format: json_object(&fields), omit_empty },
        Format::TextFormatSource(source) => {
            let source = cx.at("text_format_source", |cx| data_source(source, cx))?;
            let format = String::from_utf8(source.bytes.into())
                .map_err(|_| cx.error_at("text_format_source", "found bytes that are not UTF-8, expected a format"))?;
            AccessLogFormat::Text { format, omit_empty }
        }
    })
}

/// A filter that always passes, for kinds that are not evaluated here.
fn always() -> AccessLogFilter {
    AccessLogFilter::And(Vec::new())
}

fn access_log_filter(message: accesslog::AccessLogFilter, depth: usize, cx: &mut Context) -> Result<AccessLogFilter> {
    use accesslog::access_log_filter::FilterSpecifier as Kind;
    if depth > MAX_DEPTH {
        return Err(cx.error(format!("found filters nested deeper than {MAX_DEPTH}, expected fewer levels")));
    }
    let accesslog::AccessLogFilter { filter_specifier } = message;
    Ok(match cx.required("filter_specifier", filter_specifier)? {
        Kind::StatusCodeFilter(accesslog::StatusCodeFilter { comparison }) => {
            let (op, value) = cx.at("status_code_filter", |cx| compare(comparison, cx))?;
            AccessLogFilter::Status { op, value }
        }
        Kind::DurationFilter(accesslog::DurationFilter { comparison }) => {
            let (op, value) = cx.at("duration_filter", |cx| compare(comparison, cx))?;
            AccessLogFilter::Duration { op, value }
        }
        Kind::NotHealthCheckFilter(accesslog::NotHealthCheckFilter {}) => AccessLogFilter::NotHealthCheck,
        Kind::TraceableFilter(accesslog::TraceableFilter {}) => {
            cx.warn("traceable_filter", "there is no tracing yet: nothing is logged");
            AccessLogFilter::Traceable
        }
        Kind::RuntimeFilter(filter) => cx.at("runtime_filter", |cx| runtime_filter(filter, cx))?,
        Kind::AndFilter(accesslog::AndFilter { filters }) => {
            AccessLogFilter::And(cx.each("and_filter.filters", filters, |f, cx| access_log_filter(f, depth + 1, cx))?)
        }
        Kind::OrFilter(accesslog::OrFilter { filters }) => {
            AccessLogFilter::Or(cx.each("or_filter.filters", filters, |f, cx| access_log_filter(f, depth + 1, cx))?)
        }
        Kind::HeaderFilter(accesslog::HeaderFilter { header }) => cx.at("header_filter", |cx| -> Result<_> {
            let header = cx.required("header", header)?;
            Ok(AccessLogFilter::Header(cx.at("header", |cx| route_match::header_match(header, cx))?))
        })?,
        Kind::ResponseFlagFilter(accesslog::ResponseFlagFilter { flags }) => {
            if let Some(unknown) = flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
                let near = cx.meant(|| nearest(unknown, FLAGS.into_iter()));
                let message = format!("found {unknown:?}, expected one of {FLAGS:?}{near}");
                return Err(cx.error_at("response_flag_filter.flags", message));
            }
            AccessLogFilter::ResponseFlags(flags)
        }
        Kind::GrpcStatusFilter(accesslog::GrpcStatusFilter { statuses, exclude }) => {
            let statuses = cx.each("grpc_status_filter.statuses", statuses, |status, cx| {
                cx.enumeration::<accesslog::grpc_status_filter::Status>("", status).map(|status| status as u32)
            })?;
            AccessLogFilter::GrpcStatus { statuses, exclude }
        }
        Kind::ExtensionFilter(accesslog::ExtensionFilter { name, config_type }) => {
            use accesslog::extension_filter::ConfigType;
            cx.at("extension_filter", |cx| {
                let ConfigType::TypedConfig(config) = cx.required("typed_config", config_type)?;
                let kind = any::inner_type(&config, cx)?;
                cx.extension(&name, &kind)
            })?;
            always()
        }
        Kind::MetadataFilter(_) | Kind::LogTypeFilter(_) => always(),
    })
}

fn compare(message: Option<accesslog::ComparisonFilter>, cx: &mut Context) -> Result<(Comparison, u32)> {
    use accesslog::comparison_filter::Op;
    let accesslog::ComparisonFilter { op, value } = cx.required("comparison", message)?;
    let core::RuntimeUInt32 { default_value, runtime_key } = cx.required("comparison.value", value)?;
    let op = match cx.enumeration::<Op>("comparison.op", op)? {
        Op::Eq => Comparison::Equal,
        Op::Ge => Comparison::GreaterOrEqual,
        Op::Le => Comparison::LessOrEqual,
        Op::Ne => Comparison::NotEqual,
    };
    Ok((op, cx.runtime_number(&runtime_key, default_value.into()) as u32))
}

fn runtime_filter(message: accesslog::RuntimeFilter, cx: &mut Context) -> Result<AccessLogFilter> {
    let accesslog::RuntimeFilter { runtime_key, percent_sampled, use_independent_randomness: _ } = message;
    // Without a percentage only runtime could switch it on.
    let default_value = Some(percent_sampled.unwrap_or(pb::types::FractionalPercent { numerator: 0, denominator: 0 }));
    let fraction = core::RuntimeFractionalPercent { default_value, runtime_key };
    Ok(AccessLogFilter::Runtime(matcher::runtime_fraction(fraction, cx)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pb::google;
    use prost::{Message, Name};

    fn logger<M: Message + Name>(config: &M) -> accesslog::AccessLog {
        let any = google::Any { type_url: M::type_url(), value: config.encode_to_vec() };
        accesslog::AccessLog {
            name: "log".into(),
            filter: None,
            config_type: Some(accesslog::access_log::ConfigType::TypedConfig(any)),
        }
    }

    #[test]
    fn files_and_streams_become_sinks() {
        let mut cx = Context::default();
        let file = |path: &str| FileAccessLog { path: path.into(), access_log_format: None };
        let logs = vec![logger(&file("/dev/stdout")), logger(&file("/tmp/x")), logger(&StderrAccessLog::default())];
        let sinks: Vec<_> = access_logs(logs, "access_log", &mut cx).unwrap().into_iter().map(|l| l.sink).collect();
        assert_eq!(sinks, [AccessLogSink::Stdout, AccessLogSink::File("/tmp/x".into()), AccessLogSink::Stderr]);
        assert!(cx.notices.warnings.is_empty());
    }

    #[test]
    fn other_loggers_are_named_and_left_out() {
        let mut cx = Context::default();
        let other = extensions::access_loggers::grpc::v3::TcpGrpcAccessLogConfig::default();
        assert!(access_logs(vec![logger(&other)], "access_log", &mut cx).unwrap().is_empty());
        assert_eq!(
            cx.notices.warnings[0].to_string(),
            "access_log[0].typed_config: log (envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig) does not \
             exist here: entries are not sent to an access log service"
        );
        assert_eq!(
            access_logs(vec![logger(&google::Struct::default())], "access_log", &mut cx).unwrap_err().to_string(),
            "access_log[0].typed_config: Didn't find a registered implementation for 'log' with type URL: \
             'google.protobuf.Struct'"
        );
    }

    #[test]
    fn an_unknown_flag_is_refused() {
        let mut cx = Context::default();
        let mut log = logger(&FileAccessLog { path: "/x".into(), access_log_format: None });
        log.filter = Some(accesslog::AccessLogFilter {
            filter_specifier: Some(accesslog::access_log_filter::FilterSpecifier::ResponseFlagFilter(
                accesslog::ResponseFlagFilter { flags: vec!["NR".into(), "XX".into()] },
            )),
        });
        let error = access_logs(vec![log], "access_log", &mut cx).unwrap_err().to_string();
        assert!(error.starts_with("access_log[0].filter.response_flag_filter.flags: found \"XX\", expected one of"));
    }
}
