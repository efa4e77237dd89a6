//! From a connection string to an authenticated session: addresses, encryption, login, and the second attempts that libpq makes.

use super::connection::Mode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::conninfo::{Conninfo, SslMode};
use super::link::{Link, LinkError, Stream};
use super::refusal::{self, Scene};
use super::socket::{self, Address, Raw};
use super::{passfile, tls};
use crate::error::{Error, Kind, Result};
use crate::wire::error::WireError;
use crate::wire::startup::{self, Login, SslAnswer, Startup};

/// An authenticated session.
pub(super) struct Session {
    pub link: Link,
    pub scene: Scene,
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

/// Why an attempt failed, and whether the other protection may help (`fe-connect.c:select_next_encryption_method`).
struct Failure {
    error: Error,
    other_protection: bool,
    other_address: bool,
}

impl Failure {
    fn last(error: Error) -> Failure {
        Failure { error, other_protection: false, other_address: false }
    }
}

pub(super) async fn dial(info: &Conninfo, mode: Mode, options: &str) -> Result<Session> {
    let mut last = None;
    for address in socket::addresses(info).await? {
        match dial_address(info, mode, options, &address).await {
            Ok(session) => return Ok(session),
            Err(failure) if failure.other_address => last = Some(failure.error),
            Err(failure) => return Err(failure.error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(Kind::Server, format!("{}: no address", info.describe()))))
}

async fn dial_address(info: &Conninfo, mode: Mode, options: &str, address: &Address) -> Result<Session, Failure> {
    let plan: &[Protection] = match (address, info.tls.mode) {
        // libpq ignores sslmode on a socket file.
        (Address::Socket(_) | Address::Dialer, _) | (_, SslMode::Disable) => &[Protection::Plain],
        (_, SslMode::Allow) => &[Protection::Plain, Protection::Tls { optional: false }],
        (_, SslMode::Prefer) => &[Protection::Tls { optional: true }, Protection::Plain],
        _ => &[Protection::Tls { optional: false }],
    };
    let mut first: Option<Failure> = None;
    for protection in plan {
        let attempt = attempt(info, mode, options, address, *protection);
        let outcome = match info.connect_timeout {
            None => attempt.await,
            Some(limit) => tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| {
                let text = format!("{}: no session within {} s", info.describe(), limit.as_secs());
                let error = Error::new(Kind::Server, text).transient();
                let error = error.hint("check the network path to the server, or raise connect_timeout");
                Err(Failure { error, other_protection: false, other_address: true })
            }),
        };
        match (outcome, first.take()) {
            (Ok(session), _) => return Ok(session),
            (Err(failure), None) if failure.other_protection => first = Some(failure),
            (Err(failure), None) => return Err(failure),
            // The first refusal is the one that the connection string asked for.
            (Err(_), Some(failure)) => return Err(failure),
        }
    }
    Err(first.unwrap_or_else(|| Failure::last(Error::new(Kind::Server, format!("{}: no attempt", info.describe())))))
}

async fn attempt(
    info: &Conninfo,
    mode: Mode,
    options: &str,
    address: &Address,
    protection: Protection,
) -> Result<Session, Failure> {
    let raw = socket::connect(info, address).await.map_err(|error| Failure {
        error,
        other_protection: false,
        other_address: true,
    })?;
    let local = raw.local_ip();
    let (stream, end_point, tls): (Box<dyn Stream>, _, _) = match (raw, protection) {
        (Raw::Unix(stream), _) => (Box::new(stream), None, false),
        (Raw::Dialed(stream), _) => (stream, None, false),
        (Raw::Tcp(stream, _), Protection::Plain) => (Box::new(stream), None, false),
        (Raw::Tcp(mut stream, peer), Protection::Tls { optional }) => {
            if info.tls.direct || ask_for_tls(info, &mut stream, optional).await? {
                let protected = tls::protect(info, peer, stream).await.map_err(|failure| Failure {
                    error: failure.error,
                    other_protection: failure.handshake,
                    other_address: false,
                })?;
                (Box::new(protected.0), protected.1, true)
            } else {
                (Box::new(stream), None, false)
            }
        }
    };
    let asked = matches!(protection, Protection::Tls { .. });
    let scene = Scene::new(info, mode, local, tls);
    login(info, mode, options, stream, end_point, scene).await.map_err(|mut failure| {
        // Where the server has no TLS, the plain attempt was this one.
        failure.other_protection &= asked == tls;
        failure
    })
}

/// Sends SSLRequest: whether the server agrees. Exactly one byte is read, so that nothing sent in the clear can slip into the session.
async fn ask_for_tls(info: &Conninfo, stream: &mut TcpStream, optional: bool) -> Result<bool, Failure> {
    let refused = |text: &str, hint: &str| {
        Failure::last(Error::new(Kind::Server, format!("{}: {text}", info.describe())).hint(hint))
    };
    let mut answer = [0u8; 1];
    let exchange = async {
        stream.write_all(&startup::ssl_request()).await?;
        stream.read_exact(&mut answer).await
    };
    exchange.await.map_err(|error| {
        let text =
            format!("{}: the server closed the connection instead of answering to a request for TLS", info.describe());
        let error = Error::new(Kind::Server, text).transient().caused_by(error);
        Failure { error, other_protection: optional, other_address: false }
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

async fn login(
    info: &Conninfo,
    mode: Mode,
    options: &str,
    stream: Box<dyn Stream>,
    end_point: Option<Vec<u8>>,
    scene: Scene,
) -> Result<Session, Failure> {
    let mut link = Link::new(stream);
    let databases: &[&str] = match mode {
        // pg_receivewal looks its passwords up under this name.
        Mode::Physical => &["replication", info.database()],
        Mode::Database => &[info.database()],
    };
    let secret = info.password.clone().or_else(|| passfile::look_up(info, databases));
    let login = Login {
        user: info.user.clone(),
        password: secret.map(|secret| secret.0.to_string()),
        parameters: parameters(info, mode, options),
        channel_binding: info.channel_binding,
        tls: scene.tls,
        end_point,
    };
    let begun = Startup::begin(login, &mut link.out);
    let outcome = match begun {
        Ok(mut startup) => link.event(&mut startup).await,
        Err(error) => Err(LinkError::Wire(error)),
    };
    match outcome {
        Ok(()) => Ok(Session { link, scene }),
        Err(error) => {
            let other_protection = matches!(&error, LinkError::Wire(WireError::Server { error, .. })
                if error.sqlstate == "28000" && error.is_from("ClientAuthentication"));
            Err(Failure { error: refusal::login(error, &scene), other_protection, other_address: false })
        }
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
