//! One damaged byte in the open tail: what it held is lost, and nothing else is.

use std::fs;

use walrecv::pg::MajorVersion;

use crate::backups::{edit, listed, rows, without_slot};
use crate::looking::files;
use crate::site::{Site, end, wait_durable};
use crate::support::{Server, require_servers};

/// Flips one byte in the middle of what was written of the newest tail.
fn hurt(site: &Site) -> String {
    let tail = files(&site.repository(), ".open").into_iter().max().expect("a tail");
    let mut bytes = fs::read(&tail).expect("a tail");
    let written = bytes.iter().rposition(|byte| *byte != 0).expect("something was written");
    bytes[written / 2] ^= 1;
    fs::write(&tail, bytes).expect("a tail");
    tail.strip_prefix(site.repository()).expect("below it").display().to_string()
}

/// Lets go of all WAL but the newest.
fn forget(server: &Server) {
    for _ in 0..10 {
        server.switch_wal();
        server.sql("checkpoint");
    }
}

#[test]
fn one_damaged_byte_of_the_open_tail_costs_what_it_held_and_nothing_else() {
    require_servers!(MajorVersion::V18);
    let small = Server::builder(MajorVersion::V18).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB");
    let server = small.start();
    let site = without_slot(&server);
    let stream = |table: &str| {
        let receiver = site.receive(&[]);
        rows(&server, table, 1000);
        // Several flushes: damage in the last one would look like a write that was torn.
        for _ in 0..6 {
            wait_durable(&server, server.lsn());
            server.sql(&format!("insert into {table} values (0)"));
        }
        end(receiver);
    };
    let receiver = site.receive(&[]);
    site.backup();
    for table in ["a", "b", "c"] {
        rows(&server, table, 1000);
        server.switch_wal();
    }
    end(receiver);
    stream("tail");
    let tail = hurt(&site);

    // Told once, by its name; the backup does not need it.
    let report = site.walrecv(&["verify", "--deep", "--output", "json"]).run().expect_code(16).json();
    let problems = report["problems"].as_array().expect("problems");
    assert_eq!(problems.len(), 1, "{report:#}");
    assert_eq!((&problems[0]["object"], &problems[0]["flaw"]), (&tail.into(), &"damaged".into()), "{report:#}");
    assert_eq!(problems[0]["hurts"], serde_json::json!([]), "{report:#}");
    assert_eq!(problems[0]["limits"].as_array().map(Vec::len), Some(1), "{report:#}");
    let list = site.walrecv(&["list"]).run().expect_code(0);
    assert!(
        !list.stdout.contains("HURT") && list.stderr.contains("counts for nothing while a tail of it is damaged"),
        "{list:?}"
    );
    for command in [&["list", "--windows"][..], &["show", "latest"], &["check"]] {
        site.walrecv(command).run().expect_code(0);
    }

    // While the server has that WAL it is stored anew.
    site.backup();
    let verify = site.walrecv(&["verify", "--deep"]).run().expect_code(16);
    assert!(
        verify.stdout.contains("stored elsewhere too") && verify.stdout.contains("hurts    no backup"),
        "{verify:?}"
    );
    let copy = site.land(&server, "anew", &["--latest"]);
    assert_eq!(copy.value("select count(*) from tail"), "1006");
    drop(copy);

    // Where it has not, what was damaged is a hole, behind which the next backup begins.
    stream("gone");
    let tail = hurt(&site);
    forget(&server);
    edit(&site, |text| text.replace("[clusters.main]", "[clusters.main]\non_gap = \"stop\""));
    let refused = site.walrecv(&["backup"]).run().expect_code(16);
    assert!(refused.stderr.contains(&tail) && refused.stderr.contains("put its objects back"), "{refused:?}");
    edit(&site, |text| text.replace("on_gap = \"stop\"\n", ""));
    let told = site.walrecv(&["backup"]).run().expect_code(0);
    assert!(told.stdout.contains("HOLE"), "{}", told.stdout);
    let listed = listed(&site, 3);
    let holes = listed["holes"].as_array().expect("holes");
    assert!(holes.len() == 1 && holes[0]["reason"].as_str().is_some_and(|why| why.contains(&tail)), "{listed}");
    let copy = site.land(&server, "behind", &["--latest"]);
    assert_eq!(copy.value("select count(*) from gone"), "1006");
}
