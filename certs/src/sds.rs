//! An SDS server on a Unix socket: `envoy.service.secret.v3.SecretDiscoveryService`, one socket per workload.
//!
//! As Istio's agent does, it serves the workload's certificate as `default` and the trust bundle as `ROOTCA`, answers
//! a request only when it asks for something new, and pushes to all open streams when a secret changes. A name that
//! is not known yet is answered when it appears: a client that waits fails closed, one that is told "no" may not.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::Stream;
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};
use xds_protos::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use xds_protos::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use xds_protos::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use xds_protos::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use xds_protos::pb::google::protobuf::Any;

use crate::subscription::{MAX_NAMES, Subscription};
use crate::{Authority, AuthorityError, SpiffeId, Svid};

/// The type URL of a secret.
pub const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// The name of the workload's certificate in every Istio configuration.
pub const IDENTITY: &str = "default";
/// The name of the trust bundle in every Istio configuration.
pub const BUNDLE: &str = "ROOTCA";

/// NACKs kept for [`SdsServer::nacks`]; older ones are forgotten first.
const MAX_NACKS: usize = 256;
/// Responses queued per stream. A client that does not read holds its own stream back, nothing else.
const QUEUE: usize = 8;
/// The shortest pause between two rotations and the pause after a failed one, so that a root about to expire cannot
/// turn rotation into a busy loop.
const MIN_ROTATION: Duration = Duration::from_millis(100);
const ROTATION_RETRY: Duration = Duration::from_secs(1);

/// A secret as a proxy receives it.
#[derive(Clone, PartialEq)]
pub enum Secret {
    /// A certificate chain with its key.
    Identity(Svid),
    /// A trust bundle: one or more CA certificates as PEM.
    Bundle(String),
    /// Any other form; its `name` field is overwritten with the name it is set under.
    Message(Box<tls::Secret>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(svid) => f.debug_tuple("Identity").field(svid).finish(),
            Self::Bundle(_) => f.write_str("Bundle(..)"),
            Self::Message(_) => f.write_str("Message(redacted)"),
        }
    }
}

impl From<Svid> for Secret {
    fn from(svid: Svid) -> Self {
        Self::Identity(svid)
    }
}

impl Secret {
    fn into_any(self, name: &str) -> Any {
        let inline =
            |pem: String| DataSource { specifier: Some(Specifier::InlineBytes(pem.into())), ..DataSource::default() };
        let message = match self {
            Self::Identity(svid) => tls::Secret {
                r#type: Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                    certificate_chain: Some(inline(svid.chain_pem)),
                    private_key: Some(inline(svid.key_pem)),
                    ..tls::TlsCertificate::default()
                })),
                ..tls::Secret::default()
            },
            Self::Bundle(pem) => tls::Secret {
                r#type: Some(tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
                    trusted_ca: Some(inline(pem)),
                    ..tls::CertificateValidationContext::default()
                })),
                ..tls::Secret::default()
            },
            Self::Message(message) => *message,
        };
        let message = tls::Secret { name: name.to_owned(), ..message };
        Any { type_url: SECRET_TYPE.to_owned(), value: message.encode_to_vec() }
    }
}

