//! From the first byte to ReadyForQuery: the answer to SSLRequest, the startup packet, authentication, parameters.
//!
//! The decisions on SCRAM and channel binding follow `fe-auth.c:pg_SASL_init` and `check_expected_areq`; the messages
//! `auth.c:ClientAuthentication`.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;

use super::codec::{Authentication, Machine, Message, Outbox};
use super::error::{ServerError, WireError};
use super::require_auth::{AuthMethod, RequireAuth};

/// ALPN protocol name of PostgreSQL (`PG_ALPN_PROTOCOL`, 17+).
pub const ALPN: &[u8] = b"postgresql";

/// The server's one-byte answer to SSLRequest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslAnswer {
    Accepted,
    Refused,
    /// An ErrorResponse: it came without protection, so its text is not to be believed (libpq, CVE-2024-10977).
    Error,
    /// No PostgreSQL server answers so.
    Other(u8),
}

impl SslAnswer {
    pub fn read(byte: u8) -> SslAnswer {
        match byte {
            b'S' => SslAnswer::Accepted,
            b'N' => SslAnswer::Refused,
            b'E' => SslAnswer::Error,
            other => SslAnswer::Other(other),
        }
    }
}

/// The SSLRequest packet.
pub fn ssl_request() -> BytesMut {
    let mut bytes = BytesMut::new();
    frontend::ssl_request(&mut bytes);
    bytes
}

/// `channel_binding` of a connection string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBindingPolicy {
    Disable,
    Prefer,
    Require,
}

/// What a session is opened with.
#[derive(Clone)]
pub struct Login {
    pub user: String,
    pub password: Option<String>,
    /// Startup parameters other than `user`, such as `replication`, `database`, `application_name`, `options`.
    pub parameters: Vec<(&'static str, String)>,
    pub channel_binding: ChannelBindingPolicy,
    pub require_auth: RequireAuth,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Hash of the server's certificate (`tls-server-end-point`, RFC 5929), where the connection is encrypted and the hash is defined.
    pub end_point: Option<Vec<u8>>,
}

enum State {
    /// The startup packet is sent.
    Greeting,
    /// A password or its hash is sent.
    Password,
    /// The first or second message of SCRAM is sent.
    ScramFirst(Box<ScramSha256>),
    ScramFinal(Box<ScramSha256>),
    /// The server proved that it knows the password.
    ScramDone,
    /// AuthenticationOk was received.
    Authenticated,
    Ready,
}

/// Opens a session. The event is the first ReadyForQuery; the parameters are in the outbox then.
pub struct Startup {
    login: Login,
    state: State,
    bound: bool,
    method: AuthMethod,
}

impl Startup {
    /// Puts the startup packet into `out`.
    pub fn begin(login: Login, out: &mut Outbox) -> Result<Startup, WireError> {
        let pairs = std::iter::once(("user", login.user.as_str()))
            .chain(login.parameters.iter().map(|(name, value)| (*name, value.as_str())));
        let refused = |_| WireError::Text { what: "a startup parameter", found: "a zero byte" };
        frontend::startup_message(pairs, &mut out.bytes).map_err(refused)?;
        Ok(Startup { login, state: State::Greeting, bound: false, method: AuthMethod::None })
    }

    /// What the server asked for; final when the session is ready.
    pub fn method(&self) -> AuthMethod {
        self.method
    }

    /// Whether the login is bound to the TLS connection.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    fn state_name(&self) -> &'static str {
        match self.state {
            State::Greeting => "startup packet sent",
            State::Password => "password sent",
            State::ScramFirst(_) => "SCRAM begun",
            State::ScramFinal(_) => "SCRAM proof sent",
            State::ScramDone => "SCRAM done",
            State::Authenticated => "authenticated",
            State::Ready => "session ready",
        }
    }

    fn request(&mut self, request: Authentication, out: &mut Outbox) -> Result<(), WireError> {
        let state = std::mem::replace(&mut self.state, State::Ready);
        self.state = match (state, request) {
            (State::Greeting, Authentication::Ok) => {
                self.demand(AuthMethod::None)?;
                self.check_binding()?;
                State::Authenticated
            }
            (State::Password | State::ScramDone, Authentication::Ok) => {
                self.check_binding()?;
                State::Authenticated
            }
            (State::Greeting, Authentication::CleartextPassword) => {
                self.demand(AuthMethod::Password)?;
                self.check_binding()?;
                self.send_password(self.password()?.as_bytes().to_vec(), out)?;
                State::Password
            }
            (State::Greeting, Authentication::Md5Password { salt }) => {
                self.demand(AuthMethod::Md5)?;
                self.check_binding()?;
                let hash = md5_hash(self.login.user.as_bytes(), self.password()?.as_bytes(), salt);
                self.send_password(hash.into_bytes(), out)?;
                State::Password
            }
            (State::Greeting, Authentication::Sasl { mechanisms }) => State::ScramFirst(self.scram(&mechanisms, out)?),
            (State::ScramFirst(mut scram), Authentication::SaslContinue(data)) => {
                scram.update(&data).map_err(|e| WireError::Scram(e.to_string()))?;
                frontend::sasl_response(scram.message(), &mut out.bytes)
                    .map_err(|e| WireError::Scram(e.to_string()))?;
                State::ScramFinal(scram)
            }
            (State::ScramFinal(mut scram), Authentication::SaslFinal(data)) => {
                scram.finish(&data).map_err(|e| WireError::Scram(e.to_string()))?;
                State::ScramDone
            }
            (State::Greeting, Authentication::Unsupported(method)) => {
                return Err(WireError::Authentication { method: method.to_owned() });
            }
            (state, request) => {
                self.state = state;
                return Err(Message::Authentication(request).out_of_place(self.state_name()));
            }
        };
        Ok(())
    }

