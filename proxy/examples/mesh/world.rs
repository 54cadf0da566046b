//! Puts the mesh together: which processes there are, what they are told, and in which order they start.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use certs::Svid;
use outrigger_tests::origin::{Origin, tls_server};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Place;
use crate::process::{PATIENCE, Process, Start, Worker};
use crate::resources::{Desired, INBOUND, OUTBOUND, Pod};
use crate::show::Show;
use crate::{Result, admin, bootstrap};

/// The load: requests per second, and the connections they share.
pub const RATE: u64 = 400;
pub const CONNECTIONS: u64 = 16;
/// The name the application asks for.
pub const AUTHORITY: &str = "reviews:9080";
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A sidecar and where it is reached.
pub struct Sidecar {
    pub pod: Pod,
    pub admin: SocketAddr,
    /// Where the others reach its pod (servers), or where its application connects to (client).
    pub traffic: SocketAddr,
    process: Process,
}

/// The whole mesh. Dropping it ends every process and removes every file.
pub struct Mesh {
    pub control_plane: Worker,
    pub authority: Worker,
    /// The client application.
    pub client: Worker,
    /// A client that stands beside reviews v1 and needs no proxy.
    pub direct: Worker,
    pub sidecars: Vec<Sidecar>,
    pub desired: Desired,
    pub place: Place,
    /// The server that has a certificate of the mesh, but not the one it should have.
    pub impostor: Origin,
    origins: Vec<Worker>,
    /// Where each sidecar's ADS server listens, in the order of [`Pod::ALL`].
    ads: Vec<SocketAddr>,
    program: PathBuf,
    dir: TempDir,
}

impl Mesh {
    /// Starts everything, and waits until every sidecar is ready.
    pub async fn start(place: Place, proxy: Option<&Path>, show: &mut Show) -> Result<Self> {
        let began = Instant::now();
        let dir = tempfile::Builder::new().prefix("outrigger-mesh-").tempdir();
        let dir = dir.map_err(|e| format!("no temporary folder: {e}"))?;
        remove_on_panic(dir.path());
        let program = program(&place, dir.path())?;
        for pod in Pod::ALL {
            let folder = dir.path().join(pod.name());
            std::fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            place.give(&folder)?;
        }
        let worker = |name: &str, prefix: Vec<OsString>, role: &[&str]| {
            let role = role.iter().map(OsString::from).collect();
            Worker::start(Start { name, program: &program, prefix, role, logs: dir.path() })
        };

        show.progress("starting the control plane, the authority and the applications");
        let mut control_plane = worker("control-plane", Vec::new(), &["control-plane"])?;
        let mut authority = worker("authority", Vec::new(), &["authority"])?;
        for pod in Pod::ALL {
            let socket = sds_socket(dir.path(), pod);
            let command = json!({ "do": "serve", "pod": pod.name(), "socket": socket, "open": place.redirects() });
            authority.ask(command).await?;
        }
        let impostor = impostor(&mut authority, &place).await?;
        let at = place.application().to_string();
        let mut origins = Vec::new();
        let mut desired = Desired {
            number: 1,
            weight_v2: 10,
            redirected: place.redirects(),
            impostor: Some(impostor.address()),
            logs: dir.path().to_owned(),
            ..Desired::default()
        };
        for pod in Pod::SERVERS {
            let name = format!("{}-application", pod.name());
            let mut origin = worker(&name, place.as_application(pod), &["origin", pod.version(), &at])?;
            let address = origin.ask_text(json!({ "do": "address" })).await?;
            desired.origins.push(address.parse().map_err(|e| format!("{name}: '{address}': {e}"))?);
            origins.push(origin);
        }
        let client = worker("client-application", place.as_application(Pod::Client), &["client"])?;
        let direct = worker("direct-application", place.as_application(Pod::ReviewsV1), &["client"])?;

        control_plane.ask(json!({ "do": "push", "desired": desired.to_json() })).await?;
        let ads = serve_ads(&mut control_plane, &Pod::ALL.map(|_| place.node())).await?;
        let mut mesh = Self {
            control_plane,
            authority,
            client,
            direct,
            sidecars: Vec::new(),
            desired,
            place,
            impostor,
            origins,
            ads,
            program,
            dir,
        };
        for pod in Pod::SERVERS.into_iter().chain([Pod::Client]) {
            show.progress(&format!("starting the sidecar of {}", pod.name()));
            mesh.start_sidecar(pod, proxy).await?;
        }
        show.line(&format!(
            "3 sidecars, 1 control plane, 1 authority, 2 origins, 1 client: {} processes, ready in {:.2} s",
            mesh.sidecars.len() + mesh.origins.len() + 4,
            began.elapsed().as_secs_f64()
        ));
        show.figure("ready_s", json!(began.elapsed().as_secs_f64()));
        Ok(mesh)
    }

