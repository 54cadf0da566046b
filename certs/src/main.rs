//! `certs`: makes a SPIFFE authority, issues certificates from it, or serves them over SDS.
//!
//! Only flags, files and messages here; everything else is the library. Every error is one line and exit status 1.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use certs::{Authority, AuthorityError, Rotation, SdsError, SdsServer, SpiffeId};
use clap::{Parser, Subcommand};

/// A SPIFFE authority: a CA, workload certificates, and an SDS server on a Unix socket.
#[derive(Parser)]
#[command(name = "certs", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes an authority: ca.pem and ca-key.pem in a directory.
    Ca {
        /// The directory to write; created when missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The trust domain to sign for, such as cluster.local.
        #[arg(long, value_name = "NAME")]
        trust_domain: String,
        /// Replaces an authority that is already there.
        #[arg(long)]
        force: bool,
    },
    /// Issues one certificate: cert.pem and key.pem in a directory.
    Leaf {
        /// The directory of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The SPIFFE ID of a workload. Without it the certificate is for the hosts of --dns and --ip alone.
        #[arg(long, value_name = "ID", required_unless_present_any = ["dns", "ip"])]
        spiffe: Option<SpiffeId>,
        /// A DNS name; may be repeated.
        #[arg(long, value_name = "NAME")]
        dns: Vec<String>,
        /// An IP address; may be repeated. Not together with --spiffe.
        #[arg(long, value_name = "ADDRESS", conflicts_with = "spiffe")]
        ip: Vec<IpAddr>,
        /// How long it is valid: a number with ms, s, m, h or d.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_time)]
        ttl: Duration,
        /// The directory to write; created when missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Serves the certificate of one workload ('default') and the trust bundle ('ROOTCA') over SDS until stopped.
    Serve {
        /// The directory of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The SPIFFE ID of the workload.
        #[arg(long, value_name = "ID")]
        spiffe: SpiffeId,
        /// A DNS name; may be repeated.
        #[arg(long, value_name = "NAME")]
        dns: Vec<String>,
        /// The Unix socket to listen on.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// File mode of the socket, octal.
        #[arg(long, value_name = "MODE", default_value = "600", value_parser = parse_mode)]
        socket_mode: u32,
        /// How long each certificate is valid.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_time)]
        ttl: Duration,
        /// Time between two certificates [default: two thirds of --ttl].
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        rotate_every: Option<Duration>,
    },
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Sds(#[from] SdsError),
    #[error(
        "{0} already holds an authority; give --force to replace it, which makes every certificate it issued worthless"
    )]
    Exists(String),
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => {
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
        Err(e) => return fail(&one_line(&e.to_string())),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("certs: {message}");
    ExitCode::FAILURE
}

/// The first paragraph of clap's message on one line; the usage that follows is what `--help` is for.
fn one_line(message: &str) -> String {
    let message = message.trim_start_matches("error: ");
    let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let mut text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    text.push_str(" (see certs --help)");
    text
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Ca { out, trust_domain, force } => {
            if !force && out.join("ca-key.pem").exists() {
                return Err(Error::Exists(out.display().to_string()));
            }
            Authority::new(&trust_domain)?.save(&out)?;
            println!("authority of {trust_domain}: {0}/ca.pem {0}/ca-key.pem", out.display());
        }
        Command::Leaf { ca, spiffe, dns, ip, ttl, out } => {
            let authority = Authority::load(&ca)?;
            let names: Vec<&str> = dns.iter().map(String::as_str).collect();
            let svid = match &spiffe {
                Some(id) => authority.issue(id, ttl, &names)?,
                None => authority.issue_for_hosts(&names, &ip, ttl)?,
            };
            svid.save(&out)?;
            println!("certificate: {0}/cert.pem {0}/key.pem", out.display());
        }
        Command::Serve { ca, spiffe, dns, socket, socket_mode, ttl, rotate_every } => {
            let authority = Arc::new(Authority::load(&ca)?);
            let rotation = Rotation { id: spiffe, dns_names: dns, lifetime: ttl, every: rotate_every };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
            runtime.block_on(serve(authority, rotation, socket, socket_mode))?;
        }
    }
    Ok(())
}

async fn serve(authority: Arc<Authority>, rotation: Rotation, socket: PathBuf, mode: u32) -> Result<(), Error> {
    let id = rotation.id.clone();
    let server = SdsServer::bind(socket, mode)?;
    server.rotate(authority, rotation)?;
    println!("serving {id} on {}", server.path().display());

    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut told = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let error = server.rotation_error();
        if let Some(error) = error.as_ref().filter(|_| error != told) {
            eprintln!("certs: cannot renew {id}: {error}; the previous certificate stays");
        }
        told = error;
    }
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    tokio::signal::unix::signal(kind).map_err(Error::Runtime)
}

/// Reads `90s`, `24h` and the like.
fn parse_time(text: &str) -> Result<Duration, String> {
    let expected = || "expected a positive number with ms, s, m, h or d, such as 24h".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    let total = number.checked_mul(milliseconds).filter(|total| *total > 0).ok_or_else(expected)?;
    Ok(Duration::from_millis(total))
}

/// Reads an octal file mode such as `600` or `0666`.
fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "expected an octal file mode, such as 600 or 666".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Cli, String> {
        let args = std::iter::once("certs").chain(args.split_whitespace());
        Cli::try_parse_from(args).map_err(|e| one_line(&e.to_string()))
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_time("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "h", "10", "0s", "-1s", "1.5h", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_mode("0666"), Ok(0o666));
        assert!(parse_mode("9").is_err() && parse_mode("7777").is_err());
    }

    #[test]
    fn bad_flags_make_one_line_that_says_what_is_expected() {
        for (args, expected) in [
            ("", "certs --help"),
            ("ca --out x", "--trust-domain"),
            ("leaf --ca x --out y", "--spiffe"),
            ("leaf --ca x --out y --spiffe http://td", "must begin with 'spiffe://'"),
            ("serve --ca x --spiffe spiffe://td/a --socket s --ttl soon", "such as 24h"),
        ] {
            let error = parse(args).err().unwrap_or_default();
            assert!(error.contains(expected) && !error.contains('\n'), "{args}: {error}");
        }
    }

    #[test]
    fn an_authority_is_not_overwritten_and_issues() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca").display().to_string();
        let out = dir.path().join("leaf").display().to_string();
        let go = |args: String| run(parse(&args).unwrap().command);
        go(format!("ca --out {ca} --trust-domain td")).unwrap();
        let again = go(format!("ca --out {ca} --trust-domain td")).unwrap_err();
        assert!(again.to_string().contains("--force"));
        go(format!("leaf --ca {ca} --spiffe spiffe://td/a --dns a.td --ttl 1h --out {out}")).unwrap();
        assert!(dir.path().join("leaf/cert.pem").exists() && dir.path().join("leaf/key.pem").exists());
        go(format!("leaf --ca {ca} --dns a.example --ip ::1 --out {out}")).unwrap();
        assert!(go(format!("leaf --ca {ca} --spiffe spiffe://other/a --out {out}")).is_err());
    }
}
