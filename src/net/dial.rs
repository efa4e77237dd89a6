//! From one address to an authenticated session: encryption, login, and the second attempt that libpq makes with the other protection.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client_certificate::CertMode;
use super::connection::Mode;
use super::conninfo::{self, Conninfo, SslMode};
use super::host::Host;
use super::link::{Link, LinkError, Stream};
use super::quiet::Quiet;
use super::refusal::{self, Scene};
use super::security::{Security, Verified};
use super::socket::{self, Address, Raw};
use super::{passfile, tls};
use crate::error::{Error, Kind, Result};
use crate::wire::error::WireError;
use crate::wire::startup::{self, Login, SslAnswer, Startup};

/// SQLSTATE `cannot_connect_now`: starting up, shutting down, or in recovery without hot standby.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// An authenticated session.
pub(super) struct Session {
    pub link: Link,
    pub scene: Scene,
    pub security: Security,
}

/// How one attempt protects the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    Plain,
    /// TLS; where the server has none, plain if `optional`.
    Tls {
        optional: bool,
    },
}

/// Where to go after a failure (`fe-connect.c:PQconnectPoll`: `try_next_addr`, `try_next_host`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stop,
    Address,
    Host,
}

/// Why an attempt failed, and whether the other protection may help (`fe-connect.c:select_next_encryption_method`).
pub(super) struct Failure {
    pub error: Error,
    pub other_protection: bool,
    pub next: Next,
}

impl Failure {
    pub(super) fn last(error: Error) -> Failure {
        Failure { error, other_protection: false, next: Next::Stop }
    }
}

/// One address of one host, and what is wanted there.
pub(super) struct Route<'a> {
    pub info: &'a Conninfo,
    pub host: &'a Host,
    address: &'a Address,
    mode: Mode,
    options: &'a str,
    /// Host, address and user, for messages.
    pub server: String,
}

