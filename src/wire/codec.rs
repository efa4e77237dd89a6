//! Messages of the frontend/backend protocol 3.0: cut from a byte stream, bounded in length, fully checked before a machine sees them.
//!
//! Parsing is postgres-protocol's, except CopyBothResponse, which it does not know.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{backend, frontend};

use super::error::{ServerError, WireError};

/// Type byte and length word.
const HEADER: usize = 5;
/// Longest message of a type that libpq does not list as long (`VALID_LONG_MESSAGE_TYPE`, `fe-protocol3.c`).
const SHORT: u32 = 30_000;
/// Longest row, notice or description: a history file or a settings row is far below.
const LONG: u32 = 64 << 20;
/// Longest CopyData: the server sends at most 16 WAL pages (1 MiB with 64 KiB pages) or 32 KiB of a backup.
const COPY: u32 = 64 << 20;
/// Longest authentication request before login (libpq refuses more than 2000 bytes).
const AUTHENTICATION: u32 = 2_000;
/// Notices kept for the driver between two polls; more are dropped.
const NOTICES: usize = 64;

/// An authentication request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    Ok,
    CleartextPassword,
    Md5Password { salt: [u8; 4] },
    Sasl { mechanisms: Vec<String> },
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    Unsupported(&'static str),
}

/// A backend message, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Authentication(Authentication),
    BackendKeyData,
    ParameterStatus {
        name: String,
        value: String,
    },
    ReadyForQuery,
    Error(Box<ServerError>),
    Notice(Box<ServerError>),
    /// Column names.
    RowDescription(Vec<String>),
    DataRow(Vec<Option<Bytes>>),
    CommandComplete(String),
    CopyInResponse,
    CopyOutResponse,
    CopyBothResponse,
    CopyData(Bytes),
    CopyDone,
    EmptyQueryResponse,
    /// Types that only the extended protocol, LISTEN or a newer protocol version know.
    Other(&'static str),
}

impl Message {
    pub fn name(&self) -> &'static str {
        match self {
            Message::Authentication(_) => "Authentication",
            Message::BackendKeyData => "BackendKeyData",
            Message::ParameterStatus { .. } => "ParameterStatus",
            Message::ReadyForQuery => "ReadyForQuery",
            Message::Error(_) => "ErrorResponse",
            Message::Notice(_) => "NoticeResponse",
            Message::RowDescription(_) => "RowDescription",
            Message::DataRow(_) => "DataRow",
            Message::CommandComplete(_) => "CommandComplete",
            Message::CopyInResponse => "CopyInResponse",
            Message::CopyOutResponse => "CopyOutResponse",
            Message::CopyBothResponse => "CopyBothResponse",
            Message::CopyData(_) => "CopyData",
            Message::CopyDone => "CopyDone",
            Message::EmptyQueryResponse => "EmptyQueryResponse",
            Message::Other(name) => name,
        }
    }

    /// The refusal of this message in `state`.
    pub(super) fn out_of_place(&self, state: &'static str) -> WireError {
        WireError::OutOfPlace { message: self.name(), state }
    }
}

/// What a machine leaves for its driver: bytes to send, and what the server said beside the conversation.
#[derive(Debug, Default)]
pub struct Outbox {
    pub bytes: BytesMut,
    pub notices: Vec<ServerError>,
    /// The newest value of every reported parameter.
    pub parameters: BTreeMap<String, String>,
}

impl Outbox {
    /// Says goodbye: the server closes the connection.
    pub fn terminate(&mut self) {
        frontend::terminate(&mut self.bytes);
    }
}

/// A part of the conversation: eats messages until it has an event.
pub trait Machine {
    type Event;

    /// Takes one message that is not an aside.
    fn take(&mut self, message: Message, out: &mut Outbox) -> Result<Option<Self::Event>, WireError>;

    /// Whether the session is still before its first ReadyForQuery; then only a few short messages are legal.
    fn is_startup(&self) -> bool {
        false
    }