/// A response the client refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The names the stream asked for.
    pub names: Vec<String>,
    /// The version the client still runs (state of the world; empty for delta).
    pub version: String,
    /// The gRPC code of its error.
    pub code: i32,
    /// The text of its error.
    pub message: String,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum SdsError {
    /// The socket could not be made.
    #[error("cannot listen on {path}: {source}", path = .path.display())]
    Bind {
        /// The socket file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is not a socket stands where the socket should.
    #[error("cannot listen on {0}: the file exists and is not a socket")]
    NotASocket(PathBuf),
    /// Another process answers on that socket.
    #[error("cannot listen on {0}: another server answers there")]
    InUse(PathBuf),
    /// The first certificate could not be issued.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// What [`SdsServer::rotate`] issues, and how often.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// The workload's identity.
    pub id: SpiffeId,
    /// DNS names beside it.
    pub dns_names: Vec<String>,
    /// How long each certificate lives.
    pub lifetime: Duration,
    /// Time between two certificates; `None` is two thirds of the lifetime. At least 100 ms.
    pub every: Option<Duration>,
}

impl Rotation {
    /// Rotation at two thirds of `lifetime`, without DNS names.
    pub fn new(id: SpiffeId, lifetime: Duration) -> Self {
        Self { id, dns_names: Vec::new(), lifetime, every: None }
    }

    fn issue(&self, authority: &Authority) -> Result<Svid, AuthorityError> {
        let names: Vec<&str> = self.dns_names.iter().map(String::as_str).collect();
        authority.issue(&self.id, self.lifetime, &names)
    }

    fn pause_after(&self, svid: &Svid) -> Duration {
        let pause = match self.every {
            Some(every) => every,
            None => svid.renew_at().duration_since(SystemTime::now()).unwrap_or_default(),
        };
        pause.max(MIN_ROTATION)
    }
}

/// An SDS server on one Unix socket. Dropping it closes every stream and removes the socket file.
#[derive(Debug)]
pub struct SdsServer {
    shared: Arc<Shared>,
    path: PathBuf,
    /// Device and inode of our socket file: a successor's file under the same name is not ours to remove.
    file: (u64, u64),
    rotation: Mutex<Option<JoinHandle<()>>>,
}

impl SdsServer {
    /// Listens on `path` with file mode `mode`: 0o600 for the own user, 0o666 when the proxy runs as another one.
    /// A socket file nobody answers on is replaced. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made, another server answers there, or a file that is no socket is in the way.
    pub fn bind(path: impl Into<PathBuf>, mode: u32) -> Result<Self, SdsError> {
        let path = path.into();
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path);
        let file = listener.and_then(|listener| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            let meta = fs::metadata(&path)?;
            Ok((listener, (meta.dev(), meta.ino())))
        });
        let (listener, file) = file.map_err(|source| SdsError::Bind { path: path.clone(), source })?;

        let shared = Arc::new(Shared::new());
        let service = SecretDiscoveryServiceServer::new(Service(Arc::clone(&shared)));
        let incoming = UnixListenerStream::new(listener);
        let mut closed = shared.closed.subscribe();
        tokio::spawn(async move {
            // Shut down with a GOAWAY rather than aborted: an aborted accept loop leaves its connections open, and a
            // client would go on asking this server instead of its successor.
            let done = async move {
                let _ = closed.wait_for(|closed| *closed).await;
            };
            let server = tonic::transport::Server::builder().add_service(service);
            // An error here is one of accept(2); the server then ends, and clients see the socket close.
            let _ = server.serve_with_incoming_shutdown(incoming, done).await;
        });
        Ok(Self { shared, path, file, rotation: Mutex::new(None) })
    }

    /// The socket file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets a secret and pushes it to every stream that asked for it.
    pub fn set(&self, name: &str, secret: impl Into<Secret>) {
        self.shared.set(name, secret.into());
    }

    /// Forgets a secret. Delta streams are told; state-of-the-world SDS has no word for it.
    pub fn remove(&self, name: &str) {
        self.shared.change(|state| {
            state.secrets.remove(name);
        });
    }

    /// The responses clients refused, oldest first (the last 256).
    pub fn nacks(&self) -> Vec<Nack> {
        self.shared.lock().nacks.clone()
    }

    /// How many certificates [`SdsServer::rotate`] has issued so far.
    pub fn rotations(&self) -> u64 {
        self.shared.lock().rotations
    }

    /// Why the last attempt to rotate failed, until one succeeds. The old certificate stays meanwhile.
    pub fn rotation_error(&self) -> Option<String> {
        self.shared.lock().rotation_error.clone()
    }

    /// Serves `default` and `ROOTCA` from `authority`, and renews `default` until the server is dropped or this is
    /// called again.
    ///
    /// # Errors
    /// When the first certificate cannot be issued. Later failures are retried each second
    /// ([`SdsServer::rotation_error`]).
    pub fn rotate(&self, authority: Arc<Authority>, rotation: Rotation) -> Result<(), SdsError> {
        let first = rotation.issue(&authority)?;
        let mut pause = rotation.pause_after(&first);
        self.shared.set(BUNDLE, Secret::Bundle(authority.bundle_pem().to_owned()));
        self.shared.rotated(first);
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                pause = match rotation.issue(&authority) {
                    Ok(svid) => {
                        let pause = rotation.pause_after(&svid);
                        shared.rotated(svid);
                        pause
                    }
                    Err(e) => {
                        shared.lock().rotation_error = Some(e.to_string());
                        ROTATION_RETRY
                    }
                };
            }
        });
        let mut current = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = current.replace(task) {
            previous.abort();
        }
        Ok(())
    }
}

