//! A physical WAL stream, from START_REPLICATION to ReadyForQuery (`walsender.c:StartReplication`, `WalSndLoop`, `WalSndDone`).

use super::codec::{Machine, Message, Outbox};
use super::command::{self, Rows};
use super::error::{ServerError, WireError};
use super::message::{Inner, StreamEvent};
use crate::pg::{Lsn, TimelineId};

const NAME: &str = "START_REPLICATION";

/// What the stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// CopyBothResponse: WAL may follow, and so may an error.
    Started,
    /// There is nothing to stream on this timeline: it was left exactly at the start position.
    NextTimeline {
        next: TimelineId,
        switch_point: Lsn,
    },
    Stream(StreamEvent),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// START_REPLICATION was sent.
    Requested,
    /// CopyBoth: WAL is expected at `self.expected`.
    Streaming,
    /// We sent CopyDone first; WAL that was under way is dropped.
    Ending,
    /// CopyDone was exchanged (or never needed); the result set follows. `rows` is set once RowDescription came.
    Result { rows: Option<Rows>, completes: u8, began: bool, asked: bool },
    /// An error was sent; ReadyForQuery follows.
    Failed(Box<ServerError>),
    /// The server is going away, or takes commands again.
    Done,
}

/// The machine of one stream.
#[derive(Debug)]
pub struct WalStream {
    state: State,
    timeline: TimelineId,
    expected: Lsn,
}

impl WalStream {
    /// Sends START_REPLICATION.
    pub fn begin(
        slot: Option<&str>,
        start: Lsn,
        timeline: TimelineId,
        out: &mut Outbox,
    ) -> Result<WalStream, WireError> {
        command::send(&command::start_replication_text(slot, start, timeline)?, out)?;
        Ok(WalStream { state: State::Requested, timeline, expected: start })
    }

    /// Where the next byte of WAL must begin.
    pub fn expected(&self) -> Lsn {
        self.expected
    }

    /// Whether status updates may be sent.
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// The server ended the stream for good, or takes commands again.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Sends CopyDone, unless the end has begun already; the events that follow end with `Ended` or `EndOfTimeline`.
    pub fn end(&mut self, out: &mut Outbox) {
        if self.state == State::Streaming {
            copy_done(out);
            self.state = State::Ending;
        }
    }

    fn state_name(&self) -> &'static str {
        match self.state {
            State::Requested => "START_REPLICATION sent",
            State::Streaming => "streaming",
            State::Ending => "CopyDone sent",
            State::Result { .. } => "end of the stream",
            State::Failed(_) => "stream failed",
            State::Done => "stream over",
        }
    }

    fn data(&mut self, data: bytes::Bytes) -> Result<Option<WalEvent>, WireError> {
        let event = match Inner::read(data)? {
            Inner::Wal { start, .. } if start != self.expected => {
                return Err(WireError::Discontinuity { expected: self.expected, found: start });
            }
            Inner::Wal { bytes, .. } if bytes.is_empty() => return Ok(None),
            Inner::Wal { start, wal_end, sent_at, bytes } => {
                self.expected = start
                    .checked_add(bytes.len() as u64)
                    .ok_or_else(|| WireError::malformed("XLogData", "it passes the last possible LSN"))?;
                StreamEvent::Data { start, wal_end, sent_at, bytes }
            }
            Inner::Keepalive { wal_end, sent_at, reply_requested } => {
                StreamEvent::Keepalive { wal_end, sent_at, reply_requested }
            }
        };
        Ok(Some(WalEvent::Stream(event)))
    }

    /// A message of the result set after the stream: `T D C C Z`, or `C C Z` where the timeline goes on.
    fn result(&mut self, message: Message) -> Result<Option<WalEvent>, WireError> {
        let name = self.state_name();
        let State::Result { rows, completes, began, asked } = &mut self.state else {
            return Err(message.out_of_place(name));
        };
        match message {
            // A status that asked for an answer and crossed the server's CopyDone is answered all the same (`ProcessStandbyReplyMessage`).
            Message::CopyData(data) if *began && rows.is_none() && *completes == 0 => match Inner::read(data)? {
                Inner::Keepalive { .. } => {}
                Inner::Wal { .. } => return Err(WireError::answer(NAME, "WAL came after the end of the stream")),
            },
            Message::RowDescription(columns) if rows.is_none() && *completes == 0 => {
                *rows = Some(Rows { columns, ..Rows::default() });
            }
            Message::DataRow(row) if *completes == 0 => match rows {
                Some(rows) if rows.rows.is_empty() && rows.columns.len() == row.len() => rows.rows.push(row),
                _ => return Err(Message::DataRow(row).out_of_place(name)),
            },
            // StartReplication and exec_replication_command each send one.
            Message::CommandComplete(_) if *completes < 2 => *completes += 1,
            Message::ReadyForQuery if *completes > 0 => {
                let (rows, began, asked) = (rows.take(), *began, *asked);
                self.state = State::Done;
                return self.finished(rows, began, asked).map(Some);
            }
            message => return Err(message.out_of_place(name)),
        }
        Ok(None)
    }

    fn finished(&self, rows: Option<Rows>, began: bool, asked: bool) -> Result<WalEvent, WireError> {
        let Some(rows) = rows else {
            return match asked {
                true => Ok(WalEvent::Stream(StreamEvent::Ended { shutdown: false })),
                false => Err(WireError::answer(NAME, "the stream ended without the next timeline")),
            };
        };
        let row = rows.one(NAME, 2)?;
        let next = command::timeline(NAME, row, 0)?;
        let switch_point: Lsn = command::required(NAME, row, 1)?;
        if next <= self.timeline {
            let problem = format!("timeline {next} cannot follow timeline {}", self.timeline);
            return Err(WireError::answer(NAME, problem));
        }
        Ok(match began {
            true => WalEvent::Stream(StreamEvent::EndOfTimeline { next, switch_point }),
            false => WalEvent::NextTimeline { next, switch_point },
        })
    }
}

