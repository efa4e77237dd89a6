//! Real servers of every supported version, from `pg-test-env/install`. A test whose server is not there says that it
//! was skipped.

#[path = "live/backup.rs"]
mod backup;
#[path = "live/backup_faults.rs"]
mod backup_faults;
#[path = "live/backup_parsers.rs"]
mod backup_parsers;
#[path = "live/backup_wal.rs"]
mod backup_wal;
#[path = "live/credentials.rs"]
mod credentials;
#[path = "live/delta.rs"]
mod delta;
#[path = "live/ends.rs"]
mod ends;
#[path = "live/fixture.rs"]
mod fixture;
#[path = "live/hosts.rs"]
mod hosts;
#[path = "live/incremental.rs"]
mod incremental;
#[path = "live/login.rs"]
mod login;
#[path = "live/net.rs"]
mod net;
#[path = "live/prefetch.rs"]
mod prefetch;
#[path = "live/receive.rs"]
mod receive;
#[path = "live/record.rs"]
mod record;
#[path = "wire/replay.rs"]
mod replay;
#[path = "live/requests.rs"]
mod requests;
#[path = "live/restore.rs"]
mod restore;
#[path = "live/second.rs"]
mod second;
#[path = "live/segments.rs"]
mod segments;
#[path = "live/started.rs"]
mod started;
mod support;
#[path = "live/targets.rs"]
mod targets;
#[path = "wire/transcript.rs"]
mod transcript;
#[path = "live/workload.rs"]
mod workload;
