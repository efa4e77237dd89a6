//! What can go wrong in a conversation: the server says so, or what it says makes no sense.

use std::fmt;

use crate::pg::Lsn;

/// An ErrorResponse or NoticeResponse (`protocol-error-fields`). Texts may be in the server's language; `sqlstate` and `routine` never are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Not translated (field `V`): ERROR, FATAL, PANIC, WARNING, NOTICE, DEBUG, INFO, LOG.
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The C function that raised it.
    pub routine: Option<String>,
}

impl ServerError {
    /// The server ends the connection after it: no ReadyForQuery follows.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// Whether `name` is the function in the server's source that raised it.
    pub fn is_from(&self, name: &str) -> bool {
        self.routine.as_deref() == Some(name)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.sqlstate, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

/// Why a conversation cannot go on (or, for [`WireError::Server`] with `ready`, why one command failed).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{error}")]
    Server {
        error: Box<ServerError>,
        /// ReadyForQuery came after it: the connection takes the next command.
        ready: bool,
    },
    #[error("unknown message type {tag:#04x} from the server")]
    UnknownTag { tag: u8 },
    #[error("message {name} of {length} bytes from the server: expected {min} to {max}")]
    Length { name: &'static str, length: u64, min: u64, max: u64 },
    #[error("malformed message {name} from the server: {problem}")]
    Malformed { name: &'static str, problem: String },
    #[error("message {message} from the server has no place in the state \"{state}\"")]
    OutOfPlace { message: &'static str, state: &'static str },
    #[error("unexpected answer to {command}: {problem}")]
    Answer { command: &'static str, problem: String },
    #[error("WAL does not continue: expected data at {expected}, the server sent data at {found}")]
    Discontinuity { expected: Lsn, found: Lsn },
    #[error("the server asks for {method} authentication, which is not supported")]
    Authentication { method: String },
    #[error("the server asks for a password and none is given")]
    NoPassword,
    #[error("SCRAM authentication: {0}")]
    Scram(String),
    #[error("channel binding is required, and {0}")]
    ChannelBinding(&'static str),
    #[error("require_auth={allowed} does not allow what the server asks for: {asked}")]
    RequireAuth { allowed: String, asked: &'static str },
    #[error("{what} must not contain {found}")]
    Text { what: &'static str, found: &'static str },
}

impl WireError {
    pub(super) fn malformed(name: &'static str, problem: impl fmt::Display) -> WireError {
        WireError::Malformed { name, problem: problem.to_string() }
    }

    pub(super) fn answer(command: &'static str, problem: impl fmt::Display) -> WireError {
        WireError::Answer { command, problem: problem.to_string() }
    }
}
