//! TLS as libpq's `sslmode` means it: with rustls, and its ring provider given explicitly.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate;
use super::conninfo::{Roots, SslMode, Tls};
use super::dial::Route;
use super::host::Place;
use crate::error::{Error, Kind, Result};
use crate::wire::startup::ALPN;

/// Why the connection could not be protected.
pub(super) struct Failure {
    pub error: Error,
    /// The handshake itself failed (not the settings): `sslmode=prefer` goes on without TLS.
    pub handshake: bool,
}

/// Does the handshake on a connected socket. Gives the stream and the `tls-server-end-point` hash, where it is defined.
pub(super) async fn protect(
    route: &Route<'_>,
    address: SocketAddr,
    stream: TcpStream,
) -> Result<(TlsStream<TcpStream>, Option<Vec<u8>>), Failure> {
    let settings = |error| Failure { error, handshake: false };
    let (config, name) = config(route, address).map_err(settings)?;
    let outcome = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = outcome.map_err(|error| Failure { error: explain(&route.server, error), handshake: true })?;
    let (_, session) = stream.get_ref();
    if route.info.tls.direct && session.alpn_protocol() != Some(ALPN) {
        let text = format!("{}: the server did not agree on the protocol \"postgresql\" (ALPN)", route.server);
        let error = Error::new(Kind::Server, text).hint("sslnegotiation=direct needs PostgreSQL 17 or later");
        return Err(Failure { error, handshake: true });
    }
    let first = session.peer_certificates().and_then(<[_]>::first);
    let end_point = first.and_then(|cert| certificate::Read::new(cert).ok()).and_then(|cert| cert.end_point());
    Ok((stream, end_point))
}