impl<'a> Route<'a> {
    pub(super) fn new(
        info: &'a Conninfo,
        host: &'a Host,
        address: &'a Address,
        mode: Mode,
        options: &'a str,
    ) -> Route<'a> {
        let server = format!("{} as {}", host.describe_at(address.ip()), info.user);
        Route { info, host, address, mode, options, server }
    }

    /// Nothing came in time.
    pub(super) fn late(&self, limit: Duration) -> Error {
        Error::new(Kind::Server, format!("{}: no session within {} s", self.server, limit.as_secs()))
            .transient()
            .hint("check the network path to the server, or raise connect_timeout")
    }

    pub(super) async fn dial(&self) -> Result<Session, Failure> {
        let plan: &[Protection] = match (self.address, self.info.tls.mode) {
            // libpq ignores sslmode on a socket file.
            (Address::Socket(_) | Address::Dialer, _) | (_, SslMode::Disable) => &[Protection::Plain],
            (_, SslMode::Allow) => &[Protection::Plain, Protection::Tls { optional: false }],
            (_, SslMode::Prefer) => &[Protection::Tls { optional: true }, Protection::Plain],
            _ => &[Protection::Tls { optional: false }],
        };
        let mut first: Option<Failure> = None;
        for protection in plan {
            let attempt = self.attempt(*protection);
            let outcome = match self.info.connect_timeout {
                None => attempt.await,
                Some(limit) => tokio::time::timeout(limit, attempt)
                    .await
                    .unwrap_or_else(|_| Err(Failure { next: Next::Address, ..Failure::last(self.late(limit)) })),
            };
            match (outcome, first.take()) {
                (Ok(session), _) => return Ok(session),
                (Err(failure), None) if failure.other_protection => first = Some(failure),
                (Err(failure), None) => return Err(failure),
                // What was refused in words is the reason, rather than a connection that was closed without any.
                (Err(failure), Some(Failure { next: Next::Address, .. })) if matches!(failure.next, Next::Stop) => {
                    return Err(failure);
                }
                // The first refusal is the one that the connection string asked for.
                (Err(_), Some(failure)) => return Err(failure),
            }
        }
        Err(first.unwrap_or_else(|| Failure::last(Error::new(Kind::Server, format!("{}: no attempt", self.server)))))
    }

    /// A connected socket that cannot be waited for.
    fn not_taken(&self, cause: std::io::Error) -> Failure {
        Failure::last(Error::new(Kind::Server, format!("{}: cannot wait for the socket", self.server)).caused_by(cause))
    }

    async fn attempt(&self, protection: Protection) -> Result<Session, Failure> {
        let raw = socket::connect(self.info, self.address, &self.server)
            .await
            .map_err(|error| Failure { next: Next::Address, ..Failure::last(error) })?;
        let local = raw.local_ip();
        let near = self.address.ip().is_none_or(|ip| Some(ip) == local);
        self.check_peer(&raw).map_err(Failure::last)?;
        let (stream, end_point, protected): (Box<dyn Stream>, _, _) = match (raw, protection) {
            (Raw::Unix(stream), _) => (Box::new(Quiet::new(stream).map_err(|e| self.not_taken(e))?), None, None),
            (Raw::Dialed(stream), _) => (stream, None, None),
            (Raw::Tcp(stream, _), Protection::Plain) => (Box::new(stream), None, None),
            (Raw::Tcp(mut stream, peer), Protection::Tls { optional }) => {
                if self.info.tls.direct || ask_for_tls(&self.server, &mut stream, optional).await? {
                    let protected = tls::protect(self, peer, stream).await.map_err(|failure| Failure {
                        other_protection: failure.handshake,
                        next: if failure.broke_off { Next::Address } else { Next::Stop },
                        error: failure.error,
                    })?;
                    (
                        Box::new(protected.stream),
                        protected.end_point,
                        Some((protected.certificate, protected.tls, protected.verified)),
                    )
                } else {
                    (Box::new(stream), None, None)
                }
            }
        };
        let asked = matches!(protection, Protection::Tls { .. });
        let tls = protected.is_some();
        if !tls && self.info.tls.cert_mode == CertMode::Require {
            let text = format!("{}: sslcertmode=require: the connection is not encrypted", self.server);
            return Err(Failure::last(Error::new(Kind::Server, text).hint("set sslmode=require or more, over TCP")));
        }
        let certificate = protected.as_ref().is_some_and(|(certificate, ..)| *certificate);
        let scene = Scene { certificate, ..Scene::new(self.info, &self.server, self.mode, local, tls) };
        let session = self.login(stream, end_point, scene, protected.map(|(_, tls, verified)| (tls, verified))).await;
        let session =
            session.map(|session| Session { security: Security { local: near, ..session.security }, ..session });
        session.map_err(|mut failure| {
            // Where the server has no TLS, the plain attempt was this one.
            failure.other_protection &= asked == tls;
            failure
        })
    }

    /// `requirepeer`: the user that the other side of a socket file runs as (`fe-connect.c:PQconnectPoll`).
    fn check_peer(&self, raw: &Raw) -> Result<()> {
        let (Some(wanted), Raw::Unix(stream)) = (&self.info.require_peer, raw) else { return Ok(()) };
        let failed = |problem: String| Error::new(Kind::Server, format!("{}: requirepeer: {problem}", self.server));
        let peer = stream.peer_cred().map_err(|error| failed("the peer is not known".to_owned()).caused_by(error))?;
        let found = conninfo::user_name(peer.uid()).unwrap_or_else(|| format!("user id {}", peer.uid()));
        if found == *wanted {
            return Ok(());
        }
        Err(failed(format!("expected the server to run as {wanted}, found {found}"))
            .hint("check unix_socket_directories of the server, and who else may write there"))
    }

    async fn login(
        &self,
        stream: Box<dyn Stream>,
        end_point: Option<Vec<u8>>,
        scene: Scene,
        tls: Option<(String, Verified)>,
    ) -> Result<Session, Failure> {
        let info = self.info;
        let mut link = Link::new(stream);
        let databases: &[&str] = match self.mode {
            // pg_receivewal looks its passwords up under this name.
            Mode::Physical => &["replication", info.database()],
            Mode::Database => &[info.database()],
        };
        let secret = info.password.clone().or_else(|| passfile::look_up(info, self.host, databases));
        let login = Login {
            user: info.user.clone(),
            password: secret.map(|secret| secret.0.to_string()),
            parameters: parameters(info, self.mode, self.options),
            channel_binding: info.channel_binding,
            require_auth: info.require_auth.clone(),
            tls: scene.tls,
            end_point,
        };
        let begun = Startup::begin(login, &mut link.out);
        let outcome = match begun {
            Ok(mut startup) => link.event(&mut startup).await.map(|()| (startup.method(), startup.is_bound())),
            Err(error) => Err(LinkError::Wire(error)),
        };
        let (method, bound) = outcome.map_err(|error| {
            let (mut other_protection, mut next) = (false, Next::Stop);
            match &error {
                LinkError::Wire(WireError::Server { error, .. }) => {
                    other_protection = error.sqlstate == "28000" && error.is_from("ClientAuthentication");
                    if error.sqlstate == CANNOT_CONNECT_NOW {
                        next = Next::Host;
                    }
                }
                // A server that refuses says so: this is what stands before a dead one.
                LinkError::Closed => next = Next::Address,
                _ => {}
            }
            Failure { error: refusal::login(error, &scene), other_protection, next }
        })?;
        let (tls, verified) = tls.map_or((None, Verified::Nothing), |(tls, verified)| (Some(tls), verified));
        Ok(Session { link, scene, security: Security { local: false, tls, verified, method, bound } })
    }
}

