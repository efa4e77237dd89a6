//! The server's side of the protocol, as bytes (`protocol.h`, `walsender.c`).

use bytes::BufMut;
use walrecv::pg::Lsn;

pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.put_u32(body.len() as u32 + 4);
    out.extend_from_slice(body);
    out
}

pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

pub fn complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

pub fn error(severity: &str, sqlstate: &str, text: &str, routine: &str) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0C{sqlstate}\0M{text}\0R{routine}\0\0");
    message(b'E', fields.as_bytes())
}

/// Everything between the startup packet and the first command.
pub fn welcome(version: &str) -> Vec<u8> {
    let mut out = message(b'R', &0u32.to_be_bytes());
    for (name, value) in [("server_version", version), ("client_encoding", "UTF8"), ("in_hot_standby", "off")] {
        out.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    out.extend(message(b'K', &[0; 8]));
    out.extend(ready());
    out
}

/// A result set with one row, or none.
pub fn result(columns: &[&str], row: Option<&[Option<String>]>, tag: &str) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u16(columns.len() as u16);
    for column in columns {
        body.extend_from_slice(column.as_bytes());
        body.push(0);
        body.extend_from_slice(&[0; 18]);
    }
    let mut out = message(b'T', &body);
    if let Some(row) = row {
        let mut body = Vec::new();
        body.put_u16(row.len() as u16);
        for value in row {
            body.put_i32(value.as_ref().map_or(-1, |v| v.len() as i32));
            body.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
        }
        out.extend(message(b'D', &body));
    }
    out.extend(complete(tag));
    out
}

pub fn copy_both() -> Vec<u8> {
    message(b'W', &[0, 0, 0])
}

pub fn copy_done() -> Vec<u8> {
    message(b'c', &[])
}

/// XLogData: `start`, the server's end, WAL.
pub fn wal(start: Lsn, end: Lsn, bytes: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(start.0);
    body.put_u64(end.0);
    body.put_i64(0);
    body.extend_from_slice(bytes);
    message(b'd', &body)
}

/// Where the WAL begins in what [`wal`] makes.
pub const WAL_AT: usize = 5 + 25;

pub fn keepalive(end: Lsn, reply: bool) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.put_u64(end.0);
    body.put_i64(0);
    body.push(u8::from(reply));
    message(b'd', &body)
}
