//! The client's side of TLS.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The crypto provider of every TLS side in this crate.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// How a client speaks TLS.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    sni: ServerName<'static>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("sni", &self.sni).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// A client that sends `sni` (an IP address sends none), offers `alpn`, shows `identity` if asked, and accepts a
    /// server whose chain ends in `bundle_pem`, whatever its name (a SPIFFE peer has no host name); without a bundle it
    /// accepts any server.
    ///
    /// # Errors
    /// When a PEM text or the name is not what it should be.
    pub fn new(
        sni: &str,
        alpn: &[&str],
        identity: Option<&certs::Svid>,
        bundle_pem: Option<&str>,
    ) -> Result<Self, Error> {
        let provider = provider();
        let roots = bundle_pem.map(parse_roots).transpose()?;
        let verifier = Arc::new(ChainOnly { provider: Arc::clone(&provider), roots });
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(svid) => {
                let (chain, key) = parse_identity(svid)?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        // Each connection shows and checks certificates anew, as a test of identities needs.
        config.resumption = rustls::client::Resumption::disabled();
        let sni = ServerName::try_from(sni.to_owned()).map_err(|e| Error::General(format!("'{sni}': {e}")))?;
        Ok(Self { config: Arc::new(config), sni })
    }

    pub(super) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsConnector::from(Arc::clone(&self.config)).connect(self.sni.clone(), stream).await
    }
}

/// The SPIFFE IDs (URI SANs) a TLS server at `address` shows.
///
/// # Errors
/// When the handshake fails or the certificate cannot be read.
pub async fn server_identities(address: std::net::SocketAddr, tls: &ClientTls) -> io::Result<Vec<String>> {
    let chain = server_chain(address, tls).await?;
    let leaf = chain.first().ok_or_else(|| io::Error::other("the server showed no certificate"))?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(io::Error::other)?;
    Ok(leaf.valid_uri_names().map(str::to_owned).collect())
}

/// The certificates a TLS server at `address` shows, its own first.
///
/// # Errors
/// When the handshake fails.
pub async fn server_chain(address: std::net::SocketAddr, tls: &ClientTls) -> io::Result<Vec<CertificateDer<'static>>> {
    let stream = tls.handshake(TcpStream::connect(address).await?).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec())
}

pub(crate) fn parse_roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|e| Error::General(format!("trust bundle: {e}")))?)?;
    }
    Ok(roots)
}

pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) fn parse_identity(svid: &certs::Svid) -> Result<Identity, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(svid.chain_pem.as_bytes()).collect();
    let chain = chain.map_err(|e| Error::General(format!("certificate chain: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(svid.key_pem.as_bytes());
    Ok((chain, key.map_err(|e| Error::General(format!("private key: {e}")))?))
}

/// Checks the chain against the roots, if there are any, and never the name.
#[derive(Debug)]
struct ChainOnly {
    provider: Arc<CryptoProvider>,
    roots: Option<RootCertStore>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let leaf = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
