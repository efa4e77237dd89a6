//! The database that base backups and restores are measured with.

// Each bench uses its own part of this.
#![allow(dead_code)]

use walrecv::pg::MajorVersion;

use crate::common::Options;
use crate::support::Server;

pub const PAGE: usize = 8192;
/// Rows on a page of the tables that are made here: a row has 1040 bytes, and a fifth of the page stays free for its updates.
pub const ROWS_ON_A_PAGE: u64 = 6;

/// A server with two tables of half the size each: one that hardly compresses, one that does.
pub fn database(options: &Options) -> Server {
    let mut builder = Server::builder(options.version)
        .segment_size_mb(16)
        .initdb("--data-checksums")
        .setting("max_wal_size", "20GB")
        .setting("checkpoint_timeout", "1h")
        .setting("autovacuum", "off")
        .setting("shared_buffers", "256MB");
    if options.version >= MajorVersion::V17 {
        builder = builder.setting("summarize_wal", "on");
    }
    let server = builder.start();
    let rows = (options.mib << 20) / 2 / PAGE as u64 * ROWS_ON_A_PAGE;
    let noise = "substring((SELECT string_agg(sha512((i * 16 + j)::text::bytea), '') FROM generate_series(1, 16) j) FROM 1 FOR 1000)";
    let text = "convert_to(rpad(md5(i::text) || repeat(' order placed, payment received', 12) || md5((i % 1000)::text), 1000, ' - item'), 'UTF8')";
    for (table, content) in [("noise", noise), ("orders", text)] {
        server.sql(&format!("CREATE TABLE {table} (id int, n int, content bytea) WITH (fillfactor = 80)"));
        server.sql(&format!("ALTER TABLE {table} ALTER content SET STORAGE PLAIN"));
        server.sql(&format!("INSERT INTO {table} SELECT i, 0, {content} FROM generate_series(1, {rows}) i"));
        server.sql(&format!("ALTER TABLE {table} ADD PRIMARY KEY (id)"));
        server.sql(&format!("VACUUM (FREEZE, ANALYZE) {table}"));
    }
    server.sql("CHECKPOINT");
    server
}
