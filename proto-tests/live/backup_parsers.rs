//! What base backups consist of, read from what the servers' own tools fetch: tar members, labels, pg_control, manifest, page checksums.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use walrecv::pg::control::ControlFile;
use walrecv::pg::data_page::{self, PAGE, PageState, RelationFile, SEGMENT_PAGES};
use walrecv::pg::label::{BackupLabel, parse_tablespace_map, print_tablespace_map};
use walrecv::pg::manifest::{Checksum, ManifestItem, ManifestReader};
use walrecv::pg::tar::{Member, MemberKind, TarEvent, TarReader};
use walrecv::pg::{Lsn, MajorVersion, SystemIdentifier};

use crate::support::{Server, TempDir, install};

fn server(version: MajorVersion, places: &TempDir) -> Server {
    let server = Server::builder(version).initdb("--data-checksums").setting("autovacuum", "off").start();
    let place = places.postgres_dir("a table space");
    server.sql(&format!("create tablespace extra location '{}'", place.display()));
    server.sql("create table here as select n, repeat('x', 200) from generate_series(1, 20000) n");
    server.sql("create table there tablespace extra as select n, md5(n::text) from generate_series(1, 20000) n");
    server.sql("create unlogged table fleeting (n int); insert into fleeting values (1)");
    server.sql("vacuum");
    server
}

/// All members of an archive with their contents, read in odd pieces.
fn members(tar: &Path, prefix: &str) -> Vec<(Member, Vec<u8>)> {
    let bytes = fs::read(tar).expect("read an archive");
    let (mut reader, mut found) = (TarReader::new(), Vec::<(Member, Vec<u8>)>::new());
    for piece in bytes.chunks(33_333) {
        reader.feed(Bytes::copy_from_slice(piece));
        while let Some(event) = reader.next_event().expect("a good archive") {
            match event {
                TarEvent::Member(mut member) => {
                    member.path = [prefix.as_bytes(), &member.path].concat();
                    found.push((member, Vec::new()));
                }
                TarEvent::Data(bytes) => found.last_mut().expect("a member").1.extend_from_slice(&bytes),
                TarEvent::End => {}
            }
        }
    }
    reader.finish().expect("a whole archive");
    found
}

#[test]
fn every_version_s_backup_is_understood() {
    for version in install::versions() {
        let places = TempDir::for_postgres("spaces");
        let server = server(version, &places);
        let out = places.postgres_dir("out");
        let target = out.display().to_string();
        server.run("pg_basebackup", &["-D", &target, "-Ft", "-X", "none", "-c", "fast", "-l", "a label", "--no-sync"]);
        let oid = server.sql("select oid from pg_tablespace where spcname = 'extra'");
        let mut all = members(&out.join(format!("{oid}.tar")), &format!("pg_tblspc/{oid}/"));
        all.extend(members(&out.join("base.tar"), ""));
        let files: BTreeMap<Vec<u8>, Vec<u8>> =
            all.iter().filter(|(m, _)| m.kind == MemberKind::File).map(|(m, c)| (m.path.clone(), c.clone())).collect();
        assert_eq!(all.last().map(|(m, _)| m.path.as_slice()), Some(&b"global/pg_control"[..]), "{version}: the last");

        let system = SystemIdentifier(server.sql("select system_identifier from pg_control_system()").parse().unwrap());
        let label = check_label(&files);
        check_tablespaces(&files, &oid, &places);
        check_control(&files, &server, system);
        check_manifest(
            &fs::read(out.join("backup_manifest")).expect("a manifest"),
            &files,
            version,
            system,
            label.start,
        );
        check_pages(&files);
    }
}

fn check_label(files: &BTreeMap<Vec<u8>, Vec<u8>>) -> BackupLabel {
    let bytes = &files[&b"backup_label"[..]];
    let label = BackupLabel::parse(bytes).expect("a good label");
    assert_eq!(&label.print(), bytes);
    assert_eq!(label.label, b"a label");
    label
}

