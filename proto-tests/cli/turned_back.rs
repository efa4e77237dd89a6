//! The server's clock is ahead for a while and then set back: commit times do not follow the order of WAL.

use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::clock::Clock;
use crate::support::{Server, require_servers};

const MINUTE: i64 = 60_000_000;

#[test]
fn what_lies_behind_a_clock_that_was_set_back_is_told() {
    require_servers!(MajorVersion::V18);
    let begin = jiff::Timestamp::now().as_microsecond() - 300 * MINUTE;
    let clock = Clock::new(begin);
    let server = Server::builder(MajorVersion::V18).clock(&clock).setting("autovacuum", "off").start();
    let at = |minutes: i64| {
        let time = jiff::Timestamp::from_microsecond(begin + minutes * MINUTE).expect("a time");
        time.strftime("%Y-%m-%d %H:%M:%S+00").to_string()
    };
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table story (n int, filler text); alter table story alter filler set storage plain");
    site.backup();
    clock.set(begin + MINUTE);
    server.sql("insert into story values (1)");
    clock.set(begin + 120 * MINUTE);
    server.sql("insert into story values (2)");
    clock.set(begin + 2 * MINUTE);
    // More than is looked through behind a stop.
    server.sql("insert into story select n, repeat('x', 1000) from generate_series(3, 90000) n");
    clock.set(begin + 3 * MINUTE);
    for n in 90001..90004 {
        server.sql(&format!("insert into story values ({n})"));
    }
    server.switch_wal();
    server.sql("insert into story values (90004)");
    wait_durable(&server, server.lsn());
    end(receiver);

    // It stops before the commit that is later, and whatever lies behind that is not there.
    let target = at(4);
    let plan = site.restore(&server, "data", &["--target-time", &target]).arg("--plan");
    let told = plan.run().expect_code(0).stdout;
    assert!(told.contains("and more up to the target, in WAL from LSN "), "{told}");
    let plan = site.restore(&server, "data", &["--target-time", &target]).args(["--plan", "--output", "json"]);
    let plan = plan.run().expect_code(0).json();
    assert_eq!(plan["missed_commits"], 0, "{plan:#}");
    let from = plan["more_missed_from"].as_str().unwrap_or_else(|| panic!("{plan:#}"));
    assert!(
        server.sql(&format!("select pg_lsn '{from}' >= '{}'", plan["landing"]["lsn"].as_str().expect("an LSN"))) == "t"
    );
    let copy = site.land(&server, "data", &["--target-time", &target]);
    assert_eq!(copy.value("select count(*) || ' ' || max(n) from story"), "1 1");
    // Up to this moment nothing lies behind the stop.
    let plan =
        site.restore(&server, "early", &["--target-time", &at(1)]).args(["--exclusive", "--plan", "--output", "json"]);
    let plan = plan.run().expect_code(0).json();
    assert_eq!((&plan["missed_commits"], plan["more_missed_from"].is_null()), (&0.into(), true), "{plan:#}");

    // Of the time for which the clock was ahead nothing is known once it was set back: it is still to come.
    let (from, to) = (at(90), at(180));
    let found = site.walrecv(&["find", "--from", &from, "--to", &to]).run();
    assert_eq!(found.code(), 15, "{}{}", found.stdout, found.stderr);
    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    let through = listed["backups"][0]["complete_through"].as_str().expect("a time").to_owned();
    assert!(through < at(30).replace(' ', "T"), "{through}");
}
