//! `walrecv catalog`: beside a receiver, after it, and when its file is gone or wrong.

use walrecv::catalog::path_in;
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::{Server, require_servers, wait_for};

#[test]
fn the_catalog_is_kept_compared_and_made_again() {
    require_servers!(MajorVersion::V18);
    let server = Server::builder(MajorVersion::V18).segment_size_mb(1).start();
    let site = Site::new(&server);
    let path = path_in(&site.etc().join("walrecv-state"), "main");
    let catalog = |what: &str| site.walrecv(&["catalog", what, "--output", "json"]).run();
    let mut receiver = site.receive(&[]);
    receiver.wait_logged("streaming");
    let write = |rounds: u32| {
        for _ in 0..rounds {
            server.sql("select txid_current(), pg_logical_emit_message(true, 'x', repeat('y', 5000))");
            wait_durable(&server, server.switch_wal());
        }
    };
    write(5);
    assert_eq!(catalog("verify").expect_code(0).json()["equal"], true, "beside a receiver");
    assert!(catalog("rebuild").expect_code(11).stderr.contains("stop it"), "a receiver has it");
    site.walrecv(&["list"]).run().expect_code(0);
    end(receiver);

    let dump = catalog("dump").expect_code(0).json();
    let objects = dump["objects"].as_array().expect("objects");
    assert!(objects.len() >= 5 && objects.iter().any(|o| o["commits"].as_u64() > Some(0)), "{dump}");
    assert!(objects.iter().all(|o| o["stored_bytes"].as_u64() > Some(100)), "{dump}");
    assert!(site.walrecv(&["catalog", "dump"]).run().expect_code(0).stdout.contains("STORED"));

    // Something is missing in it, and something is wrong.
    let db = rusqlite::Connection::open(&path).expect("open it");
    let missing = "DELETE FROM objects WHERE start = (SELECT min(start) FROM objects)";
    let wrong = "UPDATE objects SET commits = 4711 WHERE start = (SELECT max(start) FROM objects)";
    db.execute_batch(&format!("{missing}; {wrong}")).expect("spoil it");
    drop(db);
    let output = catalog("verify").expect_code(1);
    let differences = output.json()["differences"].as_array().expect("a list").clone();
    assert_eq!(differences.len(), 2, "{differences:?}");
    let said = differences.iter().map(|d| d.as_str().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    assert!(said.contains("not in the catalog") && said.contains("4711"), "{said}");
    assert!(output.stderr.contains("catalog rebuild"), "{}", output.stderr);

    let rebuilt = catalog("rebuild").expect_code(0).json();
    assert_eq!(rebuilt["objects"].as_u64(), Some(objects.len() as u64));
    assert_eq!(catalog("verify").expect_code(0).json()["equal"], true);
    assert_eq!(catalog("dump").expect_code(0).json(), dump, "made again, it is the same");

    // Gone: said by the commands, made by the next receiver.
    std::fs::remove_dir_all(path.parent().expect("a folder")).expect("remove it");
    assert!(catalog("verify").expect_code(1).stderr.contains("no catalog of this cluster"));
    site.walrecv(&["list"]).run().expect_code(0);
    let receiver = site.receive(&[]);
    write(1);
    wait_for("the catalog to be made again", || (path.exists() && catalog("verify").code() == 0).then_some(()));
    end(receiver);
}
