//! A server that is behind what is stored: where the connection string has other hosts, they are asked first.
//!
//! What such a server sends is compared and nothing new comes of it until it has caught up, while another host may have it all: a standby that was left behind, or a
//! host that was put back to a snapshot, must not keep the archive from the primary. Where no other host is better, the one that lags is taken, and the others
//! are looked at from time to time.

use super::run::{Next, Run};
use super::scout::{Scout, Wanted};
use super::server::Server;
use crate::error::{Error, Kind};
use crate::net::Conninfo;
use crate::pg::Lsn;

/// Which hosts are left for the next attempt.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    /// The connection string without those that were passed over.
    rest: Option<Conninfo>,
    /// No other one is better: whatever comes is taken.
    resigned: bool,
}

impl Lagging {
    /// Where to connect next.
    pub(super) fn hosts<'a>(&'a self, all: &'a Conninfo) -> &'a Conninfo {
        self.rest.as_ref().unwrap_or(all)
    }

    /// The hosts that are left are of no use; `true`: one that was passed over is to be taken now.
    pub(super) fn resign(&mut self) -> bool {
        let passed = self.rest.take().is_some();
        self.resigned |= passed;
        passed
    }

    /// A stream began: the next attempt looks at all hosts again.
    pub(super) fn settled(&mut self) {
        *self = Lagging::default();
    }

    /// This one is better than the one that was streamed: nobody else is asked for the next connection.
    fn prefer(&mut self, host: Conninfo) {
        *self = Lagging { rest: Some(host), resigned: false };
    }

    /// Whether another host is to be tried in place of `here`.
    fn pass_over(&mut self, all: &Conninfo, here: &Conninfo) -> bool {
        if self.resigned {
            return false;
        }
        let rest = self.hosts(all).without(here);
        // The last one is as good as any other that lags.
        self.resigned = rest.is_none();
        self.rest = rest;
        self.rest.is_some()
    }
}

impl Run {
    /// This server is behind `known`: the error with which it is left for the next host, if there is one.
    pub(super) fn pass_over(&mut self, server: &mut Server, known: Lsn, how: &str) -> Option<Error> {
        if !self.lagging.pass_over(&self.options.conninfo, server.stream.same_server()) {
            server.behind = server.behind.max(Some(known));
            return None;
        }
        let (name, position) = (server.stream.server(), server.identity.position);
        let text = format!("{name} is at {position}, behind {known}, which is {how} already: the next host is tried");
        Some(Error::new(Kind::Server, text).transient())
    }

    /// Somebody who looks for a better host while this one is streamed; `None`: it does not lag, or there is no other.
    pub(super) fn scout(&self, server: &Server) -> Option<Scout> {
        let upto = server.behind?;
        let hosts = self.options.conninfo.without(server.stream.same_server())?;
        let (system, timeline) = (server.identity.system, server.identity.timeline);
        Some(Scout::send(hosts, Wanted { system, timeline, upto }))
    }

    /// Goes over to a host that was found to be better.
    pub(super) fn move_over(&mut self, server: &Server, host: Conninfo) -> Next {
        let text = format!("{} lags, and {} does not: that is streamed now", server.stream.server(), host.describe());
        self.lagging.prefer(host);
        Next::Again(Some(Error::new(Kind::Server, text).transient()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &str) -> Conninfo {
        Conninfo::parse(&format!("host={list} user=w"), &|_| None).expect("a connection string")
    }

    #[test]
    fn each_host_is_passed_over_once_and_the_last_one_is_taken() {
        let (all, mut lagging) = (hosts("a,b,c"), Lagging::default());
        assert!(lagging.pass_over(&all, &hosts("a")));
        assert_eq!(lagging.hosts(&all).describe(), hosts("b,c").describe());
        assert!(lagging.pass_over(&all, &hosts("c")));
        assert_eq!(lagging.hosts(&all).describe(), hosts("b").describe());
        assert!(!lagging.pass_over(&all, &hosts("b")), "all of them lag");
        assert!(!lagging.pass_over(&all, &hosts("a")), "whichever comes next");
        lagging.settled();
        assert!(lagging.pass_over(&all, &hosts("a")), "another connection, another look");
    }

    #[test]
    fn a_host_that_was_passed_over_is_taken_where_the_others_are_of_no_use() {
        let (all, mut lagging) = (hosts("a,b"), Lagging::default());
        assert!(!lagging.resign(), "nobody was passed over: an error is one");
        assert!(lagging.pass_over(&all, &hosts("a")) && lagging.resign());
        assert_eq!(lagging.hosts(&all).describe(), all.describe());
        assert!(!lagging.pass_over(&all, &hosts("a")));
        let mut better = Lagging::default();
        better.prefer(hosts("b"));
        assert_eq!(better.hosts(&all).describe(), hosts("b").describe());
        assert!(better.resign(), "it is gone again: all are asked");
        assert_eq!(better.hosts(&all).describe(), all.describe());
        let mut single = Lagging::default();
        assert!(!single.pass_over(&hosts("a"), &hosts("a")), "there is no other");
    }
}
