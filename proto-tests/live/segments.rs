//! A relation that grows and shrinks across the border of its 1 GiB segments, through a chain of increments: what is restored of each is what
//! `pg_combinebackup` makes of the server's own.

use std::fs;
use std::time::Instant;

use walrecv::pg::MajorVersion;
use walrecv::seal::content::manifest::Transfer;

use super::incremental::{Scene, compare, transfer};
use crate::support::{require_servers, soaks, wait_for};

/// Pages of a segment.
const BORDER: u64 = 131_072;

/// Whether a relation's segments are as they shall be: the length of each, in pages.
fn segments(scene: &Scene) -> Vec<u64> {
    let path = scene.server.data_dir().join(scene.server.sql("select pg_relation_filepath('big')"));
    let segment = |number: u32| match number {
        0 => path.clone(),
        number => path.with_file_name(format!("{}.{number}", path.file_name().expect("a name").display())),
    };
    (0..).map_while(|number| fs::metadata(segment(number)).ok()).map(|meta| meta.len() / 8192).collect()
}

/// One row on each page: so many pages in all.
fn grow(scene: &Scene, from: u64, to: u64) {
    scene.server.sql(&format!("insert into big select n, repeat('x', 700) from generate_series({from} + 1, {to}) n"));
    scene.server.sql("vacuum (freeze) big");
    scene.server.sql("checkpoint");
}

fn shrink(scene: &Scene, to: u64) {
    scene.server.sql(&format!("delete from big where ctid >= '({to},0)'"));
    // What it cannot lock at once it leaves as it is.
    wait_for("the end of the relation to go", || {
        scene.server.sql("vacuum (freeze) big");
        (scene.server.sql("select pg_relation_size('big') / 8192") == to.to_string()).then_some(())
    });
    scene.server.sql("checkpoint");
}

/// What happens before an increment, and the segments afterwards.
type Step<'a> = (&'a str, &'a dyn Fn(&Scene), &'a [u64]);

#[test]
fn growth_and_truncation_across_segments_are_what_pg_combinebackup_makes() {
    let steps: [Step; 4] = [
        ("grown over the border", &|scene| grow(scene, BORDER, BORDER + 1_500), &[BORDER, 1_500]),
        ("truncated before it", &|scene| shrink(scene, BORDER - 2_000), &[BORDER - 2_000, 0]),
        ("grown again", &|scene| grow(scene, BORDER - 2_000, BORDER + 700), &[BORDER, 700]),
        (
            "grown, truncated inside of the second segment, and grown",
            &|scene| {
                grow(scene, BORDER + 700, BORDER + 3_000);
                shrink(scene, BORDER + 500);
                grow(scene, BORDER + 500, BORDER + 900);
            },
            &[BORDER, 900],
        ),
    ];
    // A usual run begins behind the border.
    let (begins, steps) = if soaks() { (BORDER, &steps[..]) } else { (BORDER + 1_500, &steps[1..3]) };
    for version in [MajorVersion::V18, MajorVersion::V17].into_iter().take(if soaks() { 2 } else { 1 }) {
        require_servers!(version);
        let begun = Instant::now();
        let mut scene = Scene::new(version, &[("summarize_wal", "on"), ("max_wal_size", "4GB")]);
        scene.server.sql("create table big (n bigint, t text) with (fillfactor = 10, toast_tuple_target = 8160)");
        scene.server.sql("alter table big alter column t set storage plain");
        grow(&scene, 0, begins);
        assert_eq!(segments(&scene).iter().sum::<u64>(), begins, "one row on each page");
        let options = scene.options();
        let first = scene.take(&options);
        assert_eq!(first.manifest.transfer, Transfer::Full);
        scene.store_wal(&first.manifest);
        let mut chain = vec![scene.pg_basebackup("tool-0", None)];
        println!("PostgreSQL {version}: {:?} for the first", begun.elapsed());
        for (number, (what, change, expected)) in (1..).zip(steps) {
            change(&scene);
            assert_eq!(segments(&scene), *expected, "{what}");
            let outcome = scene.take(&options);
            assert_eq!(transfer(&outcome), (Transfer::Incremental, ""), "{what}");
            assert!(outcome.manifest.sizes.changed < 100 << 20, "{what}: {:?}", outcome.manifest.sizes);
            compare(&mut scene, &mut chain, &outcome.manifest, soaks() && number == steps.len());
            println!("{what}: {:?}", begun.elapsed());
        }
        assert_eq!(chain.len(), steps.len() + 1);
    }
}
