//! A server that is behind what is stored, or on an older timeline: where the connection string has other hosts, they are asked first.
//!
//! What such a server sends is compared and nothing new comes of it until it has caught up, while another host may have it all: a standby that was left behind, a
//! primary that came back after a failover, or a host that was put back to a snapshot, must not keep the archive from the primary. Where no other host is
//! better, the one that lags is taken, and the others are looked at from time to time.

use super::observe::Lags;
use super::pipeline::Pipeline;
use super::run::{Next, Run};
use super::scout::{Scout, Wanted};
use super::server::{Ahead, Server};
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::net::Conninfo;
use crate::pg::Lsn;

/// Which hosts are left for the next attempt.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    /// The connection string without those that were passed over.
    rest: Option<Conninfo>,
    /// No other one is better: whatever comes is taken.
    resigned: bool,
    /// One that was passed over is on the newest timeline: it goes before those that are not.
    on_path: Option<Conninfo>,
    /// Not every other host could be looked at.
    unseen: bool,
    /// The one that is tried looked better than the one that was streamed.
    preferred: bool,
    /// How often a better one was of no use, since one that does not lag was streamed.
    in_vain: u32,
    /// What the last one of no use said.
    why: Option<String>,
}

/// How a server lags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Position,
    Timeline,
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
        (self.resigned, self.unseen, self.why) = (true, true, Some(error.to_string()));
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
    fn pass_over(&mut self, all: &Conninfo, here: &Conninfo, by: By) -> bool {
        if self.resigned {
            return false;
        }
        let rest = self.hosts(all).without(here);
        self.resigned = rest.is_none();
        // The last one is as good as any other that lags likewise.
        self.rest = rest.or_else(|| self.on_path.take().filter(|_| by == By::Timeline));
        if by == By::Position {
            self.on_path.get_or_insert_with(|| here.clone());
        }
        self.rest.is_some()
    }
}

impl Run {
    /// This server is behind what is `known` of its path: the error with which it is left for the next host, if there is one.
    pub(super) fn pass_over(&mut self, server: &mut Server, known: Lsn, how: &str) -> Option<Error> {
        let ahead = Ahead { timeline: server.identity.timeline, upto: known };
        if !self.lagging.pass_over(&self.options.conninfo, server.stream.same_server(), By::Position) {
            server.behind = server.behind.max(Some(ahead));
            return None;
        }
        let (name, position) = (server.stream.server(), server.identity.position);
        let text = format!("{name} is at {position}, behind {known}, which is {how} already: the next host is tried");
        Some(Error::new(Kind::Server, text).transient())
    }

    /// Leaves a server for the next host that is on an older timeline than somebody else was: a primary that came back after a failover, or a standby that did
    /// not go along. With one host that is a decision of whoever runs it (a return to an older timeline), and so it is where all hosts say the same.
    pub(super) async fn demand_newest(&mut self, archive: &Archive, server: &mut Server) -> Result<()> {
        if self.options.conninfo.without(server.stream.same_server()).is_none() {
            return Ok(());
        }
        let own = server.identity.timeline;
        let stored = archive.newer_timeline(own).await?.map(|(timeline, upto)| Ahead { timeline, upto });
        let received = |p: &Pipeline| Ahead { timeline: p.timeline(), upto: p.received() };
        let received = self.pipeline.as_ref().map(received).filter(|ahead| ahead.timeline > own);
        let Some(ahead) = stored.max(received) else { return Ok(()) };
        let text = format!(
            "{} is on timeline {own}, and timeline {} is stored already",
            server.stream.server(),
            ahead.timeline
        );
        if self.lagging.pass_over(&self.options.conninfo, server.stream.same_server(), By::Timeline) {
            return Err(Error::new(Kind::Server, format!("{text}: the next host is tried")).transient());
        }
        if self.lagging.unseen {
            server.behind = Some(ahead);
        }
        Ok(())
    }

    /// A server on an older timeline cannot be streamed either: all hosts are looked at again. Only where it is the newest it is a refusal.
    pub(super) fn leave_outdated(&mut self, server: &Server, why: &Error) -> Error {
        self.lagging.settled(true);
        let text = format!("{} is on an older timeline than is stored, and of no use: {why}", server.stream.server());
        Error::new(Kind::Server, text).transient()
    }