fn check_tablespaces(files: &BTreeMap<Vec<u8>, Vec<u8>>, oid: &str, places: &TempDir) {
    let bytes = &files[&b"tablespace_map"[..]];
    let lines = parse_tablespace_map(bytes).expect("a good map");
    assert_eq!(&print_tablespace_map(&lines), bytes);
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(
        (line.oid.to_string().as_str(), Path::new(str(&line.path))),
        (oid, places.join("a table space").as_path())
    );
}

fn check_control(files: &BTreeMap<Vec<u8>, Vec<u8>>, server: &Server, system: SystemIdentifier) {
    let control = ControlFile::parse(&files[&b"global/pg_control"[..]]).expect("a good pg_control");
    assert_eq!(control.system, system);
    assert_eq!(control.parameters.max_connections, 50);
    assert_eq!(control.parameters.max_wal_senders, 10);
    assert_eq!(control.parameters.wal_level, 1);
    assert!(control.track_commit_timestamp);
    assert_eq!((control.data_checksum_version, control.segment_size.bytes()), (1, 1 << 20));
    assert_eq!(control.relation_segment_pages, SEGMENT_PAGES);
    let asked = "select checkpoint_lsn || ' ' || redo_lsn || ' ' || timeline_id from pg_control_checkpoint()";
    assert_eq!(server.sql(asked), format!("{} {} {}", control.checkpoint, control.redo, control.timeline));
    let catalog = server.sql("select catalog_version_no || ' ' || pg_control_version from pg_control_system()");
    assert_eq!(catalog, format!("{} {}", control.catalog_version, control.control_version));
}

fn check_manifest(
    manifest: &[u8],
    files: &BTreeMap<Vec<u8>, Vec<u8>>,
    version: MajorVersion,
    system: SystemIdentifier,
    start: Lsn,
) {
    let (mut reader, mut items) = (ManifestReader::new(), Vec::new());
    for piece in manifest.chunks(1000) {
        let mut keep = |item| {
            items.push(item);
            Ok(())
        };
        reader.push(piece, &mut keep).expect("a good manifest");
    }
    reader.finish().expect("a whole manifest");
    let mut named = 0;
    for item in &items {
        match item {
            ManifestItem::Version(number) => assert_eq!(*number, if version >= MajorVersion::V17 { 2 } else { 1 }),
            ManifestItem::System(found) => assert_eq!(*found, system),
            ManifestItem::File { path, size, checksum } => {
                let content = files.get(path).unwrap_or_else(|| panic!("{} was sent", str(path)));
                assert_eq!(*size, content.len() as u64, "{}", str(path));
                assert_eq!(*checksum, Checksum::Crc32c(crc32c::crc32c(content)), "{}", str(path));
                named += 1;
            }
            ManifestItem::WalRange { start: from, end, .. } => assert!(*from == start && end > from),
            ManifestItem::End => {}
        }
    }
    assert_eq!(named, files.len(), "the manifest names every file");
    assert_eq!(items.last(), Some(&ManifestItem::End));
}

/// Every page of every relation is judged good, and bad in another place or with another bit.
fn check_pages(files: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let (mut good, mut zero) = (0, 0);
    for (path, content) in files {
        let Some(file) = RelationFile::from_path(path) else { continue };
        for (number, bytes) in content.chunks(PAGE).enumerate() {
            let block = file.segment * SEGMENT_PAGES + number as u32;
            let mut page: [u8; PAGE] = bytes.try_into().expect("a whole page");
            match data_page::judge(&page, block, Lsn(u64::MAX)) {
                PageState::Good => good += 1,
                PageState::Zero => zero += 1,
                other => panic!("{} page {number}: {other:?}", str(path)),
            }
            let at = 16 + number * 31 % (PAGE - 16);
            page[at] ^= 1 << (number % 8);
            let changed = data_page::judge(&page, block, Lsn(u64::MAX));
            assert!(matches!(changed, PageState::Bad { .. }), "{} page {number}, byte {at}", str(path));
        }
    }
    assert!(good > 1000, "{good} good pages, {zero} zero pages");
}

fn str(path: &[u8]) -> &str {
    std::str::from_utf8(path).expect("a path in UTF-8")
}