    /// Starts a sidecar and waits until it is ready; then the others learn where its pod is reached. The client's
    /// starts last and finds all endpoints.
    async fn start_sidecar(&mut self, pod: Pod, binary: Option<&Path>) -> Result<()> {
        let folder = self.dir.path().join(pod.name());
        let (config, admin_file) = (folder.join("bootstrap.yaml"), folder.join("admin"));
        let sds = sds_socket(self.dir.path(), pod);
        let ads = Pod::ALL.iter().position(|one| *one == pod).and_then(|number| self.ads.get(number));
        let ads = *ads.ok_or("a sidecar without an ADS server")?;
        let yaml = bootstrap::yaml(pod, self.place.admin(pod), ads, &sds);
        std::fs::write(&config, yaml).map_err(|e| format!("{}: {e}", config.display()))?;

        let mut role: Vec<OsString> = vec!["proxy".into()];
        if let Some(binary) = binary {
            role.extend(["--binary".into(), binary.into()]);
        }
        let fixed = ["--concurrency", "2", "--drain-time-s", "45", "--file-flush-interval-msec", "1000"];
        role.extend(["--", "--disable-hot-restart", "-l", "warning"].into_iter().chain(fixed).map(OsString::from));
        role.extend(["-c".into(), config.into(), "--admin-address-path".into(), admin_file.clone().into()]);
        let prefix = self.place.as_sidecar(pod);
        let name = format!("{}-sidecar", pod.name());
        let start = Start { name: &name, program: &self.program, prefix, role, logs: self.dir.path() };
        let mut process = Process::start(start)?;

        let deadline = Instant::now() + PATIENCE;
        let mut admin_address = None;
        let patience = async |process: &mut Process, what: &str| {
            process.check()?;
            if Instant::now() > deadline {
                return Err(process.blame(&format!("{what} within {PATIENCE:?}")));
            }
            tokio::time::sleep(POLL).await;
            Ok(())
        };
        let address = loop {
            let written = std::fs::read_to_string(&admin_file).ok().and_then(|text| text.trim().parse().ok());
            if let Some(address) = written {
                break address;
            }
            patience(&mut process, "did not say where its admin page is").await?;
        };
        while admin_address.is_none() {
            match admin::page(address, "/ready").await {
                Ok(reply) if reply.status == 200 => admin_address = Some(address),
                _ => patience(&mut process, "was not ready").await?,
            }
        }
        let traffic = match pod {
            Pod::Client => self.place.service(admin::listener(address, OUTBOUND).await?)?,
            Pod::ReviewsV1 | Pod::ReviewsV2 => {
                let bound = admin::listener(address, INBOUND).await?;
                let bound = bound.ok_or_else(|| process.blame("has no inbound listener"))?;
                let endpoint = self.place.endpoint(pod, bound);
                self.desired.endpoints.push(endpoint);
                endpoint
            }
        };
        if pod != Pod::Client {
            self.push().await?;
        }
        self.sidecars.push(Sidecar { pod, admin: address, traffic, process });
        Ok(())
    }

    /// Pushes the desired state; the time of the push, microseconds since 1970.
    pub async fn push(&mut self) -> Result<u64> {
        let command = json!({ "do": "push", "desired": self.desired.to_json() });
        let at = self.control_plane.ask(command).await?;
        at.as_u64().ok_or_else(|| format!("the control plane answered a push with {at}"))
    }

    /// Kills the control plane, as a node's death would.
    pub async fn kill_control_plane(&mut self) -> Result<()> {
        self.control_plane.process.kill().await
    }

    /// Starts a control plane on the same ports, with the state of the world as it was.
    pub async fn restart_control_plane(&mut self) -> Result<()> {
        let logs = self.dir.path();
        let role = vec!["control-plane".into()];
        let start = Start { name: "control-plane", program: &self.program, prefix: Vec::new(), role, logs };
        self.control_plane = Worker::start(start)?;
        // It knows the world before anyone can ask it.
        self.push().await?;
        serve_ads(&mut self.control_plane, &self.ads).await.map(drop)
    }

    pub fn sidecar(&self, pod: Pod) -> Result<&Sidecar> {
        self.sidecars.iter().find(|sidecar| sidecar.pod == pod).ok_or_else(|| format!("{} is not up", pod.name()))
    }

    /// Fails with the end of its log when a process has ended that should not.
    pub fn check_alive(&mut self) -> Result<()> {
        self.sidecars.iter_mut().try_for_each(|sidecar| sidecar.process.check())?;
        self.origins.iter_mut().try_for_each(|origin| origin.process.check())
    }

    /// Process ids of the sidecars.
    pub fn sidecar_ids(&self) -> Vec<(Pod, u32)> {
        self.sidecars.iter().map(|sidecar| (sidecar.pod, sidecar.process.id())).collect()
    }

