//! The server as a client sees it: over its real socket.

use super::*;
use tokio::time::timeout;
use tonic::transport::Channel;
use xds_protos::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use xds_protos::pb::google::rpc;

const SOON: Duration = Duration::from_secs(10);
/// Long enough to see an answer that should not come; a slow machine can only make the test pass wrongly, not fail.
const QUIET: Duration = Duration::from_millis(150);

struct Client {
    send: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
}

async fn connect(server: &SdsServer) -> SecretDiscoveryServiceClient<Channel> {
    let uri = format!("unix://{}", server.path().display());
    SecretDiscoveryServiceClient::new(tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap())
}

fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        type_url: SECRET_TYPE.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

impl Client {
    async fn open(server: &SdsServer, names: &[&str]) -> Self {
        let (send, requests) = mpsc::channel(8);
        send.send(ask(names, "")).await.unwrap();
        let mut client = connect(server).await;
        let answers = client.stream_secrets(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Self { send, answers }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        timeout(SOON, self.answers.message()).await.expect("an answer").unwrap().expect("the stream is open")
    }

    async fn expect_silence(&mut self) {
        let answer = timeout(QUIET, self.answers.message()).await;
        assert!(answer.is_err(), "unexpected {answer:?}");
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<tls::Secret> {
    response.resources.iter().map(|any| tls::Secret::decode(&any.value[..]).unwrap()).collect()
}

fn chain(secret: &tls::Secret) -> Vec<u8> {
    let Some(tls::secret::Type::TlsCertificate(cert)) = &secret.r#type else { panic!("not a certificate: {secret:?}") };
    assert!(cert.private_key.is_some());
    let Some(Specifier::InlineBytes(pem)) = &cert.certificate_chain.as_ref().unwrap().specifier else {
        panic!("not inline")
    };
    pem.clone()
}

fn server() -> (tempfile::TempDir, SdsServer) {
    let dir = tempfile::tempdir().unwrap();
    let server = SdsServer::bind(dir.path().join("sds.sock"), 0o600).unwrap();
    (dir, server)
}

fn rotation(every: Option<Duration>) -> (Arc<Authority>, Rotation) {
    let id = "spiffe://td/ns/default/sa/reviews".parse().unwrap();
    let rotation = Rotation { every, ..Rotation::new(id, Duration::from_secs(3600)) };
    (Arc::new(Authority::new("td").unwrap()), rotation)
}

#[tokio::test]
async fn identity_and_bundle_are_served_by_name() {
    let (_dir, server) = server();
    let (authority, rotation) = rotation(None);
    server.rotate(Arc::clone(&authority), rotation).unwrap();
    let mut client = Client::open(&server, &[IDENTITY]).await;
    let answer = client.next().await;
    assert_eq!(answer.type_url, SECRET_TYPE);
    let [identity] = &secrets(&answer)[..] else { panic!("one secret expected: {answer:?}") };
    assert_eq!(identity.name, IDENTITY);
    assert!(chain(identity).starts_with(b"-----BEGIN CERTIFICATE-----"));

    let fetched = connect(&server).await.fetch_secrets(ask(&[BUNDLE], "")).await.unwrap().into_inner();
    let Some(tls::secret::Type::ValidationContext(context)) = &secrets(&fetched)[0].r#type else { panic!() };
    let bundle = Specifier::InlineBytes(authority.bundle_pem().into());
    assert_eq!(context.trusted_ca.as_ref().unwrap().specifier, Some(bundle));
    let missing = connect(&server).await.fetch_secrets(ask(&["nobody"], "")).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn an_ack_gets_no_answer_and_a_new_name_gets_only_itself() {
    let (_dir, server) = server();
    server.set("a", Secret::Bundle("A".to_owned()));
    server.set("b", Secret::Bundle("B".to_owned()));
    let mut client = Client::open(&server, &["a"]).await;
    let first = client.next().await;
    client.send.send(ask(&["a"], &first.nonce)).await.unwrap();
    client.expect_silence().await;
    client.send.send(ask(&["a", "b", "later"], &first.nonce)).await.unwrap();
    let second = client.next().await;
    assert_eq!(secrets(&second)[0].name, "b");
    client.send.send(ask(&["a"], "0")).await.unwrap();
    client.expect_silence().await;
    server.set("later", Secret::Bundle("L".to_owned()));
    let third = client.next().await;
    assert_eq!(secrets(&third)[0].name, "later", "the stale request did not count");
    server.set("later", Secret::Bundle("L".to_owned()));
    client.expect_silence().await;
}

#[tokio::test]
async fn a_nack_is_recorded_and_not_answered() {
    let (_dir, server) = server();
    server.set("a", Secret::Bundle("A".to_owned()));
    let mut client = Client::open(&server, &["a"]).await;
    let first = client.next().await;
    let error_detail = Some(rpc::Status { code: 13, message: "no certificate in it".to_owned(), details: Vec::new() });
    client.send.send(DiscoveryRequest { error_detail, ..ask(&["a"], &first.nonce) }).await.unwrap();
    client.expect_silence().await;
    let [nack] = &server.nacks()[..] else { panic!("{:?}", server.nacks()) };
    assert_eq!(
        (nack.code, nack.message.as_str(), &nack.names[..]),
        (13, "no certificate in it", &["a".to_owned()][..])
    );
    server.set("a", Secret::Bundle("better".to_owned()));
    assert_ne!(client.next().await.version_info, first.version_info);
}

#[tokio::test]
async fn rotation_reaches_every_open_stream() {
    let (_dir, server) = server();
    let (authority, rotation) = rotation(Some(Duration::from_millis(300)));
    server.rotate(authority, rotation).unwrap();
    let mut clients = [Client::open(&server, &[IDENTITY]).await, Client::open(&server, &[IDENTITY]).await];
    for client in &mut clients {
        let old = client.next().await;
        client.send.send(ask(&[IDENTITY], &old.nonce)).await.unwrap();
        let new = client.next().await;
        assert_ne!(old.version_info, new.version_info);
        assert_ne!(chain(&secrets(&old)[0]), chain(&secrets(&new)[0]), "a new certificate");
    }
    assert!(server.rotations() >= 2);
    assert_eq!(server.rotation_error(), None);
}

#[tokio::test]
async fn delta_streams_resume_and_hear_of_removals() {
    let (_dir, server) = server();
    server.set("a", Secret::Bundle("A".to_owned()));
    let open = async |held: Option<String>| {
        let (send, requests) = mpsc::channel(8);
        let first = DeltaDiscoveryRequest {
            type_url: SECRET_TYPE.to_owned(),
            resource_names_subscribe: vec!["a".to_owned()],
            initial_resource_versions: held.into_iter().map(|v| ("a".to_owned(), v)).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        send.send(first).await.unwrap();
        let requests = ReceiverStream::new(requests);
        (send, connect(&server).await.delta_secrets(requests).await.unwrap().into_inner())
    };
    let (send, mut answers) = open(None).await;
    let first = timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.resources[0].name, "a");
    drop(send);

    let (_send, mut resumed) = open(Some(first.resources[0].version.clone())).await;
    assert!(timeout(QUIET, resumed.message()).await.is_err(), "the client holds this version");
    server.remove("a");
    let removal = timeout(SOON, resumed.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(removal.removed_resources, ["a"]);
}

#[tokio::test]
async fn a_foreign_type_ends_the_stream() {
    let (_dir, server) = server();
    let mut client = Client::open(&server, &["a"]).await;
    let wrong = DiscoveryRequest { type_url: "type.googleapis.com/x.Y".to_owned(), ..ask(&["a"], "") };
    client.send.send(wrong).await.unwrap();
    let status = timeout(SOON, client.answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn the_socket_is_taken_over_from_the_dead_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sds.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead server leaves its socket file");
    let server = SdsServer::bind(&path, 0o666).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    assert!(matches!(SdsServer::bind(&path, 0o600), Err(SdsError::InUse(_))));
    let mut client = Client::open(&server, &["a"]).await;
    drop(server);
    assert!(!path.exists());
    let end = timeout(SOON, client.answers.message()).await.expect("the stream ends with its server");
    assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");

    fs::write(&path, "a file").unwrap();
    assert!(matches!(SdsServer::bind(&path, 0o600), Err(SdsError::NotASocket(_))));
    assert!(path.exists());
}
