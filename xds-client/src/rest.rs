//! Polling of a REST service: the state of the world of one type, asked for again and again.
//! (Envoy docs, "xDS REST and gRPC protocol", "REST-JSON polling subscriptions".)

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{
    HeaderMap, HeaderValue, Method as HttpMethod, Request as HttpRequest, Response as HttpResponse, StatusCode, header,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming as Body;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use xds_protos::pb::envoy::config::core::v3::Node;

use crate::client::{Gone, Reporter, Shared};
use crate::connect::{BoxIo, Connect};
use crate::event::Event;
use crate::grpc::with_causes;
use crate::state::Next;
use crate::stats::{NoStats, Said, Stats};
use crate::text::{self, Encoding};
use crate::types::{Method, TypeUrl};
use crate::wire::{Incoming, Request};

/// How one type is polled.
///
/// ```no_run
/// use std::{sync::Arc, time::Duration};
/// use xds_client::{Client, RestOptions, Subscription, TcpConnector, TypeUrl, pb::envoy::config::core::v3::Node};
/// # fn run(node: Node) {
/// let options = RestOptions::new(TypeUrl::CLUSTER, node, Duration::from_secs(5));
/// let (client, events) = Client::poll(options, Arc::new(TcpConnector::new("10.0.0.1:8080")));
/// client.subscribe(&TypeUrl::CLUSTER, Subscription::Wildcard);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RestOptions {
    /// Type of the resources, which gives the path; see [`Method::rest_path`].
    pub type_url: TypeUrl,
    /// Who asks.
    pub node: Node,
    /// Least time between the end of a poll, good or bad, and the next; to it is added a share of itself, drawn evenly
    /// from nothing to all. Envoy's `refresh_delay`.
    pub refresh_delay: Duration,
    /// Longest time from the begin of a poll to the end of the response's body.
    pub request_timeout: Duration,
    /// Speak HTTP/2 without asking, rather than HTTP/1.1.
    pub http2: bool,
    /// Refuse a response with fields that Envoy's API does not have; else they are left out, with a warning in the log.
    pub reject_unknown_fields: bool,
    /// Largest response accepted, in bytes.
    pub max_message_bytes: usize,
    /// Events that may wait for a slow consumer; when they do, there are no polls. At least 1.
    pub event_queue: usize,
    /// Value of the `user-agent` header. Must be a legal header value, or it is left out.
    pub user_agent: String,
    /// Headers sent with each poll, such as `authorization`.
    pub metadata: HeaderMap,
    /// Who counts. A poll is a [`Said::Subscription`].
    pub stats: Arc<dyn Stats>,
}

impl RestOptions {
    /// Polls by HTTP/1.1 that may take one second, Envoy's default `request_timeout`.
    pub fn new(type_url: TypeUrl, node: Node, refresh_delay: Duration) -> Self {
        RestOptions {
            type_url,
            node,
            refresh_delay,
            request_timeout: Duration::from_secs(1),
            http2: false,
            reject_unknown_fields: false,
            max_message_bytes: 64 << 20,
            event_queue: 4,
            user_agent: "xds-client".into(),
            metadata: HeaderMap::new(),
            stats: Arc::new(NoStats),
        }
    }
}

/// Polls until nobody listens any more.
pub(crate) async fn run(
    options: RestOptions,
    connector: Arc<dyn Connect>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
) {
    let reporter = Reporter::new(events, shared.stats.clone());
    let poller = Poller { options, connector, shared, reporter };
    // It only ends when nobody is there to be told.
    _ = poller.run().await;
}

struct Poller {
    options: RestOptions,
    connector: Arc<dyn Connect>,
    shared: Arc<Shared>,
    reporter: Reporter,
}

