//! Clusters of unusual shapes: very many files, very large ones, many tablespaces. What a backup takes of memory does not grow with them, a second one stores
//! what changed, and a restore gives them back. A small share of each, and the whole under `WALRECV_SOAK`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, verify};
use crate::support::{Seed, Server, Walrecv, require_servers, rounds};

/// What a backup or a restore may take, in KiB.
const MEMORY: u64 = 128 << 10;
const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs a command to its end; what it printed, and the most memory that it had, in KiB.
fn measured(what: &str, command: Walrecv) -> (Value, u64) {
    let (mut running, begun, mut peak) = (command.spawn(), Instant::now(), 0);
    let output = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
        peak = peak.max(now.unwrap_or(0));
        if let Some(output) = running.try_wait() {
            break output;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} has not ended");
        std::thread::sleep(Duration::from_millis(10));
    };
    println!("{what}: {:.1} s, at most {:.1} MiB", begun.elapsed().as_secs_f64(), peak as f64 / 1024.0);
    (output.expect_code(0).json(), peak)
}

fn backup(site: &Site, what: &str) -> Value {
    let (told, peak) = measured(what, site.walrecv(&["backup", "--output", "json", "--quiet"]));
    let mib = |name: &str| told[name].as_u64().unwrap_or_default() >> 20;
    println!("  {} files, {} MiB, of which {} MiB changed", told["files"], mib("total_bytes"), mib("changed_bytes"));
    assert!(peak < MEMORY, "{what} had {peak} KiB");
    told
}

/// The versions whose whole shape is looked at, or one of which a share is.
fn versions() -> Vec<MajorVersion> {
    [MajorVersion::V17, MajorVersion::V13].into_iter().take(rounds(1, 2) as usize).collect()
}

fn server(version: MajorVersion) -> Server {
    let builder = Server::builder(version).initdb("--data-checksums").segment_size_mb(16);
    let builder = builder.setting("autovacuum", "off").setting("max_wal_size", "4GB");
    match version {
        MajorVersion::V17 => builder.setting("summarize_wal", "on").start(),
        _ => builder.start(),
    }
}

/// Backed up twice, with a change in between that is small, and laid back: what is laid is what the server has.
fn twice_and_back(server: &Server, change: &str, mapping: &[String]) -> (Site, Value) {
    let site = Site::new(server);
    let receiving = site.receive(&[]);
    let first = backup(&site, "first backup");
    server.sql(change);
    server.sql("checkpoint");
    let second = backup(&site, "second backup");
    let bytes = |told: &Value, name: &str| told[name].as_u64().expect("a number");
    assert_eq!(second["parent"], first["id"]);
    assert!(bytes(&second, "changed_bytes") * 4 < bytes(&first, "changed_bytes"), "{second}");
    let mapping: Vec<&str> = mapping.iter().flat_map(|m| ["--tablespace-mapping", m]).collect();
    let command = site.restore(server, "copy", &["--latest", "--output", "json"]).args(&mapping);
    let (_, peak) = measured("restore", command);
    assert!(peak < MEMORY, "the restore had {peak} KiB");
    verify(server, &site.data("copy"));
    end(receiving);
    (site, second)
}

fn give_to_server(path: &Path) {
    let status = Command::new("chown").args(["-R", "postgres:"]).arg(path).status().expect("run chown");
    assert!(status.success());
}

/// The same bytes, read piece by piece.
fn same(one: &Path, other: &Path) {
    let (one, other) = (File::open(one).expect("a file"), File::open(other).expect("its copy"));
    let len = one.metadata().expect("a length").len();
    assert_eq!(len, other.metadata().expect("a length").len());
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..len).step_by(1 << 20) {
        let now = (len - at).min(1 << 20) as usize;
        one.read_exact_at(&mut a[..now], at).expect("a file");
        other.read_exact_at(&mut b[..now], at).expect("its copy");
        assert!(a[..now] == b[..now], "differs behind byte {at}");
    }
}

