//! The one error type of the jobs: what happened, how it may be treated, what to do now.
//!
//! Floors 0 and 1 have small enums of their own and know nothing of this one. From floor 2 upwards everything
//! returns [`Error`]: a [`Kind`] (which the exit-code table turns into a status), a [`Class`] (which decides
//! whether a loop may try again), a message for the log, and one sentence of advice for the person.

use std::fmt;

/// Result of every fallible function from floor 2 upwards.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a closed list. `cli::exit` maps each kind to its documented exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anything without a code of its own. In `wal-fetch` never used for "could not find out".
    Failed,
    /// Wrong usage, or the target directory is occupied.
    Usage,
    /// No repository there, or it cannot be used (unreachable, unwritable, not ours).
    Repository,
    /// A backup or an expiry is already running.
    Busy,
    /// Wrong or missing key.
    Key,
    /// Another cluster, or a history that differs from the stored one.
    Diverged,
    /// The server's version is not supported.
    Version,
    /// WAL that must exist does not.
    Gap,
    /// Bytes that are damaged or were not written by a holder of the keys.
    Corrupt,
    /// The server is unreachable, refused, or is not set up for streaming.
    Server,
    /// The replication slot is missing, or the WAL it should hold is gone.
    Slot,
    /// The recovery target cannot be reached.
    Target,
    /// Retention refuses.
    Retention,
    /// Stopped by a signal.
    Interrupted,
}

/// How a caller may treat an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May pass by itself: retry with backoff.
    Transient,
    /// Will not pass by itself: end the job.
    Permanent,
    /// A sync failed: what stands there is not known to be durable, and a second attempt may succeed without having written it.
    /// End the job, never retry, never take for a refusal that may pass.
    Unsynced,
    /// Stored or received bytes are wrong: end the job, acknowledge nothing, never retry into silence.
    Corrupt,
}

/// An error with everything that a log, an exit code and a person need.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    class: Class,
    message: String,
    hint: Option<String>,
    sqlstate: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A permanent error of `kind` ([`Class::Corrupt`] when the kind is [`Kind::Corrupt`]). The message is in lower
    /// case, without a full stop, and says what was expected, what was found and where.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        let class = if kind == Kind::Corrupt { Class::Corrupt } else { Class::Permanent };
        Error {
            inner: Box::new(Inner { kind, class, message: message.into(), hint: None, sqlstate: None, source: None }),
        }
    }

    /// Marks the error as one that may pass by itself.
    pub fn transient(mut self) -> Error {
        self.inner.class = Class::Transient;
        self
    }

    /// Marks the error as a failed sync.
    pub fn unsynced(mut self) -> Error {
        self.inner.class = Class::Unsynced;
        self
    }

    /// Adds one sentence that says what to do now.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.inner.hint = Some(hint.into());
        self
    }

    /// As [`Error::hint`], where there is no advice yet.
    pub fn or_hint(self, hint: &str) -> Error {
        if self.advice().is_some() { self } else { self.hint(hint) }
    }

    /// Keeps the SQLSTATE of a server's refusal.
    pub fn of_sqlstate(mut self, sqlstate: impl Into<String>) -> Error {
        self.inner.sqlstate = Some(sqlstate.into());
        self
    }

    /// Keeps the error that led to this one.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.inner.source = Some(source.into());
        self
    }

    /// The same error as one of another kind; class, words, advice and cause stay.
    pub fn recast(mut self, kind: Kind) -> Error {
        self.inner.kind = kind;
        self
    }

    /// Puts what was being done before the message: `context: message`.
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.inner.message = format!("{context}: {}", self.inner.message);
        self
    }

    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    pub fn class(&self) -> Class {
        self.inner.class
    }

    pub fn is_transient(&self) -> bool {
        self.inner.class == Class::Transient
    }

    /// The SQLSTATE, where this is a server's refusal.
    pub fn sqlstate(&self) -> Option<&str> {
        self.inner.sqlstate.as_deref()
    }

    /// Whether a disk could not read or write what it has (EIO): a bad sector, unless the way to the disk is bad for a moment.
    pub fn is_of_the_disk(&self) -> bool {
        const EIO: i32 = 5;
        let mut cause = self.inner.source.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static));
        while let Some(error) = cause {
            if let Some(own) = error.downcast_ref::<Error>() {
                return own.is_of_the_disk();
            }
            if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.raw_os_error() == Some(EIO)) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The advice, where there is one.
    pub fn advice(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        let mut cause = self.inner.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The causes are part of the text (`Display`), so no `source` is offered: a chain printer would repeat them.
impl std::error::Error for Error {}

/// Adds context to the error of a result.
pub trait Context<T> {
    fn context(self, context: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.context(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_carries_context_and_causes_once() {
        let error = Error::new(Kind::Repository, "cannot write")
            .caused_by(std::io::Error::other("disk full"))
            .context("segment 000000010000000000000001");
        assert_eq!(error.to_string(), "segment 000000010000000000000001: cannot write: disk full");
        assert!(std::error::Error::source(&error).is_none());
    }

    #[test]
    fn corrupt_is_a_class_of_its_own() {
        assert_eq!(Error::new(Kind::Corrupt, "x").class(), Class::Corrupt);
        assert_eq!(Error::new(Kind::Server, "x").class(), Class::Permanent);
        assert!(Error::new(Kind::Server, "x").transient().is_transient());
    }
}
