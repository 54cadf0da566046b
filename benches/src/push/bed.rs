//! One proxy under a control plane of the harness: a listener whose routes come by RDS, and as many clusters as asked.

use crate::case::{DRIVER_CPU, PROXY_CPU, free_port};
use crate::process::{Process, Threads, pin, wait_for_port};
use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::{Batch, ControlPlane};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use xds_protos::pb::envoy::config::route::v3::RouteConfiguration;

/// How long a push may take to be live.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether a push is live.
const LOOK: Duration = Duration::from_millis(5);

pub struct Bed {
    pub control_plane: ControlPlane,
    pub proxy: Process,
    pub front: SocketAddr,
    runtime: Runtime,
    _folder: TempDir,
}

impl Bed {
    /// Starts a proxy with one worker, delta ADS, this route configuration and no cluster, and waits until it listens.
    pub fn start(binary: &Path, routes: &RouteConfiguration) -> Result<Bed, String> {
        // the control plane's thread inherits it
        pin(0, DRIVER_CPU)?;
        let front = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let control_plane = ControlPlane::tcp().map_err(|e| format!("control plane: {e}"))?;
        control_plane.batch(|batch| {
            batch.set(&routes.name, routes);
            batch.set("front", &config::http_listener("front", front, &config::hcm_rds("front", &routes.name)));
        });
        let bootstrap = Bootstrap { node_id: "bench", ads: Some(control_plane.address()), ..Bootstrap::default() };
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let file = folder.path().join("bootstrap.yaml");
        std::fs::write(&file, bootstrap.yaml()).map_err(|e| e.to_string())?;
        let mut command = Command::new(binary);
        command.args(["--concurrency", "1", "-l", "error", "--disable-hot-restart", "-c"]).arg(&file);
        command.stdout(Stdio::null());
        let proxy = Process::start(command, PROXY_CPU)?;
        wait_for_port(&front.to_string(), binary)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        Ok(Bed { control_plane, proxy, front, runtime, _folder: folder })
    }

    /// Changes resources in one push, and waits until the answers to it came; returns when the push went out and when
    /// the last answer came.
    pub fn push(
        &self,
        type_urls: &[&str],
        change: impl for<'a, 'b> FnOnce(&'a mut Batch<'b>) -> &'a mut Batch<'b>,
    ) -> Result<(Instant, Instant), String> {
        let before = Instant::now();
        self.control_plane.batch(|batch| {
            change(batch);
        });
        for type_url in type_urls {
            self.settled(type_url)?;
        }
        let done = Instant::now();
        if let Some((type_url, text)) = self.control_plane.nacks().into_iter().next() {
            return Err(format!("{type_url} was refused: {text}"));
        }
        Ok((before, done))
    }

    /// Waits until everything of this type was answered.
    pub fn settled(&self, type_url: &str) -> Result<(), String> {
        self.runtime.block_on(self.control_plane.wait_settled(type_url)).map_err(|e| e.to_string())
    }

    /// Asks for `/` again and again until the answer is a 200; returns when that was.
    pub fn wait_live(&self) -> Result<Instant, String> {
        let began = Instant::now();
        let mut connection = None;
        while began.elapsed() < PATIENCE {
            match self.status(&mut connection) {
                Ok(true) => return Ok(Instant::now()),
                Ok(false) => {}
                Err(_) => connection = None,
            }
            std::thread::sleep(LOOK);
        }
        Err(format!("no request was answered with 200 within {PATIENCE:?}"))
    }

    fn status(&self, connection: &mut Option<TcpStream>) -> std::io::Result<bool> {
        let stream = match connection {
            Some(stream) => stream,
            None => connection.insert(TcpStream::connect(self.front)?),
        };
        stream.write_all(b"GET / HTTP/1.1\r\nhost: bench.example\r\n\r\n")?;
        // every answer here is shorter than this, and comes in one piece
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(buffer.starts_with(b"HTTP/1.1 200"))
    }

    /// CPU time that the proxy uses for this long when nothing is asked of it.
    pub fn idle(&self, time: Duration) -> Result<Threads, String> {
        let before = self.proxy.threads()?;
        std::thread::sleep(time);
        Ok(self.proxy.threads()?.since(&before))
    }
}
