//! Handshakes between our two sides over real sockets.

use super::*;
use crate::config::model::*;
use crate::net::Socket;
use crate::slots::{Key, Kind};
use crate::stats::{Registry, Scope};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        Authority::named("one")
    }

    fn named(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    fn leaf_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> TlsCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.strip_prefix("dns:") {
                Some(dns) => SanType::DnsName(dns.try_into().unwrap()),
                None => SanType::URI((*name).try_into().unwrap()),
            })
            .collect();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsCertificate { chain: source(certificate.pem()), key: source(key.serialize_pem()) }
    }

    fn leaf(&self, names: &[&str]) -> TlsCertificate {
        self.leaf_with(names, |_| {})
    }

    fn trusting(&self, prefix: &str) -> Arc<ValidationContext> {
        let matcher = StringMatch::Prefix { value: prefix.into(), ignore_case: false };
        Arc::new(ValidationContext {
            trusted_ca: Some(source(self.pem.clone())),
            san_matchers: vec![SanMatcher { kind: Some(SanKind::Uri), matcher }],
            ..ValidationContext::default()
        })
    }
}

fn source(text: String) -> DataSource {
    DataSource { bytes: text.into(), path: None }
}

fn common(certificate: Option<TlsCertificate>, validation: Option<Arc<ValidationContext>>) -> CommonTls {
    CommonTls {
        certificates: certificate.map_or(CertificateSource::None, |c| CertificateSource::Inline(vec![c])),
        validation: validation.map_or(ValidationSource::None, ValidationSource::Inline),
        alpn: Vec::new(),
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
        cipher_suites: Vec::new(),
        groups: Vec::new(),
    }
}

fn downstream(common: CommonTls) -> DownstreamTlsConfig {
    DownstreamTlsConfig {
        common,
        require_client_certificate: true,
        disable_stateless_resumption: false,
        disable_stateful_resumption: false,
    }
}

fn upstream(common: CommonTls) -> UpstreamTlsConfig {
    UpstreamTlsConfig {
        common,
        sni: "server.example.com".into(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        max_session_keys: 1,
    }
}

struct World {
    secrets: Arc<Secrets>,
    scope: Scope,
}

fn world() -> World {
    let (wants, _) = tokio::sync::mpsc::unbounded_channel();
    let secrets = Secrets::new(Store::new(Kind::Secret, wants));
    World { secrets, scope: Registry::new(StatsConfig::default()).scope("x.") }
}

impl World {
    fn server(&self, config: DownstreamTlsConfig) -> Arc<DownstreamContext> {
        DownstreamContext::new(Arc::new(config), &self.secrets, &self.scope).unwrap()
    }

    fn client(&self, config: UpstreamTlsConfig) -> Arc<UpstreamContext> {
        UpstreamContext::new(Arc::new(config), &self.secrets, &self.scope).unwrap()
    }
}

type Server = Result<(Box<tokio_rustls::server::TlsStream<Socket>>, Arc<TlsInfo>), TlsFailure>;
type Client = Result<(Box<tokio_rustls::client::TlsStream<Socket>>, Arc<TlsInfo>), TlsFailure>;

async fn shake_with(server: &DownstreamContext, client: &UpstreamContext, options: ConnectOptions) -> (Server, Client) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    let (accepted, connected) = (accepted.unwrap().0, connected.unwrap());
    tokio::join!(server.accept(Socket::Tcp(accepted)), client.connect(Socket::Tcp(connected), &options))
}

async fn shake(server: &DownstreamContext, client: &UpstreamContext) -> (Server, Client) {
    shake_with(server, client, ConnectOptions::default()).await
}

