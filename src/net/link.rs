//! Bytes between a socket and a machine of `wire`. Every wait is cancel safe: all state is in the link and the machine.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::wire::codec::{Machine, Outbox, message_length};
use crate::wire::error::WireError;

/// Any kind of socket.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// First and largest room for one read. An idle connection stays small, a stream reaches the largest within a few reads.
const FIRST_READ: usize = 8 << 10;
const LARGEST_READ: usize = 512 << 10;
/// Unsent bytes at which a socket counts as stuck: more than a thousand status updates.
const UNSENT: usize = 64 << 10;

/// Why the conversation stopped.
#[derive(Debug)]
pub(super) enum LinkError {
    Wire(WireError),
    Io(io::Error),
    /// The server closed the connection.
    Closed,
    /// Our messages could not be sent in time.
    Stuck,
    /// The caller asked for what the connection is not doing.
    Misuse(&'static str),
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> LinkError {
        LinkError::Wire(error)
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        use io::ErrorKind as K;
        match error.kind() {
            // TLS calls it unexpected when the server exits without a farewell, as it does after a fatal error.
            K::UnexpectedEof | K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted => LinkError::Closed,
            _ => LinkError::Io(error),
        }
    }
}

pub(super) struct Link {
    stream: Box<dyn Stream>,
    input: BytesMut,
    pub(super) out: Outbox,
    /// Bytes were given to the stream and not yet flushed (TLS keeps them).
    unflushed: bool,
    room: usize,
}

impl Link {
    pub(super) fn new(stream: Box<dyn Stream>) -> Link {
        Link { stream, input: BytesMut::new(), out: Outbox::default(), unflushed: false, room: FIRST_READ }
    }

    /// Sends what is due and reads until `machine` has an event. Cancel safe.
    pub(super) async fn event<M: Machine>(&mut self, machine: &mut M) -> Result<M::Event, LinkError> {
        loop {
            let event = machine.poll(&mut self.input, &mut self.out);
            self.tell_notices();
            if let Some(event) = event? {
                return Ok(event);
            }
            self.make_room();
            std::future::poll_fn(|cx| self.poll_exchange(cx)).await?;
        }
    }

    /// Sends everything that is due, and listens meanwhile: an event that comes before all is sent. Cancel safe.
    pub(super) async fn deliver<M: Machine>(&mut self, machine: &mut M) -> Result<Option<M::Event>, LinkError> {
        loop {
            let event = machine.poll(&mut self.input, &mut self.out);
            self.tell_notices();
            if let Some(event) = event? {
                return Ok(Some(event));
            }
            if self.out.bytes.is_empty() && !self.unflushed {
                return Ok(None);
            }
            self.make_room();
            std::future::poll_fn(|cx| match self.poll_exchange(cx) {
                Poll::Pending if self.out.bytes.is_empty() && !self.unflushed => Poll::Ready(Ok(())),
                ready => ready,
            })
            .await?;
        }
    }

    /// Sends everything that is due, at most for `limit`. Cancel safe; what is unsent stays due.
    pub(super) async fn send(&mut self, limit: Duration) -> Result<(), LinkError> {
        if self.out.bytes.len() > UNSENT {
            return Err(LinkError::Stuck);
        }
        let sent = std::future::poll_fn(|cx| self.poll_send(cx));
        tokio::time::timeout(limit, sent).await.map_err(|_| LinkError::Stuck)?.map_err(LinkError::from)
    }

    /// Says goodbye and closes; best effort.
    pub(super) async fn close(mut self, limit: Duration) {
        self.out.terminate();
        let farewell = async {
            std::future::poll_fn(|cx| self.poll_send(cx)).await?;
            self.stream.shutdown().await
        };
        let _: Result<io::Result<()>, _> = tokio::time::timeout(limit, farewell).await;
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.bytes.is_empty() {
            self.unflushed = true;
            let written = pin!(self.stream.write_buf(&mut self.out.bytes)).poll(cx);
            match std::task::ready!(written) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if self.unflushed {
            std::task::ready!(pin!(self.stream.flush()).poll(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready after a read. A server that does not take our bytes must not keep us from taking its own, and the other way round.
    fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let sent = match self.poll_send(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        };
        // What the server said before it closed comes first: it tells why.
        match (pin!(self.stream.read_buf(&mut self.input)).poll(cx), sent) {
            (Poll::Ready(Ok(0)), _) => Poll::Ready(Err(LinkError::Closed)),
            (Poll::Ready(Ok(count)), _) => {
                if count >= self.room {
                    self.room = (self.room * 4).min(LARGEST_READ);
                }
                Poll::Ready(Ok(()))
            }
            (Poll::Ready(Err(error)), _) | (Poll::Pending, Err(error)) => Poll::Ready(Err(error.into())),
            (Poll::Pending, Ok(())) => Poll::Pending,
        }
    }

    /// Room for one large read. A message that does not fit grows the buffer as its bytes come, never by the length that it claims.
    fn make_room(&mut self) {
        let missing = match message_length(&self.input, false) {
            Ok(Some(total)) => total.saturating_sub(self.input.len()).min(LARGEST_READ),
            _ => 0,
        };
        if self.input.capacity() - self.input.len() < missing.max(self.room / 2) {
            self.input.reserve(missing.max(self.room));
        }
    }

    fn tell_notices(&mut self) {
        for notice in self.out.notices.drain(..) {
            match notice.severity.as_str() {
                "WARNING" => tracing::warn!(sqlstate = %notice.sqlstate, "server: {}", notice.message),
                _ => tracing::debug!(sqlstate = %notice.sqlstate, "server: {}", notice.message),
            }
        }
    }
}
