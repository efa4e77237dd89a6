//! What pg_waldump says of a server's WAL.

use walrecv::pg::Lsn;

use crate::support::Server;

/// One line of pg_waldump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub rmgr: String,
    pub total_len: u32,
    pub xid: u32,
    pub start: Lsn,
    pub prev: Lsn,
    pub desc: String,
}

/// Names of the built-in resource managers as pg_waldump prints them (`rmgrlist.h`).
pub const RMGRS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// All records of a timeline from `start` to the end of WAL, and the position where pg_waldump found that end;
/// `None` where it is a page border, which pg_waldump does not tell from damage.
pub fn dump(server: &Server, timeline: u32, start: Lsn) -> (Vec<Line>, Option<Lsn>) {
    let mut command = server.bin("pg_waldump");
    command.env("TZ", "UTC").env("LC_ALL", "C");
    command.arg("-p").arg(server.data_dir().join("pg_wal"));
    command.args(["-t", &timeline.to_string(), "-s", &start.to_string()]);
    let output = command.output().expect("run pg_waldump");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Line> = text.lines().filter(|l| l.starts_with("rmgr:")).map(line).collect();
    // The end is an error to pg_waldump: "error in WAL record at 0/1: invalid record length at 0/2: wanted 24, got 0".
    let complaint = String::from_utf8_lossy(&output.stderr);
    let after = complaint.split("invalid record length at ").nth(1);
    let end = after.and_then(|rest| rest.split(':').next()?.parse().ok());
    assert!(end.is_some() || complaint.contains("invalid magic number 0000"), "pg_waldump from {start}: {complaint}");
    (lines, end)
}

/// `rmgr: Heap        len (rec/tot):     59/  7927, tx:        731, lsn: 0/01501A30, prev 0/01501A08, desc: INSERT+INIT
/// off 1`
fn line(text: &str) -> Line {
    let between = |from: &str, to: &str| {
        let rest = text.split_once(from).unwrap_or_else(|| panic!("{from:?} in {text:?}")).1;
        rest.split_once(to).unwrap_or_else(|| panic!("{to:?} after {from:?} in {text:?}")).0.trim().to_string()
    };
    let number = |text: String| text.parse().unwrap_or_else(|_| panic!("a number: {text:?}"));
    let lsn = |text: String| text.parse().unwrap_or_else(|_| panic!("an LSN: {text:?}"));
    Line {
        rmgr: between("rmgr: ", "len (rec/tot):"),
        total_len: number(between("len (rec/tot):", ",").split_once('/').expect("two lengths").1.trim().to_string()),
        xid: number(between("tx:", ",")),
        start: lsn(between("lsn: ", ",")),
        prev: lsn(between("prev ", ",")),
        desc: text.split_once("desc: ").map_or("", |(_, desc)| desc).trim().to_string(),
    }
}
