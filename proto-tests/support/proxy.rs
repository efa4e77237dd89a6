//! A TCP proxy that can be as bad as a network: it stalls, trickles, cuts, resets and half-closes connections, damages what passes, and loses the answer to a
//! request that has arrived.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a pump may not notice that something changed.
const LOOK: Duration = Duration::from_millis(20);

/// A direction through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who connected to whom it is meant for.
    There,
    /// The answers.
    Back,
}

/// Gone with this value, and every connection through it.
pub struct Proxy {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    target: AtomicU32,
    refuses: AtomicBool,
    gone: AtomicBool,
    /// New connections stall too.
    stalled: AtomicBool,
    /// Bytes per second and way; 0: no limit.
    trickle: AtomicU64,
    /// What passes back is kept as long as its connection is there.
    overhears: AtomicBool,
    damage: Fault,
    /// So many messages of a stream lose their type.
    garbles: AtomicU32,
    lost: Fault,
    links: Mutex<Vec<Arc<Link>>>,
}

/// Something that happens to the next few places where a marker passes.
#[derive(Default)]
struct Fault {
    marker: Mutex<Vec<u8>>,
    left: AtomicU32,
}

impl Fault {
    fn arm(&self, marker: &str, times: u32) {
        *self.marker.lock().unwrap_or_else(PoisonError::into_inner) = marker.as_bytes().to_vec();
        self.left.store(times, Ordering::SeqCst);
    }

    fn left(&self) -> u32 {
        self.left.load(Ordering::SeqCst)
    }

    /// The ends of the markers in `bytes` that it happens to.
    fn strikes(&self, bytes: &[u8]) -> Vec<usize> {
        let marker = self.marker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut at, mut struck) = (0, Vec::new());
        while !marker.is_empty()
            && self.left() > 0
            && let Some(found) = bytes.get(at..).and_then(|rest| rest.windows(marker.len()).position(|w| w == marker))
        {
            at += found + marker.len();
            if at < bytes.len() {
                self.left.fetch_sub(1, Ordering::SeqCst);
                struck.push(at);
            }
        }
        struck
    }
}

/// One connection through the proxy.
struct Link {
    client: TcpStream,
    server: TcpStream,
    stalled: AtomicBool,
    closed: AtomicBool,
    /// A request has passed whose answer shall not.
    loses_answer: AtomicBool,
    overheard: Mutex<Vec<u8>>,
}

impl Link {
    fn end(&self, how: impl Fn(&TcpStream)) {
        self.closed.store(true, Ordering::SeqCst);
        how(&self.client);
        how(&self.server);
    }

    fn reset(&self) {
        self.end(|stream| {
            // With nothing lingering, the end is a RST in place of a FIN. It goes out when the last handle is closed, which the pumps do at once.
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        });
    }
}

