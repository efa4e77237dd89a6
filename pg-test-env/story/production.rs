//! The server that will be lost, what writes into it, and what its clients were told.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::SystemTime;

use walrecv::pg::{Lsn, MajorVersion};

use crate::support::guard::Guard;
use crate::support::ledger::{Entry, Ledger};
use crate::support::{Server, wait_for};

/// Rows of the table that is dropped by accident.
const INVOICES: u32 = 50_000;

/// Acknowledged commits by id: when each was committed, in microseconds since 1970, as the server says.
pub type Acknowledged = BTreeMap<u64, i64>;

/// A moment of the server's clock.
pub struct Moment {
    /// As `--target-time` takes it.
    pub text: String,
    /// Microseconds since 1970.
    pub us: i64,
}

pub struct Production {
    pub server: Server,
    /// Number and sum of the invoices, before the accident.
    pub invoices: String,
}

/// pgbench and the ledger, at work.
pub struct Load {
    pgbench: Child,
    guard: Guard,
    pub ledger: Ledger,
}

impl Production {
    pub fn start(version: MajorVersion) -> Production {
        let server = Server::builder(version)
            .segment_size_mb(16)
            .own_identity()
            .setting("track_commit_timestamp", "on")
            .setting("shared_buffers", "128MB")
            .start();
        server.sql("create role walrecv with login replication");
        server.pgbench(&["-i", "-q", "-s", "10"]);
        server.sql(&format!(
            "create table invoices as select n as id, n * 7 % 1000 as amount, 'customer ' || n % 997 as customer \
             from generate_series(1, {INVOICES}) n; alter table invoices add primary key (id)"
        ));
        let invoices = server.sql(count_invoices());
        Production { server, invoices }
    }

    /// Begins to write. `first_id` is that of the first commit of the ledger.
    pub fn load(&self, first_id: u64) -> Load {
        let mut command = self.server.bin("pgbench");
        command.args(["-n", "-c", "2", "-T", "600"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pgbench = command.spawn().expect("start pgbench");
        let guard = Guard::new(pgbench.id());
        // One writer, so that its commits have one order.
        let ledger = Ledger::builder().first_id(first_id).start(&self.server);
        Load { pgbench, guard, ledger }
    }

    /// Ends the load; returns once the server is at rest.
    pub fn pause(&self, load: Load) -> Acknowledged {
        let entries = load.end();
        let others = "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                      and pid <> pg_backend_pid()";
        self.server.wait_sql(others, "0");
        let mut acknowledged = Acknowledged::new();
        for entry in entries {
            let us = entry.committed_us.unwrap_or_else(|| self.committed_us(&entry));
            acknowledged.insert(entry.id, us);
        }
        acknowledged
    }

    fn committed_us(&self, entry: &Entry) -> i64 {
        let asked = format!("pg_xact_commit_timestamp('{}'::xid)", entry.xid & 0xFFFF_FFFF);
        let text = self.server.sql(&format!("select (extract(epoch from {asked}) * 1000000)::bigint"));
        text.parse().expect("a time in microseconds")
    }

    /// The server's clock. Called while nothing writes.
    pub fn now(&self) -> Moment {
        let answer = self.server.sql("select t, (extract(epoch from t) * 1000000)::bigint from clock_timestamp() t");
        let (text, us) = answer.split_once('|').expect("two columns");
        Moment { text: text.to_string(), us: us.parse().expect("a time in microseconds") }
    }

    /// How far the receiver has acknowledged WAL, which it does only for what is durable in the repository.
    pub fn streamed(&self) -> Option<Lsn> {
        let found = self.server.sql("select flush_lsn from pg_stat_replication where flush_lsn is not null");
        found.parse().ok()
    }

    /// Waits until all that the server has written is durable in the repository.
    pub fn wait_streamed(&self) -> Lsn {
        let end = self.server.lsn();
        wait_for("the receiver to have all WAL", || self.streamed().filter(|lsn| *lsn >= end))
    }

    /// Size of the data directory, without its WAL.
    pub fn data_bytes(&self) -> u64 {
        let data = self.server.data_dir();
        size_of(data).saturating_sub(size_of(&data.join("pg_wal")))
    }

    /// SIGKILL to every process, then its data directory is deleted: when the first of them was killed.
    pub fn destroy(&mut self) -> SystemTime {
        let at = SystemTime::now();
        self.server.kill9();
        self.server.release_memory();
        std::fs::remove_dir_all(self.server.data_dir()).expect("delete the data directory");
        at
    }
}

impl Load {
    /// Ends both; what the ledger was told.
    pub fn end(mut self) -> Vec<Entry> {
        let _ = self.pgbench.kill();
        let _ = self.pgbench.wait();
        drop(self.guard);
        self.ledger.stop()
    }
}

pub fn count_invoices() -> &'static str {
    "select count(*) || ' rows, sum ' || sum(amount) from invoices"
}

/// Bytes of the files in `folder`, as far down as it goes.
pub fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        // Removed meanwhile: the server recycles its files.
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
