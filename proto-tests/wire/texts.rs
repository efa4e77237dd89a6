//! Command texts in the grammar of each version, and what must never get into one.

use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::wire::command::{self, BaseBackupOptions, ServerCompression};
use walrecv::wire::upload_manifest::UploadManifest;
use walrecv::wire::{Outbox, WireError};

fn options(label: &str) -> BaseBackupOptions {
    BaseBackupOptions { label: label.to_owned(), fast_checkpoint: true, ..Default::default() }
}

#[test]
fn base_backup_in_both_grammars() {
    let full = BaseBackupOptions { max_rate: Some(4096), manifest: true, ..options("it's") };
    let old = "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 4096 TABLESPACE_MAP NOVERIFY_CHECKSUMS \
               MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'";
    let new = "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT 0, MAX_RATE 4096, TABLESPACE_MAP, \
               VERIFY_CHECKSUMS 0, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')";
    let spread = BaseBackupOptions { fast_checkpoint: false, ..options("a") };
    for version in MajorVersion::ALL {
        let text = |options| command::base_backup_text(options, version).expect("a command");
        let expected = if version < MajorVersion::V15 { old } else { new };
        assert_eq!(text(&full), expected);
        assert!(!text(&spread).contains("FAST"));
        assert_eq!(text(&spread).contains("CHECKPOINT 'spread'"), version >= MajorVersion::V15);
        assert!(!text(&spread).contains("MANIFEST") && !text(&spread).contains("MAX_RATE"));
        for rate in [0, 31, 1_048_577] {
            let wrong = BaseBackupOptions { max_rate: Some(rate), ..options("a") };
            assert!(matches!(command::base_backup_text(&wrong, version), Err(WireError::Text { .. })));
        }
        let incremental = command::base_backup_text(&BaseBackupOptions { incremental: true, ..full.clone() }, version);
        match incremental {
            Ok(text) if version >= MajorVersion::V17 => assert_eq!(text, new.replace(")", ", INCREMENTAL)")),
            Err(error) if version < MajorVersion::V17 => assert!(error.to_string().contains("INCREMENTAL"), "{error}"),
            other => panic!("{version}: {other:?}"),
        }
        let mut out = Outbox::default();
        let upload = UploadManifest::begin(version, &mut out);
        assert_eq!(upload.is_ok(), version >= MajorVersion::V17);
        assert_eq!(out.bytes.is_empty(), upload.is_err());
        for (method, said) in [
            (ServerCompression::Zstd { level: 3 }, "COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=3', "),
            (ServerCompression::Lz4, "COMPRESSION 'lz4', "),
        ] {
            let packed = BaseBackupOptions { compression: Some(method), ..full.clone() };
            match command::base_backup_text(&packed, version) {
                Ok(text) if version >= MajorVersion::V15 => {
                    assert_eq!(text, new.replace("MANIFEST 'yes'", &format!("{said}MANIFEST 'yes'")));
                }
                Err(error) if version < MajorVersion::V15 => assert!(error.to_string().contains("from 15 on")),
                other => panic!("{version}: {other:?}"),
            }
        }
        for label in ["a\nb", "a\0b", "\u{7f}"] {
            assert!(command::base_backup_text(&options(label), version).is_err(), "{label:?}");
        }
    }
}

#[test]
fn slots_and_streams() {
    assert_eq!(
        command::create_slot_text("a", false, true).unwrap(),
        "CREATE_REPLICATION_SLOT \"a\" PHYSICAL RESERVE_WAL"
    );
    assert_eq!(
        command::create_slot_text("a", true, false).unwrap(),
        "CREATE_REPLICATION_SLOT \"a\" TEMPORARY PHYSICAL"
    );
    assert_eq!(command::drop_slot_text("a b").unwrap(), "DROP_REPLICATION_SLOT \"a b\"");
    assert_eq!(
        command::start_replication_text(Some("s"), Lsn(0x16_B374_D848), TimelineId(3)).unwrap(),
        "START_REPLICATION SLOT \"s\" PHYSICAL 16/B374D848 TIMELINE 3"
    );
    assert_eq!(
        command::start_replication_text(None, Lsn(0x100_0000), TimelineId(1)).unwrap(),
        "START_REPLICATION PHYSICAL 0/1000000 TIMELINE 1"
    );
    assert_eq!(command::timeline_history_text(TimelineId(16)), "TIMELINE_HISTORY 16");
    for bad in ["", "a\"b", "a\0b"] {
        assert!(command::create_slot_text(bad, false, false).is_err(), "{bad:?}");
        assert!(command::start_replication_text(Some(bad), Lsn(1), TimelineId(1)).is_err(), "{bad:?}");
    }
    assert!(command::read_slot_sql("a' or 'x'='x").unwrap().ends_with("slot_name = 'a'' or ''x''=''x'"));
    assert!(command::read_slot_sql("a\\").is_err());
    assert_eq!(command::show_text("my.setting_1").unwrap(), "SHOW my.setting_1");
    for bad in ["", "a b", "a;b", "1a", "a'", ".a"] {
        assert!(command::show_text(bad).is_err(), "{bad:?}");
    }
}
