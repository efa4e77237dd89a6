//! An S3 server that is far away: the emulator behind a proxy that holds every byte of the way there back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::Moto;

pub const DELAY: Duration = Duration::from_millis(50);

/// The storage emulator behind a proxy that delays what goes to it.
pub struct Store {
    pub moto: Moto,
    port: u16,
}

impl Store {
    pub fn start() -> Store {
        let moto = Moto::start();
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let (port, behind) = (listener.local_addr().expect("an address").port(), moto.port());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", behind)).expect("reach the storage emulator");
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let pairs = client.try_clone().and_then(|c| Ok((c, server.try_clone()?)));
                let (to_client, from_server) = pairs.expect("share a socket");
                std::thread::spawn(move || delayed(client, server));
                std::thread::spawn(move || pump(from_server, to_client));
            }
        });
        Store { moto, port }
    }

    pub fn env(&self) -> Vec<(&'static str, String)> {
        let mut env = self.moto.env();
        let through = format!("http://127.0.0.1:{}", self.port);
        env.iter_mut().filter(|(name, _)| name.starts_with("AWS_ENDPOINT")).for_each(|(_, url)| *url = through.clone());
        env
    }
}

/// Passes bytes on [`DELAY`] after they came; how many are under way is not limited, as on a long line.
fn delayed(mut from: TcpStream, mut to: TcpStream) {
    let (send, receive) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        for (due, bytes) in receive {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; 256 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || send.send((Instant::now() + DELAY, buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