impl Drop for SdsServer {
    fn drop(&mut self) {
        if let Some(rotation) = self.rotation.lock().unwrap_or_else(PoisonError::into_inner).take() {
            rotation.abort();
        }
        self.shared.closed.send_replace(true);
        let ours = fs::metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file left by a dead server. Leaves everything else alone.
fn remove_stale(path: &Path) -> Result<(), SdsError> {
    let bind_error = |source| SdsError::Bind { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(bind_error(e)),
        Ok(meta) if !meta.file_type().is_socket() => Err(SdsError::NotASocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => Err(SdsError::InUse(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(bind_error),
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes; streams wait on it.
    changes: watch::Sender<u64>,
    closed: watch::Sender<bool>,
    /// Stands before every version text: a client that resumes with a version of an earlier process must not pass as
    /// up to date because both counted to the same number.
    epoch: String,
}

#[derive(Debug, Default)]
struct State {
    secrets: BTreeMap<String, (u64, Any)>,
    last_version: u64,
    nacks: Vec<Nack>,
    rotations: u64,
    rotation_error: Option<String>,
}

impl State {
    fn version_of(&self, name: &str) -> Option<u64> {
        self.secrets.get(name).map(|(version, _)| *version)
    }
}

impl Shared {
    fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            closed: watch::Sender::new(false),
            epoch: format!("{:x}", since_epoch.as_nanos()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changes.send_modify(|count| *count += 1);
    }

    fn set(&self, name: &str, secret: Secret) {
        let any = secret.into_any(name);
        self.change(|state| {
            if state.secrets.get(name).is_some_and(|(_, current)| *current == any) {
                return;
            }
            state.last_version += 1;
            state.secrets.insert(name.to_owned(), (state.last_version, any));
        });
    }

    fn rotated(&self, svid: Svid) {
        self.set(IDENTITY, Secret::Identity(svid));
        let mut state = self.lock();
        state.rotations += 1;
        state.rotation_error = None;
    }

    fn version_text(&self, version: u64) -> String {
        format!("{}.{version}", self.epoch)
    }

    fn parse_version(&self, text: &str) -> Option<u64> {
        text.strip_prefix(&self.epoch)?.strip_prefix('.')?.parse().ok()
    }

    fn record_nack(&self, nack: Nack) {
        let mut state = self.lock();
        if state.nacks.len() == MAX_NACKS {
            state.nacks.remove(0);
        }
        state.nacks.push(nack);
    }
}

/// What differs between state of the world and delta: how a request changes the subscription, how an answer looks.
trait Mode: Default + Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    /// Takes a request in; an error ends the stream.
    fn request(&mut self, request: Self::Request, shared: &Shared) -> Result<(), Status>;
    /// The response that is due now, if any.
    fn response(&mut self, shared: &Shared) -> Option<Self::Response>;
}

#[derive(Default)]
struct Sotw {
    subscription: Subscription,
    nonce: u64,
}

impl Mode for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn request(&mut self, request: DiscoveryRequest, shared: &Shared) -> Result<(), Status> {
        check_type(&request.type_url)?;
        if let Some(error) = request.error_detail {
            let (names, version) = (request.resource_names.clone(), request.version_info);
            shared.record_nack(Nack { names, version, code: error.code, message: error.message });
        }
        let stale = !request.response_nonce.is_empty() && request.response_nonce != self.nonce.to_string();
        if !stale {
            check_count(request.resource_names.len())?;
            self.subscription.replace(request.resource_names);
        }
        Ok(())
    }

    fn response(&mut self, shared: &Shared) -> Option<DiscoveryResponse> {
        let state = shared.lock();
        let names = self.subscription.due(|name| state.version_of(name));
        let mut resources = Vec::with_capacity(names.len());
        let mut newest = 0;
        for name in names {
            let (version, any) = state.secrets.get(&name)?;
            resources.push(any.clone());
            newest = newest.max(*version);
            self.subscription.mark_sent(&name, *version);
        }
        if resources.is_empty() {
            return None;
        }
        self.nonce += 1;
        Some(DiscoveryResponse {
            version_info: shared.version_text(newest),
            resources,
            type_url: SECRET_TYPE.to_owned(),
            nonce: self.nonce.to_string(),
            ..DiscoveryResponse::default()
        })
    }
}

#[derive(Default)]
struct Delta {
    subscription: Subscription,
    nonce: u64,
}

impl Mode for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn request(&mut self, request: DeltaDiscoveryRequest, shared: &Shared) -> Result<(), Status> {
        check_type(&request.type_url)?;
        if let Some(error) = request.error_detail {
            let (names, version) = (self.subscription.names(), String::new());
            shared.record_nack(Nack { names, version, code: error.code, message: error.message });
        }
        check_count(self.subscription.len() + request.resource_names_subscribe.len())?;
        for name in request.resource_names_unsubscribe {
            self.subscription.drop_name(&name);
        }
        for name in request.resource_names_subscribe {
            match request.initial_resource_versions.get(&name) {
                Some(held) => self.subscription.resume(name, shared.parse_version(held)),
                None => self.subscription.add(name),
            }
        }
        Ok(())
    }

    fn response(&mut self, shared: &Shared) -> Option<DeltaDiscoveryResponse> {
        let state = shared.lock();
        let mut resources = Vec::new();
        for name in self.subscription.due(|name| state.version_of(name)) {
            let (version, any) = state.secrets.get(&name)?;
            self.subscription.mark_sent(&name, *version);
            resources.push(Resource {
                version: shared.version_text(*version),
                resource: Some(any.clone()),
                name,
                ..Resource::default()
            });
        }
        let removed_resources = self.subscription.take_gone(|name| state.secrets.contains_key(name));
        if resources.is_empty() && removed_resources.is_empty() {
            return None;
        }
        self.nonce += 1;
        Some(DeltaDiscoveryResponse {
            system_version_info: shared.version_text(state.last_version),
            resources,
            removed_resources,
            type_url: SECRET_TYPE.to_owned(),
            nonce: self.nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        })
    }
}

fn check_type(type_url: &str) -> Result<(), Status> {
    match type_url {
        "" | SECRET_TYPE => Ok(()),
        other => Err(Status::invalid_argument(format!("type '{other}' is not served here; expected '{SECRET_TYPE}'"))),
    }
}

fn check_count(count: usize) -> Result<(), Status> {
    if count > MAX_NAMES {
        return Err(Status::resource_exhausted(format!("{count} secrets asked for; at most {MAX_NAMES} per stream")));
    }
    Ok(())
}

/// One stream, from its first request to its end.
async fn run<M: Mode>(
    shared: Arc<Shared>,
    mut requests: Streaming<M::Request>,
    out: mpsc::Sender<Result<M::Response, Status>>,
) {
    let mut changes = shared.changes.subscribe();
    let mut closed = shared.closed.subscribe();
    let closed = async move {
        let _ = closed.wait_for(|closed| *closed).await;
    };
    tokio::pin!(closed);
    let mut mode = M::default();
    loop {
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    if let Err(status) = mode.request(request, &shared) {
                        let _ = out.send(Err(status)).await;
                        return;
                    }
                }
                Ok(None) | Err(_) => return,
            },
            changed = changes.changed() => if changed.is_err() { return },
            () = &mut closed => return,
            () = out.closed() => return,
        }
        if let Some(response) = mode.response(&shared)
            && out.send(Ok(response)).await.is_err()
        {
            return;
        }
    }
}

struct Service(Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn start<M: Mode>(&self, requests: Streaming<M::Request>) -> Response<Answers<M::Response>> {
        let (out, answers) = mpsc::channel(QUEUE);
        tokio::spawn(run::<M>(Arc::clone(&self.0), requests, out));
        Response::new(Box::pin(ReceiverStream::new(answers)))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Answers<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(self.start::<Delta>(request.into_inner()))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(self.start::<Sotw>(request.into_inner()))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let names = request.get_ref().resource_names.join(", ");
        let mut once = Sotw::default();
        once.request(request.into_inner(), &self.0)?;
        let response = once.response(&self.0);
        response.map(Response::new).ok_or_else(|| Status::not_found(format!("no secret named '{names}'")))
    }
}

#[cfg(test)]
mod tests;
