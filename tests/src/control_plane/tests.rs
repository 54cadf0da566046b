//! The control plane as an xDS client sees it.

use super::*;
use crate::config;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use xds_protos::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

const SOON: Duration = Duration::from_secs(10);
/// Long enough to see an answer that should not come; a slow machine can only make the test pass wrongly, not fail.
const QUIET: Duration = Duration::from_millis(150);

struct Client {
    send: mpsc::Sender<DeltaDiscoveryRequest>,
    answers: Streaming<DeltaDiscoveryResponse>,
}

fn ask(type_url: &str, subscribe: &[&str], nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: "n1".to_owned(), ..Node::default() }),
        type_url: type_url.to_owned(),
        resource_names_subscribe: subscribe.iter().map(|n| (*n).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

async fn connect(control_plane: &ControlPlane) -> AggregatedDiscoveryServiceClient<tonic::transport::Channel> {
    let uri = match control_plane.address() {
        Address::Tcp(address) => format!("http://{address}"),
        Address::Unix(path) => format!("unix://{}", path.display()),
    };
    let endpoint = tonic::transport::Endpoint::from_shared(uri).unwrap();
    AggregatedDiscoveryServiceClient::new(endpoint.connect().await.unwrap())
}

impl Client {
    async fn open(control_plane: &ControlPlane, first: DeltaDiscoveryRequest) -> Self {
        let (send, requests) = mpsc::channel(16);
        send.send(first).await.unwrap();
        let requests = ReceiverStream::new(requests);
        let answers = connect(control_plane).await.delta_aggregated_resources(requests).await.unwrap().into_inner();
        Self { send, answers }
    }

    async fn ask(&self, request: DeltaDiscoveryRequest) {
        self.send.send(request).await.unwrap();
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        timeout(SOON, self.answers.message()).await.expect("an answer").unwrap().expect("the stream is open")
    }

    async fn expect_silence(&mut self) {
        let answer = timeout(QUIET, self.answers.message()).await;
        assert!(answer.is_err(), "unexpected {answer:?}");
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

fn filled() -> ControlPlane {
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.set("c1", &config::eds_cluster("c1"));
    control_plane.set("c1", &config::endpoints("c1", &["127.0.0.1:1".parse().unwrap()]));
    control_plane
}

#[tokio::test]
async fn delta_pushes_changes_and_removals_and_leaves_acks_unanswered() {
    let control_plane = filled();
    let mut client = Client::open(&control_plane, ask(CDS, &[], "")).await;
    let first = client.next().await;
    assert_eq!(names(&first), ["c1"]);
    client.ask(ask(CDS, &[], &first.nonce)).await;
    client.expect_silence().await;
    control_plane.wait_settled(CDS).await.unwrap();

    control_plane.set("c1", &config::eds_cluster("c1"));
    client.expect_silence().await;
    control_plane.batch(|batch| {
        batch.set("c2", &config::eds_cluster("c2")).remove(CDS, "c1");
    });
    let second = client.next().await;
    assert_eq!((names(&second), &second.removed_resources[..]), (vec!["c2"], &["c1".to_owned()][..]));
    control_plane.push_again(CDS);
    assert_eq!(names(&client.next().await), ["c2"]);
    assert!(control_plane.violations().is_empty());
}

#[tokio::test]
async fn endpoints_follow_every_cluster_push() {
    let control_plane = filled();
    let mut client = Client::open(&control_plane, ask(CDS, &[], "")).await;
    client.next().await;
    client.ask(ask(EDS, &["c1"], "")).await;
    assert_eq!(client.next().await.type_url, EDS);
    control_plane.set("c2", &config::eds_cluster("c2"));
    assert_eq!(client.next().await.type_url, CDS);
    assert_eq!(client.next().await.type_url, EDS);
}

#[tokio::test]
async fn a_nack_is_recorded_and_a_stale_nonce_ignored() {
    let control_plane = filled();
    let mut client = Client::open(&control_plane, ask(CDS, &[], "")).await;
    let first = client.next().await;
    let error_detail = Some(Refusal { code: 13, message: "bad cluster".to_owned(), details: Vec::new() });
    client.ask(DeltaDiscoveryRequest { error_detail, ..ask(CDS, &[], &first.nonce) }).await;
    let nack = control_plane.wait_for("a NACK", |seen| seen.request.is_nack()).await.unwrap();
    assert_eq!(nack.request.node().unwrap().id, "n1");
    assert_eq!(control_plane.nacks(), [(CDS.to_owned(), "bad cluster".to_owned())]);
    client.ask(ask(CDS, &["c1"], "old")).await;
    client.expect_silence().await;
    client.ask(ask(CDS, &["c1"], &first.nonce)).await;
    control_plane
        .wait_for("the ACK", |seen| seen.request.is_ack() && seen.request.nonce() == first.nonce)
        .await
        .unwrap();
    assert_eq!(control_plane.violations().len(), 1, "{:?}", control_plane.violations());
}

#[tokio::test]
async fn a_resumed_stream_hears_what_is_gone() {
    let control_plane = filled();
    let held = [("c1".to_owned(), "1".to_owned()), ("gone".to_owned(), "1".to_owned())].into();
    let first = DeltaDiscoveryRequest { initial_resource_versions: held, ..ask(CDS, &[], "") };
    let mut client = Client::open(&control_plane, first).await;
    let answer = client.next().await;
    assert_eq!((names(&answer), &answer.removed_resources[..]), (vec!["c1"], &["gone".to_owned()][..]));
}

#[tokio::test]
async fn it_misbehaves_on_demand() {
    let control_plane = filled();
    control_plane.withhold(CDS);
    let mut client = Client::open(&control_plane, ask(CDS, &[], "")).await;
    client.expect_silence().await;
    control_plane.release(CDS);
    client.next().await;
    let raw = DeltaDiscoveryResponse { type_url: "nonsense".to_owned(), ..DeltaDiscoveryResponse::default() };
    control_plane.send_raw_delta(&raw);
    let answer = client.next().await;
    assert!(answer.type_url == "nonsense" && !answer.nonce.is_empty());
    control_plane.cut_streams();
    let end = timeout(SOON, client.answers.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable);
    control_plane.wait("no stream", |state| state.streams.is_empty().then_some(())).await.unwrap();
}

#[tokio::test]
async fn it_dies_and_comes_back_on_the_same_address() {
    let dir = tempfile::tempdir().unwrap();
    let on_unix = ControlPlane::unix(dir.path().join("ads.sock")).unwrap();
    for control_plane in [filled(), on_unix] {
        control_plane.set("c1", &config::eds_cluster("c1"));
        let mut client = Client::open(&control_plane, ask(CDS, &[], "")).await;
        assert_eq!(names(&client.next().await), ["c1"]);
        control_plane.stop();
        let end = timeout(SOON, client.answers.message()).await.expect("the stream ends");
        assert!(!matches!(end, Ok(Some(_))), "{end:?}");
        control_plane.restart().unwrap();
        let mut client = Client::open(&control_plane, ask(CDS, &[], "")).await;
        assert_eq!(names(&client.next().await), ["c1"]);
    }
}

#[tokio::test]
async fn state_of_the_world_sends_all_clusters_and_only_changed_endpoints() {
    let control_plane = filled();
    control_plane.set("c2", &config::endpoints("c2", &[]));
    let (send, requests) = mpsc::channel(16);
    let ask = |type_url: &str, names: &[&str], nonce: &str| DiscoveryRequest {
        node: Some(Node { id: "n1".to_owned(), ..Node::default() }),
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    send.send(ask(CDS, &[], "")).await.unwrap();
    let requests = ReceiverStream::new(requests);
    let mut answers = connect(&control_plane).await.stream_aggregated_resources(requests).await.unwrap().into_inner();
    let mut next = async || timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(next().await.resources.len(), 1);
    control_plane.set("c2", &config::eds_cluster("c2"));
    assert_eq!(next().await.resources.len(), 2, "all of them");
    send.send(ask(EDS, &["c1", "c2"], "")).await.unwrap();
    let endpoints = next().await;
    assert_eq!((endpoints.type_url.as_str(), endpoints.resources.len()), (EDS, 2));
    control_plane.set("c2", &config::endpoints("c2", &["127.0.0.1:2".parse().unwrap()]));
    assert_eq!(next().await.resources.len(), 1, "only the changed one");
    control_plane.remove(CDS, "c1");
    assert_eq!(next().await.resources.len(), 1);
}
