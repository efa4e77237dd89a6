//! A server that is behind what is stored: where the connection string has other hosts, they are asked first.
//!
//! What such a server sends is compared and nothing new comes of it until it has caught up, while another host may have it all: a standby that was left behind, or a
//! host that was put back to a snapshot, must not keep the archive from the primary. Where no other host is better, the one that lags is taken, and the others
//! are looked at from time to time.

use super::observe::Lags;
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
    /// The one that is tried looked better than the one that was streamed.
    preferred: bool,
    /// How often a better one was of no use, since one that does not lag was streamed.
    in_vain: u32,
    /// What the last one of no use said.
    why: Option<String>,
}

impl Lagging {
    /// Where to connect next.
    pub(super) fn hosts<'a>(&'a self, all: &'a Conninfo) -> &'a Conninfo {
        self.rest.as_ref().unwrap_or(all)
    }

    /// The hosts that are left are of no use; `true`: one that was passed over is to be taken now.
    pub(super) fn resign(&mut self, error: &Error) -> bool {
        if self.rest.take().is_none() {
            return false;
        }
        // One that is away may be back in a moment. One that answered a look, or refuses for good, is not tried again so soon.
        if std::mem::take(&mut self.preferred) || !error.is_transient() {
            self.in_vain = self.in_vain.saturating_add(1);
        }
        (self.resigned, self.why) = (true, Some(error.to_string()));
        true
    }

    /// A stream began: the next attempt looks at all hosts again. What became of better ones is kept for as long as one that lags is streamed.
    pub(super) fn settled(&mut self, lags: bool) {
        let before = std::mem::take(self);
        if lags {
            (self.in_vain, self.why) = (before.in_vain, before.why);
        }
    }

    /// This one is better than the one that was streamed: nobody else is asked for the next connection.
    fn prefer(&mut self, host: Conninfo) {
        (self.rest, self.resigned, self.preferred) = (Some(host), false, true);
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
        Some(Scout::send(hosts, Wanted { system, timeline, upto }, self.lagging.in_vain))
    }

    /// What is to be told of a server that is streamed although it lags.
    pub(super) fn lags(&self, server: &Server) -> Option<Lags> {
        Some(Lags { upto: server.behind?, instead_of: self.lagging.why.clone() })
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

    fn away() -> Error {
        Error::new(Kind::Server, "away").transient()
    }

    #[test]
    fn a_better_host_that_is_of_no_use_is_remembered_until_one_that_does_not_lag_is_streamed() {
        let (all, mut lagging) = (hosts("a,b"), Lagging::default());
        assert!(lagging.pass_over(&all, &hosts("a")) && lagging.resign(&away()));
        lagging.settled(true);
        assert_eq!((lagging.in_vain, lagging.why.as_deref()), (0, Some("away")), "it may be back in a moment");
        let lost = Error::new(Kind::Slot, "the slot is lost");
        for times in 1..=3 {
            lagging.prefer(hosts("b"));
            assert!(lagging.resign(&lost));
            lagging.settled(true);
            assert_eq!((lagging.in_vain, lagging.why.as_deref()), (times, Some("the slot is lost")));
        }
        lagging.prefer(hosts("b"));
        lagging.settled(false);
        assert_eq!((lagging.in_vain, &lagging.why), (0, &None));
        assert!(lagging.pass_over(&all, &hosts("a")) && lagging.resign(&lost));
        assert_eq!(lagging.in_vain, 1, "nor does it have to be tried twice");
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
        lagging.settled(true);
        assert!(lagging.pass_over(&all, &hosts("a")), "another connection, another look");
    }

    #[test]
    fn a_host_that_was_passed_over_is_taken_where_the_others_are_of_no_use() {
        let (all, mut lagging) = (hosts("a,b"), Lagging::default());
        assert!(!lagging.resign(&away()), "nobody was passed over: an error is one");
        assert!(lagging.pass_over(&all, &hosts("a")) && lagging.resign(&away()));
        assert_eq!(lagging.hosts(&all).describe(), all.describe());
        assert!(!lagging.pass_over(&all, &hosts("a")));
        let mut better = Lagging::default();
        better.prefer(hosts("b"));
        assert_eq!(better.hosts(&all).describe(), hosts("b").describe());
        assert!(better.resign(&away()), "it is gone again: all are asked");
        assert_eq!(better.hosts(&all).describe(), all.describe());
        let mut single = Lagging::default();
        assert!(!single.pass_over(&hosts("a"), &hosts("a")), "there is no other");
    }
}
