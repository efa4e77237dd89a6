//! A receiver inside the test program, with a repository of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use walrecv::archive::Archive;
use walrecv::archive::group::WalEntry;
use walrecv::archive::read::SegmentBytes;
use walrecv::error::Result;
use walrecv::keys::ring::{ReaderRing, WriterRing};
use walrecv::keys::setup;
use walrecv::net::Conninfo;
use walrecv::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::receive::{Observer, Place, ReceiveEvent, ReceiveOptions, ReceiveReport, receive};
use walrecv::repo::cloud::Timeouts;
use walrecv::repo::names::{PART_BYTES, WalObject};
use walrecv::repo::{ClusterNames, Repository};
use walrecv::seal::header::RepositoryId;
use walrecv::seal::key::RepositorySecret;
use walrecv::seal::sealer::Compression;
use walrecv::stats::StreamStats;

use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, Server, TempDir, wait_for};

pub const CLUSTER: &str = "main";
pub const SLOT: &str = "walrecv";
/// A server gives up a receiver that is silent after 10 s (the `wal_sender_timeout` of our sessions). A stop that took less waited for nobody, where the
/// receiver's own limits are longer or far shorter.
pub const NOT_HELD_UP: Duration = Duration::from_secs(9);

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A repository with its keys.
pub struct Vault {
    pub temp: TempDir,
    id: RepositoryId,
    secret: RepositorySecret,
    public: String,
    identity: String,
}

impl Vault {
    /// In a new temporary folder.
    pub fn new() -> Vault {
        let keys = setup::generate();
        Vault {
            temp: TempDir::new("repo"),
            id: RepositoryId([7; 16]),
            secret: keys.secret.clone(),
            public: keys.public.clone(),
            identity: keys.identity.to_string(),
        }
    }

