//! The gRPC side: connections, one bidirectional stream after the other, retries and back-pressure.
//! What is said and when is decided in `state`.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::Stream;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::client::Shared;
use crate::connect::{Connect, Greeted};
use crate::event::Event;
use crate::limit::TokenBucket;
use crate::options::Options;
use crate::state::Next;
use crate::wire::{Incoming, Request, XdsCodec};

/// The requests of one stream, made when HTTP/2 can take them and the rate limit lets them pass.
struct Requests {
    shared: Arc<Shared>,
    stream: u64,
    /// Told when nothing asks for requests any more: the stream is dead, and what waits will never be sent on it.
    gone: Arc<AtomicBool>,
    limit: Option<Arc<Mutex<TokenBucket>>>,
    /// Until there is a token.
    wait: Option<Pin<Box<Sleep>>>,
}

impl Requests {
    /// Takes a token for a request, or waits for one.
    fn poll_limit(&mut self, cx: &mut Context<'_>, waiting: usize) -> Poll<()> {
        let Some(limit) = &self.limit else { return Poll::Ready(()) };
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            let taken = limit.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            match taken {
                Ok(()) => {
                    self.shared.stats.pending_requests(waiting.saturating_sub(1));
                    return Poll::Ready(());
                }
                Err(wait) => {
                    self.shared.stats.rate_limited();
                    self.shared.stats.pending_requests(waiting);
                    self.wait = Some(Box::pin(tokio::time::sleep(wait)));
                }
            }
        }
    }
}

impl Stream for Requests {
    type Item = Request;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Request>> {
        let shared = self.shared.clone();
        let mut machine = shared.machine();
        if !machine.is_live(self.stream) {
            return Poll::Ready(None);
        }
        // Under the lock, so that work that comes in between is not missed; and only if this is the stream that lives, as
        // one that is being torn down must not take the place of its successor.
        shared.work.register(cx.waker());
        let waiting = machine.waiting();
        if waiting > 0 {
            ready!(self.poll_limit(cx, waiting));
        }
        let had_room = machine.has_room();
        let next = machine.next_request(self.stream);
        if !had_room && machine.has_room() {
            shared.drained.notify_one();
        }
        match next {
            Next::Send(request) => Poll::Ready(Some(request)),
            Next::Wait => Poll::Pending,
            Next::Ended => Poll::Ready(None),
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Release);
        self.shared.drained.notify_one();
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

/// Keeps a stream until nobody listens any more.
pub(crate) async fn run(
    options: Options,
    connector: Arc<dyn Connect>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
) {
    let node = Arc::new(options.announced_node());
    let (stats, max_resources) = (options.stats.clone(), options.max_resources);
    let codec = XdsCodec { mode: options.mode, node, stats, max_resources };
    let limit = options.rate_limit.map(|limit| Arc::new(Mutex::new(TokenBucket::new(limit, Instant::now()))));
    Driver { options, codec, limit, connector, shared, events, failures: 0 }.run().await;
}

struct Driver {
    options: Options,
    codec: XdsCodec,
    /// One for all streams: a server that cuts them must not be asked more for it.
    limit: Option<Arc<Mutex<TokenBucket>>>,
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
            if self.limit.is_some() {
                self.shared.stats.pending_requests(0);
            }
            self.shared.stats.disconnected();
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
        self.shared.stats.connected();
        if self.events.send(Event::Connected).await.is_err() {
            return Ok(());
        }
        let gone = Arc::new(AtomicBool::new(false));
        let requests =
            Requests { shared: self.shared.clone(), stream, gone: gone.clone(), limit: self.limit.clone(), wait: None };
        let path = PathAndQuery::from_static(path);
        // The answer's headers may come with the first response only, and requests flow meanwhile.
        let mut request = tonic::Request::new(requests);
        *request.metadata_mut() = MetadataMap::from_headers(self.options.metadata.clone());
        let opened = grpc.streaming(request, path, self.codec.clone()).await?;
        let mut responses = opened.into_inner();
        loop {
            // Room for the event first: a consumer that is slow must slow the server, not fill the memory.
            let Ok(room) = self.events.reserve().await else { return Ok(()) };
            while !self.shared.machine().has_room() {
                if gone.load(Ordering::Acquire) {
                    return Err(self.last_words(responses).await);
                }
                self.shared.drained.notified().await;
            }
            let Some(response) = responses.message().await? else {
                return Err(Failure { error: "the server ended the stream".into(), code: Some(Code::Ok) });
            };
            self.failures = 0;
            if let Some(event) = self.shared.received(response) {
                room.send(event);
            }
        }
    }

    /// Why a stream died that was not read on. What it brought until then cannot be answered, and is sent anew to the next.
    async fn last_words(&self, mut responses: Streaming<Incoming>) -> Failure {
        let end = async {
            while responses.message().await?.is_some() {}
            Ok(())
        };
        match tokio::time::timeout(self.options.connect_timeout, end).await {
            Ok(Err(status)) => Status::into(status),
            Ok(Ok(())) => Failure { error: "the server ended the stream".into(), code: Some(Code::Ok) },
            Err(_) => Failure { error: "the server reads no more requests".into(), code: Some(Code::Unavailable) },
        }
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        let below_grpc = |error| Failure { error, code: None };
        let options = &self.options;
        let authority = self.connector.authority();
        let uri = |scheme| {
            let uri = Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query("/").build();
            uri.map_err(|e| below_grpc(format!("{authority:?} is no authority for a request: {e}")))
        };
        // What is secured is the connector's business: the library is only to say so.
        let mut endpoint = Endpoint::from(uri("http")?)
            .origin(uri(self.connector.scheme())?)
            .initial_stream_window_size(options.stream_window_bytes)
            .initial_connection_window_size(options.connection_window_bytes);
        if let Some(keepalive) = options.keepalive {
            endpoint = endpoint.http2_keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout);
        }
        if let Ok(named) = endpoint.clone().user_agent(options.user_agent.as_str()) {
            endpoint = named;
        }
        let (connector, limit) = (self.connector.clone(), options.connect_timeout);
        let connect = tower::service_fn(move |_: Uri| {
            let connecting = connector.connect_within(limit);
            async move { connecting.await.map(|io| TokioIo::new(Greeted::new(io, limit))) }
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

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
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
