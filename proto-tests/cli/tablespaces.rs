//! A tablespace that was made after the backup: recovery makes it at the path that it had, so no scratch server may replay that beside the server to which it
//! belongs, and a restore goes on only where the place was made ready.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::walrecv::Walrecv;
use crate::support::{Server, TempDir, require_servers};

/// Every file below, with its content and when it was written.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>, Option<SystemTime>)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let written = path.metadata().and_then(|meta| meta.modified()).ok();
                    all.push((path.clone(), fs::read(&path).expect("a file"), written));
                }
            }
        }
    }
    all.sort();
    all
}

struct Scene {
    server: Server,
    site: Site,
    work: TempDir,
    places: TempDir,
    /// Where the tablespace lies.
    fast: PathBuf,
}

impl Scene {
    fn scratch(&self, args: &[&str]) -> Walrecv {
        let (work, programs) = (self.work.path().display().to_string(), self.server.bin_dir().display().to_string());
        self.site.walrecv(args).args(["--work-dir", &work, "--pg-bindir", &programs])
    }

    fn refused(&self, command: Walrecv, code: i32, said: &[&str]) {
        let before = files(&self.fast);
        let output = command.run().expect_code(code);
        for said in said {
            assert!(output.stderr.contains(said), "{said:?} is not said: {}", output.stderr);
        }
        assert_eq!(files(&self.fast), before, "production's files");
        assert_eq!(fs::read_dir(self.work.path()).expect("a folder").count(), 0, "nothing was begun");
    }
}

#[test]
fn a_tablespace_made_after_the_backup_is_never_replayed_over_another_server() {
    let version = MajorVersion::V14;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table early as select generate_series(1, 500) as n");
    site.backup();
    server.sql("insert into early values (501)");
    let places = TempDir::for_postgres("fast");
    let fast = places.postgres_dir("fast");
    server.sql(&format!("create tablespace fast location '{}'", fast.display()));
    server.sql("create table kept tablespace fast as select generate_series(1, 3000) as n");
    server.sql("checkpoint");
    wait_durable(&server, server.lsn());
    let mut scene = Scene { server, site, work: TempDir::for_postgres("work"), places, fast };
    beside_production(&scene);
    assert_eq!(scene.server.sql("select count(*) from kept"), "3000");

    // A backup that was made after it has it as its own.
    scene.site.backup();
    scene.server.sql("insert into kept values (0)");
    wait_durable(&scene.server, scene.server.lsn());
    scene.scratch(&["extract", "--latest", "--table", "kept", "--file", "kept.sql"]).run().expect_code(0);
    assert_eq!(scene.server.sql("select count(*) from kept"), "3001");
    drilled(&scene);
    planned(&scene);
    over_a_copy(&scene);
    scene.server.kill9();
    end(receiver);
    elsewhere(&scene);
}

/// The report of a scratch server names its own places, which are not production's.
fn drilled(scene: &Scene) {
    let (work, from) = (scene.work.path().display().to_string(), scene.fast.display().to_string());
    let extract = ["extract", "--latest", "--table", "kept", "--file", "kept-2.sql", "--output", "json"];
    for command in [&["drill", "--skip", "amcheck", "--skip", "checksums", "--output", "json"][..], &extract] {
        let told = scene.scratch(command).run().expect_code(0).json();
        let laid = &told["plan"]["tablespaces"][0];
        assert_eq!(laid["location"].as_str(), Some(from.as_str()), "{laid}");
        let place = laid["place"].as_str().expect("a place");
        assert!(place.starts_with(&work) && place.ends_with(&format!("/tablespace-{}", laid["oid"])), "{laid}");
        assert!(told["plan"]["stored_bytes"].is_null() && told["plan"]["wal_stored_bytes"].is_null(), "{told}");
    }
    // One that is not begun has no places yet.
    let told =
        scene.site.walrecv(&["drill", "--output", "json", "--work-dir", &work, "--pg-bindir", &work]).run().json();
    assert_eq!((&told["passed"], &told["plan"]["tablespaces"][0]["place"]), (&false.into(), &serde_json::Value::Null));
}