    /// The same for a process that is given the texts of [`Vault::texts`].
    pub fn texts(&self) -> [(&'static str, String); 2] {
        [("VAULT_SECRET", setup::secret_to_text(&self.secret).to_string()), ("VAULT_PUBLIC", self.public.clone())]
    }

    pub fn repository(&self) -> Repository {
        open_local(self.temp.path())
    }

    /// A place that can write and compare, not read.
    pub fn place(&self) -> Place {
        place(self.repository(), self.id, self.secret.clone(), &self.public)
    }

    /// The archive of a server, with the identity to read it.
    pub fn archive(&self, server: &Server) -> Archive {
        self.archive_in(self.repository(), server)
    }

    pub fn archive_in(&self, repo: Repository, server: &Server) -> Archive {
        let reader = ReaderRing::new(self.id, self.secret.clone(), Some(&self.identity)).expect("a reader's ring");
        let names = ClusterNames {
            cluster: CLUSTER.to_owned(),
            system: system_of(server),
            segment_size: segment_size_of(server),
        };
        Archive { repo, names, keys: Arc::new(reader) }
    }
}

pub fn open_local(path: &Path) -> Repository {
    Repository::open(&format!("file://{}", path.display()), &|_| None).expect("open a local repository")
}

/// A bucket of the S3 emulator, reached at `endpoint`, with time limits that suit a test.
pub fn open_bucket(url: &str, endpoint: &str) -> Repository {
    let env = |name: &str| match name {
        "AWS_ENDPOINT_URL" => Some(endpoint.to_owned()),
        "AWS_ALLOW_HTTP" => Some("true".to_owned()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("test".to_owned()),
        "AWS_REGION" => Some("us-east-1".to_owned()),
        _ => None,
    };
    let timeouts = Timeouts { base: Duration::from_secs(5), ..Timeouts::default() };
    Repository::open_with(url, &env, timeouts).expect("open a bucket")
}

pub fn place(repo: Repository, id: RepositoryId, secret: RepositorySecret, public: &str) -> Place {
    let writer = WriterRing::new(id, secret.clone(), Some(public)).expect("a writer's ring");
    let reader = ReaderRing::new(id, secret, None).expect("a reader's ring without identity");
    Place { repo, cluster: CLUSTER.to_owned(), writer: Arc::new(writer), reader: Arc::new(reader) }
}

pub fn system_of(server: &Server) -> SystemIdentifier {
    SystemIdentifier(server.sql("select system_identifier from pg_control_system()").parse().expect("an identifier"))
}

pub fn segment_size_of(server: &Server) -> SegmentSize {
    SegmentSize::from_show(&server.sql("show wal_segment_size")).expect("a segment size")
}

/// Options for a server's slot [`SLOT`].
pub fn options(server: &Server) -> ReceiveOptions {
    options_for(&server.conninfo("postgres"))
}

/// Options for a connection through a proxy in front of the server.
pub fn options_through(server: &Server, proxy: &Proxy) -> ReceiveOptions {
    let (own, through) = (format!("port={}", server.port()), format!("port={}", proxy.port));
    let conninfo = server.conninfo_tcp("postgres").replace(&own, &through);
    options_for(&format!("{conninfo} sslmode=disable"))
}

pub fn options_for(conninfo: &str) -> ReceiveOptions {
    let conninfo = Conninfo::parse(&format!("{conninfo} application_name=walrecv"), &|_| None).expect("conninfo");
    let mut options = ReceiveOptions::new(conninfo);
    options.slot = Some(SLOT.to_owned());
    options.compression = Compression::Lz4;
    options
}

/// Makes the slot, with WAL reserved from now on.
pub fn create_slot(server: &Server) {
    server.sql(&format!("select pg_create_physical_replication_slot('{SLOT}', true)"));
}

/// A receiver that runs until it is stopped.
pub struct Receiving {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<ReceiveReport>>,
    events: Arc<Mutex<Vec<ReceiveEvent>>>,
    stats: Arc<StreamStats>,
    runtime: Runtime,
}

impl Receiving {
    pub fn start(options: ReceiveOptions, place: Place) -> Receiving {
        let (stop, stopped) = watch::channel(false);
        let events: Arc<Mutex<Vec<ReceiveEvent>>> = Arc::default();
        let log = events.clone();
        let started = Instant::now();
        let observer = Observer::new(move |event| {
            if std::env::var_os("WALRECV_SHOW").is_some() {
                eprintln!("{:8.3} {event:?}", started.elapsed().as_secs_f64());
            }
            log.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        });
        let (runtime, stats) = (runtime(), observer.stats().clone());
        let task = runtime.spawn(async move {
            let outcome = receive(options, place, observer, stopped).await;
            // Shown where the test fails.
            outcome.inspect_err(|error| eprintln!("the receiver ended: {error}"))
        });
        Receiving { stop, task, events, stats, runtime }
    }

    pub fn events(&self) -> Vec<ReceiveEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn stats(&self) -> &StreamStats {
        &self.stats
    }

    pub fn saw(&self, wanted: impl Fn(&ReceiveEvent) -> bool) -> bool {
        self.events().iter().any(wanted)
    }

    #[track_caller]
    pub fn wait_event(&self, what: &str, wanted: impl Fn(&ReceiveEvent) -> bool) {
        let start = Instant::now();
        while !self.saw(&wanted) {
            assert!(!self.task.is_finished(), "ended while waiting for {what}: {:#?}", self.events());
            assert!(start.elapsed() < PATIENCE, "waited in vain for {what}: {:#?}", self.events());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait_streaming(&self) {
        self.wait_event("streaming", |e| matches!(e, ReceiveEvent::Streaming { .. }));
    }

    /// Asks it to stop, and goes on meanwhile.
    pub fn ask_to_stop(&self) {
        self.stop.send(true).expect("the receiver is there");
    }

    /// Asks it to stop; its report and how long that took.
    #[track_caller]
    pub fn stop(self) -> (ReceiveReport, Duration) {
        let start = Instant::now();
        self.stop.send(true).expect("the receiver is there");
        let events = self.events.clone();
        let report = self.end();
        let report = report.unwrap_or_else(|e| panic!("the receiver failed: {e}\n{:#?}", events.lock()));
        (report, start.elapsed())
    }

    /// As [`Receiving::stop`], for what it told until the end.
    #[track_caller]
    pub fn stopped_events(self) -> Vec<ReceiveEvent> {
        let events = self.events.clone();
        self.stop();
        let told = events.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    /// As [`Receiving::end`], and what it told until then.
    #[track_caller]
    pub fn end_and_events(self) -> (Result<ReceiveReport>, Vec<ReceiveEvent>) {
        let events = self.events.clone();
        let ended = self.end();
        let told = events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (ended, told)
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn end(self) -> Result<ReceiveReport> {
        let events = self.events.clone();
        let task = self.task;
        match self.runtime.block_on(async { tokio::time::timeout(PATIENCE, task).await }) {
            Ok(joined) => joined.expect("the receiver does not panic"),
            Err(_) => panic!("the receiver did not end: {:#?}", events.lock()),
        }
    }
}

/// Where the server's slot stands: what was acknowledged.
pub fn acknowledged(server: &Server) -> Lsn {
    let text = server.sql(&format!("select restart_lsn from pg_replication_slots where slot_name = '{SLOT}'"));
    text.parse().unwrap_or_default()
}

/// Waits until everything up to `lsn` was acknowledged.
#[track_caller]
pub fn wait_acknowledged(server: &Server, lsn: Lsn) {
    wait_for(&format!("{lsn} to be acknowledged"), || (acknowledged(server) >= lsn).then_some(()));
}

/// The stored bytes of a segment; whether they are complete.
pub fn segment(runtime: &Runtime, archive: &Archive, timeline: TimelineId, number: SegmentNumber) -> (Vec<u8>, bool) {
    let name = SegmentName::new(timeline, number, archive.names.segment_size);
    let read = runtime.block_on(archive.read_segment(name, None));
    match read.unwrap_or_else(|e| panic!("segment {name}: {e}")) {
        None => (Vec::new(), false),
        Some(SegmentBytes::Complete(bytes)) => (bytes.to_vec(), true),
        Some(SegmentBytes::Prefix(bytes)) => (bytes.to_vec(), false),
    }
}

/// Every object with WAL is what its summary says, hash included: who receives that WAL again compares by it. Returns how many there are.
pub fn objects_are_whole(runtime: &Runtime, archive: &Archive) -> usize {
    let listed = runtime.block_on(archive.repo.list(&archive.names.root())).expect("a listing");
    let mut examined = 0;
    for listed in listed {
        let Some(WalObject::Segment { segment, part }) = archive.parse(&listed.name) else { continue };
        let start = segment.start() + u64::from(part.unwrap_or(0)) * PART_BYTES;
        let entry = WalEntry { name: listed.name, size: listed.size, partial: false, start };
        let object = runtime.block_on(archive.repo.get(&entry.name)).expect("an answer").expect("the object");
        archive.examine_wal(segment.timeline, &entry, &object).unwrap_or_else(|e| panic!("{e}"));
        examined += 1;
    }
    examined
}

/// The server's own file of a segment.
pub fn own_segment(server: &Server, timeline: TimelineId, number: SegmentNumber, size: SegmentSize) -> Vec<u8> {
    let name = SegmentName::new(timeline, number, size);
    let path = server.data_dir().join("pg_wal").join(name.to_string());
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
