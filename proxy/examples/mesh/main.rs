//! A small mesh on one machine: the main job of a data plane, shown and checked on real traffic.
//!
//! ```text
//!                    control plane (delta ADS)      authority (SDS over a Unix socket per pod)
//!                         |        |       |                 |
//!   client ---> [sidecar of client] ==mTLS==> [sidecar of reviews-v1] ---> reviews v1
//!   (steady load)                  \==mTLS==> [sidecar of reviews-v2] ---> reviews v2
//! ```
//!
//! Every box is a process of its own, as in a cluster: this program starts itself again in the [`roles`]. Read
//! [`resources`] for what a control plane sends, [`bootstrap`] for what a sidecar is started with, [`world`] for how the
//! pieces are put together, and [`checks`] for what is claimed of them. It uses the proxy only through its command
//! line, its ports and its admin page.

mod admin;
mod authority;
mod bootstrap;
mod checks;
mod client;
mod control_plane;
mod netns;
mod process;
mod resources;
mod roles;
mod serve;
mod show;
mod stats;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What cannot go on, in words for the person at the terminal.
type Result<T, E = String> = std::result::Result<T, E>;

/// A small mesh of three sidecars, driven by xDS, with its claims checked.
#[derive(Debug, Parser)]
#[command(name = "mesh")]
struct Args {
    /// Keep the mesh up after the checks, and say what to play with
    #[arg(long)]
    serve: bool,
    /// With --serve: leave out the checks
    #[arg(long, requires = "serve")]
    no_checks: bool,
    /// Use network namespaces and iptables REDIRECT rules (needs root); applications know of no proxy
    #[arg(long)]
    netns: bool,
    /// Print one JSON object with all figures and claims
    #[arg(long, conflicts_with = "serve")]
    json: bool,
    /// Run this program, which takes Envoy's flags, as the sidecars
    #[arg(long, hide = true, value_name = "PATH")]
    proxy_binary: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<roles::Role>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.role {
        Some(role) => roles::play(role),
        None => start(&args),
    }
}

fn start(args: &Args) -> ExitCode {
    let mut show = show::Show::new(args.json);
    let outcome = netns::prepare(args.netns).and_then(|place| {
        // One thread: the kernel ends our children when the thread that started them ends.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|e| format!("no runtime: {e}"))?.block_on(run(args, place, &mut show))
    });
    show.finish(outcome)
}

/// Runs to the end, or until somebody asks us to stop. All processes end with `mesh`.
async fn run(args: &Args, place: netns::Place, show: &mut show::Show) -> Result<()> {
    let stopped = |kind: SignalKind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
    let (mut interrupt, mut terminate) = (stopped(SignalKind::interrupt())?, stopped(SignalKind::terminate())?);
    let work = async {
        let mut mesh = world::Mesh::start(place, args.proxy_binary.as_deref(), show).await?;
        if !args.no_checks {
            checks::run(&mut mesh, show).await?;
        }
        if args.serve {
            serve::run(&mut mesh, show).await?;
        }
        Ok(())
    };
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Err(show::STOPPED.to_owned()),
        _ = terminate.recv() => Err(show::STOPPED.to_owned()),
    }
}