impl Proxy {
    /// To a port of 127.0.0.1; passes everything on until it is told otherwise.
    pub fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared { target: AtomicU32::new(u32::from(target)), ..Shared::default() });
        let proxy = Proxy { port, shared: shared.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.gone.load(Ordering::SeqCst) {
                    return;
                }
                if shared.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let target = shared.target.load(Ordering::SeqCst) as u16;
                if let Ok(server) = TcpStream::connect(("127.0.0.1", target)) {
                    join(&shared, client, server);
                }
            }
        });
        proxy
    }

    /// New connections go to another port.
    pub fn lead_to(&self, target: u16) {
        self.shared.target.store(u32::from(target), Ordering::SeqCst);
    }

    /// Changes one bit behind each of the next `times` places where `marker` passes back, from now on.
    pub fn damage_after(&self, marker: &str, times: u32) {
        self.shared.damage.arm(marker, times);
    }

    /// Changes the type of each of the next `times` messages of a stream (CopyData) that pass back alone.
    pub fn garble(&self, times: u32) {
        self.shared.garbles.store(times, Ordering::SeqCst);
    }

    /// How many of them it will still change.
    pub fn ungarbled(&self) -> u32 {
        self.shared.garbles.load(Ordering::SeqCst)
    }

    /// How often it will still damage.
    pub fn undamaged(&self) -> u32 {
        self.shared.damage.left()
    }

    /// The next `times` requests with `marker` arrive, and their answers do not: the connection is reset in their place.
    pub fn lose_answers(&self, marker: &str, times: u32) {
        self.shared.lost.arm(marker, times);
    }

    /// How many answers it will still lose.
    pub fn unlost(&self) -> u32 {
        self.shared.lost.left()
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Nothing passes, on old connections and new ones, until told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::SeqCst);
        if !stalled {
            self.links().iter().for_each(|link| link.stalled.store(false, Ordering::SeqCst));
        }
    }

    /// Nothing passes on the connections that are there; new ones work. What a dead host behind a living address looks like.
    pub fn stall_those_there(&self) {
        self.links().iter().for_each(|link| link.stalled.store(true, Ordering::SeqCst));
    }

    /// At most so many bytes per second pass each way of each connection; 0: no limit.
    pub fn trickle(&self, bytes_per_second: u64) {
        self.shared.trickle.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Ends all connections with a FIN to both sides.
    pub fn cut(&self) {
        self.take_links().iter().for_each(|link| {
            link.end(|stream| {
                let _ = stream.shutdown(Shutdown::Both);
            });
        });
    }

    /// Ends all connections with a RST to both sides.
    pub fn reset(&self) {
        self.take_links().iter().for_each(|link| link.reset());
    }

    /// Nothing more comes that way, with a FIN as its end; the other way stays open.
    pub fn half_close(&self, way: Way) {
        for link in self.links() {
            let towards = if way == Way::There { &link.server } else { &link.client };
            let _ = towards.shutdown(Shutdown::Write);
        }
    }

    /// Whether what passes back is kept from now on.
    pub fn overhear(&self, overhears: bool) {
        self.shared.overhears.store(overhears, Ordering::SeqCst);
    }

    /// What has passed back on each connection that is there.
    pub fn overheard(&self) -> Vec<Vec<u8>> {
        let of = |link: &Arc<Link>| link.overheard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.links().iter().map(of).collect()
    }

    /// How many connections are there.
    pub fn connections(&self) -> usize {
        self.links().iter().filter(|link| !link.closed.load(Ordering::SeqCst)).count()
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.shared.links.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take_links(&self) -> Vec<Arc<Link>> {
        std::mem::take(&mut *self.shared.links.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::SeqCst);
        self.reset();
        // Wakes the thread that listens.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(shared: &Arc<Shared>, client: TcpStream, server: TcpStream) {
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(LOOK)).expect("a limit for reads");
        stream.set_nodelay(true).expect("no delay");
    }
    let clones = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
    let (Some((a, b)), Some((c, d))) = (clones(), clones()) else { return };
    let (stalled, closed) = (AtomicBool::new(false), AtomicBool::new(false));
    let (loses_answer, overheard) = (AtomicBool::new(false), Mutex::default());
    let link = Arc::new(Link { client, server, stalled, closed, loses_answer, overheard });
    shared.links.lock().unwrap_or_else(PoisonError::into_inner).push(link.clone());
    for (way, from, to) in [(Way::There, a, d), (Way::Back, b, c)] {
        let (shared, link) = (shared.clone(), link.clone());
        std::thread::spawn(move || {
            pump(&shared, &link, way, from, to);
            if link.closed.load(Ordering::SeqCst) {
                // The last handles go, and with them the connections.
                let mut links = shared.links.lock().unwrap_or_else(PoisonError::into_inner);
                links.retain(|other| !Arc::ptr_eq(other, &link));
            }
        });
    }
}

fn pump(shared: &Shared, link: &Link, way: Way, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let limit = shared.trickle.load(Ordering::SeqCst);
        // At a limit, a twentieth of a second's worth at a time.
        let most = if limit == 0 { buffer.len() } else { (limit as usize / 20).clamp(1, buffer.len()) };
        let read = from.read(&mut buffer[..most]);
        while !link.closed.load(Ordering::SeqCst)
            && (shared.stalled.load(Ordering::SeqCst) || link.stalled.load(Ordering::SeqCst))
        {
            std::thread::sleep(LOOK);
        }
        if link.closed.load(Ordering::SeqCst) {
            return;
        }
        let bytes = match read {
            Ok(0) => break,
            Ok(n) => &mut buffer[..n],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                continue;
            }
            Err(_) => break,
        };
        match way {
            Way::There if !shared.lost.strikes(bytes).is_empty() => link.loses_answer.store(true, Ordering::SeqCst),
            Way::Back if link.loses_answer.load(Ordering::SeqCst) => return link.reset(),
            Way::Back => {
                shared.damage.strikes(bytes).into_iter().for_each(|at| bytes[at] ^= 4);
                let alone = matches!(bytes, [b'd', a, b, c, d, ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize + 1 == bytes.len());
                let took = |left: u32| left.checked_sub(1);
                if alone && shared.garbles.fetch_update(Ordering::SeqCst, Ordering::SeqCst, took).is_ok() {
                    bytes[0] = b'?';
                }
            }
            Way::There => {}
        }
        if way == Way::Back && shared.overhears.load(Ordering::SeqCst) {
            link.overheard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        }
        if to.write_all(bytes).is_err() {
            break;
        }
        if limit > 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    // The end of one way only: the other may still have something to say.
    let _ = to.shutdown(Shutdown::Write);
    if way == Way::Back {
        link.end(|stream| {
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}