fn noise(seed: &mut Seed, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| seed.next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

#[test]
fn very_many_small_files() {
    require_servers!(MajorVersion::V17);
    let mut seed = Seed::of_run();
    for version in versions() {
        let server = server(version);
        let many = server.data_dir().join("many");
        let count = rounds(4000, 100_000);
        for number in 0..count {
            let folder = many.join(format!("{:03}", number % 300));
            fs::create_dir_all(&folder).expect("make a folder");
            // None, less than a page, more than one; some of zeros, some of one letter.
            let len = seed.below(if number % 10 == 0 { 30_000 } else { 3000 }) as usize;
            let bytes = match seed.below(8) {
                0 => Vec::new(),
                1 => vec![0; len],
                2 => vec![b'a'; len],
                _ => noise(&mut seed, len),
            };
            fs::write(folder.join(format!("a name that is as long as some are {number}")), bytes)
                .expect("write a file");
        }
        give_to_server(&many);
        let (site, second) = twice_and_back(&server, "create table t as select 1", &[]);
        assert!(second["files"].as_u64() > Some(count.into()));
        for number in (0..count).step_by(97) {
            let name = format!("{:03}/a name that is as long as some are {number}", number % 300);
            same(&many.join(&name), &site.data("copy/many").join(&name));
        }
    }
}

#[test]
fn very_large_files() {
    require_servers!(MajorVersion::V17);
    let mut seed = Seed::of_run();
    for version in versions() {
        let server = server(version);
        let mib = u64::from(rounds(80, 5 << 10));
        let path = server.data_dir().join("large file");
        let file = File::create(&path).expect("a file");
        file.set_len(mib << 20).expect("a length");
        // A quarter of it in one piece, and pieces at odd places.
        let mut writer = &file;
        for _ in 0..mib / 4 {
            writer.write_all(&noise(&mut seed, 1 << 20)).expect("write");
        }
        for _ in 0..20 {
            let (at, len) = (seed.below((mib << 20) - 100_000), seed.between(1, 100_000));
            file.write_all_at(&noise(&mut seed, len as usize), at).expect("write");
        }
        give_to_server(&path);
        // Rows of most of a page; in all more than one segment file of 1 GiB.
        server.sql("create table wide (n int, t text); alter table wide alter t set storage plain");
        let rows = rounds(1000, 140_000);
        server.sql(&format!("insert into wide select n, repeat(md5(n::text), 240) from generate_series(1, {rows}) n"));
        // Whoever reads a fresh row marks its page.
        server.psql("vacuum freeze wide");
        server.sql("checkpoint");
        let relation = server.sql("select pg_relation_filepath('wide')");
        let (site, _) = twice_and_back(&server, "delete from wide where n % 1000 = 1", &[]);
        same(&path, &site.data("copy/large file"));
        let copy = site.data("copy");
        let segments: Vec<String> =
            (0..9).map(|n| if n == 0 { relation.clone() } else { format!("{relation}.{n}") }).collect();
        let there: Vec<_> = segments.iter().filter(|name| server.data_dir().join(name).exists()).collect();
        assert_eq!(there.len(), rounds(1, 2) as usize, "{there:?}");
        there.iter().for_each(|name| same(&server.data_dir().join(name), &copy.join(name)));
    }
}

#[test]
fn very_many_tables_in_many_tablespaces() {
    require_servers!(MajorVersion::V17);
    for version in versions() {
        let server = server(version);
        let places = crate::support::TempDir::for_postgres("spaces");
        let (tables, spaces) = (rounds(60, 2000), rounds(4, 20));
        let mut mapping = Vec::new();
        for space in 0..spaces {
            let (from, to) = (places.postgres_dir(&format!("space {space}")), places.join(format!("copy {space}")));
            server.sql(&format!("create tablespace space{space} location '{}'", from.display()));
            mapping.push(format!("{}={}", from.display(), to.display()));
        }
        server.sql(&format!(
            "do $$ begin for i in 1..{tables} loop \
             execute format('create table s%s tablespace space%s as select n, md5((n * %s)::text) t from generate_series(1, %s) n', \
             i, i % {spaces}, i, i % 300); \
             execute format('create index on s%s (n) tablespace space%s', i, (i + 1) % {spaces}); \
             if i % 100 = 0 then commit; end if; end loop; end $$"
        ));
        server.sql(
            "create function sums() returns text language plpgsql as $$ declare name text; one text; all_of text = ''; begin \
             for name in select relname from pg_class where relname ~ '^s[0-9]+$' and relkind = 'r' order by relname loop \
             execute format('select count(*) || md5(coalesce(string_agg(t, '','' order by n), '''')) from %I', name) into one; \
             all_of := md5(all_of || name || one); end loop; return all_of; end $$",
        );
        server.sql("checkpoint");
        let (site, _) = twice_and_back(&server, "update s7 set t = 'changed' where n = 3", &mapping);
        let here = server.sql("select sums()");
        let copy = Server::builder(version).on_data_dir(&site.data("copy")).start();
        assert_eq!(copy.sql("select sums()"), here);
        let counted = "select count(*) from pg_tablespace where pg_tablespace_location(oid) like '%/copy %'";
        assert_eq!(copy.sql(counted), spaces.to_string());
    }
}
