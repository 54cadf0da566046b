//! Envoy's command line, flag for flag: what pilot-agent, func-e and people pass to `envoy`.
//!
//! Flags of hot restart are accepted and recorded (shown by /server_info); hot restart itself does not exist here, and
//! what asks for it is refused.

use crate::drain::Strategy;
use clap::{ArgAction, Parser, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Version of Envoy whose behaviour and API this build follows.
pub const ENVOY_VERSION: &str = "1.40.0";

/// `version` of /server_info and of `--version`: revision, version, state, build type and TLS library, as Envoy prints it.
pub fn version() -> String {
    format!("outrigger-{}/{ENVOY_VERSION}/Clean/RELEASE/rustls", env!("CARGO_PKG_VERSION"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Serve,
    /// Check the configuration and exit.
    Validate,
    /// Initialise, then exit before serving.
    #[value(name = "init_only")]
    InitOnly,
}

/// How `--mode validate` says what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IpVersion {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    Gradual,
    Immediate,
}

/// The options of the process. Short text of each flag is shown by `--help`.
#[derive(Debug, Clone, Parser)]
#[command(name = "outrigger", disable_version_flag = true, about = "An Envoy-compatible data-plane proxy")]
pub struct Options {
    /// Path of the configuration: YAML or JSON
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Configuration as text, merged over that of --config-path
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// Number of worker threads; default: one per CPU
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
    /// serve, or validate the configuration and exit
    #[arg(long, value_enum, default_value = "serve", ignore_case = true)]
    pub mode: Mode,
    /// How --mode validate reports: text, or json (Envoy has no such flag)
    #[arg(long, value_enum, default_value = "text", ignore_case = true)]
    pub format: OutputFormat,
    /// Node id, overrides the configuration's
    #[arg(long, default_value = "", hide_default_value = true)]
    pub service_node: String,
    /// Node cluster, overrides the configuration's
    #[arg(long, default_value = "", hide_default_value = true)]
    pub service_cluster: String,
    /// Zone, overrides the configuration's
    #[arg(long, default_value = "", hide_default_value = true)]
    pub service_zone: String,
    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, default_value = "info")]
    pub log_level: String,
    /// Levels of single components: upstream:debug,config:trace
    #[arg(long, default_value = "", hide_default_value = true)]
    pub component_log_level: String,
    /// Format of log lines, in spdlog's syntax
    #[arg(long, default_value = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v")]
    pub log_format: String,
    /// Escape C-style escape sequences in log lines
    #[arg(long)]
    pub log_format_escaped: bool,
    /// File to log to instead of stderr
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// Time that removed listeners and filter chains have to drain, seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub drain_time_s: u64,
    /// gradual: the share of connections closed grows over the drain time; immediate: all from its start
    #[arg(long, value_enum, default_value = "gradual", ignore_case = true)]
    pub drain_strategy: DrainStrategy,
    /// Hot restart: when the parent is shut down, seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub parent_shutdown_time_s: u64,
    /// IP version of our own address in headers and logs
    #[arg(long, value_enum, default_value = "v4", ignore_case = true)]
    pub local_address_ip_version: IpVersion,
    /// Interval at which access logs are flushed, milliseconds
    #[arg(long, default_value_t = 10_000, value_name = "MSEC")]
    pub file_flush_interval_msec: u64,
    /// Access logs are flushed when so much is buffered; default 64
    #[arg(long, value_name = "KB")]
    pub file_flush_min_size_kb: Option<u32>,
    /// No hot restart (there is none)
    #[arg(long)]
    pub disable_hot_restart: bool,
    /// Hot restart: base id of shared memory
    #[arg(long, default_value_t = 0)]
    pub base_id: u32,
    /// Hot restart: find a free base id
    #[arg(long)]
    pub use_dynamic_base_id: bool,
    /// Hot restart: file to write the base id to
    #[arg(long, value_name = "FILE")]
    pub base_id_path: Option<PathBuf>,
    /// Hot restart: number of this process; only 0 is possible
    #[arg(long, default_value_t = 0)]
    pub restart_epoch: u32,
    #[arg(long, hide = true)]
    pub skip_hot_restart_on_no_parent: bool,
    #[arg(long, hide = true)]
    pub skip_hot_restart_parent_stats: bool,
    /// Print the version of the hot restart protocol: disabled
    #[arg(long)]
    pub hot_restart_version: bool,
    #[arg(long, hide = true, default_value = "@envoy_domain_socket")]
    pub socket_path: String,
    #[arg(long, hide = true, default_value = "0")]
    pub socket_mode: String,
    /// Unknown fields of the bootstrap are ignored, with a warning
    #[arg(long, alias = "allow-unknown-fields")]
    pub allow_unknown_static_fields: bool,
    /// Unknown fields of resources from a control plane refuse the resource
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
    /// Unknown fields of resources from a control plane are not even warned about
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// No log lines for deprecated fields
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    /// File to write the admin address to
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// Take the default number of workers from the CPU set of this process
    #[arg(long)]
    pub cpuset_threads: bool,
    /// Comma-separated extensions to be treated as unknown
    #[arg(long, default_value = "", hide_default_value = true)]
    pub disable_extensions: String,
    /// A tag on every stat, name:value; may be repeated
    #[arg(long, action = ArgAction::Append, value_name = "NAME:VALUE")]
    pub stats_tag: Vec<String>,
    #[arg(long, hide = true)]
    pub enable_core_dump: bool,
    #[arg(long, hide = true)]
    pub enable_mutex_tracing: bool,
    #[arg(long, hide = true)]
    pub enable_fine_grain_logging: bool,
    #[arg(long, hide = true)]
    pub log_stacktrace_single_entry: bool,
    /// Print the version and exit
    #[arg(long)]
    pub version: bool,
    /// What follows `--` is ignored, as Envoy does
    #[arg(last = true, hide = true)]
    pub rest: Vec<String>,
}

