//! The status socket: whoever connects is told one JSON document. One socket for each process, in a folder that only its owner may enter.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::report::{Document, VERSION};
use crate::disk::private;
use crate::error::{Error, Kind, Result};

/// Longest name of a socket (`sockaddr_un`, with its zero byte).
const LONGEST: usize = 107;
/// How long one side waits for the other: long enough for a host that has too much to do.
const LIMIT: Duration = Duration::from_secs(10);
/// A socket nobody listens on is left over when it is as old as this: before, somebody may be about to.
const LEFT_OVER: Duration = Duration::from_secs(10);
/// More than any document has.
const LARGEST: u64 = 16 << 20;

/// A socket that is answered until this goes.
pub struct StatusSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        self.task.abort();
        private::forget(&self.path);
    }
}

/// `<state_dir>/status`.
fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("status")
}

/// A way to the socket that fits: through the folder's descriptor where its own name is too long. The file must stay open meanwhile.
fn way(path: &Path) -> std::io::Result<(PathBuf, Option<File>)> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok((path.to_owned(), None)) };
    if path.as_os_str().len() <= LONGEST {
        return Ok((path.to_owned(), None));
    }
    let above = File::open(above)?;
    Ok((Path::new(&format!("/proc/self/fd/{}", above.as_raw_fd())).join(name), Some(above)))
}

impl StatusSocket {
    /// Listens, and answers each connection with what `document` gives then. Removes what ended processes left.
    pub async fn open(
        state_dir: &Path,
        document: impl Fn() -> Document + Send + Sync + 'static,
    ) -> Result<StatusSocket> {
        let folder = folder(state_dir);
        private::folder(&folder)?;
        // One that does not answer is its own affair.
        let _ = ask(state_dir, true).await;
        let mut token = [0; 8];
        getrandom::fill(&mut token).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(format!("{token}.sock"));
        let refused = |e| Error::new(Kind::Failed, format!("cannot listen on {}", path.display())).caused_by(e);
        let (reached, _above) = way(&path).map_err(refused)?;
        let listener = UnixListener::bind(reached).map_err(refused)?;
        private::restrict(&path, 0o600)?;
        let task = tokio::spawn(serve(listener, Arc::new(document)));
        Ok(StatusSocket { path, task })
    }
}

async fn serve(listener: UnixListener, document: Arc<dyn Fn() -> Document + Send + Sync>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, for example.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let document = document.clone();
        tokio::spawn(async move { tokio::time::timeout(LIMIT, answer(stream, &*document)).await });
    }
}

async fn answer(mut stream: UnixStream, document: &(dyn Fn() -> Document + Send + Sync)) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(&document())?;
    text.push(b'\n');
    stream.write_all(&text).await?;
    stream.shutdown().await
}

/// What every running process of this state directory says, and of each that does not, why: one that hangs hides no other.
pub async fn ask_all(state_dir: &Path) -> Result<(Vec<Document>, Vec<Error>)> {
    ask(state_dir, false).await
}

async fn ask(state_dir: &Path, tidy: bool) -> Result<(Vec<Document>, Vec<Error>)> {
    let folder = folder(state_dir);
    let failed = |e| {
        Error::new(Kind::Failed, format!("cannot look into {}", folder.display()))
            .caused_by(e)
            .hint("run this as the user that runs the receiver")
    };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(failed(error)),
    };
    let (mut documents, mut silent) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "sock") {
            continue;
        }
        match tokio::time::timeout(LIMIT, read(&path)).await {
            Ok(Ok(document)) => documents.push(document),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                let modified = entry.metadata().and_then(|meta| meta.modified()).unwrap_or_else(|_| SystemTime::now());
                if tidy && modified.elapsed().is_ok_and(|age| age >= LEFT_OVER) {
                    private::forget(&path);
                }
            }
            Ok(Err(error)) if is_gone(error.kind()) => {}
            Ok(Err(error)) => silent.push(
                Error::new(Kind::Failed, format!("what the receiver behind {} says is not understood", path.display()))
                    .caused_by(error)
                    .hint("ask as the user that runs it, with the same version of walrecv"),
            ),
            Err(_) => silent.push(
                Error::new(Kind::Failed, format!("the receiver behind {} does not answer", path.display()))
                    .hint("see what that process is doing; it may be stopped or out of memory"),
            ),
        }
    }
    Ok((documents, silent))
}

