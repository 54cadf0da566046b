//! The IO side: one task that keeps a gRPC stream open, and the handles by which a consumer speaks to it.
//! What is said and when is decided in `state`; here are connections, retries and back-pressure.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, mpsc};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::connect::Connect;
use crate::event::{Answer, Event, Response};
use crate::options::Options;
use crate::state::{Machine, Next};
use crate::types::{Method, Subscription, TypeUrl};
use crate::wire::{Incoming, Request, XdsCodec};

/// Handle to a client: says what is wanted. Cheap to clone; when the last clone is dropped, the stream is closed.
///
/// None of its methods wait. What is called between two requests goes out as one, and always as a message of its own,
/// in the order in which the calls were made: a subscription made before a response is acknowledged is sent before the
/// acknowledgement.
///
/// ```no_run
/// use std::sync::Arc;
/// use xds_client::{Client, Event, Options, Subscription, TcpConnector, TypeUrl};
///
/// # async fn run() {
/// let options = Options::default();
/// let (client, mut events) = Client::start(options, Arc::new(TcpConnector::new("127.0.0.1:18000")));
/// client.subscribe(&TypeUrl::CLUSTER, Subscription::Wildcard);
/// while let Some(event) = events.next().await {
///     match event {
///         Event::Connected => println!("connected"),
///         Event::Disconnected { error, retry_in, .. } => println!("{error}; again in {retry_in:?}"),
///         Event::Response(response) => {
///             let names = response.resources.iter().map(|r| r.name.clone());
///             client.subscribe(&TypeUrl::ENDPOINT, Subscription::names(names));
///             response.ack();
///         }
///     }
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Handle>,
}

/// Events of a client, in order. If it is dropped, the stream is closed.
///
/// A consumer that does not take events stops the stream from being read: at most
/// [`Options::event_queue`] events wait, and what the HTTP/2 windows let the server send.
pub struct Events {
    queue: mpsc::Receiver<Event>,
}

/// Ends the task when the last `Client` goes; responses in the consumer's hands keep only `Shared`.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closed.notify_one();
    }
}

struct Shared {
    machine: Mutex<Machine>,
    /// Wakes the request stream.
    work: AtomicWaker,
    /// Wakes the reader, when requests had piled up.
    drained: Notify,
    closed: Notify,
}

impl Shared {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        // The machine has no state in which a panic could leave it that would be worse than going on.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.machine().close();
        // The request stream, if it still lives, ends.
        self.work.wake();
    }
}

impl Client {
    /// Starts a client on the current tokio runtime. It connects at once and never gives up.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(options: Options, connector: Arc<dyn Connect>) -> (Client, Events) {
        let only = match &options.method {
            Method::Aggregated => None,
            Method::Type(type_url) => Some(type_url.clone()),
        };
        let shared = Arc::new(Shared {
            machine: Mutex::new(Machine::new(options.mode, only, options.set_node_on_first_message_only)),
            work: AtomicWaker::new(),
            drained: Notify::new(),
            closed: Notify::new(),
        });
        let (events, queue) = mpsc::channel(options.event_queue.max(1));
        let driver = Driver {
            codec: XdsCodec { mode: options.mode, node: Arc::new(options.node.clone()) },
            options,
            connector,
            shared: shared.clone(),
            events: events.clone(),
            failures: 0,
        };
        let task = shared.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task.closed.notified() => {}
                () = events.closed() => {}
                () = driver.run() => {}
            }
            task.close();
        });
        (Client { inner: Arc::new(Handle { shared }) }, Events { queue })
    }

    /// Adds to what is wanted of a type. Names that are subscribed already change nothing; a name that is taken back and
    /// subscribed again is sent anew by the server. On a stream of one type, other types are refused (and logged).
    pub fn subscribe(&self, type_url: &TypeUrl, names: Subscription) {
        let refused = self.inner.shared.machine().subscribe(type_url, names);
        match refused {
            Ok(()) => self.inner.shared.work.wake(),
            Err(only) => tracing::error!("ignoring a subscription to {type_url}: this stream carries {only} only"),
        }
    }

    /// Takes names back; `*` takes back the wildcard. Resources of these names that are under way still arrive.
    /// In state of the world, a wildcard cannot be taken back without ever having named a name: the protocol has no words
    /// for it.
    pub fn unsubscribe<S: AsRef<str>>(&self, type_url: &TypeUrl, names: &[S]) {
        self.inner.shared.machine().unsubscribe(type_url, names);
        self.inner.shared.work.wake();
    }
}

impl Events {
    /// The next event; `None` when the last [`Client`] is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.queue.poll_recv(cx)
    }
}

/// The requests of one stream, made when HTTP/2 can take them.
struct Requests {
    shared: Arc<Shared>,
    stream: u64,
}

