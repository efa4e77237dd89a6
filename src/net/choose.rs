//! Which server it will be: the hosts of a connection string in their order, the addresses of each, until one is reached and is of the wanted kind.
//!
//! As libpq: a host that cannot be reached, does not answer in time, is starting up (57P03) or is of another kind than `target_session_attrs` asks for
//! makes room for the next; a refused login ends the search, because the next host would refuse it too, or should not be asked with a wrong password.
//!
//! Other than libpq: so does a host that closes the connection without a word. A tunnel, a balancer or a mesh lets everybody in, and finds out then that the
//! server behind it is dead; whoever stopped there would never come to the new primary.

use std::time::Duration;

use super::connection::{Connection, Mode};
use super::conninfo::Conninfo;
use super::dial::{Failure, Next, Route};
use super::host::{Host, shuffled};
use super::socket::{self, Address};
use super::target::Target;
use crate::error::{Error, Kind, Result};

/// Connects to the first server that is reached and of the wanted kind. An error names every host that was tried, and why it was not taken.
pub(super) async fn choose(info: &Conninfo, mode: Mode, options: &str) -> Result<Connection> {
    let seed = match info.shuffle {
        true => Some(getrandom::u64().map_err(|e| Error::new(Kind::Failed, "no random numbers").caused_by(e))?),
        false => None,
    };
    let hosts = order(info.hosts.clone(), seed);
    // With prefer-standby a second round takes any server.
    let rounds =
        if info.target == Target::PreferStandby { &[Target::Standby, Target::Any][..] } else { &[info.target] };
    let mut tried = Vec::new();
    for target in rounds {
        tried.clear();
        let search = Search { info, mode, options, target: *target, seed };
        for host in &hosts {
            match search.host(host, &mut tried).await {
                Some(Ok(connection)) => return Ok(connection),
                Some(Err(())) => return Err(explain(tried, None)),
                None => {}
            }
        }
    }
    Err(explain(tried, Some(info.target)))
}

fn order<T>(items: Vec<T>, seed: Option<u64>) -> Vec<T> {
    match seed {
        Some(seed) => shuffled(items, seed),
        None => items,
    }
}

/// One round.
struct Search<'a> {
    info: &'a Conninfo,
    mode: Mode,
    options: &'a str,
    target: Target,
    seed: Option<u64>,
}

impl Search<'_> {
    /// `None`: the next host is to be tried. `Some(Err)`: the last error in `tried` ends the search.
    async fn host(&self, host: &Host, tried: &mut Vec<Error>) -> Option<Result<Connection, ()>> {
        let addresses = match socket::addresses(self.info, host).await {
            Ok(addresses) => order(addresses, self.seed),
            Err(error) => {
                tried.push(error);
                return None;
            }
        };
        for address in &addresses {
            match self.address(host, address).await {
                Ok(connection) => return Some(Ok(connection)),
                Err(failure) => {
                    tried.push(failure.error);
                    match failure.next {
                        Next::Stop => return Some(Err(())),
                        Next::Host => return None,
                        Next::Address => {}
                    }
                }
            }
        }
        None
    }

    async fn address(&self, host: &Host, address: &Address) -> Result<Connection, Failure> {
        let route = Route::new(self.info, host, address, self.mode, self.options);
        let session = route.dial().await?;
        let mut connection =
            Connection::begin(session, self.info.narrowed(host, address.ip())).await.map_err(Failure::last)?;
        if self.target == Target::Any {
            return Ok(connection);
        }
        let limit = self.info.connect_timeout.unwrap_or(Duration::MAX);
        let standing = match tokio::time::timeout(limit, connection.standing()).await {
            Ok(standing) => standing.map_err(Failure::last)?,
            Err(_) => return Err(Failure { next: Next::Address, ..Failure::last(route.late(limit)) }),
        };
        let Some(why) = self.target.refusal(standing) else { return Ok(connection) };
        connection.close().await;
        let wanted = self.info.target.word();
        let error = Error::new(Kind::Server, format!("{}: {why}, not target_session_attrs={wanted}", route.server));
        Err(Failure { next: Next::Host, ..Failure::last(error.transient()) })
    }
}

/// One error for all that was tried. `exhausted`: no refusal ended the search.
fn explain(mut tried: Vec<Error>, exhausted: Option<Target>) -> Error {
    let Some(last) = tried.pop() else { return Error::new(Kind::Server, "no host to connect to") };
    let waiting = |error: Error, target: Target| {
        match target {
        Target::Any => error,
        target => error.hint(format!(
            "wait until a server is {} (a failover may be going on), or correct target_session_attrs and the list of hosts",
            target.word()
        )),
    }
    };
    if tried.is_empty() {
        return match exhausted {
            Some(target) if last.advice().is_none() => waiting(last, target),
            _ => last,
        };
    }
    let all: Vec<String> = tried.iter().chain([&last]).map(ToString::to_string).collect();
    let error = Error::new(last.kind(), format!("no server was taken: {}", all.join("; ")));
    let passes = last.is_transient() || exhausted.is_some() && tried.iter().any(Error::is_transient);
    let error = if passes { error.transient() } else { error };
    // The same host may have several addresses.
    let state = last.sqlstate().or_else(|| tried.iter().rev().find_map(Error::sqlstate));
    let error = match state {
        Some(state) => error.of_sqlstate(state),
        None => error,
    };
    let advice = last.advice().or_else(|| tried.iter().find_map(Error::advice));
    match (exhausted, advice) {
        (Some(target), _) if target != Target::Any => waiting(error, target),
        (_, Some(advice)) => error.hint(advice),
        (_, None) => error,
    }
}