impl Poller {
    async fn run(mut self) -> Result<(), Gone> {
        loop {
            // What is wanted by now goes into this request.
            _ = self.shared.wanted.notified().now_or_never();
            let stream = self.shared.machine().open();
            let next = self.shared.machine().next_request(stream);
            let Next::Send(request) = next else {
                self.shared.close();
                tokio::select! {
                    () = self.shared.wanted.notified() => self.shared.wanted.notify_one(),
                    () = self.shared.resumed.notified() => {}
                }
                continue;
            };
            let timeout = self.options.request_timeout;
            let outcome = match tokio::time::timeout(timeout, self.poll(request)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no response after {timeout:?} (request timeout)")),
            };
            let wait = self.options.refresh_delay.mul_f64(1.0 + fastrand::f64());
            match outcome {
                Ok(incoming) => {
                    self.reporter.good().await?;
                    if let Some(incoming) = incoming {
                        let room = self.reporter.events.reserve().await.map_err(|_| Gone)?;
                        if let Some(event) = self.shared.received(incoming) {
                            room.send(event);
                        }
                    }
                    self.shared.close();
                }
                Err(error) => {
                    self.shared.close();
                    let error = format!("polling {}: {error}", self.connector.authority());
                    self.reporter.bad(error, None, wait).await?;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.wanted.notified() => self.shared.wanted.notify_one(),
            }
        }
    }

    /// One request and its response; `None` if the server says that nothing changed.
    async fn poll(&self, request: Request) -> Result<Option<Incoming>, String> {
        let options = &self.options;
        let path = Method::Type(options.type_url.clone())
            .rest_path()
            .ok_or_else(|| format!("there is no REST service for {}", options.type_url))?;
        let body = Bytes::from(text::request(&request.into_sotw(&options.node)));
        options.stats.request_sent(&options.type_url, Said::Subscription, body.len());
        let request = self.http_request(path, body).map_err(|e| e.to_string())?;
        let io = self.connector.connect_within(options.request_timeout).await.map_err(|e| e.to_string())?;
        let response =
            if options.http2 { self.over_http2(io, request).await } else { self.over_http1(io, request).await };
        let response = response.map_err(|e| e.to_string())?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED => return Ok(None),
            status => return Err(format!("the server answered {status}")),
        }
        let bytes = response.into_body();
        let received = Instant::now();
        let message = text::response(&bytes, Encoding::JSON, options.reject_unknown_fields)?;
        if !message.type_url.is_empty() && message.type_url != options.type_url.as_str() {
            return Err(format!("found resources of type {}, expected {}", message.type_url, options.type_url));
        }
        Ok(Some(Incoming::from_sotw(message, bytes.len(), received)))
    }

    fn http_request(&self, path: &str, body: Bytes) -> Result<HttpRequest<Full<Bytes>>, http::Error> {
        let authority = self.connector.authority();
        let mut request = HttpRequest::builder().method(HttpMethod::POST);
        // HTTP/2 takes the authority from the URI, HTTP/1.1 from the host header.
        request = match self.options.http2 {
            true => request.uri(format!("{}://{authority}{path}", self.connector.scheme())),
            false => request.uri(path).header(header::HOST, authority),
        };
        request = request.header(header::CONTENT_TYPE, "application/json").header(header::CONTENT_LENGTH, body.len());
        if let Ok(agent) = HeaderValue::from_str(&self.options.user_agent) {
            request = request.header(header::USER_AGENT, agent);
        }
        if let Some(headers) = request.headers_mut() {
            for (name, value) in &self.options.metadata {
                headers.append(name, value.clone());
            }
        }
        request.body(Full::new(body))
    }

    // A connection of its own for each poll: they are seconds apart.

    async fn over_http1(&self, io: BoxIo, request: HttpRequest<Full<Bytes>>) -> io::Result<HttpResponse<Bytes>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(in_words)?;
        self.exchange(connection, async move { sender.send_request(request).await }).await
    }

    async fn over_http2(&self, io: BoxIo, request: HttpRequest<Full<Bytes>>) -> io::Result<HttpResponse<Bytes>> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = builder
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .handshake(TokioIo::new(io))
            .await
            .map_err(in_words)?;
        // The sender lives until the body is there: without it, the connection would close itself.
        self.exchange(connection, async move {
            let response = sender.send_request(request).await?;
            Ok(response.map(|body| (body, sender)))
        })
        .await
    }

    async fn exchange<B: Into<Reply>>(
        &self,
        connection: impl Future<Output = hyper::Result<()>>,
        response: impl Future<Output = hyper::Result<HttpResponse<B>>>,
    ) -> io::Result<HttpResponse<Bytes>> {
        let exchange = async {
            let (head, body) = response.await.map_err(in_words)?.into_parts();
            let Reply { body, _sender } = body.into();
            let limit = self.options.max_message_bytes;
            let body = Limited::new(body, limit).collect().await.map_err(|e| {
                if e.is::<http_body_util::LengthLimitError>() {
                    io::Error::other(format!("the response is larger than the limit of {limit} bytes"))
                } else {
                    io::Error::other(with_causes(e.as_ref()))
                }
            })?;
            Ok(HttpResponse::from_parts(head, body.to_bytes()))
        };
        // How the connection ends, the exchange knows too; and what has arrived by then is still to be read.
        let connection = async {
            _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            response = exchange => response,
            never = connection => never,
        }
    }
}

/// A body, and what must live as long as it is read.
struct Reply {
    body: Body,
    _sender: Option<http2::SendRequest<Full<Bytes>>>,
}

impl From<Body> for Reply {
    fn from(body: Body) -> Self {
        Reply { body, _sender: None }
    }
}

impl From<(Body, http2::SendRequest<Full<Bytes>>)> for Reply {
    fn from((body, sender): (Body, http2::SendRequest<Full<Bytes>>)) -> Self {
        Reply { body, _sender: Some(sender) }
    }
}

fn in_words(error: hyper::Error) -> io::Error {
    io::Error::other(with_causes(&error))
}
