//! A Unix socket that wakes its reader only when there is something to read.
//!
//! Linux tells whoever waits for both directions each time the other side has taken what was sent to it (`unix_write_space`). A receiver that answers every
//! commit would be woken for each of its answers, and the server, while it reads one, would have to do that before it lets the commit go.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The socket. While it takes what is sent at once, nobody waits for that.
pub(super) struct Quiet {
    stream: AsyncFd<UnixStream>,
    /// Another descriptor of it, while it is full.
    full: Option<AsyncFd<UnixStream>>,
}

impl Quiet {
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Quiet> {
        Ok(Quiet { stream: watched(stream.into_std()?, Interest::READABLE)?, full: None })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match SockRef::from(self.stream.get_ref()).send(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }

    /// Waits until a full socket takes something again.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let full = match self.full.take() {
                Some(full) => full,
                None => watched(self.stream.get_ref().try_clone()?, Interest::WRITABLE)?,
            };
            let full = self.full.insert(full);
            let mut ready = ready!(full.poll_write_ready(cx))?;
            match SockRef::from(ready.get_inner()).send(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => {
                    drop(ready);
                    self.full = None;
                    return Poll::Ready(sent);
                }
            }
        }
    }
}

fn watched(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: the socket owns its descriptor, which stays open, and the same, for as long as the registration that owns the socket.
    unsafe { AsyncFd::register_with_interest(stream, interest) }.map_err(io::Error::from)
}

impl AsyncRead for Quiet {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.stream.poll_read_ready(cx))?;
            // SAFETY: nothing that was initialised is made uninitialised: `recv` only writes received bytes there.
            let room = unsafe { buf.unfilled_mut() };
            match SockRef::from(ready.get_inner()).recv(room) {
                Ok(count) => {
                    // Less than there was room for: that was all.
                    if count > 0 && count < room.len() {
                        ready.clear_ready();
                    }
                    // SAFETY: `recv` has written this many bytes.
                    unsafe { buf.assume_init(count) };
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let quiet = self.get_mut();
        if quiet.full.is_none() {
            match quiet.send(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
        quiet.poll_send(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.get_ref().shutdown(Shutdown::Write) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream as Peer;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Much more than the socket holds, both ways at once and in uneven pieces; then the end.
    #[tokio::test]
    async fn carries_every_byte_both_ways_though_it_is_full_again_and_again() {
        let (ours, peer) = Peer::pair().unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let (mut theirs_in, mut theirs_out) = peer.into_split();
        let (mut ours_in, mut ours_out) = tokio::io::split(Quiet::new(ours).unwrap());
        let (back, there) = (sent.clone(), sent.clone());
        let there = tokio::spawn(async move {
            for piece in there.chunks(70_001) {
                ours_out.write_all(piece).await.unwrap();
            }
            ours_out.shutdown().await.unwrap();
        });
        let back = tokio::spawn(async move { theirs_out.write_all(&back).await.unwrap() });
        let taken = tokio::spawn(async move {
            let mut taken = Vec::new();
            // It is full by now.
            tokio::time::sleep(Duration::from_millis(20)).await;
            theirs_in.read_to_end(&mut taken).await.unwrap();
            taken
        });
        let mut received = vec![0; sent.len()];
        timeout(LONG, ours_in.read_exact(&mut received)).await.expect("all that was sent").unwrap();
        assert!(received == sent && timeout(LONG, taken).await.expect("all that was sent").unwrap() == sent);
        timeout(LONG, async { (there.await.unwrap(), back.await.unwrap()) }).await.unwrap();
        assert_eq!(timeout(LONG, ours_in.read(&mut received)).await.expect("the end").unwrap(), 0);
    }

    /// What was there before anybody waited is found, and so is the end.
    #[tokio::test]
    async fn bytes_and_an_end_that_came_early_are_read() {
        let (ours, mut peer) = Peer::pair().unwrap();
        peer.write_all(b"early").await.unwrap();
        drop(peer);
        let mut quiet = Quiet::new(ours).unwrap();
        let mut received = Vec::new();
        timeout(LONG, quiet.read_to_end(&mut received)).await.expect("the end").unwrap();
        assert_eq!(received, b"early");
        assert!(quiet.write_all(b"x").await.is_err());
    }
}