/// Bytes go both ways.
async fn echo(
    server: &mut tokio_rustls::server::TlsStream<Socket>,
    client: &mut tokio_rustls::client::TlsStream<Socket>,
) {
    let mut got = [0; 4];
    client.write_all(b"ping").await.unwrap();
    server.read_exact(&mut got).await.unwrap();
    server.write_all(&got).await.unwrap();
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let (w, ca) = (world(), Authority::new());
    let trust = ca.trusting("spiffe://td/");
    let server = w.server(downstream(common(Some(ca.leaf(&["spiffe://td/server"])), Some(trust.clone()))));
    let client = w.client(upstream(common(Some(ca.leaf(&["spiffe://td/client"])), Some(trust))));
    let (s, c) = shake(&server, &client).await;
    let ((mut s, s_info), (mut c, c_info)) = (s.unwrap(), c.unwrap());
    echo(&mut s, &mut c).await;
    let peer = s_info.peer.as_ref().unwrap();
    assert_eq!((peer.uri_sans[0].as_str(), peer.verified), ("spiffe://td/client", true));
    assert_eq!(c_info.peer.as_ref().unwrap().uri_sans, ["spiffe://td/server"]);
    assert_eq!(s_info.local.as_ref().unwrap().uri_sans, ["spiffe://td/server"]);
    assert_eq!((s_info.version, s_info.cipher, s_info.group), ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519"));
    assert_eq!(s_info.sni.as_deref(), Some("server.example.com"));
    assert_eq!(w.secrets.certificates().len(), 2);
    assert!(w.secrets.days_until_first_expiry().unwrap() > 300);
}

#[tokio::test]
async fn a_stranger_is_refused_and_the_reason_says_why() {
    let (w, ca, other) = (world(), Authority::new(), Authority::named("other"));
    let trust = ca.trusting("spiffe://td/");
    let server_leaf = ca.leaf(&["spiffe://td/server"]);
    let server = w.server(downstream(common(Some(server_leaf), Some(trust.clone()))));
    let expired = |p: &mut CertificateParams| p.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let cases = [
        (
            Some(ca.leaf(&["spiffe://evil/client"])),
            TlsFailureKind::WrongIdentity,
            "SAN matcher, certificate SANs are [spiffe://evil/client]",
        ),
        (Some(ca.leaf(&["dns:spiffe"])), TlsFailureKind::WrongIdentity, "SAN matcher"),
        (
            Some(other.leaf(&["spiffe://td/client"])),
            TlsFailureKind::Untrusted,
            "unable to get local issuer certificate",
        ),
        (None, TlsFailureKind::NoCertificate, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    ];
    for (leaf, kind, words) in cases {
        let client = w.client(upstream(common(leaf, Some(trust.clone()))));
        let failure = shake(&server, &client).await.0.err().unwrap();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
    }
    // one whose purpose is the other side, and one that has expired: the latter cannot even be configured
    let for_servers =
        ca.leaf_with(&["spiffe://td/c"], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let client = w.client(upstream(common(Some(for_servers), Some(trust.clone()))));
    assert!(shake(&server, &client).await.0.err().unwrap().to_string().contains("purpose"));
    let cannot_sign =
        ca.leaf_with(&["spiffe://td/c"], |p| p.key_usages = vec![rcgen::KeyUsagePurpose::KeyEncipherment]);
    let client = w.client(upstream(common(Some(cannot_sign), Some(trust.clone()))));
    assert!(shake(&server, &client).await.0.err().unwrap().to_string().contains("KEY_USAGE_BIT_INCORRECT"));
    let config = Arc::new(upstream(common(Some(ca.leaf_with(&[], expired)), None)));
    let error = UpstreamContext::new(config, &w.secrets, &w.scope).err().unwrap().to_string();
    assert!(error.contains("tls_certificates[0]") && error.contains("has expired"), "{error}");
}

#[tokio::test]
async fn the_server_must_be_who_the_client_wants() {
    let (w, ca) = (world(), Authority::new());
    let mut config = downstream(common(Some(ca.leaf(&["spiffe://td/other", "dns:*.example.com"])), None));
    config.require_client_certificate = false;
    let server = w.server(config);
    let client = w.client(upstream(common(None, Some(ca.trusting("spiffe://td/server")))));
    let (s, c) = shake(&server, &client).await;
    assert_eq!(c.err().unwrap().kind, TlsFailureKind::WrongIdentity);
    assert!(s.err().unwrap().to_string().contains("SSLV3_ALERT_CERTIFICATE_UNKNOWN"));
    let client = w.client(upstream(common(None, Some(ca.trusting("spiffe://td/other")))));
    let named = |name: &str| ConnectOptions { verify_name: Some(name.into()), ..ConnectOptions::default() };
    assert!(shake_with(&server, &client, named("a.example.com")).await.1.is_ok());
    assert!(shake_with(&server, &client, named("a.b.example.com")).await.1.is_err());
}

#[tokio::test]
async fn without_a_validation_context_nothing_is_verified_and_nothing_is_claimed() {
    let (w, ca) = (world(), Authority::new());
    let mut config = downstream(common(Some(ca.leaf(&["spiffe://td/server"])), None));
    config.require_client_certificate = false;
    let server = w.server(config);
    let client = w.client(upstream(common(None, None)));
    let (s, c) = shake(&server, &client).await;
    assert!(s.unwrap().1.peer.is_none());
    assert!(!c.unwrap().1.peer.as_ref().unwrap().verified);
}

#[tokio::test]
async fn a_leaf_in_trusted_ca_is_trusted_itself() {
    let w = world();
    let key = KeyPair::generate().unwrap();
    let pem = CertificateParams::new(vec!["server.example.com".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let leaf = TlsCertificate { chain: source(pem.clone()), key: source(key.serialize_pem()) };
    let mut config = downstream(common(Some(leaf), None));
    config.require_client_certificate = false;
    let trust = ValidationContext { trusted_ca: Some(source(pem)), ..ValidationContext::default() };
    let client = w.client(upstream(common(None, Some(Arc::new(trust)))));
    assert!(shake(&w.server(config), &client).await.1.unwrap().1.peer.as_ref().unwrap().verified);
}

#[tokio::test]
async fn pins_replace_names() {
    let (w, ca) = (world(), Authority::new());
    let leaf = ca.leaf(&["spiffe://td/server"]);
    let print = secrets::identity(&leaf).unwrap().described.fingerprint;
    let mut config = downstream(common(Some(leaf), None));
    config.require_client_certificate = false;
    let server = w.server(config);
    let pinned = |hash| {
        let rules = ValidationContext { certificate_hashes: vec![hash], ..ValidationContext::default() };
        w.client(upstream(common(None, Some(Arc::new(rules)))))
    };
    assert!(shake(&server, &pinned(print)).await.1.is_ok());
    assert!(shake(&server, &pinned([7; 32])).await.1.err().unwrap().to_string().contains("pin"));
    assert_eq!(w.scope.counter("ssl.fail_verify_san").value(), 0);
}

#[tokio::test]
async fn protocols_and_names_are_negotiated_as_envoy_does() {
    let (w, ca) = (world(), Authority::new());
    let alpn = |names: &[&str]| -> Vec<Box<[u8]>> { names.iter().map(|n| n.as_bytes().into()).collect() };
    let mut config = downstream(common(Some(ca.leaf(&["spiffe://td/server"])), None));
    config.require_client_certificate = false;
    config.common.alpn = alpn(&["h2", "http/1.1"]);
    let server = w.server(config);
    let mut config = upstream(common(None, None));
    config.sni = "outbound_.80_.v1_.reviews.default.svc.cluster.local".into();
    let client = w.client(config);
    for (offer, chosen) in [(alpn(&["http/1.1", "h2"]), Some(&b"h2"[..])), (alpn(&["other"]), None)] {
        let options = ConnectOptions { alpn: Some(offer), ..ConnectOptions::default() };
        let (s, c) = shake_with(&server, &client, options).await;
        let (s, c) = (s.unwrap().1, c.unwrap().1);
        assert_eq!((s.alpn.as_deref(), c.alpn.as_deref()), (chosen, chosen));
        assert_eq!(s.sni.as_deref(), Some("outbound_.80_.v1_.reviews.default.svc.cluster.local"));
    }
    let mut config = upstream(common(None, None));
    config.sni = "".into();
    assert_eq!(shake(&server, &w.client(config)).await.0.unwrap().1.sni, None);
}

#[tokio::test]
async fn versions_and_suites_keep_within_their_bounds() {
    let (w, ca) = (world(), Authority::new());
    let mut config = downstream(common(Some(ca.leaf(&["spiffe://td/server"])), None));
    config.require_client_certificate = false;
    let server = w.server(config.clone());
    let mut old = upstream(common(None, None));
    old.common.max_version = TlsVersion::V1_2;
    old.common.cipher_suites = vec!["ECDHE-ECDSA-AES256-GCM-SHA384".into()];
    old.common.groups = vec!["P-256".into()];
    let info = shake(&server, &w.client(old.clone())).await.1.unwrap().1;
    assert_eq!((info.version, info.cipher, info.group), ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", "P-256"));
    config.common.min_version = TlsVersion::V1_3;
    let (s, c) = shake(&w.server(config), &w.client(old.clone())).await;
    assert!(s.err().unwrap().to_string().contains("UNSUPPORTED_PROTOCOL"));
    assert!(c.err().unwrap().to_string().contains("TLSV1_ALERT_PROTOCOL_VERSION"));
    old.common.cipher_suites = vec!["RC4".into()];
    let error = UpstreamContext::new(Arc::new(old), &w.secrets, &w.scope).err().unwrap().to_string();
    assert!(error.starts_with("common_tls_context.tls_params.cipher_suites: no suite is known as RC4"), "{error}");
}

fn by_sds(name: &str) -> SdsSecret {
    SdsSecret { name: name.into(), source: None }
}

fn key(name: &str) -> Key {
    Secrets::key(&by_sds(name))
}

#[tokio::test]
async fn a_missing_secret_refuses_and_a_rotation_keeps_connections() {
    let (w, ca) = (world(), Authority::new());
    let mut config = downstream(common(None, None));
    config.common.certificates = CertificateSource::Sds(by_sds("default"));
    let matcher = StringMatch::Prefix { value: "spiffe://td/".into(), ignore_case: false };
    let default =
        ValidationContext { san_matchers: vec![SanMatcher { kind: None, matcher }], ..ValidationContext::default() };
    config.common.validation = ValidationSource::Combined { default: Arc::new(default), secret: by_sds("ROOTCA") };
    let server = w.server(config);
    let client = w.client(upstream(common(Some(ca.leaf(&["spiffe://td/client"])), Some(ca.trusting("spiffe://td/")))));
    assert!(!server.is_settled());
    let failure = shake(&server, &client).await.0.err().unwrap();
    assert_eq!(failure.kind, TlsFailureKind::NotReady);
    assert!(failure.to_string().contains("default, ROOTCA"), "{failure}");

    let bundle = ValidationContext { trusted_ca: Some(source(ca.pem.clone())), ..ValidationContext::default() };
    w.secrets.update(&key("ROOTCA"), SecretKind::Validation(Arc::new(bundle))).unwrap();
    assert_eq!(shake(&server, &client).await.0.err().unwrap().kind, TlsFailureKind::NotReady);
    w.secrets.update(&key("default"), SecretKind::Certificate(ca.leaf(&["spiffe://td/one"]))).unwrap();
    assert!(server.is_settled());
    let (s, c) = shake(&server, &client).await;
    let ((mut s, _), (mut c, info)) = (s.unwrap(), c.unwrap());
    assert_eq!(info.peer.as_ref().unwrap().uri_sans, ["spiffe://td/one"]);
    // the session ticket that came with the first bytes is used, until the rotation makes it worthless
    echo(&mut s, &mut c).await;
    assert!(shake(&server, &client).await.0.unwrap().1.resumed);

    w.secrets.update(&key("default"), SecretKind::Certificate(ca.leaf(&["spiffe://td/two"]))).unwrap();
    let (new, seen) = shake(&server, &client).await;
    assert!(!new.unwrap().1.resumed);
    assert_eq!(seen.unwrap().1.peer.as_ref().unwrap().uri_sans, ["spiffe://td/two"]);
    echo(&mut s, &mut c).await;

    // the merged rules hold, and a bad secret changes nothing
    let stranger = w.client(upstream(common(Some(ca.leaf(&["spiffe://evil/x"])), None)));
    assert_eq!(shake(&server, &stranger).await.0.err().unwrap().kind, TlsFailureKind::WrongIdentity);
    let mut mixed = ca.leaf(&["spiffe://td/three"]);
    mixed.key = ca.leaf(&["spiffe://td/four"]).key;
    let error = w.secrets.update(&key("default"), SecretKind::Certificate(mixed)).err().unwrap().to_string();
    assert!(error.starts_with("tls_certificate.private_key: secret default: the key is not"), "{error}");
    assert_eq!(shake(&server, &client).await.1.unwrap().1.peer.as_ref().unwrap().uri_sans, ["spiffe://td/two"]);
}

#[test]
fn secrets_that_cannot_be_used_are_refused_by_name() {
    let (w, ca) = (world(), Authority::new());
    let slot = w.secrets.store.slot(key("s"));
    let update = |secret| w.secrets.update(&key("s"), secret).err().unwrap().to_string();
    let expired = ca.leaf_with(&[], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert!(update(SecretKind::Certificate(expired)).contains("has expired"));
    let mut no_key = ca.leaf(&[]);
    no_key.key = source(String::new());
    assert!(update(SecretKind::Certificate(no_key)).contains("found no private key in <inline>"));
    let junk = ValidationContext { trusted_ca: Some(source("junk".to_owned())), ..ValidationContext::default() };
    assert!(update(SecretKind::Validation(Arc::new(junk))).contains("holds no certificate"));
    assert!(slot.load().is_none());
}

#[tokio::test]
async fn a_slot_that_is_asked_for_again_has_no_secret_of_its_predecessor() {
    let (w, ca) = (world(), Authority::new());
    let mut config = downstream(common(None, Some(ca.trusting("spiffe://td/"))));
    config.common.certificates = CertificateSource::Sds(by_sds("default"));
    let server = w.server(config.clone());
    w.secrets.update(&key("default"), SecretKind::Certificate(ca.leaf(&["spiffe://td/one"]))).unwrap();
    assert!(server.is_settled());
    drop(server);
    let again = w.server(config);
    assert!(!again.is_settled());
    let client = w.client(upstream(common(Some(ca.leaf(&["spiffe://td/client"])), Some(ca.trusting("spiffe://td/")))));
    assert_eq!(shake(&again, &client).await.0.err().unwrap().kind, TlsFailureKind::NotReady);
}

#[tokio::test]
async fn a_secret_that_does_not_fit_one_of_its_users_is_used_by_none() {
    let (w, ca) = (world(), Authority::new());
    let server = |default: ValidationContext| {
        let mut config = downstream(common(Some(ca.leaf(&["spiffe://td/server"])), None));
        config.common.validation = ValidationSource::Combined { default: Arc::new(default), secret: by_sds("ROOTCA") };
        w.server(config)
    };
    let matching = ValidationContext { trusted_ca: None, ..(*ca.trusting("spiffe://td/")).clone() };
    let (plain, strict) = (server(ValidationContext::default()), server(matching));
    let bundle = |pem: Option<String>| {
        let context = ValidationContext { trusted_ca: pem.map(source), ..ValidationContext::default() };
        SecretKind::Validation(Arc::new(context))
    };
    w.secrets.update(&key("ROOTCA"), bundle(Some(ca.pem.clone()))).unwrap();
    let client = w.client(upstream(common(Some(ca.leaf(&["spiffe://td/client"])), Some(ca.trusting("spiffe://td/")))));
    let stranger = Authority::named("two");
    let stranger =
        w.client(upstream(common(Some(stranger.leaf(&["spiffe://td/client"])), Some(ca.trusting("spiffe://td/")))));
    let refused = |secret| w.secrets.update(&key("ROOTCA"), secret).err().unwrap().to_string();
    // names to match, and nobody to trust
    assert!(refused(bundle(None)).contains("without trusted CA is insecure"));
    let wrong = refused(SecretKind::Certificate(ca.leaf(&["spiffe://td/x"])));
    assert!(wrong.contains("secret ROOTCA: ROOTCA is a certificate; expected a validation context"), "{wrong}");
    for server in [&plain, &strict] {
        assert!(shake(server, &client).await.0.is_ok());
        assert!(shake(server, &stranger).await.0.is_err(), "a bundle that was refused is in use");
    }
}

#[test]
fn a_bundle_of_nothing_but_expired_authorities_is_refused() {
    let (w, ca) = (world(), Authority::new());
    let slot = w.secrets.store.slot(key("ROOTCA"));
    let key_pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = params.self_signed(&key_pair).unwrap().pem();
    let update = |pem: String, allow_expired| {
        let context =
            ValidationContext { trusted_ca: Some(source(pem)), allow_expired, ..ValidationContext::default() };
        w.secrets.update(&key("ROOTCA"), SecretKind::Validation(Arc::new(context)))
    };
    let error = update(expired.clone(), false).err().unwrap().to_string();
    assert!(error.contains("all of its 1 certificates have expired"), "{error}");
    assert!(slot.load().is_none());
    update(format!("{expired}{}", ca.pem), false).unwrap();
    update(expired, true).unwrap();
}

#[test]
fn names_without_a_ca_are_refused() {
    let (w, ca) = (world(), Authority::new());
    let mut validation = (*ca.trusting("x")).clone();
    validation.trusted_ca = None;
    let config = Arc::new(upstream(common(None, Some(Arc::new(validation)))));
    let error = UpstreamContext::new(config, &w.secrets, &w.scope).err().unwrap().to_string();
    assert!(error.contains("without trusted CA is insecure"), "{error}");
}