/// Whether the process has ended meanwhile: in good order, or by a signal in the middle of its answer.
fn is_gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}

async fn read(path: &Path) -> std::io::Result<Document> {
    let (reached, _above) = way(path)?;
    let stream = UnixStream::connect(reached).await?;
    let mut text = Vec::new();
    stream.take(LARGEST).read_to_end(&mut text).await?;
    let document: Document = serde_json::from_slice(&text)?;
    match document.version {
        VERSION => Ok(document),
        other => {
            Err(std::io::Error::new(ErrorKind::InvalidData, format!("it speaks version {other}, expected {VERSION}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn told(pid: u32) -> impl Fn() -> Document {
        move || Document { version: VERSION, pid, ..Document::default() }
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    async fn pids(dir: &Path) -> Vec<u32> {
        let mut pids: Vec<u32> = ask_all(dir).await.unwrap().0.iter().map(|d| d.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn every_process_answers_until_it_goes_and_what_is_left_over_is_removed() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            assert!(pids(dir.path()).await.is_empty());
            let first = StatusSocket::open(dir.path(), told(1)).await.unwrap();
            let second = StatusSocket::open(dir.path(), told(2)).await.unwrap();
            assert_eq!(pids(dir.path()).await, [1, 2]);
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&first.path), mode(&dir.path().join("status"))), (0o600, 0o700));
            // As after SIGKILL: nobody listens, and the file stays.
            let stale = dir.path().join("status/stale.sock");
            drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
            assert_eq!(pids(dir.path()).await, [1, 2]);
            drop(first);
            assert_eq!(pids(dir.path()).await, [2]);
            let third = StatusSocket::open(dir.path(), told(3)).await.unwrap();
            assert!(stale.exists(), "it may be about to be listened on");
            let old = SystemTime::now() - LEFT_OVER * 2;
            // A socket cannot be opened to set its time: the folder's clock is the only one that matters here.
            rustix::fs::utimensat(rustix::fs::CWD, &stale, &times(old), rustix::fs::AtFlags::empty()).unwrap();
            let fourth = StatusSocket::open(dir.path(), told(4)).await.unwrap();
            assert!(!stale.exists());
            assert_eq!(pids(dir.path()).await, [2, 3, 4]);
            drop((second, third, fourth));
            assert_eq!(std::fs::read_dir(dir.path().join("status")).unwrap().count(), 0);
        });
    }

    fn times(at: SystemTime) -> rustix::fs::Timestamps {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let spec = rustix::fs::Timespec { tv_sec: since.as_secs() as i64, tv_nsec: 0 };
        rustix::fs::Timestamps { last_access: spec, last_modification: spec }
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let long = dir.path().join("a".repeat(100)).join("b".repeat(100));
            let socket = StatusSocket::open(&long, told(7)).await.unwrap();
            assert!(socket.path.as_os_str().len() > LONGEST);
            assert_eq!(pids(&long).await, [7]);
        });
    }

    #[test]
    fn a_document_of_another_version_is_an_error() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let document = || Document { version: VERSION + 1, ..Document::default() };
            let _other = StatusSocket::open(dir.path(), document).await.unwrap();
            let _own = StatusSocket::open(dir.path(), told(7)).await.unwrap();
            let (documents, silent) = ask_all(dir.path()).await.unwrap();
            assert_eq!((documents.len(), silent.len()), (1, 1));
            assert!(silent[0].to_string().contains("version 2"), "{}", silent[0]);
        });
    }

    #[test]
    fn one_that_hangs_hides_no_other() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let _own = StatusSocket::open(dir.path(), told(7)).await.unwrap();
            // It listens, and never takes the connection.
            let _hung = std::os::unix::net::UnixListener::bind(dir.path().join("status/hung.sock")).unwrap();
            let (documents, silent) = ask_all(dir.path()).await.unwrap();
            assert_eq!(documents.iter().map(|document| document.pid).collect::<Vec<_>>(), [7]);
            assert!(silent.len() == 1 && silent[0].to_string().contains("hung.sock does not answer"), "{silent:?}");
        });
    }
}
