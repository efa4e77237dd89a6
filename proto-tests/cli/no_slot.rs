//! Backups of a server on which others stream, by a site whose configuration names no slot.

use walrecv::pg::MajorVersion;

use crate::backups::{edit, listed, rows, without_slot};
use crate::site::{Site, end, wait_durable};
use crate::support::{Server, require_servers};

/// Whoever streams into another archive is no receiver of this one, which ends before it, has nothing yet, or ends where the other one does.
#[test]
fn a_receiver_of_another_archive_is_told_from_one_of_this() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::start(version);
    let (other, site) = (Site::new(&server), without_slot(&server));
    let receiver = other.receive(&[]);
    rows(&server, "before", 20_000);
    wait_durable(&server, server.lsn());
    for round in 0..2 {
        let backup = site.backup();
        assert_eq!(backup["wal_streamed_here"]["temporary"], true, "{backup}");
        if round == 0 {
            rows(&server, "between", 1000);
        }
        wait_durable(&server, server.lsn());
    }
    // Nothing happened since: both end there.
    assert_eq!(site.backup()["wal_streamed_here"]["temporary"], true);
    end(receiver);
    listed(&site, 3);
    // Of this archive, from a host that has a slot configured.
    edit(&site, |text| text.replace("dsn = ", "slot = \"walrecv_two\"\ndsn = "));
    site.walrecv(&["slot", "create"]).run().expect_code(0);
    let receiver = site.receive(&[]);
    edit(&site, |text| text.replace("slot = \"walrecv_two\"\n", ""));
    rows(&server, "after", 1000);
    wait_durable(&server, server.lsn());
    assert!(site.backup()["wal_streamed_here"].is_null());
    end(receiver);
}

/// A standby that is backed up does not have the slot of the receiver that follows its primary. The catalog is that receiver's, and nobody has to be told.
#[test]
fn a_backup_of_a_standby_leaves_the_catalog_to_the_receiver() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let primary = Server::start(version);
    rows(&primary, "t", 1000);
    let standby = primary.standby().setting("hot_standby", "on").start();
    let site = Site::new(&primary);
    let receiver = site.receive(&[]);
    rows(&primary, "u", 10);
    standby.wait_sql("select count(*) from u", "10");
    wait_durable(&primary, primary.lsn());
    edit(&site, |text| text.replace(&primary.conninfo("postgres"), &standby.conninfo("postgres")));
    let output = site.walrecv(&["backup"]).run().expect_code(0);
    assert!(output.stdout.contains("on a temporary slot"), "{}", output.stdout);
    assert!(!output.stderr.contains("catalog"), "{}", output.stderr);
    end(receiver);
    let backup = site.walrecv(&["show", "latest", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(backup["from_standby"], true, "{backup}");
}
