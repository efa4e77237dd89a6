//! What the test targets share: real servers, a simple client, an S3 emulator, the built program, temporary folders.
//! A target takes it in with `mod support;`. Nothing here is used by the program itself.

// Each target uses its own part of this.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod builder;
pub mod client;
pub mod clock;
pub mod guard;
pub mod hooked_disk;
pub mod install;
pub mod ledger;
pub mod moto;
pub mod proxy;
pub mod seed;
pub mod server;
pub mod shelf;
pub mod strace;
pub mod temp;
pub mod tls;
pub mod user;
pub mod wal_maker;
pub mod walrecv;
pub mod walsender_words;

pub use client::Client;
pub use clock::Clock;
pub use hooked_disk::{Call, HookedDisk};
pub use install::servers_present;
pub use ledger::Ledger;
pub use moto::Moto;
pub use seed::Seed;
pub use server::{Auth, Server, Stop};
pub use temp::TempDir;
pub use walrecv::Walrecv;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Ends the test, and says so, where a server of this version is not installed. With `CI=true` it fails instead.
macro_rules! require_servers {
    ($($version:expr),+) => {
        $(if !$crate::support::servers_present($version) {
            return;
        })+
    };
}
pub(crate) use require_servers;

/// Ends the test, and says so, where the S3 emulator is not installed. With `CI=true` it fails instead.
macro_rules! require_moto {
    () => {
        if !$crate::support::moto::present() {
            return;
        }
    };
}
pub(crate) use require_moto;

/// How often a live test repeats: `usual` times, or `soak` times when `WALRECV_SOAK` is set.
pub fn rounds(usual: u32, soak: u32) -> u32 {
    if soaks() { soak } else { usual }
}

/// Whether `WALRECV_SOAK` is set.
pub fn soaks() -> bool {
    std::env::var_os("WALRECV_SOAK").is_some_and(|v| !v.is_empty() && v != "0")
}

/// For what is going to come: longer than a busy machine takes for anything, since only what never comes takes so long. Where coming late is the failure, a test
/// measures that by itself.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Asks, at the end every 20 ms, until `probe` gives a value. Panics, naming `what`, after [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep((Duration::from_millis(1) + start.elapsed() / 4).min(Duration::from_millis(20)));
    }
}

/// A free TCP port of 127.0.0.1. It is given once, and is none of those that the system gives to connections, so that a server finds it free when it starts again.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const MANY: u32 = 22_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Programs that run beside each other begin at different ports.
    let begin = std::process::id().wrapping_mul(7919);
    let port = |_| (FIRST + begin.wrapping_add(GIVEN.fetch_add(1, Ordering::SeqCst)) % MANY) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..MANY).map(port).find(free).expect("a free port of 127.0.0.1")
}
