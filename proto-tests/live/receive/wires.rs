//! A bad network between server and receiver: whatever the connection does, nothing is acknowledged that is not stored, and the stream goes on at the exact byte.

use std::time::Duration;

use walrecv::pg::{Lsn, MajorVersion};
use walrecv::receive::ReceiveEvent;

use super::harness::{self, Receiving, Vault};
use super::kill::{nothing_is_missing, told};
use crate::support::proxy::{Proxy, Way};
use crate::support::{Ledger, Seed, Server, require_servers, rounds, wait_for};

struct Scene {
    server: Server,
    proxy: Proxy,
    vault: Vault,
    receiving: Receiving,
    from: Lsn,
}

impl Scene {
    fn new(version: MajorVersion, settings: &[(&str, &str)]) -> Scene {
        let builder = Server::builder(version).setting("wal_keep_size", "2GB").setting("max_wal_size", "2GB");
        let server = settings.iter().fold(builder, |b, (name, value)| b.setting(name, value)).start();
        harness::create_slot(&server);
        let from = harness::acknowledged(&server);
        let (proxy, vault) = (Proxy::start(server.port()), Vault::new());
        proxy.overhear(true);
        let mut options = harness::options_through(&server, &proxy);
        options.flush_interval = Duration::from_millis(100);
        let receiving = Receiving::start(options, vault.place());
        receiving.wait_streaming();
        Scene { server, proxy, vault, receiving, from }
    }

    fn nothing_is_missing(&self) {
        nothing_is_missing(&self.vault.archive(&self.server), &self.server, self.from, told(&self.server));
    }

    /// Where each connection began to stream.
    fn starts(&self) -> Vec<Lsn> {
        let start = |event: &ReceiveEvent| match event {
            ReceiveEvent::Streaming { from, .. } => Some(*from),
            _ => None,
        };
        self.receiving.events().iter().filter_map(start).collect()
    }

    /// How many messages, of those that came on the connections that are there, brought WAL of two segments.
    fn messages_over_borders(&self) -> usize {
        let over = |(start, end): &(Lsn, Lsn)| start.0 >> 20 != (end.0 - 1) >> 20;
        self.proxy.overheard().iter().flat_map(|heard| messages(heard)).filter(over).count()
    }

    fn end(self) {
        let end = self.server.switch_wal();
        harness::wait_acknowledged(&self.server, end);
        nothing_is_missing(&self.vault.archive(&self.server), &self.server, self.from, end);
        let (report, _) = self.receiving.stop();
        assert_eq!(report.behind, 0);
    }
}

/// Where the WAL of each XLogData message begins and ends, on a connection from its first byte on.
fn messages(mut heard: &[u8]) -> Vec<(Lsn, Lsn)> {
    let mut found = Vec::new();
    while let Some(([tag, length @ ..], rest)) = heard.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(*length) as usize - 4;
        let Some((body, next)) = rest.split_at_checked(length) else { break };
        if let (b'd', Some((b'w', header))) = (tag, body.split_first()) {
            let start = Lsn(u64::from_be_bytes(header[..8].try_into().expect("eight bytes")));
            // Before the WAL: the kind, two positions and a time.
            found.push((start, start + (body.len() - 25) as u64));
        }
        heard = next;
    }
    found
}

#[test]
fn cut_reset_and_half_closed_connections_are_made_again() {
    require_servers!(MajorVersion::V18);
    let scene = Scene::new(MajorVersion::V18, &[]);
    let ledger = Ledger::builder().writers(2).padding(2000).start(&scene.server);
    let mut seed = Seed::of_run();
    for round in 0..rounds(8, 60) {
        let (before, count) = (told(&scene.server), scene.starts().len());
        std::thread::sleep(Duration::from_millis(seed.below(300)));
        match round % 4 {
            0 => scene.proxy.cut(),
            1 => scene.proxy.reset(),
            2 => scene.proxy.half_close(Way::There),
            _ => scene.proxy.half_close(Way::Back),
        }
        wait_for("another stream", || (scene.starts().len() > count).then_some(()));
        wait_for("more to be acknowledged", || (told(&scene.server) > before).then_some(()));
        scene.nothing_is_missing();
    }
    ledger.stop();
    // The first stream began at a segment's start, the others where the one before had come to: never at the same place again. Only where the server still held
    // the slot for the connection before, as for another receiver, is the open segment compared with what is stored.
    let starts = scene.starts();
    let stood_by = scene.receiving.saw(|event| matches!(event, ReceiveEvent::StandingBy { .. }));
    let anew = |start: Lsn| stood_by && start.0.is_multiple_of(1 << 20);
    assert!(starts.windows(2).all(|w| w[0] < w[1] || anew(w[1])), "{starts:?}");
    assert!(starts.iter().skip(1).any(|start| start.0 % (1 << 20) != 0), "{starts:?}");
    scene.end();
}

/// A dead host behind a living address: nothing comes, nothing ends. The server keeps the slot for its lost receiver until its own timeout.
#[test]
fn a_silent_connection_is_given_up_and_the_slot_taken_again() {
    require_servers!(MajorVersion::V15);
    let scene = Scene::new(MajorVersion::V15, &[]);
    scene.server.sql("create table t (id int)");
    harness::wait_acknowledged(&scene.server, scene.server.lsn());
    scene.proxy.stall_those_there();
    scene.server.sql("insert into t values (1)");
    let commit = scene.server.lsn();
    // 20 s of silence, and what is left of the 10 s after which the server frees the slot.
    harness::wait_acknowledged(&scene.server, commit);
    assert!(scene.receiving.saw(|e| matches!(e, ReceiveEvent::Reconnecting { why, .. } if why.contains("silent"))));
    scene.end();
}

/// The server's own timeout is shorter than the interval of the statuses: walrecv's session asks for a longer one.
#[test]
fn a_slow_line_and_a_short_timeout_of_the_server_lose_nothing() {
    require_servers!(MajorVersion::V13);
    let scene = Scene::new(MajorVersion::V13, &[("wal_sender_timeout", "1s")]);
    scene.proxy.trickle(400_000);
    let ledger = Ledger::builder().writers(1).padding(4000).start(&scene.server);
    ledger.wait_for_more(300);
    std::thread::sleep(Duration::from_secs(3));
    scene.nothing_is_missing();
    ledger.stop();
    assert_eq!(scene.starts().len(), 1, "{:#?}", scene.receiving.events());
    scene.proxy.trickle(0);
    // Now as fast as they come, over borders: messages end where commits do, and the server cuts none at the end of a segment.
    scene.server.sql("create table t (id int, filler text)");
    let mut client = scene.server.connect("postgres").expect("a session");
    wait_for("a message that brings WAL of two segments", || {
        let upto = scene.server.lsn() + (3 << 20);
        while scene.server.lsn() < upto {
            client.query("insert into t select i, md5(i::text) from generate_series(1, 150) i").expect("a commit");
        }
        harness::wait_acknowledged(&scene.server, upto);
        (scene.messages_over_borders() > 0).then_some(())
    });
    scene.end();
}
