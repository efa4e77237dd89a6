//! A small blocking client of the simple query protocol over a Unix socket, with trust authentication: no process per
//! statement, and a commit is known at the moment its answer arrives. Of no use to the program itself.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

/// A row of text values.
pub type Row = Vec<Option<String>>;

/// Why a statement gave no rows.
#[derive(Debug)]
pub enum Failure {
    /// The server answered with an error.
    Server { sqlstate: String, message: String },
    /// The connection ended or never was: whether the statement was carried out is unknown.
    Lost(std::io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Server { sqlstate, message } => write!(f, "{sqlstate}: {message}"),
            Failure::Lost(e) => write!(f, "connection lost: {e}"),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::Lost(e)
    }
}

/// One session.
pub struct Client {
    stream: UnixStream,
    input: BytesMut,
}

impl Client {
    /// Connects to the socket of `port` in `dir`.
    pub fn connect(dir: &Path, port: u16, user: &str, database: &str) -> Result<Client, Failure> {
        let stream = UnixStream::connect(dir.join(format!(".s.PGSQL.{port}")))?;
        let mut client = Client { stream, input: BytesMut::new() };
        let mut out = BytesMut::new();
        let parameters = [("user", user), ("database", database), ("application_name", "walrecv-tests")];
        frontend::startup_message(parameters, &mut out)?;
        client.stream.write_all(&out)?;
        client.until_ready()?;
        Ok(client)
    }

    /// How long an answer may take; unlimited by default.
    pub fn set_timeout(&self, limit: Option<Duration>) {
        self.stream.set_read_timeout(limit).expect("set a socket's time limit");
    }

    /// Runs `sql` and returns the rows of all its statements. On an error the session stays usable.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>, Failure> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.stream.write_all(&out)?;
        self.until_ready()
    }

    fn until_ready(&mut self) -> Result<Vec<Row>, Failure> {
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            let (tag, body) = self.message()?;
            match tag {
                b'D' => rows.push(row(&body)?),
                b'E' => {
                    let failure = server_error(&body);
                    if fatal(&body) {
                        return Err(failure);
                    }
                    failed = Some(failure);
                }
                b'R' if body.get(..4) != Some(&[0; 4]) => {
                    return Err(invalid("this client knows only trust authentication").into());
                }
                b'Z' => return failed.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> Result<(u8, BytesMut), Failure> {
        loop {
            if let Some(head) = self.input.get(..5) {
                let (tag, length) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
                if self.input.len() > length {
                    let message = self.input.split_to(length + 1);
                    return Ok((tag, BytesMut::from(&message[5..])));
                }
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk)? {
                0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                n => self.input.extend_from_slice(&chunk[..n]),
            }
        }
    }
}

fn invalid(text: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, text)
}

/// DataRow: a count, then each value's length (-1 for null) and text.
fn row(body: &[u8]) -> Result<Row, std::io::Error> {
    fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], std::io::Error> {
        let (value, left) = rest.split_at_checked(n).ok_or_else(|| invalid("short row"))?;
        *rest = left;
        Ok(value)
    }
    let mut rest = body;
    let columns = u16::from_be_bytes(take(&mut rest, 2)?.try_into().expect("two bytes"));
    (0..columns)
        .map(|_| {
            let length = i32::from_be_bytes(take(&mut rest, 4)?.try_into().expect("four bytes"));
            let Ok(length) = usize::try_from(length) else { return Ok(None) };
            Ok(Some(String::from_utf8_lossy(take(&mut rest, length)?).into_owned()))
        })
        .collect()
}

/// The fields of an ErrorResponse: a letter and a text each.
fn field(body: &[u8], letter: u8) -> String {
    let found = body.split(|b| *b == 0).find(|f| f.first() == Some(&letter));
    found.map_or_else(String::new, |f| String::from_utf8_lossy(&f[1..]).into_owned())
}

fn server_error(body: &[u8]) -> Failure {
    Failure::Server { sqlstate: field(body, b'C'), message: field(body, b'M') }
}

fn fatal(body: &[u8]) -> bool {
    matches!(field(body, b'V').as_str(), "FATAL" | "PANIC")
}