/// The server sends a tablespace that it does not find as an empty one, and says nothing.
#[test]
fn a_tablespace_whose_files_are_away_is_told_by_everything_that_speaks_of_the_backup() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::start(version);
        let site = Site::new(&server);
        let receiver = site.receive(&["--flush-interval", "200ms"]);
        let places = TempDir::for_postgres("away");
        let made = |name: &str, folder: &str| {
            let place = places.postgres_dir(folder);
            server.sql(&format!("create tablespace {name} location '{}'", place.display()));
            (server.sql(&format!("select oid from pg_tablespace where spcname = '{name}'")), place)
        };
        let ((oid, place), _empty) = (made("volume", "volume"), made("empty", "empty"));
        server.sql("create table kept tablespace volume as select generate_series(1, 3000) as n");
        server.sql("checkpoint");
        let absent = |value: &serde_json::Value| value["absent_tablespaces"].clone();
        assert_eq!(absent(&site.backup()), serde_json::json!([]), "{version}: none is away");

        let versioned = fs::read_dir(&place).expect("a tablespace").next().expect("one").expect("a folder").path();
        let aside = places.join("aside");
        fs::rename(&versioned, &aside).expect("its files are moved away");
        let mut away = vec![oid.parse::<u64>().expect("an object id")];
        if version == MajorVersion::V13 {
            // It cuts the path at the line break.
            away.push(made("broken", "broken\nline").0.parse().expect("an object id"));
        }
        let output = site.walrecv(&["backup"]).run().expect_code(0);
        let shown = format!("tablespace {oid} at \"{}\": the server found no files of it", place.display());
        let told =
            |text: &str, begin: &str| assert!(text.contains(begin) && text.contains(&shown), "{version}: {text}");
        told(&output.stdout, "FILES ABSENT ");
        assert!(output.stderr.contains(&format!("no files of tablespace {oid}")), "{version}: {}", output.stderr);
        told(&site.walrecv(&["show", "latest"]).run().expect_code(0).stdout, "FILES ABSENT ");
        told(&site.walrecv(&["list"]).run().expect_code(0).stdout, "FILES ABSENT in ");
        let list = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
        let backups = list["backups"].as_array().expect("backups").iter().map(absent).collect::<Vec<_>>();
        assert_eq!(backups, [serde_json::json!([]), serde_json::json!(away)], "{version}: {list}");
        told(&site.walrecv(&["restore", "--latest", "--plan"]).run().expect_code(0).stdout, "WARNING ");

        if version != MajorVersion::V13 {
            let mapping = format!("{}={}", place.display(), site.data("volume").display());
            let empty = format!("{}={}", places.join("empty").display(), site.data("empty").display());
            let to = ["--latest", "--output", "json", "--tablespace-mapping", &mapping, "--tablespace-mapping", &empty];
            let restored = site.restore(&server, "copy", &to).run().expect_code(0).json();
            for place in ["plan", "restored"] {
                told(&restored[place]["warnings"][0].as_str().expect("a warning").replace('\\', ""), "");
            }
        }
        fs::rename(&aside, &versioned).expect("they are back");
        assert!(!absent(&site.backup()).to_string().contains(&oid), "{version}: they are there");
        end(receiver);
    }
}

/// A plan for a place refuses what the restore would refuse, and names where the tablespaces go.
fn planned(scene: &Scene) {
    let plan = |args: &[&str]| scene.site.restore(&scene.server, "planned", &["--latest", "--plan"]).args(args);
    scene.refused(plan(&[]), 2, &["is occupied"]);
    let (from, to) = (scene.fast.display().to_string(), scene.site.data("mapped").display().to_string());
    let newest = scene.site.walrecv(&["show", "latest", "--output", "json"]).run().expect_code(0).json();
    let said = format!("backup {} has no tablespace at /nowhere", newest["id"].as_str().expect("an id"));
    scene.refused(plan(&["--tablespace-mapping", "/nowhere=/else"]), 2, &[&said, &from]);
    let label = newest["label"].as_str().expect("a label");
    let said = format!("{label:?} is the label of several backups; give an id: ");
    scene.refused(plan(&["--backup", label]), 2, &[&said, newest["id"].as_str().expect("an id")]);
    let mapping = format!("{from}={to}");
    let told = plan(&["--tablespace-mapping", &mapping, "--output", "json"]).run().expect_code(0).json();
    assert_eq!(
        (&told["tablespaces"][0]["location"], &told["tablespaces"][0]["place"]),
        (&from.clone().into(), &to.clone().into())
    );
    let text = plan(&["--tablespace-mapping", &mapping]).run().expect_code(0).stdout;
    assert!(text.contains(&format!("goes to {to} (on the server: {from})")), "{text}");
    assert!(!scene.site.data("planned").exists() && !scene.site.data("mapped").exists());
    // Without a place it is the plan alone.
    let told = scene.site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
    assert_eq!((&told["tablespaces"][0]["place"], &told["new_tablespaces"]), (&from.into(), &serde_json::json!([])));
    scene.site.walrecv(&["restore", "--latest", "--plan", "--tablespace-mapping", &mapping]).run().expect_code(2);
}

