//! TLS as libpq's `sslmode` means it: with rustls, and its ring provider given explicitly.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate;
use super::client_certificate::Shown;
use super::conninfo::SslMode;
use super::dial::Route;
use super::host::Place;
use super::security::Verified;
use super::verify::{self, Verifier};
use crate::error::{Error, Kind, Result};
use crate::wire::startup::ALPN;

/// Why the connection could not be protected.
pub(super) struct Failure {
    pub error: Error,
    /// The handshake itself failed (not the settings): `sslmode=prefer` goes on without TLS.
    pub handshake: bool,
    /// The connection ended in it, without a word of why.
    pub broke_off: bool,
}

/// A protected connection.
pub(super) struct Protected {
    pub stream: TlsStream<TcpStream>,
    /// The `tls-server-end-point` hash, where it is defined.
    pub end_point: Option<Vec<u8>>,
    /// There was a client certificate to show.
    pub certificate: bool,
    /// Version and cipher.
    pub tls: String,
    pub verified: Verified,
}

/// Does the handshake on a connected socket.
pub(super) async fn protect(route: &Route<'_>, address: SocketAddr, stream: TcpStream) -> Result<Protected, Failure> {
    let settings = |error| Failure { error, handshake: false, broke_off: false };
    let (config, name, shown, verified) = config(route, address).map_err(settings)?;
    let outcome = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = outcome.map_err(|error| {
        let broke_off = refusal(&error).is_none();
        Failure { error: explain(&route.server, error), handshake: true, broke_off }
    })?;
    let (_, session) = stream.get_ref();
    if route.info.tls.direct && session.alpn_protocol() != Some(ALPN) {
        let text = format!("{}: the server did not agree on the protocol \"postgresql\" (ALPN)", route.server);
        let error = Error::new(Kind::Server, text).hint("sslnegotiation=direct needs PostgreSQL 17 or later");
        return Err(Failure { error, handshake: true, broke_off: false });
    }
    if let Some(problem) = shown.missing(route.info.tls.cert_mode) {
        let error = Error::new(Kind::Server, format!("{}: sslcertmode=require: {problem}", route.server))
            .hint("set sslcert and sslkey, and ssl_ca_file on the server, which must ask for the certificate");
        return Err(settings(error));
    }
    let first = session.peer_certificates().and_then(<[_]>::first);
    let end_point = first.and_then(|cert| certificate::Read::new(cert).ok()).and_then(|cert| cert.end_point());
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS").replace('_', ".");
    let cipher = session.negotiated_cipher_suite().map_or(String::new(), |suite| format!(", {:?}", suite.suite()));
    let tls = format!("{version}{cipher}");
    Ok(Protected { stream, end_point, certificate: shown.has_certificate(), tls, verified })
}

fn config(route: &Route<'_>, address: SocketAddr) -> Result<(ClientConfig, ServerName<'static>, Arc<Shown>, Verified)> {
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
    let verifier = Verifier::new(&info.tls, host.clone().filter(|_| full), &provider)?;
    let verified = verifier.verifies();
    let shown = Arc::new(Shown::read(info.tls.cert_mode, info.tls.client.as_ref(), &provider)?);
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
        .with_client_cert_resolver(shown.clone());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = info.tls.sni;
    // A name that no DNS has (an underscore, say) is not sent; it is still verified by our own rules.
    let name = host.and_then(|host| ServerName::try_from(host).ok());
    Ok((config, name.unwrap_or_else(|| ServerName::IpAddress(address.ip().into())), shown, verified))
}

/// Why one side ended the handshake; `None`: it broke off.
fn refusal(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A failed handshake: what broke off may pass, what was refused will not.
fn explain(server: &str, error: std::io::Error) -> Error {
    let Some(cause) = refusal(&error) else {
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
        rustls::Error::InvalidCertificate(
            C::Revoked | C::UnknownRevocationStatus | C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. },
        )
        | rustls::Error::InvalidCertRevocationList(_) => {
            "every certificate of the chain needs a current list in sslcrl or sslcrldir that does not name it"
        }
        rustls::Error::InvalidCertificate(C::Other(other)) if verify::is_refusal(other) => {
            "connect by a name in the certificate, or have it issued anew; sslmode=verify-ca does not look at the name"
        }
        rustls::Error::InvalidCertificate(_) => {
            "have the certificate issued anew: X.509 version 3, with the server's name as subjectAltName"
        }
        _ => "check ssl_min_protocol_version and ssl_ciphers on the server; TLS 1.2 and 1.3 are supported",
    };
    Error::new(Kind::Server, format!("{server}: TLS: {cause}")).hint(advice)
}
