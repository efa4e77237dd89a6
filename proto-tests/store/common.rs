//! Objects that a judge can tell apart, and what several tests do with them.

use std::time::Duration;

use bytes::Bytes;
use walrecv::repo::{Found, Put, Repository};

pub use crate::support::PATIENCE;

/// An object as the judges of these tests see it: first byte the salt, second the claims and the content.
pub fn object(salt: u8, claims: u8, size: usize) -> Vec<Bytes> {
    let mut all = vec![claims; size];
    all[0] = salt;
    let second = all.split_off(size / 3);
    vec![Bytes::from(all), Bytes::from(second)]
}

pub fn joined(parts: &[Bytes]) -> Vec<u8> {
    parts.concat()
}

/// What `put_once` asks about an object that stands there.
pub fn judge(salt: u8, claims: u8) -> impl Fn(&[u8]) -> Found + Send + Sync {
    move |head| match head {
        [s, c, ..] if (*s, *c) == (salt, claims) => Found::Ours,
        [_, c, ..] if *c == claims => Found::Equal,
        _ => Found::Different,
    }
}

pub async fn put(
    repo: &Repository,
    name: &str,
    salt: u8,
    claims: u8,
    give_up: Duration,
) -> walrecv::error::Result<Put> {
    repo.put_once(name, &object(salt, claims, 100), &judge(salt, claims), give_up).await
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// An environment without anything in it.
pub fn no_env(_: &str) -> Option<String> {
    None
}

/// An environment of these variables.
pub fn env_of(pairs: Vec<(&'static str, String)>) -> impl Fn(&str) -> Option<String> {
    move |key| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone())
}