impl Options {
    /// What clap cannot check.
    ///
    /// # Errors
    /// One line: the flag, what was found, what is possible.
    pub fn check(&self) -> Result<(), String> {
        if self.config_path.is_none() && self.config_yaml.is_none() {
            return Err("no configuration: pass --config-path FILE or --config-yaml YAML".into());
        }
        if self.restart_epoch != 0 {
            return Err(format!(
                "--restart-epoch {}: there is no hot restart here, only epoch 0 is possible; start a new process and drain this one",
                self.restart_epoch
            ));
        }
        if let Some(tag) =
            self.stats_tag.iter().find(|t| t.split_once(':').is_none_or(|(n, v)| n.is_empty() || v.is_empty()))
        {
            return Err(format!("--stats-tag {tag}: expected name:value"));
        }
        if !self.disable_extensions.is_empty() {
            return Err("--disable-extensions: extensions cannot be disabled in this build; leave the flag out".into());
        }
        Ok(())
    }

    /// Worker threads to start: what was asked for, else one per CPU this process may use; at least 1.
    pub fn workers(&self) -> usize {
        let asked = self.concurrency.map(|n| n.max(1) as usize);
        asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.drain_time_s)
    }

    pub fn strategy(&self) -> Strategy {
        match self.drain_strategy {
            DrainStrategy::Gradual => Strategy::Gradual,
            DrainStrategy::Immediate => Strategy::Immediate,
        }
    }

    /// `command_line_options` of /server_info (`envoy.admin.v3.CommandLineOptions`).
    pub fn to_json(&self) -> Value {
        let path = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        json!({
            "base_id": self.base_id.to_string(),
            "concurrency": self.workers(),
            "config_path": path(&self.config_path),
            "config_yaml": self.config_yaml.clone().unwrap_or_default(),
            "allow_unknown_static_fields": self.allow_unknown_static_fields,
            "admin_address_path": path(&self.admin_address_path),
            "local_address_ip_version": match self.local_address_ip_version { IpVersion::V4 => "v4", IpVersion::V6 => "v6" },
            "log_level": self.log_level,
            "component_log_level": self.component_log_level,
            "log_format": self.log_format,
            "log_path": path(&self.log_path),
            "service_cluster": self.service_cluster,
            "service_node": self.service_node,
            "service_zone": self.service_zone,
            "file_flush_interval": seconds(Duration::from_millis(self.file_flush_interval_msec)),
            "drain_time": seconds(self.drain_time()),
            "parent_shutdown_time": seconds(Duration::from_secs(self.parent_shutdown_time_s)),
            "mode": match self.mode { Mode::Serve => "Serve", Mode::Validate => "Validate", Mode::InitOnly => "InitOnly" },
            "disable_hot_restart": true,
            "enable_mutex_tracing": self.enable_mutex_tracing,
            "restart_epoch": self.restart_epoch,
            "cpuset_threads": self.cpuset_threads,
            "reject_unknown_dynamic_fields": self.reject_unknown_dynamic_fields,
            "log_format_escaped": self.log_format_escaped,
            "disabled_extensions": [],
            "ignore_unknown_dynamic_fields": self.ignore_unknown_dynamic_fields,
            "use_dynamic_base_id": self.use_dynamic_base_id,
            "base_id_path": path(&self.base_id_path),
            "drain_strategy": match self.drain_strategy { DrainStrategy::Gradual => "Gradual", DrainStrategy::Immediate => "Immediate" },
            "enable_fine_grain_logging": self.enable_fine_grain_logging,
            "socket_path": self.socket_path,
            "socket_mode": self.socket_mode.parse::<u32>().unwrap_or(0),
            "enable_core_dump": self.enable_core_dump,
            "stats_tag": self.stats_tag,
            "skip_hot_restart_on_no_parent": self.skip_hot_restart_on_no_parent,
            "skip_hot_restart_parent_stats": self.skip_hot_restart_parent_stats,
            "skip_deprecated_logs": self.skip_deprecated_logs,
            "file_flush_min_size": self.file_flush_min_size_kb.unwrap_or(0),
            "log_stacktrace_single_entry": self.log_stacktrace_single_entry,
        })
    }
}

