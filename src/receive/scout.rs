//! While a server is streamed that lags, for want of a better one: looks at the other hosts of the connection string from time to time.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::server::answered;
use crate::backoff::Backoff;
use crate::net::{Connection, Conninfo, Mode};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::wire::command::Identity;

/// The first look comes within this: a host that was away for a moment, as in a restart, is back by then.
const SOON: Duration = Duration::from_secs(10);
/// Later ones come ever more seldom, but within this: each costs every other host one connection.
const SELDOM: Duration = Duration::from_secs(60);

/// The first and the longest wait before a look, where better hosts were of no use so often: each attempt ends the stream that there is.
fn waits(in_vain: u32) -> (Duration, Duration) {
    match in_vain {
        0 => (SOON, SELDOM),
        // Half of it may pass only: at least a minute the first time, and half an hour in the end.
        times => (SELDOM * (1 << times.min(6)), SELDOM * 64),
    }
}

/// What another host must have to be better.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub system: SystemIdentifier,
    /// The newest one that is known: an older one is a dead branch, or lags too.
    pub timeline: TimelineId,
    /// The end of what is stored of that, or was received.
    pub upto: Lsn,
}

impl Wanted {
    fn is_met_by(&self, found: &Identity) -> bool {
        found.system == self.system && found.timeline >= self.timeline && found.position >= self.upto
    }
}

/// Looks until a better host is found, or this is dropped.
pub(super) struct Scout {
    pub wanted: Wanted,
    task: JoinHandle<Conninfo>,
}

impl Scout {
    /// `hosts`: the connection string without the host that is streamed; `in_vain`: how often one that was found was of no use.
    pub fn send(hosts: Conninfo, wanted: Wanted, in_vain: u32) -> Scout {
        Scout { wanted, task: tokio::spawn(search(hosts, wanted, in_vain)) }
    }

    /// The way to a better host, once there is one. Cancel safe.
    pub async fn found(&mut self) -> Conninfo {
        match (&mut self.task).await {
            Ok(better) => better,
            // It died, which leaves everything as it is.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Scout {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn search(hosts: Conninfo, wanted: Wanted, in_vain: u32) -> Conninfo {
    let (first, longest) = waits(in_vain);
    let mut pause = Backoff::new(first, longest, getrandom::u64().unwrap_or_default());
    // The first one is none.
    pause.next_delay();
    loop {
        tokio::time::sleep(pause.next_delay()).await;
        if let Some(better) = look(hosts.clone(), wanted).await {
            return better;
        }
    }
}

/// One look at each host that lets us in and is of the kind that the connection string asks for.
async fn look(mut hosts: Conninfo, wanted: Wanted) -> Option<Conninfo> {
    loop {
        let mut connection = Connection::connect(&hosts, Mode::Physical, "").await.ok()?;
        let here = connection.same_server().clone();
        let identity = answered("IDENTIFY_SYSTEM", connection.identify_system()).await;
        connection.close().await;
        if identity.is_ok_and(|identity| wanted.is_met_by(&identity)) {
            return Some(here);
        }
        hosts = hosts.without(&here)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_were_of_no_use_are_looked_at_ever_more_seldom() {
        assert_eq!(waits(0), (SOON, SELDOM));
        assert!((1..20).all(|times| waits(times).0 / 2 >= SELDOM && waits(times).0 <= waits(times).1));
        assert!(waits(2).0 > waits(1).0 && waits(u32::MAX).0 == waits(6).0);
    }

    #[test]
    fn better_is_who_has_everything_on_the_same_path() {
        let wanted = Wanted { system: SystemIdentifier(7), timeline: TimelineId(3), upto: Lsn(5000) };
        let met = |system: u64, timeline: u32, position: u64| {
            let (system, timeline, position) = (SystemIdentifier(system), TimelineId(timeline), Lsn(position));
            wanted.is_met_by(&Identity { system, timeline, position })
        };
        assert!(met(7, 3, 5000) && met(7, 4, 6000));
        assert!(!met(7, 3, 4999), "it lags too");
        assert!(!met(7, 2, 9000), "a primary that was left behind by a failover");
        assert!(!met(8, 3, 9000), "another cluster");
    }
}