impl Stream for Requests {
    type Item = Request;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Request>> {
        let mut machine = self.shared.machine();
        let had_room = machine.has_room();
        let next = machine.next_request(self.stream);
        if !had_room && machine.has_room() {
            self.shared.drained.notify_one();
        }
        match next {
            Next::Send(request) => Poll::Ready(Some(request)),
            Next::Wait => {
                // Under the lock, so that work that comes in between is not missed; and only if this is the stream that
                // lives, as one that is being torn down must not take the place of its successor.
                self.shared.work.register(cx.waker());
                Poll::Pending
            }
            Next::Ended => Poll::Ready(None),
        }
    }
}

/// Why there is no stream.
struct Failure {
    error: String,
    code: Option<Code>,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let mut error = format!("the stream ended with {:?}", status.code());
        if !status.message().is_empty() {
            error = format!("{error}: {}", status.message());
        }
        let error = followed_by_causes(error, status.source());
        Failure { error, code: Some(status.code()) }
    }
}

struct Driver {
    options: Options,
    codec: XdsCodec,
    connector: Arc<dyn Connect>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    /// Attempts since the last response.
    failures: u32,
}

impl Driver {
    async fn run(mut self) {
        loop {
            let Failure { error, code } = match self.stream().await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            self.shared.close();
            let retry_in = self.options.backoff.draw(self.failures);
            self.failures = self.failures.saturating_add(1);
            tracing::debug!("no discovery stream: {error}; next attempt in {retry_in:?}");
            if self.events.send(Event::Disconnected { error, code, retry_in }).await.is_err() {
                return;
            }
            tokio::time::sleep(retry_in).await;
        }
    }

    /// One stream from connection to end. `Ok` when nobody listens any more.
    async fn stream(&mut self) -> Result<(), Failure> {
        let path = self.options.method.path(self.options.mode).ok_or_else(|| Failure {
            error: format!("there is no {:?} service for {:?}", self.options.mode, self.options.method),
            code: Some(Code::Unimplemented),
        })?;
        let channel = self.connect().await?;
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(self.options.max_message_bytes);
        grpc.ready().await.map_err(|e| Failure { error: with_causes(&e), code: None })?;

        let stream = self.shared.machine().open();
        if self.events.send(Event::Connected).await.is_err() {
            return Ok(());
        }
        let requests = Requests { shared: self.shared.clone(), stream };
        let path = PathAndQuery::from_static(path);
        // The answer's headers may come with the first response only, and requests flow meanwhile.
        let opened = grpc.streaming(tonic::Request::new(requests), path, self.codec.clone()).await?;
        let mut responses = opened.into_inner();
        loop {
            // Room for the event first: a consumer that is slow must slow the server, not fill the memory.
            let Ok(room) = self.events.reserve().await else { return Ok(()) };
            while !self.shared.machine().has_room() {
                self.shared.drained.notified().await;
            }
            let Some(mut response) = responses.message().await? else {
                return Err(Failure { error: "the server ended the stream".into(), code: Some(Code::Ok) });
            };
            self.failures = 0;
            let outstanding = self.shared.machine().received(&mut response);
            match outstanding {
                Some(outstanding) => {
                    let shared = self.shared.clone();
                    let answer = Answer::new(move |verdict| {
                        shared.machine().answer(outstanding, verdict);
                        shared.work.wake();
                    });
                    room.send(Event::Response(event(response, answer)));
                }
                None => self.shared.work.wake(),
            }
        }
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        let below_grpc = |error| Failure { error, code: None };
        let options = &self.options;
        let authority = self.connector.authority();
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority.as_str())
            .path_and_query("/")
            .build()
            .map_err(|e| below_grpc(format!("{authority:?} is no authority for a request: {e}")))?;
        let mut endpoint = Endpoint::from(uri)
            .initial_stream_window_size(options.stream_window_bytes)
            .initial_connection_window_size(options.connection_window_bytes);
        if let Some(keepalive) = options.keepalive {
            endpoint = endpoint.http2_keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout);
        }
        if let Ok(named) = endpoint.clone().user_agent(options.user_agent.as_str()) {
            endpoint = named;
        }
        let connector = self.connector.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let connecting = connector.connect();
            async move { connecting.await.map(TokioIo::new) }
        });
        match tokio::time::timeout(options.connect_timeout, endpoint.connect_with_connector(connect)).await {
            Ok(connected) => connected.map_err(|e| below_grpc(with_causes(&e))),
            Err(_) => Err(below_grpc(format!(
                "connecting to {authority}: no connection after {:?} (connect timeout)",
                options.connect_timeout
            ))),
        }
    }
}

fn event(incoming: Incoming, answer: Answer) -> Response {
    let Incoming { type_url, version, nonce, kind, resources, removed, errors, control_plane, bytes, received } =
        incoming;
    Response { type_url, version, nonce, kind, resources, removed, errors, control_plane, bytes, received, answer }
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    followed_by_causes(error.to_string(), error.source())
}

fn followed_by_causes(mut text: String, mut cause: Option<&dyn std::error::Error>) -> String {
    while let Some(e) = cause {
        let inner = e.to_string();
        // Layers often repeat each other.
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = e.source();
    }
    text
}