    /// Starts the load through the sidecars.
    pub async fn start_load(&mut self) -> Result<()> {
        let target = self.sidecar(Pod::Client)?.traffic;
        start_load(&mut self.client, target).await
    }

    /// Starts the same load straight at the origin.
    pub async fn start_direct_load(&mut self) -> Result<()> {
        let origin = self.desired.origins.first().copied().ok_or("no origin")?;
        start_load(&mut self.direct, self.place.direct(origin)).await
    }

    /// Makes requests as the client application, all at once; each reply has `status`, `text` and, if it is, `json`.
    pub async fn get(&mut self, path: &str, times: u64) -> Result<Vec<Value>> {
        let target = self.sidecar(Pod::Client)?.traffic.to_string();
        let command = json!({ "do": "get", "target": target, "authority": AUTHORITY, "path": path, "times": times });
        let replies = self.client.ask(command).await?;
        replies.as_array().cloned().ok_or_else(|| format!("the client answered {replies}"))
    }

    /// Requests that have reached the origins so far.
    pub async fn origin_requests(&mut self) -> Result<u64> {
        let mut all = 0;
        for origin in &mut self.origins {
            all += origin.ask(json!({ "do": "requests" })).await?.as_u64().unwrap_or_default();
        }
        Ok(all)
    }

    /// A certificate of the mesh for a service account, and the trust bundle.
    pub async fn issue(&mut self, account: &str) -> Result<(Svid, String)> {
        issue(&mut self.authority, account).await
    }

    /// A certificate for any SPIFFE ID, signed by the mesh's CA.
    pub async fn issue_foreign(&mut self, id: &str) -> Result<Svid> {
        let command = json!({ "do": "issue-foreign", "id": id, "dir": self.dir.path().join("ca") });
        Ok(svid(&self.authority.ask(command).await?))
    }

    /// Where a pod's sidecar logs requests.
    pub fn access_log(&self, pod: Pod) -> PathBuf {
        crate::resources::access_log_path(self.dir.path(), pod)
    }
}

/// Waits until `condition` gives something; `what` names it in the error.
pub async fn wait_for<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(format!("waited {PATIENCE:?} in vain for {what}"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Users other than ours must be able to run the program: where they are needed, it is copied to where they can.
fn program(place: &Place, dir: &Path) -> Result<PathBuf> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find our own program: {e}"))?;
    if !place.redirects() {
        return Ok(program);
    }
    let copy = dir.join("mesh");
    std::fs::copy(&program, &copy).map_err(|e| format!("cannot copy {}: {e}", program.display()))?;
    let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(dir, open).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(copy)
}

/// A release build aborts on panic and drops nothing; the kernel ends our processes then, files are left to this.
fn remove_on_panic(dir: &Path) {
    let dir = dir.to_owned();
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        // Best effort: the panic is what matters.
        let _ = std::fs::remove_dir_all(&dir);
    }));
}

fn sds_socket(dir: &Path, pod: Pod) -> PathBuf {
    dir.join(pod.name()).join("sds.sock")
}

async fn serve_ads(control_plane: &mut Worker, at: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let mut bound = Vec::new();
    for (pod, at) in Pod::ALL.into_iter().zip(at) {
        let command = json!({ "do": "serve", "pod": pod.name(), "at": at.to_string() });
        let address = control_plane.ask_text(command).await?;
        bound.push(address.parse().map_err(|e| format!("the control plane listens on '{address}': {e}"))?);
    }
    Ok(bound)
}

async fn start_load(client: &mut Worker, target: SocketAddr) -> Result<()> {
    let command = json!({
        "do": "start", "target": target.to_string(), "authority": AUTHORITY, "rate": RATE, "connections": CONNECTIONS,
    });
    client.ask(command).await.map(drop)
}

async fn issue(authority: &mut Worker, account: &str) -> Result<(Svid, String)> {
    let answer = authority.ask(json!({ "do": "issue", "account": account })).await?;
    Ok((svid(&answer), answer["bundle"].as_str().unwrap_or_default().to_owned()))
}

fn svid(answer: &Value) -> Svid {
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let now = std::time::SystemTime::now();
    // The times are for those who renew; these certificates are used at once and thrown away.
    Svid { chain_pem: text("chain"), key_pem: text("key"), issued_at: now, not_after: now }
}

/// A server on the node with a good certificate of the wrong service account.
async fn impostor(authority: &mut Worker, place: &Place) -> Result<Origin> {
    let (svid, bundle) = issue(authority, "other").await?;
    let tls = tls_server(&svid, Some(&bundle)).map_err(|e| format!("the impostor: {e}"))?;
    // It speaks what sidecars speak to each other: only its identity is wrong.
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"istio".to_vec()];
    Origin::listen("impostor", place.node(), Some(tls.into())).map_err(|e| format!("the impostor: {e}"))
}