/// Sends SSLRequest: whether the server agrees. Exactly one byte is read, so that nothing sent in the clear can slip into the session.
async fn ask_for_tls(server: &str, stream: &mut TcpStream, optional: bool) -> Result<bool, Failure> {
    let refused =
        |text: &str, hint: &str| Failure::last(Error::new(Kind::Server, format!("{server}: {text}")).hint(hint));
    let mut answer = [0u8; 1];
    let exchange = async {
        stream.write_all(&startup::ssl_request()).await?;
        stream.read_exact(&mut answer).await
    };
    exchange.await.map_err(|error| {
        let text = format!("{server}: the server closed the connection instead of answering to a request for TLS");
        let error = Error::new(Kind::Server, text).transient().caused_by(error);
        Failure { error, other_protection: optional, next: Next::Address }
    })?;
    match SslAnswer::read(answer[0]) {
        SslAnswer::Accepted => Ok(true),
        SslAnswer::Refused if optional => Ok(false),
        SslAnswer::Refused => Err(refused(
            "the server has no TLS",
            "set ssl=on on the server, or sslmode=prefer in the connection string",
        )),
        SslAnswer::Error => {
            let mut failure = refused("the server answered to a request for TLS with an error", "its log says why");
            failure.error = failure.error.transient();
            failure.other_protection = optional;
            Err(failure)
        }
        SslAnswer::Other(byte) => Err(refused(
            &format!("does not speak the protocol of PostgreSQL: answered to a request for TLS with {byte:#04x}"),
            "check host and port: another program, or a proxy, answers there",
        )),
    }
}

fn parameters(info: &Conninfo, mode: Mode, options: &str) -> Vec<(&'static str, String)> {
    let mut parameters = vec![("application_name", info.application_name.clone())];
    match mode {
        Mode::Physical => parameters.push(("replication", "true".to_owned())),
        Mode::Database => {
            parameters.push(("replication", "database".to_owned()));
            parameters.push(("database", info.database().to_owned()));
            parameters.push(("client_encoding", "UTF8".to_owned()));
        }
    }
    let options: Vec<&str> = [info.options.as_str(), options].into_iter().filter(|o| !o.is_empty()).collect();
    if !options.is_empty() {
        parameters.push(("options", options.join(" ")));
    }
    parameters
}