/// A duration as protobuf JSON prints it (`0.250s`, `600s`).
pub fn seconds(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        n if n % 1_000_000 == 0 => format!("{}.{:03}s", duration.as_secs(), n / 1_000_000),
        n if n % 1_000 == 0 => format!("{}.{:06}s", duration.as_secs(), n / 1_000),
        n => format!("{}.{n:09}s", duration.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pilot_agents_command_line_is_understood() {
        let line = "envoy -c etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate --local-address-ip-version v4 \
                    --file-flush-interval-msec 1000 --disable-hot-restart --allow-unknown-static-fields -l warning --component-log-level misc:error \
                    --skip-deprecated-logs --concurrency 2";
        let o = Options::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!((o.workers(), o.strategy(), o.drain_time()), (2, Strategy::Immediate, Duration::from_secs(45)));
        assert!(o.allow_unknown_static_fields && o.check().is_ok());
        assert_eq!(o.to_json()["drain_time"], "45s");
    }

    #[test]
    fn what_follows_two_dashes_is_ignored() {
        let o = Options::try_parse_from([
            "envoy",
            "--config-yaml",
            "{}",
            "--base-id",
            "3",
            "--restart-epoch",
            "0",
            "--",
            "x",
            "-y",
        ])
        .unwrap();
        assert!(o.check().is_ok());
    }

    #[test]
    fn impossible_flags_are_refused_by_name() {
        let check = |args: &[&str]| Options::try_parse_from(args).unwrap().check().unwrap_err();
        assert!(check(&["envoy"]).contains("--config-path"));
        assert!(check(&["envoy", "-c", "x", "--restart-epoch", "1"]).contains("--restart-epoch 1"));
        assert!(check(&["envoy", "-c", "x", "--stats-tag", "nope"]).contains("name:value"));
    }

    #[test]
    fn durations_print_as_protobuf_json() {
        assert_eq!(seconds(Duration::from_millis(250)), "0.250s");
        assert_eq!(seconds(Duration::from_secs(600)), "600s");
        assert_eq!(seconds(Duration::from_micros(1_000_001)), "1.000001s");
    }
}
