//! Pages that look damaged when they are copied, and what the WAL of the backup says of them.

use std::os::unix::fs::FileExt;

use walrecv::pg::MajorVersion;

use crate::backups::{rows, slow};
use crate::site::{Site, end};
use crate::support::{Server, Stop, require_servers};

/// By their bytes pages that are damaged and pages that were read half before and half after they were written are the same. What the WAL writes whole is replaced
/// before anything reads it.
#[test]
fn a_page_that_the_wal_of_the_backup_replaces_is_not_bad() {
    for version in [MajorVersion::V14, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::builder(version).initdb("--data-checksums").setting("autovacuum", "off").start();
        rows(&server, "t", 2000);
        // Its pages are in the server's memory as they should be, and nothing is left to be written.
        let sum = "select count(*) || ' ' || sum(n) from t";
        server.sql(sum);
        server.sql("checkpoint");
        server.sql(sum);
        let path = server.sql("select pg_relation_filepath('t')");
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(server.data_dir().join(&path)).expect("a table");
        let damage = |page: u64| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, page * 8192 + 8000).expect("read a table");
            file.write_all_at(&[!byte[0]], page * 8192 + 8000).expect("write a table");
        };
        [3, 7].into_iter().for_each(damage);
        let site = Site::new(&server);
        let receiver = site.receive(&[]);
        let running = slow(&site, &server, "8192", &["--output", "json"]);
        server.sql("update t set n = -n where ctid = '(3,1)'");
        let backup = running.wait().expect_code(0).json();
        assert_eq!((&backup["bad_pages"], &backup["torn_pages"]), (&1.into(), &1.into()), "{version}: {backup}");
        let shown = site.walrecv(&["show", "latest", "--output", "json"]).run().expect_code(0).json();
        let named = |what: &str| (shown[what][0]["path"].clone(), shown[what][0]["page"].clone());
        assert_eq!(named("bad_pages_named"), (path.clone().into(), 7.into()), "{version}: {shown}");
        assert_eq!(named("torn_pages_named"), (path.clone().into(), 3.into()), "{version}: {shown}");
        let report = site.walrecv(&["verify", "--deep", "--output", "json"]).run().expect_code(0).json();
        let (bad, checked) = (report["bad_pages"].as_array().expect("bad pages"), &report["checked"]);
        assert!(bad.len() == 1 && bad[0]["page"] == 7, "{version}: {report}");
        assert_eq!((&checked["pages_bad"], &checked["pages_torn"]), (&1.into(), &1.into()), "{version}: {report}");
        let copy = site.land(&server, "immediate", &["--target-immediate"]);
        let page = |number: u32| {
            format!("select count(*) from t where ctid >= '({number},0)' and ctid < '({},0)'", number + 1)
        };
        // One row of page 3 has gone to another page.
        let rows_of = |told: String| told.parse::<u64>().expect("a number");
        assert_eq!(rows_of(copy.value(&page(3))) + 1, rows_of(server.sql(&page(2))), "{version}");
        drop(copy);
        // Who has no private key cannot look.
        let identity = site.etc().join("walrecv-identity.txt");
        std::fs::rename(&identity, site.etc().join("elsewhere")).expect("put a key away");
        server.sql("checkpoint");
        damage(3);
        let running = slow(&site, &server, "8192", &["--output", "json"]);
        server.sql("update t set n = -n where ctid = '(3,2)'");
        let output = running.wait().expect_code(0);
        let backup = output.json();
        assert_eq!((&backup["bad_pages"], &backup["torn_pages"]), (&2.into(), &0.into()), "{version}: {backup}");
        assert!(output.stderr.contains("is not known: "), "{version}: {}", output.stderr);
        // Nothing of that backup says that it is torn.
        std::fs::rename(site.etc().join("elsewhere"), &identity).expect("put a key back");
        let report = site.walrecv(&["verify", "--deep", "--output", "json"]).run().expect_code(0).json();
        let pages: Vec<_> = report["bad_pages"].as_array().expect("bad pages").iter().map(|bad| &bad["page"]).collect();
        assert!(pages.contains(&&3.into()) && pages.contains(&&7.into()), "{version}: {report}");
        end(receiver);
    }
}

/// Where a disk dies, thousands of pages are bad: the first are told, and how many more there are; the report has all that are named.
#[test]
fn thousands_of_bad_pages_are_told_in_a_few_lines() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let mut server = Server::builder(version).initdb("--data-checksums").setting("autovacuum", "off").start();
    server.sql("create table t with (fillfactor = 10) as select n, repeat('x', 600) t from generate_series(1, 1200) n");
    server.sql("checkpoint");
    let path = server.data_dir().join(server.sql("select pg_relation_filepath('t')"));
    server.stop(Stop::Fast);
    let mut bytes = std::fs::read(&path).expect("a table");
    let pages = bytes.len() / 8192;
    bytes.chunks_mut(8192).for_each(|page| page[8000] ^= 1);
    std::fs::write(&path, bytes).expect("a damaged table");
    server.start_again();
    let site = Site::new(&server);
    let receiving = site.receive(&[]);
    for (quiet, most) in [(true, 8), (false, 20)] {
        let output = site.walrecv(&["backup"]).args(quiet.then_some("--quiet")).run().expect_code(0);
        let told = output.stderr.lines().filter(|line| line.contains("does not match")).count();
        let more = format!("and {} pages more with a wrong checksum", pages - told);
        assert!(told > 0 && output.stderr.contains(&more), "{}", output.stderr);
        assert!(output.stderr.lines().count() <= most, "{}", output.stderr);
        let one_form = |line: &str| line.get(10..11) == Some(" ") && line.get(26..29) == Some("+00");
        assert!(output.stderr.lines().all(one_form), "times are told in one form: {}", output.stderr);
        assert!(output.stdout.lines().count() <= 30, "{}", output.stdout);
        assert!(quiet || output.stdout.contains(&format!("BAD PAGES    {pages}: ")), "{}", output.stdout);
    }
    let shown = site.walrecv(&["show", "latest", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(shown["bad_pages"], pages, "{shown}");
    assert_eq!(shown["bad_pages_named"].as_array().map(Vec::len), Some(pages.min(1000)));
    end(receiving);
}
