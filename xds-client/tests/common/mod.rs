//! A control plane that a test plays by hand: it shows each stream and each request as they come, and sends what the
//! test says. It knows nothing of the protocol, so it cannot share a bug with the client.

use std::path::Path;
use std::time::Duration;

use discovery::aggregated_discovery_service_server as ads;
use discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use xds_client::pb::envoy::config::cluster::v3::Cluster;
use xds_client::pb::envoy::service::discovery::v3 as discovery;
use xds_client::pb::envoy::service::secret::v3::secret_discovery_service_server as sds;
use xds_client::{Any, Event, Events, Response as XdsResponse, TypeUrl};

/// Nothing in these tests takes this long, unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// One stream of a client.
pub struct Talk<Req, Resp> {
    /// Which method it came in by.
    pub method: &'static str,
    requests: Streaming<Req>,
    responses: mpsc::Sender<Result<Resp, Status>>,
}

pub type Sotw = Talk<DiscoveryRequest, DiscoveryResponse>;
pub type Delta = Talk<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

impl<Req, Resp> Talk<Req, Resp> {
    pub async fn request(&mut self) -> Req {
        soon("a request", self.requests.message()).await.expect("no error").expect("a request, not the end")
    }

    /// The next request, or `None` when the stream ended in whichever way.
    pub async fn next(&mut self) -> Option<Req> {
        soon("a request or the end", self.requests.message()).await.unwrap_or(None)
    }

    /// As `send`; `false` if the stream is gone.
    pub async fn offer(&self, response: Resp) -> bool {
        soon("room for a response", self.responses.send(Ok(response))).await.is_ok()
    }

    /// Waits until the client has left.
    pub async fn gone(mut self) {
        soon("the end of the stream", async { while let Ok(Some(_)) = self.requests.message().await {} }).await;
    }

    pub async fn send(&self, response: Resp) {
        soon("room for a response", self.responses.send(Ok(response))).await.expect("the stream lives");
    }

    /// As `send`; `false` if the client does not read.
    pub fn try_send(&self, response: Resp) -> bool {
        self.responses.try_send(Ok(response)).is_ok()
    }

    pub async fn end(self, status: Status) {
        soon("room for a status", self.responses.send(Err(status))).await.expect("the stream lives");
    }
}

/// The request in the notation of the wire logs.
pub fn delta(r: &DeltaDiscoveryRequest) -> String {
    let mut held: Vec<_> = r.initial_resource_versions.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    held.sort();
    format!(
        "{} sub=[{}] unsub=[{}] init={{{}}} nonce='{}'{}{}",
        short(&r.type_url),
        r.resource_names_subscribe.join(","),
        r.resource_names_unsubscribe.join(","),
        held.join(","),
        r.response_nonce,
        r.node.as_ref().map(|n| format!(" node={}", n.id)).unwrap_or_default(),
        r.error_detail.as_ref().map(|e| format!(" ERR='{}'", e.message)).unwrap_or_default()
    )
}

/// The request in the notation of the wire logs.
pub fn sotw(r: &DiscoveryRequest) -> String {
    format!(
        "{} v='{}' names=[{}] nonce='{}'{}{}",
        short(&r.type_url),
        r.version_info,
        r.resource_names.join(","),
        r.response_nonce,
        r.node.as_ref().map(|n| format!(" node={}", n.id)).unwrap_or_default(),
        r.error_detail.as_ref().map(|e| format!(" ERR='{}'", e.message)).unwrap_or_default()
    )
}

fn short(type_url: &str) -> &str {
    type_url.rsplit_once('.').map_or(type_url, |(_, name)| name)
}

/// A resource of any type: all have their name in field 1.
pub fn body(t: &TypeUrl, name: &str) -> Any {
    Any { type_url: t.to_string(), value: Cluster { name: name.into(), ..Default::default() }.encode_to_vec() }
}

pub fn delta_response(
    t: &TypeUrl,
    version: &str,
    nonce: &str,
    names: &[&str],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        system_version_info: version.into(),
        type_url: t.to_string(),
        nonce: nonce.into(),
        resources: names
            .iter()
            .map(|name| discovery::Resource {
                name: name.to_string(),
                version: version.into(),
                resource: Some(body(t, name)),
                ..Default::default()
            })
            .collect(),
        removed_resources: removed.iter().map(|n| n.to_string()).collect(),
        ..Default::default()
    }
}

pub fn sotw_response(t: &TypeUrl, version: &str, nonce: &str, names: &[&str]) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.into(),
        type_url: t.to_string(),
        nonce: nonce.into(),
        resources: names.iter().map(|name| body(t, name)).collect(),
        ..Default::default()
    }
}

