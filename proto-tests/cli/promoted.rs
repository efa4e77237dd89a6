//! A standby that is promoted on the side while it is backed up, and production that goes on on its own timeline.

use walrecv::pg::MajorVersion;

use crate::backups::rows;
use crate::site::{Site, end, wait_durable};
use crate::support::{Server, require_servers};

/// A second configuration, whose server is the standby.
fn leading_to(site: &Site, primary: &Server, standby: &Server) -> String {
    let other = site.etc().join("stand.toml");
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    let moved = config.replace(&primary.conninfo("postgres"), &standby.conninfo("postgres"));
    assert_ne!(moved, config);
    std::fs::write(&other, moved).expect("write the configuration");
    other.display().to_string()
}

/// A standby that lacks the slot is backed up and promoted meanwhile, while the primary goes on: the backup fails, and nothing of the timeline that it began is
/// in production's archive, or that would be what is restored by default.
#[test]
fn a_standby_that_is_promoted_leaves_nothing_of_its_timeline() {
    for version in [MajorVersion::V13, MajorVersion::V17] {
        require_servers!(version);
        let primary = Server::start(version);
        rows(&primary, "t", 1000);
        let site = Site::new(&primary);
        let receiver = site.receive(&[]);
        site.backup();
        let standby = primary.standby().setting("hot_standby", "on").start();
        standby.wait_sql("select count(*) from t", "1000");
        let other = leading_to(&site, &primary, &standby);
        let mut running =
            site.walrecv(&["--config", &other, "backup", "--full", "--max-rate", "512", "--progress"]).spawn();
        running.wait_logged("cop");
        let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
        standby.wait_sql(streams, "1");
        standby.promote();
        standby.sql("create table of_the_promoted as select 1 as n");
        standby.switch_wal();
        let output = running.wait().expect_code(17);
        assert!(output.stderr.contains("became a primary"), "{version}: {}", output.stderr);
        standby.wait_sql(streams, "0");

        rows(&primary, "after", 1000);
        wait_durable(&primary, primary.lsn());
        end(receiver);
        let plan = site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
        assert_eq!(plan["target_timeline"], 1, "{version}: {plan:#}");
        assert!(plan["warnings"].as_array().is_some_and(Vec::is_empty), "{version}: {plan:#}");
        let copy = site.land(&primary, "latest", &["--latest"]);
        assert_eq!(copy.value("select count(*) from after"), "1000", "{version}");
    }
}

/// Once there is a backup of a standby that was promoted on the side, its timeline is the newest one, and the plan tells that production's goes on.
#[test]
fn a_timeline_that_goes_on_later_than_the_newest_one_is_told() {
    for version in [MajorVersion::V13, MajorVersion::V17] {
        require_servers!(version);
        let primary = Server::start(version);
        rows(&primary, "t", 1000);
        let site = Site::new(&primary);
        let receiver = site.receive(&[]);
        site.backup();
        let standby = primary.standby().setting("hot_standby", "on").start();
        standby.wait_sql("select count(*) from t", "1000");
        let other = leading_to(&site, &primary, &standby);
        standby.promote();
        site.walrecv(&["--config", &other, "backup"]).run().expect_code(0);
        let told = || {
            let plan = site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
            assert_eq!(plan["target_timeline"], 2, "{version}: {plan:#}");
            plan["warnings"].as_array().expect("warnings").clone()
        };
        let said = |warnings: &[serde_json::Value], text: &str| {
            warnings.len() == 1
                && warnings[0].as_str().is_some_and(|said| {
                    said.starts_with("timeline 1 goes on through ")
                        && said.contains(text)
                        && said.ends_with("; --target-timeline 1 for that")
                })
        };
        rows(&primary, "much_later", 1000);
        primary.switch_wal();
        rows(&primary, "last", 1);
        wait_durable(&primary, primary.lsn());
        let commits = told();
        assert!(said(&commits, "later than where this lands; "), "{version}: {commits:?}");
        let backup = site.backup();
        end(receiver);
        let both = told();
        assert!(said(&both, backup["id"].as_str().expect("an id")), "{version}: {both:?}");
        let plan = site.walrecv(&["restore", "--latest", "--plan"]).run().expect_code(0);
        assert!(plan.stdout.contains("\nWARNING      timeline 1 goes on "), "{version}: {}", plan.stdout);
    }
}

/// After a failover a backup may come before the receiver. It makes the slot that the receiver would make, which takes a slot that is missing later for one that
/// somebody dropped.
#[test]
fn a_backup_that_is_the_first_after_a_failover_leaves_the_slot_that_the_receiver_goes_on_with() {
    for (version, made) in [(MajorVersion::V13, true), (MajorVersion::V17, true), (MajorVersion::V17, false)] {
        require_servers!(version);
        let mut primary = Server::start(version);
        rows(&primary, "t", 1000);
        let site = Site::new(&primary);
        let receiver = site.receive(&[]);
        site.backup();
        let standby = primary.standby().setting("hot_standby", "on").start();
        standby.wait_sql("select count(*) from t", "1000");
        end(receiver);
        primary.kill9();
        standby.promote();
        let other = leading_to(&site, &primary, &standby);
        let slots = "select count(*) from pg_replication_slots";

        if !made {
            let config = std::fs::read_to_string(&other).expect("a configuration");
            let config = config.replace("[clusters.main]", "[clusters.main]\nslot_after_failover = \"stop\"");
            std::fs::write(&other, config).expect("write the configuration");
            site.walrecv(&["--config", &other, "backup"]).run().expect_code(0);
            assert_eq!(standby.sql(slots), "0", "{version}");
            continue;
        }
        let output = site.walrecv(&["--config", &other, "backup"]).run().expect_code(0);
        assert!(
            output.stderr.contains("timeline 2 is new, and its primary has no slot"),
            "{version}: {}",
            output.stderr
        );
        assert_eq!(standby.sql(slots), "1", "{version}");
        let mut receiver = site.walrecv(&["--config", &other, "receive"]).spawn();
        receiver.wait_logged("streaming timeline 2");
        rows(&standby, "after", 1000);
        wait_durable(&standby, standby.lsn());
        end(receiver);
        let copy = site.land(&standby, "latest", &["--latest"]);
        assert_eq!(copy.value("select count(*) from after"), "1000", "{version}");
    }
}