    /// What the server has not got to, since it began to be streamed for want of a better one.
    fn ahead_of(server: &Server) -> Option<Ahead> {
        let here = Ahead { timeline: server.identity.timeline, upto: server.identity.position };
        server.behind.filter(|ahead| *ahead > here)
    }

    /// Somebody who looks for a better host while this one is streamed; `None`: it does not lag, or there is no other.
    pub(super) fn scout(&self, server: &Server) -> Option<Scout> {
        let Ahead { timeline, upto } = Run::ahead_of(server)?;
        let hosts = self.options.conninfo.without(server.stream.same_server())?;
        let (system, timeline) = (server.identity.system, timeline.max(server.identity.timeline));
        Some(Scout::send(hosts, Wanted { system, timeline, upto }, self.lagging.in_vain))
    }

    /// What is to be told of a server that is streamed although it lags.
    pub(super) fn lags(&self, server: &Server) -> Option<Lags> {
        let Ahead { timeline, upto } = Run::ahead_of(server)?;
        Some(Lags { timeline, upto, instead_of: self.lagging.why.clone() })
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
        assert!(lagging.pass_over(&all, &hosts("a"), By::Position) && lagging.resign(&away()));
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
        assert!(lagging.pass_over(&all, &hosts("a"), By::Position) && lagging.resign(&lost));
        assert_eq!(lagging.in_vain, 1, "nor does it have to be tried twice");
    }

    #[test]
    fn each_host_is_passed_over_once_and_the_last_one_is_taken() {
        let (all, mut lagging) = (hosts("a,b,c"), Lagging::default());
        assert!(lagging.pass_over(&all, &hosts("a"), By::Position));
        assert_eq!(lagging.hosts(&all).describe(), hosts("b,c").describe());
        assert!(lagging.pass_over(&all, &hosts("c"), By::Position));
        assert_eq!(lagging.hosts(&all).describe(), hosts("b").describe());
        assert!(!lagging.pass_over(&all, &hosts("b"), By::Position), "all of them lag");
        assert!(!lagging.pass_over(&all, &hosts("a"), By::Position), "whichever comes next");
        lagging.settled(true);
        assert!(lagging.pass_over(&all, &hosts("a"), By::Position), "another connection, another look");
    }

    #[test]
    fn a_host_that_was_passed_over_is_taken_where_the_others_are_of_no_use() {
        let (all, mut lagging) = (hosts("a,b"), Lagging::default());
        assert!(!lagging.resign(&away()), "nobody was passed over: an error is one");
        assert!(lagging.pass_over(&all, &hosts("a"), By::Position) && lagging.resign(&away()));
        assert_eq!(lagging.hosts(&all).describe(), all.describe());
        assert!(!lagging.pass_over(&all, &hosts("a"), By::Position));
        let mut better = Lagging::default();
        better.prefer(hosts("b"));
        assert_eq!(better.hosts(&all).describe(), hosts("b").describe());
        assert!(better.resign(&away()), "it is gone again: all are asked");
        assert_eq!(better.hosts(&all).describe(), all.describe());
        let mut single = Lagging::default();
        assert!(!single.pass_over(&hosts("a"), &hosts("a"), By::Position), "there is no other");
    }

    #[test]
    fn one_that_lags_goes_before_one_on_an_older_timeline() {
        let (all, mut lagging) = (hosts("a,b"), Lagging::default());
        assert!(lagging.pass_over(&all, &hosts("a"), By::Position));
        assert!(lagging.pass_over(&all, &hosts("b"), By::Timeline), "the first one is better");
        assert_eq!(lagging.hosts(&all).describe(), hosts("a").describe());
        assert!(!lagging.pass_over(&all, &hosts("a"), By::Position) && !lagging.unseen);
        let mut lagging = Lagging::default();
        assert!(lagging.pass_over(&all, &hosts("a"), By::Timeline));
        assert!(!lagging.pass_over(&all, &hosts("b"), By::Timeline), "all say the same");
        assert!(!lagging.unseen);
        let mut lagging = Lagging::default();
        assert!(lagging.pass_over(&all, &hosts("a"), By::Timeline) && lagging.resign(&away()));
        assert!(
            !lagging.pass_over(&all, &hosts("a"), By::Timeline) && lagging.unseen,
            "nobody knows what the other has"
        );
    }
}