    /// Takes whole messages from `input` up to the first event; `None` when more bytes are needed.
    fn poll(&mut self, input: &mut BytesMut, out: &mut Outbox) -> Result<Option<Self::Event>, WireError> {
        loop {
            // Before the login is done nothing is said beside the conversation.
            let startup = self.is_startup();
            let Some(message) = decode_in(input, startup)? else { return Ok(None) };
            match message {
                message if startup => {
                    if let Some(event) = self.take(message, out)? {
                        return Ok(Some(event));
                    }
                }
                Message::Notice(notice) if out.notices.len() < NOTICES => out.notices.push(*notice),
                Message::Notice(_) => {}
                Message::ParameterStatus { name, value } => {
                    out.parameters.insert(name, value);
                }
                message => {
                    if let Some(event) = self.take(message, out)? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }
}

/// Length in bytes of the message that begins in `input` (header included), once its header is there. Refuses unknown types and lengths out of
/// bounds, so that nothing is buffered for a message that cannot be legal.
pub fn message_length(input: &[u8], startup: bool) -> Result<Option<usize>, WireError> {
    let (Some(&tag), Some(word)) = (input.first(), input.get(1..HEADER)) else { return Ok(None) };
    let mut bytes = [0u8; 4];
    bytes.copy_from_slice(word);
    let length = u32::from_be_bytes(bytes);
    let name = tag_name(tag).ok_or(WireError::UnknownTag { tag })?;
    let max = match tag {
        b'R' => AUTHENTICATION,
        _ if startup => SHORT,
        b'd' => COPY,
        b'T' | b'D' | b'E' | b'N' | b'A' => LONG,
        _ => SHORT,
    };
    if length < 4 || length > max {
        return Err(WireError::Length { name, length: length.into(), min: 4, max: max.into() });
    }
    Ok(Some(length as usize + 1))
}

/// Cuts the next whole message from `input`; `None` when more bytes are needed.
pub fn decode(input: &mut BytesMut) -> Result<Option<Message>, WireError> {
    decode_in(input, false)
}

fn decode_in(input: &mut BytesMut, startup: bool) -> Result<Option<Message>, WireError> {
    let Some(total) = message_length(input, startup)? else { return Ok(None) };
    if input.len() < total {
        return Ok(None);
    }
    let tag = input.first().copied().unwrap_or_default();
    let name = tag_name(tag).ok_or(WireError::UnknownTag { tag })?;
    // The hot path, and the types that postgres-protocol does not know.
    if matches!(tag, b'd' | b'W' | b'v' | b'V') {
        let body = input.split_to(total).freeze().slice(HEADER..);
        return match tag {
            b'd' => Ok(Some(Message::CopyData(body))),
            b'W' => copy_both(&body).map(Some),
            _ => Ok(Some(Message::Other(name))),
        };
    }
    match backend::Message::parse(input) {
        Ok(Some(message)) => convert(message, name).map(Some),
        Ok(None) => Err(WireError::malformed(name, "incomplete")),
        Err(error) => Err(WireError::malformed(name, error)),
    }
}

fn tag_name(tag: u8) -> Option<&'static str> {
    Some(match tag {
        b'1' => "ParseComplete",
        b'2' => "BindComplete",
        b'3' => "CloseComplete",
        b'A' => "NotificationResponse",
        b'c' => "CopyDone",
        b'C' => "CommandComplete",
        b'd' => "CopyData",
        b'D' => "DataRow",
        b'E' => "ErrorResponse",
        b'G' => "CopyInResponse",
        b'H' => "CopyOutResponse",
        b'I' => "EmptyQueryResponse",
        b'K' => "BackendKeyData",
        b'n' => "NoData",
        b'N' => "NoticeResponse",
        b'R' => "Authentication",
        b's' => "PortalSuspended",
        b'S' => "ParameterStatus",
        b't' => "ParameterDescription",
        b'T' => "RowDescription",
        b'v' => "NegotiateProtocolVersion",
        b'V' => "FunctionCallResponse",
        b'W' => "CopyBothResponse",
        b'Z' => "ReadyForQuery",
        _ => return None,
    })
}

/// Overall format (0 = text) and a count of columns with one format each; a physical stream has none.
fn copy_both(body: &[u8]) -> Result<Message, WireError> {
    match body {
        [0, 0, 0] => Ok(Message::CopyBothResponse),
        other => {
            Err(WireError::malformed("CopyBothResponse", format!("expected the bytes 00 00 00, found {other:02x?}")))
        }
    }
}

fn convert(message: backend::Message, name: &'static str) -> Result<Message, WireError> {
    use backend::Message as M;
    let bad = |error: std::io::Error| WireError::malformed(name, error);
    Ok(match message {
        M::CopyDone => Message::CopyDone,
        M::EmptyQueryResponse => Message::EmptyQueryResponse,
        M::BackendKeyData(_) => Message::BackendKeyData,
        M::ParameterStatus(body) => Message::ParameterStatus {
            name: body.name().map_err(bad)?.to_owned(),
            value: body.value().map_err(bad)?.to_owned(),
        },
        M::ReadyForQuery(body) if matches!(body.status(), b'I' | b'T' | b'E') => Message::ReadyForQuery,
        M::ReadyForQuery(body) => return Err(WireError::malformed(name, format!("status {:#04x}", body.status()))),
        M::ErrorResponse(body) => Message::Error(Box::new(report(body.fields()).map_err(bad)?)),
        M::NoticeResponse(body) => Message::Notice(Box::new(report(body.fields()).map_err(bad)?)),
        M::RowDescription(body) => {
            Message::RowDescription(body.fields().map(|field| Ok(field.name().to_owned())).collect().map_err(bad)?)
        }
        M::DataRow(body) => {
            let buffer = body.buffer_bytes();
            let slice = |range: Option<std::ops::Range<usize>>| Ok(range.map(|r| buffer.slice(r)));
            Message::DataRow(body.ranges().map(slice).collect().map_err(bad)?)
        }
        M::CommandComplete(body) => Message::CommandComplete(body.tag().map_err(bad)?.to_owned()),
        M::CopyInResponse(body) => {
            body.column_formats().count().map_err(bad)?;
            Message::CopyInResponse
        }
        M::CopyOutResponse(body) => {
            body.column_formats().count().map_err(bad)?;
            Message::CopyOutResponse
        }
        M::CopyData(body) => Message::CopyData(body.into_bytes()),
        M::ParseComplete
        | M::BindComplete
        | M::CloseComplete
        | M::NoData
        | M::PortalSuspended
        | M::NotificationResponse(_)
        | M::ParameterDescription(_) => Message::Other(name),
        other => Message::Authentication(authentication(other)?),
    })
}

fn authentication(message: backend::Message) -> Result<Authentication, WireError> {
    use backend::Message as M;
    Ok(match message {
        M::AuthenticationOk => Authentication::Ok,
        M::AuthenticationCleartextPassword => Authentication::CleartextPassword,
        M::AuthenticationMd5Password(body) => Authentication::Md5Password { salt: body.salt() },
        M::AuthenticationSasl(body) => {
            let mechanisms = body.mechanisms().map(|m| Ok(m.to_owned())).collect();
            Authentication::Sasl { mechanisms: mechanisms.map_err(|e| WireError::malformed("Authentication", e))? }
        }
        M::AuthenticationSaslContinue(body) => Authentication::SaslContinue(Bytes::copy_from_slice(body.data())),
        M::AuthenticationSaslFinal(body) => Authentication::SaslFinal(Bytes::copy_from_slice(body.data())),
        M::AuthenticationGss | M::AuthenticationGssContinue(_) => Authentication::Unsupported("GSSAPI"),
        M::AuthenticationSspi => Authentication::Unsupported("SSPI"),
        M::AuthenticationKerberosV5 => Authentication::Unsupported("Kerberos 5"),
        M::AuthenticationScmCredential => Authentication::Unsupported("SCM credential"),
        _ => return Err(WireError::malformed("Authentication", "unknown request")),
    })
}

fn report(mut fields: backend::ErrorFields<'_>) -> std::io::Result<ServerError> {
    let mut report = ServerError::default();
    let mut local_severity = String::new();
    while let Some(field) = fields.next()? {
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'S' => local_severity = text,
            b'V' => report.severity = text,
            b'C' => report.sqlstate = text,
            b'M' => report.message = text,
            b'D' => report.detail = Some(text),
            b'H' => report.hint = Some(text),
            b'R' => report.routine = Some(text),
            _ => {}
        }
    }
    if report.severity.is_empty() {
        report.severity = local_severity;
    }
    Ok(report)
}