fn config(route: &Route<'_>, address: SocketAddr) -> Result<(ClientConfig, ServerName<'static>)> {
    let info = route.info;
    let host = match &route.host.place {
        Place::Tcp { name, .. } => name.clone(),
        Place::Socket(_) => None,
    };
    let full = info.tls.mode == SslMode::VerifyFull;
    if full && host.is_none() {
        return Err(Error::new(Kind::Usage, "sslmode=verify-full needs the name of the server")
            .hint("set host to the name in the server's certificate, beside hostaddr"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusted = trusted(&info.tls)?;
    let verifier = Verifier { provider: provider.clone(), trusted, host: host.clone().filter(|_| full) };
    let versions: &[&rustls::SupportedProtocolVersion] = match (info.tls.only_12, info.tls.only_13) {
        (true, _) => &[&rustls::version::TLS12],
        (_, true) => &[&rustls::version::TLS13],
        _ => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| Error::new(Kind::Failed, "cannot set TLS up").caused_by(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = info.tls.sni;
    // A name that no DNS has (an underscore, say) is not sent; it is still verified by our own rules.
    let name = host.and_then(|host| ServerName::try_from(host).ok());
    Ok((config, name.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()))))
}

/// The certificates to trust; `None`: any certificate will do. As libpq, a root file that exists is used in every mode.
fn trusted(tls: &Tls) -> Result<Option<Trusted>> {
    let verify = tls.mode >= SslMode::VerifyCa;
    let pem = match &tls.roots {
        Some(Roots::System) => return system().map(Some),
        Some(Roots::File(path)) => read(path)?,
        Some(Roots::Default(path)) if path.exists() => read(path)?,
        Some(Roots::Default(path)) if verify => {
            return Err(Error::new(Kind::Usage, format!("root certificate file {} does not exist", path.display()))
                .hint("give sslrootcert=FILE with the authority's certificate, or sslrootcert=system, or a weaker sslmode"));
        }
        None if verify => {
            return Err(Error::new(Kind::Usage, "no root certificate file: the home directory is not known")
                .hint("give sslrootcert=FILE with the authority's certificate"));
        }
        _ => return Ok(None),
    };
    if let Some(crl) = tls.crl.as_deref().filter(|crl| crl.exists()) {
        let text = format!("certificate revocation list {} is not supported yet", crl.display());
        return Err(Error::new(Kind::Usage, text));
    }
    Ok(Some(pem))
}

fn read(path: &Path) -> Result<Trusted> {
    let failed =
        |problem: String| Error::new(Kind::Usage, format!("root certificate file {}: {problem}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut trusted = Trusted { anchors: RootCertStore::empty(), exact: Vec::new() };
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        // Some self-signed server certificates are no legal anchors; they are still trusted as themselves.
        let _ = trusted.anchors.add(certificate.clone());
        trusted.exact.push(certificate);
    }
    match trusted.exact.is_empty() {
        true => Err(failed("no certificate in it".to_owned()).hint("expected PEM: -----BEGIN CERTIFICATE-----")),
        false => Ok(trusted),
    }
}

fn system() -> Result<Trusted> {
    let found = rustls_native_certs::load_native_certs();
    let mut anchors = RootCertStore::empty();
    anchors.add_parsable_certificates(found.certs);
    match anchors.is_empty() {
        true => Err(Error::new(Kind::Usage, "this system has no trusted authorities (sslrootcert=system)")
            .hint("install the ca-certificates package, or give sslrootcert=FILE")),
        false => Ok(Trusted { anchors, exact: Vec::new() }),
    }
}

#[derive(Debug)]
struct Trusted {
    anchors: RootCertStore,
    /// The certificates of the file: a server that shows one of them is trusted, as OpenSSL does, whatever its extensions say.
    exact: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trusted: Option<Trusted>,
    /// The name to verify (verify-full).
    host: Option<String>,
}

/// A refusal in our own words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(text: impl Into<String>) -> rustls::Error {
    let cause = Arc::new(Refusal(text.into()));
    rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(cause)))
}

impl Verifier {
    fn chain(
        &self,
        trusted: &Trusted,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if trusted.exact.iter().any(|known| known == server) {
            let read = certificate::Read::new(server).map_err(refusal)?;
            return match read.date_problem(now.as_secs()) {
                None => Ok(()),
                Some(problem) => Err(refusal(format!("the server's certificate {problem}"))),
            };
        }
        let parsed = ParsedCertificate::try_from(server)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &trusted.anchors, intermediates, now, algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(trusted) = &self.trusted {
            self.chain(trusted, end_entity, intermediates, now)?;
        }
        if let Some(host) = &self.host {
            let read = certificate::Read::new(end_entity).map_err(refusal)?;
            if !read.is_for(host) {
                let names = read.describe_names();
                return Err(refusal(format!("the server's certificate is for {names}, not for {host}")));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    // The proof that the server has the certificate's key: channel binding stands on it, so it is checked in every mode.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        if ParsedCertificate::try_from(cert).is_ok() {
            return verify_tls13_signature(message, cert, dss, algorithms);
        }
        // Certificates of X.509 version 1, which older OpenSSL makes by default, have a key all the same.
        let read = certificate::Read::new(cert).map_err(refusal)?;
        let key = read.public_key().ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key), dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A failed handshake: what broke off may pass, what was refused will not.
fn explain(server: &str, error: std::io::Error) -> Error {
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Error::new(Kind::Server, format!("{server}: the TLS handshake broke off"))
            .transient()
            .caused_by(error)
            .hint("the server's log says why, if the server ended it");
    };
    use CertificateError as C;
    let advice = match cause {
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "give sslrootcert=FILE with the certificate of the authority that signed the server's"
        }
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => "renew the server's certificate",
        rustls::Error::InvalidCertificate(C::Other(_)) => {
            "connect by a name in the certificate, or have it issued anew; sslmode=verify-ca does not look at the name"
        }
        rustls::Error::InvalidCertificate(_) => {
            "have the certificate issued anew: X.509 version 3, with the server's name as subjectAltName"
        }
        _ => "check ssl_min_protocol_version and ssl_ciphers on the server; TLS 1.2 and 1.3 are supported",
    };
    Error::new(Kind::Server, format!("{server}: TLS: {cause}")).hint(advice)
}
