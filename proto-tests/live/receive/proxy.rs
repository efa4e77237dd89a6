//! A TCP proxy between receiver and server that damages what passes: one bit behind each marker.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a test writes into a table where the wire shall be bad.
pub const MARKER: &str = "flip-a-bit-after-this:";

/// Runs until the test program ends.
pub struct Proxy {
    pub port: u16,
    left: Arc<AtomicU32>,
}

impl Proxy {
    /// Damages the first `times` markers that pass from the server.
    pub fn start(server_port: u16, times: u32) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let left = Arc::new(AtomicU32::new(times));
        let shared = left.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) else { continue };
                let (a, b) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
                std::thread::spawn(move || pump(a, server, &AtomicU32::new(0)));
                let left = shared.clone();
                std::thread::spawn(move || pump(b, client, &left));
            }
        });
        Proxy { port, left }
    }

    /// Markers that were not damaged yet.
    pub fn left(&self) -> u32 {
        self.left.load(Ordering::SeqCst)
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, left: &AtomicU32) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 {
            break;
        }
        damage(&mut buffer[..n], left);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

fn damage(bytes: &mut [u8], left: &AtomicU32) {
    let marker = MARKER.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.windows(marker.len()).position(|w| w == marker)) {
        at += found + marker.len();
        let one_less = |n: u32| n.checked_sub(1);
        if at < bytes.len() && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            bytes[at] ^= 4;
        }
    }
}