    fn password(&self) -> Result<&str, WireError> {
        self.login.password.as_deref().filter(|p| !p.is_empty()).ok_or(WireError::NoPassword)
    }

    fn send_password(&self, text: Vec<u8>, out: &mut Outbox) -> Result<(), WireError> {
        let refused = |_| WireError::Text { what: "a password", found: "a zero byte" };
        frontend::password_message(&text, &mut out.bytes).map_err(refused)
    }

    /// Before anything is sent: a password in the clear is not unsent.
    fn demand(&mut self, asked: AuthMethod) -> Result<(), WireError> {
        self.method = asked;
        let required = &self.login.require_auth;
        if required.allows(asked) {
            return Ok(());
        }
        Err(WireError::RequireAuth { allowed: required.describe(), asked: asked.name() })
    }

    /// With `channel_binding=require` only a finished SCRAM-SHA-256-PLUS exchange counts.
    fn check_binding(&self) -> Result<(), WireError> {
        if self.login.channel_binding == ChannelBindingPolicy::Require && !self.bound {
            return Err(WireError::ChannelBinding("the server did not authenticate with it"));
        }
        Ok(())
    }

    fn scram(&mut self, mechanisms: &[String], out: &mut Outbox) -> Result<Box<ScramSha256>, WireError> {
        self.demand(AuthMethod::Scram)?;
        let offers = |name: &str| mechanisms.iter().any(|m| m == name);
        let policy = self.login.channel_binding;
        if offers(SCRAM_SHA_256_PLUS) && !self.login.tls {
            return Err(WireError::Scram("SCRAM-SHA-256-PLUS is offered on a connection without TLS".to_owned()));
        }
        let end_point = self.login.end_point.clone().filter(|_| policy != ChannelBindingPolicy::Disable);
        let (mechanism, binding) = match end_point {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                self.bound = true;
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
            }
            _ if policy == ChannelBindingPolicy::Require => {
                let why = match (self.login.tls, &self.login.end_point) {
                    (false, _) => "the connection is not encrypted",
                    (true, None) => "the signature algorithm of the server's certificate defines no hash for it",
                    (true, Some(_)) => "the server does not offer SCRAM-SHA-256-PLUS",
                };
                return Err(WireError::ChannelBinding(why));
            }
            // "y": we could bind, and believe that the server cannot; a server that can knows of the downgrade.
            Some(_) if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => return Err(WireError::Authentication { method: format!("SASL ({})", mechanisms.join(", ")) }),
        };
        let scram = Box::new(ScramSha256::new(self.password()?.as_bytes(), binding));
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out.bytes)
            .map_err(|e| WireError::Scram(e.to_string()))?;
        Ok(scram)
    }
}

impl Machine for Startup {
    type Event = ();

    fn is_startup(&self) -> bool {
        !matches!(self.state, State::Authenticated | State::Ready)
    }

    fn take(&mut self, message: Message, out: &mut Outbox) -> Result<Option<()>, WireError> {
        match (&self.state, message) {
            (State::Ready, message) => Err(message.out_of_place(self.state_name())),
            (_, Message::Error(error)) => Err(WireError::Server { error: fatal(error), ready: false }),
            (State::Authenticated, Message::BackendKeyData) => Ok(None),
            (State::Authenticated, Message::ReadyForQuery) => {
                self.state = State::Ready;
                Ok(Some(()))
            }
            (State::Authenticated, message) => Err(message.out_of_place(self.state_name())),
            (_, Message::Authentication(request)) => self.request(request, out).map(|()| None),
            (_, message) => Err(message.out_of_place(self.state_name())),
        }
    }
}

/// Any error before ReadyForQuery ends the session, whatever severity it claims.
fn fatal(mut error: Box<ServerError>) -> Box<ServerError> {
    if !error.is_fatal() {
        error.severity = "FATAL".to_owned();
    }
    error
}