fn copy_done(out: &mut Outbox) {
    postgres_protocol::message::frontend::copy_done(&mut out.bytes);
}

impl Machine for WalStream {
    type Event = WalEvent;

    fn take(&mut self, message: Message, out: &mut Outbox) -> Result<Option<WalEvent>, WireError> {
        let result = |began, asked| State::Result { rows: None, completes: 0, began, asked };
        match (&mut self.state, message) {
            (State::Done, message) => Err(message.out_of_place(self.state_name())),
            (State::Failed(error), Message::ReadyForQuery) => {
                let error = std::mem::take(error);
                self.state = State::Done;
                Err(WireError::Server { error, ready: true })
            }
            (_, Message::Error(error)) if error.is_fatal() => {
                self.state = State::Done;
                Err(WireError::Server { error, ready: false })
            }
            (State::Failed(_), message) => Err(message.out_of_place(self.state_name())),
            (_, Message::Error(error)) => {
                self.state = State::Failed(error);
                Ok(None)
            }
            (State::Requested, Message::CopyBothResponse) => {
                self.state = State::Streaming;
                Ok(Some(WalEvent::Started))
            }
            (State::Requested, message @ Message::RowDescription(_)) => {
                self.state = result(false, false);
                self.result(message)
            }
            (State::Streaming, Message::CopyData(data)) => self.data(data),
            (State::Ending, Message::CopyData(data)) => match self.data(data)? {
                // Keepalives are of use to a caller that waits; late WAL is not.
                Some(event @ WalEvent::Stream(StreamEvent::Keepalive { .. })) => Ok(Some(event)),
                _ => Ok(None),
            },
            (State::Streaming, Message::CopyDone) => {
                copy_done(out);
                self.state = result(true, false);
                Ok(None)
            }
            (State::Ending, Message::CopyDone) => {
                self.state = result(true, true);
                Ok(None)
            }
            // WalSndDone: all was sent and acknowledged, and the server exits without CopyDone or ReadyForQuery.
            (State::Streaming | State::Ending, Message::CommandComplete(tag)) if tag == "COPY 0" => {
                self.state = State::Done;
                Ok(Some(WalEvent::Stream(StreamEvent::Ended { shutdown: true })))
            }
            (State::Result { .. }, message) => self.result(message),
            (_, message) => Err(message.out_of_place(self.state_name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keepalive() -> Message {
        let mut body = vec![b'k'];
        body.extend([0; 16]);
        body.push(0);
        Message::CopyData(body.into())
    }

    #[test]
    fn a_keepalive_that_crosses_the_end_of_the_timeline_is_left_out_and_wal_is_not() {
        let mut out = Outbox::default();
        let mut stream = WalStream::begin(None, Lsn(0x100_0000), TimelineId(1), &mut out).unwrap();
        stream.take(Message::CopyBothResponse, &mut out).unwrap();
        assert_eq!(stream.take(Message::CopyDone, &mut out), Ok(None));
        assert_eq!(stream.take(keepalive(), &mut out), Ok(None));
        let mut wal = vec![b'w'];
        wal.extend([0; 32]);
        let refused = stream.take(Message::CopyData(wal.into()), &mut out).unwrap_err();
        assert!(refused.to_string().contains("after the end of the stream"), "{refused}");
    }
}
