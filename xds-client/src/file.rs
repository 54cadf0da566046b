//! Resources from a file: read once something is wanted, and again whenever the file is replaced.
//! (Envoy docs, "Dynamic configuration from filesystem": a file is replaced by a move; what is written into it in place
//! is not seen, as it might be seen half written.)

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use rustix::fs::OFlags;
use tokio::sync::mpsc;
use xds_protos::pb::envoy::service::discovery::v3::DiscoveryResponse;

use crate::client::{Gone, Reporter, Shared};
use crate::directory::Directory;
use crate::event::Event;
use crate::options::Backoff;
use crate::state::Next;
use crate::stats::{NoStats, Stats};
use crate::text::{self, Encoding};
use crate::types::TypeUrl;
use crate::wire::Incoming;

/// Between attempts to watch a directory that is not there (any more): twice as long after each, up to a bound.
const WATCH_AGAIN: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(8) };

/// A file with resources of one type: a `DiscoveryResponse` in the form that the ending of its name says, as for Envoy:
/// `.yaml` and `.yml`, `.pb` (the message's bytes), anything else is JSON. `.pb_text` is refused.
///
/// It is read again when
/// - something of its name is moved into its directory, or
/// - something else is, and the path then leads to another file (Kubernetes replaces the link `..data` through which the
///   files of a mounted ConfigMap are reached), or
/// - with `watched_directory`, anything is moved into that directory.
///
/// ```no_run
/// use xds_client::{Client, Event, FileOptions, Subscription, TypeUrl};
/// # async fn run() {
/// let (client, mut events) = Client::watch_file(FileOptions::new(TypeUrl::CLUSTER, "/etc/proxy/cds.yaml"));
/// client.subscribe(&TypeUrl::CLUSTER, Subscription::Wildcard);
/// while let Some(event) = events.next().await {
///     match event {
///         Event::Connected => {}
///         Event::Disconnected { error, .. } => eprintln!("keeping what is there: {error}"),
///         Event::Response(response) => {
///             println!("{} clusters", response.resources.len());
///             response.ack();
///         }
///     }
/// }
/// # }
/// ```
/// Its directory is watched with Linux's inotify.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// Type of the resources. A file that says it is of another type is an error.
    pub type_url: TypeUrl,
    /// The file. Relative to the working directory if it is relative.
    pub path: PathBuf,
    /// Watch this directory instead of the file's own (`PathConfigSource.watched_directory`).
    pub watched_directory: Option<PathBuf>,
    /// Refuse a text with fields that Envoy's API does not have; else they are left out, with a warning in the log.
    pub reject_unknown_fields: bool,
    /// Largest file that is read, in bytes. What is no regular file is not read.
    pub max_bytes: usize,
    /// Events that may wait for a slow consumer. At least 1.
    pub event_queue: usize,
    /// Who counts.
    pub stats: Arc<dyn Stats>,
}

impl FileOptions {
    /// A file watched by its own directory, of at most 64 MB.
    pub fn new(type_url: TypeUrl, path: impl Into<PathBuf>) -> Self {
        FileOptions {
            type_url,
            path: path.into(),
            watched_directory: None,
            reject_unknown_fields: false,
            max_bytes: 64 << 20,
            event_queue: 4,
            stats: Arc::new(NoStats),
        }
    }

    fn directory(&self) -> &Path {
        match &self.watched_directory {
            Some(directory) => directory,
            None => match self.path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            },
        }
    }
}

/// Serves until nobody listens any more.
pub(crate) async fn run(options: FileOptions, shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let reporter = Reporter::new(events, shared.stats.clone());
    let source = Source { reporter, resolved: None, options, shared, withheld: false, watching: None };
    // It only ends when nobody is there to be told.
    _ = source.run().await;
}

struct Source {
    options: FileOptions,
    shared: Arc<Shared>,
    reporter: Reporter,
    /// Where the path led when the file was read last.
    resolved: Option<PathBuf>,
    /// Nothing was wanted when the file was read last, or its type was held back.
    withheld: bool,
    /// What was told of a directory that cannot be watched.
    watching: Option<String>,
}