/// A resource in the wrapper that gives it a time to live in state of the world.
pub fn wrapped(t: &TypeUrl, name: &str, ttl: Option<Duration>) -> Any {
    let wrapper = discovery::Resource {
        name: name.into(),
        ttl: ttl.map(|ttl| xds_client::pb::google::protobuf::Duration {
            seconds: ttl.as_secs().try_into().unwrap(),
            nanos: ttl.subsec_nanos().try_into().unwrap(),
        }),
        resource: Some(body(t, name)),
        ..Default::default()
    };
    Any { type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".into(), value: wrapper.encode_to_vec() }
}

/// The next event, which must be a response.
pub async fn response(events: &mut Events) -> XdsResponse {
    match soon("a response", events.next()).await {
        Some(Event::Response(response)) => response,
        other => panic!("expected a response, got {other:?}"),
    }
}

/// The next event, which must be `Connected`.
pub async fn connected(events: &mut Events) {
    match soon("a connection", events.next()).await {
        Some(Event::Connected) => {}
        other => panic!("expected a connection, got {other:?}"),
    }
}

/// The next event, which must be `Disconnected`.
pub async fn disconnected(events: &mut Events) -> (String, Option<tonic::Code>) {
    match soon("the loss of the stream", events.next()).await {
        Some(Event::Disconnected { error, code, .. }) => (error, code),
        other => panic!("expected the loss of the stream, got {other:?}"),
    }
}

#[derive(Clone)]
struct Service {
    sotw: mpsc::UnboundedSender<Sotw>,
    delta: mpsc::UnboundedSender<Delta>,
}

impl Service {
    /// Hands a stream to the test. Two responses may wait; a client that does not read makes more of them fail.
    fn talk<Req, Resp: Send + 'static>(
        to: &mpsc::UnboundedSender<Talk<Req, Resp>>,
        method: &'static str,
        requests: Request<Streaming<Req>>,
    ) -> Result<Response<BoxStream<'static, Result<Resp, Status>>>, Status> {
        let (responses, queue) = mpsc::channel(2);
        let talk = Talk { method, requests: requests.into_inner(), responses };
        to.send(talk).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue).boxed()))
    }
}

type Replies<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl ads::AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Replies<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Replies<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        r: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Replies<DiscoveryResponse>>, Status> {
        Service::talk(&self.sotw, "StreamAggregatedResources", r)
    }

    async fn delta_aggregated_resources(
        &self,
        r: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Replies<DeltaDiscoveryResponse>>, Status> {
        Service::talk(&self.delta, "DeltaAggregatedResources", r)
    }
}

#[tonic::async_trait]
impl sds::SecretDiscoveryService for Service {
    type DeltaSecretsStream = Replies<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Replies<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        r: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Replies<DeltaDiscoveryResponse>>, Status> {
        Service::talk(&self.delta, "DeltaSecrets", r)
    }

    async fn stream_secrets(
        &self,
        r: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Replies<DiscoveryResponse>>, Status> {
        Service::talk(&self.sotw, "StreamSecrets", r)
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

/// The control plane. Dropped, it closes its socket and its connections.
pub struct Server {
    sotw: mpsc::UnboundedReceiver<Sotw>,
    delta: mpsc::UnboundedReceiver<Delta>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    fn serve<IO>(incoming: impl Stream<Item = std::io::Result<IO>> + Send + 'static) -> Server
    where
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IO::ConnectInfo: Clone + Send + Sync + 'static,
    {
        let (to_sotw, sotw) = mpsc::unbounded_channel();
        let (to_delta, delta) = mpsc::unbounded_channel();
        let service = Service { sotw: to_sotw, delta: to_delta };
        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder()
                .add_service(ads::AggregatedDiscoveryServiceServer::new(service.clone()))
                .add_service(sds::SecretDiscoveryServiceServer::new(service));
            server.serve_with_incoming(incoming).await.expect("serving");
        });
        Server { sotw, delta, task }
    }

    /// On a free port of the loopback address; returns `host:port`.
    pub async fn tcp() -> (Server, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (Server::serve(TcpListenerStream::new(listener)), address)
    }

    pub fn unix(path: &Path) -> Server {
        _ = std::fs::remove_file(path);
        Server::serve(UnixListenerStream::new(UnixListener::bind(path).unwrap()))
    }

    /// The next delta stream.
    pub async fn delta(&mut self) -> Delta {
        soon("a delta stream", self.delta.recv()).await.unwrap()
    }

    /// The next state-of-the-world stream.
    pub async fn sotw(&mut self) -> Sotw {
        soon("a state-of-the-world stream", self.sotw.recv()).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