/// A copy of a data directory has the links of the original, which lead to that one's files.
fn over_a_copy(scene: &Scene) {
    let copy = scene.site.data("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(scene.server.data_dir()).arg(&copy).status();
    assert!(copied.is_ok_and(|status| status.success()));
    fs::remove_file(copy.join("postmaster.pid")).expect("the lock file of the original");
    let over = || scene.site.restore(&scene.server, "copy", &["--latest", "--delta"]);
    scene.refused(over(), 2, &["tablespace", "looks like a copy"]);
    fs::remove_file(copy.join("postmaster.opts")).expect("the note of the original");
    scene.refused(over(), 2, &["server process", "looks like a copy"]);
    fs::remove_dir_all(&copy).expect("the copy");
}

fn beside_production(scene: &Scene) {
    let place = scene.fast.display().to_string();
    let plan = scene.site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(plan["new_tablespaces"][0]["location"].as_str(), Some(place.as_str()), "{plan:#}");
    let at = plan["new_tablespaces"][0]["lsn"].as_str().expect("a position");

    let scratch = format!("a scratch server would write to {place}");
    let table = ["extract", "--latest", "--table", "kept", "--file", "x.sql"];
    scene.refused(scene.scratch(&table), 19, &[&scratch, "take a backup now"]);
    scene.refused(scene.scratch(&["drill"]), 19, &[&scratch]);
    let data = scene.site.data("look");
    let look = ["--latest", "--start", "--scratch"];
    scene.refused(scene.site.restore(&scene.server, "look", &look), 19, &[&scratch]);
    scene.refused(scene.site.restore(&scene.server, "look", &["--latest"]), 2, &["it holds the files of a server"]);
    let mapping = format!("{place}=/elsewhere");
    let mapped = ["--latest", "--tablespace-mapping", &mapping];
    scene.refused(scene.site.restore(&scene.server, "look", &mapped), 2, &["no mapping holds for"]);
    assert!(!data.exists(), "something was laid");

    // Until just before it all is as ever.
    let before = ["extract", "--target-lsn", at, "--exclusive", "--table", "early", "--file", "early.sql"];
    let untouched = files(&scene.fast);
    scene.scratch(&before).run().expect_code(0);
    assert!(fs::read_to_string(scene.site.etc().join("early.sql")).expect("a file").contains("\n501\n"));
    assert_eq!(files(&scene.fast), untouched);
}

/// Production is gone, and its tablespace was taken away: as on another host.
fn elsewhere(scene: &Scene) {
    fs::rename(&scene.fast, scene.fast.with_extension("old")).expect("it is moved away");
    let backups = scene.site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    let all = backups["backups"].as_array().expect("backups").iter();
    let first = all.filter_map(|backup| backup["id"].as_str()).min().expect("a backup");
    let wanted = ["--latest", "--backup", first];
    let output = scene.site.restore(&scene.server, "copy", &wanted).run().expect_code(2);
    for said in ["it is not there", "make it an empty directory", "--backup "] {
        assert!(output.stderr.contains(said), "{said:?} is not said: {}", output.stderr);
    }
    assert!(!scene.site.data("copy").exists());
    scene.places.postgres_dir("fast");
    scene.site.restore(&scene.server, "copy", &wanted).run().expect_code(0);
    let copy = Server::builder(scene.server.version()).on_data_dir(&scene.site.data("copy")).start();
    copy.wait_sql("select pg_is_in_recovery()", "f");
    assert_eq!(copy.sql("select count(*) from kept"), "3001");
}
