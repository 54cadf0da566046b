//! The processes of the mesh, as the program starts itself: what each one is, and how it is told what to do.
//!
//! A role reads one JSON command per line and answers each with one JSON line: `{"ok": ...}` or `{"error": "..."}`. It
//! ends when its input ends. The sidecar is the exception: it gets Envoy's flags and nothing else.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use outrigger_tests::origin::Origin;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};

use crate::{Result, authority, client, control_plane};

/// What this process is.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Serves ADS, one stream per sidecar
    #[command(hide = true)]
    ControlPlane,
    /// Issues certificates and serves SDS
    #[command(hide = true)]
    Authority,
    /// An application that answers requests
    #[command(hide = true)]
    Origin { version: String, address: std::net::SocketAddr },
    /// An application that makes requests
    #[command(hide = true)]
    Client,
    /// A sidecar
    #[command(hide = true)]
    Proxy {
        /// Instead of ourselves
        #[arg(long)]
        binary: Option<PathBuf>,
        /// Envoy's flags
        #[arg(last = true)]
        flags: Vec<OsString>,
    },
}

/// Plays a role to its end.
pub fn play(role: Role) -> ExitCode {
    // Should the parent be killed, nothing of the mesh stays behind.
    if let Err(e) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("cannot bind our life to our parent's: {e}");
        return ExitCode::FAILURE;
    }
    match role {
        Role::Proxy { binary, flags } => proxy(binary, flags),
        Role::ControlPlane => serve(control_plane::ControlPlanes::default()),
        Role::Authority => serve(authority::Pods::default()),
        Role::Client => serve(client::Client::default()),
        Role::Origin { version, address } => match Origin::listen(&version, address, None) {
            Ok(origin) => serve(origin),
            Err(e) => {
                eprintln!("cannot listen on {address}: {e}");
                ExitCode::FAILURE
            }
        },
    }
}

/// A sidecar is the same code as the binary `outrigger`.
fn proxy(binary: Option<PathBuf>, flags: Vec<OsString>) -> ExitCode {
    if let Some(binary) = binary {
        // Returns only when it fails.
        let error = Command::new(&binary).args(flags).exec();
        eprintln!("cannot run {}: {error}", binary.display());
        return ExitCode::FAILURE;
    }
    let name = OsString::from("outrigger");
    outrigger::server::run(outrigger::cli::Options::parse_from([name].into_iter().chain(flags)))
}

/// Does what commands say.
pub trait Obey {
    /// Does one thing and says how it went.
    async fn obey(&mut self, command: &Value) -> Result<Value>;
}

impl Obey for Origin {
    async fn obey(&mut self, command: &Value) -> Result<Value> {
        match command["do"].as_str() {
            Some("address") => Ok(json!(self.address().to_string())),
            Some("requests") => Ok(json!(self.requests())),
            _ => unknown(command),
        }
    }
}

/// The answer to a command that does not exist.
pub fn unknown(command: &Value) -> Result<Value> {
    Err(format!("no such command: {command}"))
}

fn serve(mut who: impl Obey) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    // Stdin is read on a thread of its own, one command at a time; the next waits in the pipe.
    let (sender, mut commands) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(std::io::Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, async {
        while let Some(line) = commands.recv().await {
            let answer = match serde_json::from_str(&line) {
                Ok(command) => match who.obey(&command).await {
                    Ok(value) => json!({ "ok": value }),
                    Err(error) => json!({ "error": error }),
                },
                Err(e) => json!({ "error": format!("not JSON: {e}") }),
            };
            // Our parent waits for this line: it does not block.
            writeln!(std::io::stdout(), "{answer}")?;
        }
        Ok::<_, std::io::Error>(())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cannot talk to our parent: {e}");
            ExitCode::FAILURE
        }
    }
}
