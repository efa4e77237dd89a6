//! An HTTP server that speaks just enough S3, and misbehaves as told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// As S3 does.
    Honest,
    /// Does it, or not, and closes the connection without an answer.
    Close { apply: bool },
    /// Does it and sends half an answer.
    Half,
    /// Does it and sends half an answer, then nothing.
    Hang,
    /// Does it, or not, and never answers.
    Silence { apply: bool },
    /// Does it, or not, and answers with this status and error code.
    Refuse { apply: bool, status: u16, code: &'static str },
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    puts: VecDeque<Act>,
    gets: VecDeque<Act>,
    lists: VecDeque<Act>,
    /// Heads of all PUT requests so far.
    put_heads: Vec<String>,
}

/// Behaves as its scripts say, one act per request and the last one for ever; without a script as S3 does.
#[derive(Clone)]
pub struct Scripted {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Scripted {
    pub async fn start(puts: &[Act], gets: &[Act]) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let state =
            State { puts: puts.iter().copied().collect(), gets: gets.iter().copied().collect(), ..State::default() };
        let server = Scripted { port, state: Arc::new(Mutex::new(state)) };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move { server.serve(socket).await });
            }
        });
        server
    }

    pub fn script_lists(&self, acts: &[Act]) {
        self.state.lock().unwrap().lists = acts.iter().copied().collect();
    }

    pub fn script_gets(&self, acts: &[Act]) {
        self.state.lock().unwrap().gets = acts.iter().copied().collect();
    }

    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", "key".into()),
            ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ]
    }

    /// What stands under a name of bucket `b`.
    pub fn stored(&self, name: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().objects.get(&format!("/b/{name}")).cloned()
    }

    pub fn store(&self, name: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().objects.insert(format!("/b/{name}"), bytes);
    }

    pub fn put_heads(&self) -> Vec<String> {
        self.state.lock().unwrap().put_heads.clone()
    }

    async fn serve(&self, mut socket: TcpStream) -> Option<()> {
        let mut input = Vec::new();
        let end = loop {
            if let Some(end) = input.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            socket.read_buf(&mut input).await.ok().filter(|n| *n > 0)?;
        };
        let head = String::from_utf8_lossy(&input[..end]).to_string();
        let length: usize = header(&head, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        while input.len() < end + length {
            socket.read_buf(&mut input).await.ok().filter(|n| *n > 0)?;
        }
        let (act, answer) = self.answer(&head, &input[end..end + length])?;
        match act {
            Act::Silence { .. } => std::future::pending().await,
            Act::Close { .. } => {}
            Act::Hang => {
                socket.write_all(&answer[..answer.len() / 2]).await.ok()?;
                std::future::pending().await
            }
            Act::Half => socket.write_all(&answer[..answer.len() / 2]).await.ok()?,
            Act::Honest | Act::Refuse { .. } => socket.write_all(&answer).await.ok()?,
        }
        socket.shutdown().await.ok()
    }

    fn answer(&self, head: &str, body: &[u8]) -> Option<(Act, Vec<u8>)> {
        let mut line = head.split(' ');
        let (method, target) = (line.next()?, line.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut state = self.state.lock().unwrap();
        let listing = method == "GET" && query.contains("list-type");
        let script = match (method, listing) {
            ("PUT", _) => &mut state.puts,
            (_, true) => &mut state.lists,
            _ => &mut state.gets,
        };
        let act = if script.len() > 1 { script.pop_front() } else { script.front().copied() }.unwrap_or(Act::Honest);
        if method == "PUT" {
            state.put_heads.push(head.to_owned());
        }
        let apply = match act {
            Act::Honest | Act::Half | Act::Hang => true,
            Act::Close { apply } | Act::Silence { apply } | Act::Refuse { apply, .. } => apply,
        };
        let honest = match method {
            "PUT" if state.objects.contains_key(path) => refusal(412, "PreconditionFailed"),
            "PUT" => {
                if apply {
                    state.objects.insert(path.to_owned(), body.to_vec());
                }
                response(200, "ETag: \"e\"\r\n", b"")
            }
            _ if listing => list(&state, query),
            _ => get(&state, path, header(head, "range")),
        };
        match act {
            Act::Refuse { status, code, .. } => Some((act, refusal(status, code))),
            _ => Some((act, honest)),
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let value =
        |line: &'a str| line.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim());
    head.lines().find_map(value)
}

fn response(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let fixed = "Last-Modified: Wed, 21 Oct 2026 07:28:00 GMT\r\nConnection: close\r\n";
    let head = format!("HTTP/1.1 {status} X\r\n{fixed}{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn refusal(status: u16, code: &str) -> Vec<u8> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>");
    response(status, "", if code.is_empty() { b"not here" } else { body.as_bytes() })
}

fn get(state: &State, path: &str, range: Option<&str>) -> Vec<u8> {
    let Some(object) = state.objects.get(path) else { return refusal(404, "NoSuchKey") };
    let Some((from, to)) = range.and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-')) else {
        return response(200, "ETag: \"e\"\r\n", object);
    };
    let from: usize = from.parse().expect("a range");
    let to = to.parse::<usize>().expect("a range").min(object.len() - 1);
    let headers = format!("ETag: \"e\"\r\nContent-Range: bytes {from}-{to}/{}\r\n", object.len());
    response(206, &headers, &object[from..=to])
}

fn list(state: &State, query: &str) -> Vec<u8> {
    let prefix = query.split('&').find_map(|p| p.strip_prefix("prefix=")).unwrap_or("").replace("%2F", "/");
    let entries = state.objects.iter().filter_map(|(path, bytes)| {
        let key = path.strip_prefix("/b/").filter(|k| k.starts_with(&prefix))?;
        let time = "2026-10-21T07:28:00.000Z";
        let size = bytes.len();
        Some(format!("<Contents><Key>{key}</Key><LastModified>{time}</LastModified><Size>{size}</Size></Contents>"))
    });
    let entries: String = entries.collect();
    let body = format!("<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>");
    response(200, "", body.as_bytes())
}
