//! The sockets and gRPC streams of the control plane; what to answer is decided in `state`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{Stream, StreamExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;
use tonic::{Response, Status, Streaming};
use xds_protos::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use xds_protos::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::state::Answer;
use super::{Address, Request, Shared};
use crate::runtime::OwnRuntime;

/// Responses queued per stream.
const QUEUE: usize = 64;
/// The largest request taken: a proxy with tens of thousands of clusters names all of them in one message.
const MAX_REQUEST: usize = 64 << 20;

/// Binds and serves on a new runtime; returns the address with the port that was chosen.
pub(super) fn start(shared: &Arc<Shared>, address: &Address) -> io::Result<(OwnRuntime, Address)> {
    let runtime = OwnRuntime::start("control-plane")?;
    let handle = runtime.handle();
    let shared = Arc::clone(shared);
    let bound = match address {
        Address::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let bound = Address::Tcp(listener.local_addr()?);
            let _guard = handle.enter();
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener)?);
            handle.spawn(serve(shared, incoming));
            bound
        }
        Address::Unix(path) => {
            let _ = std::fs::remove_file(path);
            let _guard = handle.enter();
            handle.spawn(serve(shared, UnixListenerStream::new(UnixListener::bind(path)?)));
            Address::Unix(path.clone())
        }
    };
    Ok((runtime, bound))
}

async fn serve<S, I>(shared: Arc<Shared>, incoming: S)
where
    S: Stream<Item = io::Result<I>> + Send + 'static,
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
{
    let gate = Arc::clone(&shared);
    let incoming = incoming.filter(move |_| {
        let open = !gate.refuse.load(Ordering::Relaxed);
        async move { open }
    });
    let service = AggregatedDiscoveryServiceServer::new(Ads(shared)).max_decoding_message_size(MAX_REQUEST);
    // Its only error is that of accept(2); the listener then closes, and clients see that.
    let _ = tonic::transport::Server::builder().add_service(service).serve_with_incoming(Box::pin(incoming)).await;
}

struct Ads(Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What differs on the wire between the two modes.
trait Mode: Sized + Send + 'static {
    type Request: Send + 'static;
    const DELTA: bool;
    fn request(request: Self::Request) -> Request;
    /// `None` for a response of the other mode, which only a crafted one can be.
    fn response(answer: Answer) -> Option<Self>;
}

impl Mode for DiscoveryResponse {
    type Request = DiscoveryRequest;
    const DELTA: bool = false;

    fn request(request: DiscoveryRequest) -> Request {
        Request::Sotw(request)
    }

    fn response(answer: Answer) -> Option<Self> {
        match answer {
            Answer::Sotw(response) => Some(response),
            Answer::Delta(_) => None,
        }
    }
}

impl Mode for DeltaDiscoveryResponse {
    type Request = DeltaDiscoveryRequest;
    const DELTA: bool = true;

    fn request(request: DeltaDiscoveryRequest) -> Request {
        Request::Delta(request)
    }

    fn response(answer: Answer) -> Option<Self> {
        match answer {
            Answer::Delta(response) => Some(response),
            Answer::Sotw(_) => None,
        }
    }
}

/// Removes the stream from the state however its task ends.
struct Registered(Arc<Shared>, u64);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.lock().streams.remove(&self.1);
        self.0.changed();
    }
}

async fn run<M: Mode>(shared: Arc<Shared>, mut requests: Streaming<M::Request>, out: mpsc::Sender<Result<M, Status>>) {
    let mut changes = shared.changes.subscribe();
    let mut cuts = shared.cuts.subscribe();
    let id = shared.lock().open_stream(M::DELTA);
    let _registered = Registered(Arc::clone(&shared), id);
    loop {
        let end = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    let taken = shared.lock().take(id, M::request(request));
                    shared.changed();
                    taken.err()
                }
                Ok(None) | Err(_) => return,
            },
            changed = changes.changed() => match changed {
                Ok(()) => None,
                Err(_) => return,
            },
            _ = cuts.changed() => Some(Status::unavailable("cut on demand")),
            () = out.closed() => return,
        };
        if let Some(status) = end {
            let _ = out.send(Err(status)).await;
            return;
        }
        let (answers, delay) = {
            let mut state = shared.lock();
            (state.due(id), state.delay)
        };
        for response in answers.into_iter().filter_map(M::response) {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if out.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}

impl Ads {
    fn start<M: Mode>(&self, requests: Streaming<M::Request>) -> Response<Answers<M>> {
        let (out, answers) = mpsc::channel(QUEUE);
        tokio::spawn(run::<M>(Arc::clone(&self.0), requests, out));
        Response::new(Box::pin(ReceiverStream::new(answers)))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.start::<DiscoveryResponse>(request.into_inner()))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.start::<DeltaDiscoveryResponse>(request.into_inner()))
    }
}