impl Source {
    async fn run(mut self) -> Result<(), Gone> {
        self.shared.wanted.notified().await;
        let mut failures = 0;
        loop {
            // The watch stands before the file is read, so that no change falls in between.
            let directory = match Directory::watch(self.options.directory()) {
                Ok(directory) => directory,
                Err(e) => {
                    let error = format!("watching {}: {e}", self.options.directory().display());
                    let again = WATCH_AGAIN.bound(failures);
                    failures = failures.saturating_add(1);
                    // Once: what is told again and again is not read.
                    if self.watching.as_ref() != Some(&error) {
                        self.watching = Some(error.clone());
                        self.reporter.bad(error, None, again).await?;
                    }
                    tokio::time::sleep(again).await;
                    continue;
                }
            };
            failures = 0;
            self.watching = None;
            self.read().await?;
            if let Err(e) = self.follow(&directory).await? {
                tracing::debug!("watching {} anew: {e}", self.options.directory().display());
            }
        }
    }

    /// Reads the file again when it was replaced or more is wanted, until the watch breaks.
    async fn follow(&mut self, directory: &Directory) -> Result<Result<(), std::io::Error>, Gone> {
        loop {
            let moves = tokio::select! {
                moves = directory.moves() => moves,
                () = self.shared.wanted.notified() => {
                    self.read().await?;
                    continue;
                }
                () = self.shared.resumed.notified(), if self.withheld => {
                    self.read().await?;
                    continue;
                }
            };
            let moves = match moves {
                Ok(moves) => moves,
                Err(e) => return Ok(Err(e)),
            };
            if moves.gone {
                return Ok(Ok(()));
            }
            let own_name = self.options.path.file_name();
            let replaced = moves.overflow
                || self.options.watched_directory.is_some()
                || moves.names.iter().any(|name| Some(name.as_os_str()) == own_name)
                || resolve(self.options.path.clone()).await != self.resolved;
            if replaced {
                self.read().await?;
            }
        }
    }

    /// Reads the file and hands it over, or says why not.
    async fn read(&mut self) -> Result<(), Gone> {
        self.resolved = resolve(self.options.path.clone()).await;
        // Another thread's: the file may lie on a disk that is slow, or on another machine that is away.
        let options = self.options.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&options)).await;
        let incoming = match loaded.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(incoming) => incoming,
            Err(error) => {
                let error = format!("{}: {error}", self.options.path.display());
                return self.reporter.bad(error, None, Duration::MAX).await;
            }
        };
        self.reporter.good().await?;
        let room = self.reporter.events.reserve().await.map_err(|_| Gone)?;
        let stream = self.shared.machine().open();
        let wanted = matches!(self.shared.machine().next_request(stream), Next::Send(_));
        self.withheld = !wanted;
        if wanted && let Some(event) = self.shared.received(incoming) {
            room.send(event);
        }
        self.shared.close();
        Ok(())
    }
}

/// Where a path leads.
async fn resolve(path: PathBuf) -> Option<PathBuf> {
    tokio::task::spawn_blocking(move || std::fs::canonicalize(path).ok()).await.ok().flatten()
}

fn load(options: &FileOptions) -> Result<Incoming, String> {
    let received = Instant::now();
    let encoding = match options.path.extension().and_then(OsStr::to_str) {
        Some("pb") => None,
        Some("pb_text") => {
            return Err("protobuf's text format is not supported; use .yaml, .json or .pb".into());
        }
        _ => Some(Encoding::of_file(&options.path)),
    };
    // Opening a pipe would wait for somebody to write into it.
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(nonblock).open(&options.path).map_err(|e| e.to_string())?;
    let kind = file.metadata().map_err(|e| e.to_string())?.file_type();
    if !kind.is_file() {
        let found = if kind.is_dir() { "a directory" } else { "a device, pipe or socket" };
        return Err(format!("is {found}, expected a regular file"));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(options.max_bytes).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() > options.max_bytes {
        return Err(format!("larger than the limit of {} bytes", options.max_bytes));
    }
    let message: DiscoveryResponse = match encoding {
        None => DiscoveryResponse::decode(bytes.as_slice()).map_err(|e| format!("no DiscoveryResponse: {e}"))?,
        Some(encoding) => text::response(&bytes, encoding, options.reject_unknown_fields)?,
    };
    if !message.type_url.is_empty() && message.type_url != options.type_url.as_str() {
        return Err(format!("found resources of type {}, expected {}", message.type_url, options.type_url));
    }
    Ok(Incoming::from_sotw(message, bytes.len(), received))
}
