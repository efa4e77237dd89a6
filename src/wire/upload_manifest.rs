//! UPLOAD_MANIFEST (17+): the manifest of an earlier backup for the next incremental one (`walsender.c:UploadManifest`).
//!
//! The server may refuse at any byte: it reads the manifest in pieces of 128 KiB, and again at the end. What is sent after its refusal it passes over.

use bytes::{BufMut, BytesMut};

use super::codec::{Machine, Message, Outbox};
use super::command;
use super::error::{ServerError, WireError};
use crate::pg::MajorVersion;

/// Longest CopyData that is sent: the server takes less than its own buffer of messages at once, and our own memory is spared.
pub const CHUNK: usize = 64 << 10;

/// What the driver learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadEvent {
    /// The server waits for the manifest.
    Ready,
    /// The server has taken all of it.
    Complete,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Sent,
    /// CopyInResponse was read.
    Copying,
    /// CopyDone or CopyFail was sent.
    Ending,
    /// CommandComplete was read.
    Completed,
    Failed(Box<ServerError>),
    Done,
}

/// The machine of one upload.
#[derive(Debug)]
pub struct UploadManifest {
    state: State,
}

impl UploadManifest {
    /// Sends UPLOAD_MANIFEST; servers before 17 do not know it.
    pub fn begin(version: MajorVersion, out: &mut Outbox) -> Result<UploadManifest, WireError> {
        if version < MajorVersion::V17 {
            return Err(WireError::Text { what: "the conversation with a server before 17", found: "UPLOAD_MANIFEST" });
        }
        command::send("UPLOAD_MANIFEST", out)?;
        Ok(UploadManifest { state: State::Sent })
    }

    /// The connection takes commands again.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Adds the next bytes of the manifest, at most [`CHUNK`] of them. Nothing is added after the server has refused.
    pub fn data(&self, bytes: &[u8], out: &mut Outbox) {
        if self.state == State::Copying && !bytes.is_empty() {
            message(b'd', bytes, &mut out.bytes);
        }
    }

    /// Says that the manifest has ended.
    pub fn end(&mut self, out: &mut Outbox) {
        if self.state == State::Copying {
            message(b'c', &[], &mut out.bytes);
            self.state = State::Ending;
        }
    }

    /// Gives up what was begun: the server refuses it then, and takes the next command.
    pub fn fail(&mut self, out: &mut Outbox) {
        if self.state == State::Copying {
            message(b'f', b"not all of it can be read\0", &mut out.bytes);
            self.state = State::Ending;
        }
    }

    /// The server has refused the manifest; ReadyForQuery follows.
    pub fn is_refused(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    fn state_name(&self) -> &'static str {
        match &self.state {
            State::Sent => "UPLOAD_MANIFEST sent",
            State::Copying => "sending a manifest",
            State::Ending => "manifest sent",
            State::Completed => "manifest taken",
            State::Failed(_) => "upload failed",
            State::Done => "upload over",
        }
    }
}

fn message(tag: u8, body: &[u8], out: &mut BytesMut) {
    out.reserve(5 + body.len());
    out.put_u8(tag);
    out.put_u32(4 + body.len() as u32);
    out.put_slice(body);
}

impl Machine for UploadManifest {
    type Event = UploadEvent;

    fn take(&mut self, message: Message, _out: &mut Outbox) -> Result<Option<UploadEvent>, WireError> {
        let state = std::mem::replace(&mut self.state, State::Done);
        let (next, event) = match (state, message) {
            (State::Done, message) => return Err(message.out_of_place("upload over")),
            (_, Message::Error(error)) if error.is_fatal() => return Err(WireError::Server { error, ready: false }),
            (State::Failed(error), Message::ReadyForQuery) => return Err(WireError::Server { error, ready: true }),
            (State::Sent, Message::CopyInResponse) => (State::Copying, Some(UploadEvent::Ready)),
            (State::Ending, Message::CommandComplete(_)) => (State::Completed, None),
            (State::Completed, Message::ReadyForQuery) => (State::Done, Some(UploadEvent::Complete)),
            (State::Sent | State::Copying | State::Ending | State::Completed, Message::Error(error)) => {
                (State::Failed(error), None)
            }
            (state, message) => {
                self.state = state;
                return Err(message.out_of_place(self.state_name()));
            }
        };
        self.state = next;
        Ok(event)
    }
}
