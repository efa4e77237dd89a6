//! What the test targets share: real servers, a simple client, an S3 emulator, the built program, temporary folders.
//! A target takes it in with `mod support;`. Nothing here is used by the program itself.

// Each target uses its own part of this.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod builder;
pub mod client;
pub mod clock;
pub mod guard;
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

pub use client::Client;
pub use clock::Clock;
pub use install::servers_present;
pub use ledger::Ledger;
pub use moto::Moto;
pub use seed::Seed;
pub use server::{Auth, Server, Stop};
pub use temp::TempDir;
pub use walrecv::Walrecv;

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

/// Asks every 20 ms until `probe` gives a value. Panics, naming `what`, after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind to a free port of 127.0.0.1");
    listener.local_addr().expect("address of a bound socket").port()
}
