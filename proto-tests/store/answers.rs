//! The answers that a store really gives to a conditional put: whatever they are, "stored" is said only when it is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use walrecv::error::{Kind, Result};
use walrecv::repo::cloud::Timeouts;
use walrecv::repo::{Put, Repository};

use crate::common::{PATIENCE, env_of, joined, object, put, runtime};
use crate::scripted::{Act, Scripted};
use crate::support::Seed;

const NAME: &str = "clusters/main/object";
/// The limit of a request that shall meet it.
const SHORT: Duration = Duration::from_millis(500);

/// The limit of requests to which a server acts so: long, where nothing has to wait for it, so that on a busy machine no honest answer comes too late.
fn limit(acts: &[Act]) -> Duration {
    let silent = acts.iter().any(|act| matches!(act, Act::Silence { .. }));
    if silent { SHORT * 3 } else { PATIENCE }
}

fn open(server: &Scripted, timeout: Duration) -> Repository {
    let timeouts = Timeouts { base: timeout, bytes_per_second: 1 << 30, ..Timeouts::default() };
    Repository::open_with("s3://b", &env_of(server.env()), timeouts).unwrap()
}

/// Puts once against a server that acts so; returns the outcome and how many PUT requests it took.
async fn outcome(puts: &[Act], gets: &[Act], give_up: Duration) -> (Result<Put>, Scripted, usize) {
    outcome_within(limit(&[puts, gets].concat()), puts, gets, give_up).await
}

async fn outcome_within(
    timeout: Duration,
    puts: &[Act],
    gets: &[Act],
    give_up: Duration,
) -> (Result<Put>, Scripted, usize) {
    let server = Scripted::start(puts, gets).await;
    let result = put(&open(&server, timeout), NAME, 1, 1, give_up).await;
    let requests = server.put_heads().len();
    if result.is_ok() {
        assert_eq!(server.stored(NAME), Some(joined(&object(1, 1, 100))), "said to be stored");
    }
    (result, server, requests)
}

const CONFLICT: Act = Act::Refuse { apply: false, status: 409, code: "ConditionalRequestConflict" };

/// (what the server does to puts, how it must end, after how many requests)
#[test]
fn the_five_answers() {
    let cases: [(&str, Vec<Act>, Put, usize); 8] = [
        ("applied, closed", vec![Act::Close { apply: true }, Act::Honest], Put::Ours, 1),
        ("applied, half an answer", vec![Act::Half, Act::Honest], Put::Ours, 1),
        ("503, applied", vec![Act::Refuse { apply: true, status: 503, code: "SlowDown" }, Act::Honest], Put::Ours, 1),
        (
            "503, not applied",
            vec![Act::Refuse { apply: false, status: 503, code: "SlowDown" }, Act::Honest],
            Put::Created,
            2,
        ),
        ("409 twice, nothing stored", vec![CONFLICT, CONFLICT, Act::Honest], Put::Created, 3),
        ("silence, applied", vec![Act::Silence { apply: true }, Act::Honest], Put::Ours, 1),
        ("silence, not applied", vec![Act::Silence { apply: false }, Act::Honest], Put::Created, 2),
        ("closed, not applied", vec![Act::Close { apply: false }, Act::Honest], Put::Created, 2),
    ];
    runtime().block_on(async {
        for (what, puts, expected, requests) in cases {
            let (result, _, sent) = outcome(&puts, &[], PATIENCE).await;
            assert_eq!(result.unwrap(), expected, "{what}");
            assert_eq!(sent, requests, "{what}: no retries but ours");
        }
    });
}

/// What never settles ends as "may pass", and what is refused at once, both with advice.
#[test]
fn what_cannot_be_settled_is_an_error() {
    let give_up = Duration::from_millis(300);
    let refuse = |status, code| Act::Refuse { apply: false, status, code };
    runtime().block_on(async {
        for puts in [CONFLICT, refuse(503, "SlowDown"), Act::Silence { apply: false }, Act::Close { apply: false }] {
            let (result, server, _) = outcome(&[puts], &[], give_up).await;
            let error = result.unwrap_err();
            assert!(error.is_transient() && error.kind() == Kind::Repository, "{puts:?}: {error}");
            assert!(error.advice().is_some() && error.to_string().contains(NAME), "{puts:?}: {error}");
            assert_eq!(server.stored(NAME), None);
        }
        // Stored, but nobody can know: the answer is lost and the question is never answered.
        for gets in
            [Act::Silence { apply: false }, Act::Half, refuse(500, "InternalError"), Act::Close { apply: false }]
        {
            let (result, ..) = outcome(&[Act::Close { apply: true }, Act::Honest], &[gets], give_up).await;
            assert!(result.unwrap_err().is_transient(), "{gets:?}");
        }
        for (status, code) in [
            (403, "AccessDenied"),
            (403, "SignatureDoesNotMatch"),
            (401, ""),
            (404, "NoSuchBucket"),
            (501, "NotImplemented"),
            (400, "InvalidRequest"),
            (301, "PermanentRedirect"),
        ] {
            let (result, _, requests) = outcome(&[refuse(status, code)], &[], PATIENCE).await;
            let error = result.unwrap_err();
            assert!(!error.is_transient() && error.kind() == Kind::Repository, "{status} {code}: {error}");
            assert!(error.advice().is_some(), "{status} {code}: {error}");
            assert_eq!(requests, 1, "{status} {code}");
        }
        for (status, code) in [(400, "RequestTimeout"), (400, "BadDigest"), (429, ""), (500, "InternalError")] {
            let (result, ..) = outcome(&[refuse(status, code), Act::Honest], &[], PATIENCE).await;
            assert_eq!(result.unwrap(), Put::Created, "{status} {code}");
        }
    });
}

/// The answer to our put is lost, and somebody else's object stands there.
#[test]
fn a_lost_answer_and_another_writer() {
    runtime().block_on(async {
        for lost in [Act::Close { apply: false }, Act::Silence { apply: false }, CONFLICT] {
            for (salt, claims, expected) in [(9, 1, Ok(Put::Equal)), (9, 9, Err(Kind::Diverged))] {
                let server = Scripted::start(&[lost], &[]).await;
                server.store(NAME, joined(&object(salt, claims, 100)));
                let result = put(&open(&server, limit(&[lost])), NAME, 1, 1, PATIENCE).await;
                assert_eq!(result.map_err(|e| e.kind()), expected, "{lost:?}");
            }
        }
    });
}

/// Every put is conditional and carries a checksum of the whole object.
#[test]
fn what_a_put_carries() {
    runtime().block_on(async {
        let (_, server, _) = outcome(&[], &[], PATIENCE).await;
        let head = server.put_heads()[0].to_lowercase();
        assert!(head.contains("if-none-match: *"), "{head}");
        assert!(head.contains("x-amz-checksum-crc64nvme: "), "{head}");
        assert!(head.starts_with("put /b/clusters/main/object"), "path style: {head}");
    });
}

/// Absence must be proved: by S3's own word for it, or by a listing that works.
#[test]
fn not_found_by_whom() {
    let vague = Act::Refuse { apply: false, status: 404, code: "" };
    runtime().block_on(async {
        let absent = Scripted::start(&[], &[]).await;
        assert_eq!(open(&absent, PATIENCE).get(NAME).await.unwrap(), None, "NoSuchKey");

        let proxy = Scripted::start(&[], &[vague]).await;
        assert_eq!(open(&proxy, PATIENCE).get(NAME).await.unwrap(), None, "a listing proves it");
        proxy.store(NAME, vec![1]);
        assert!(open(&proxy, PATIENCE).get(NAME).await.unwrap_err().is_transient(), "the listing has it");
        proxy.script_lists(&[vague]);
        assert!(open(&proxy, PATIENCE).get(NAME).await.is_err(), "nothing works");
        assert!(open(&proxy, PATIENCE).list("clusters").await.is_err(), "a listing that is not found is not empty");

        for act in [Act::Half, Act::Close { apply: true }, Act::Silence { apply: true }] {
            let server = Scripted::start(&[], &[act, Act::Honest]).await;
            server.store(NAME, vec![7; 5000]);
            assert_eq!(open(&server, limit(&[act])).get(NAME).await.unwrap().unwrap(), vec![7; 5000], "{act:?}");
            let server = Scripted::start(&[], &[act]).await;
            server.store(NAME, vec![7; 5000]);
            assert!(open(&server, Duration::from_millis(50)).get(NAME).await.unwrap_err().is_transient(), "{act:?}");
        }
    });
}

/// Each answer that never comes is waited for as long as an answer may take, whatever the size of what might come, and together no longer than that of one
/// object; then a single request finds out whether the store is back.
#[test]
fn a_silent_store_is_not_waited_for_object_by_object() {
    let base = Duration::from_millis(300);
    runtime().block_on(async {
        let server = Scripted::start(&[], &[Act::Silence { apply: true }]).await;
        server.script_lists(&[Act::Silence { apply: true }]);
        let timeouts = Timeouts { base, ..Timeouts::default() };
        let repo = Repository::open_with("s3://b", &env_of(server.env()), timeouts).unwrap();
        let began = Instant::now();
        let error = repo.get(NAME).await.unwrap_err();
        assert!(error.kind() == Kind::Repository && error.to_string().contains("no answer from the store"), "{error}");
        // Four times, and what is waited in between. A read of unknown size used to be given 68 s more each time.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(repo.silent_for().is_some());

        let began = Instant::now();
        let names = (0..100).map(|n| format!("clusters/main/{n}"));
        let reading: Vec<_> = names.map(|name| async { repo.get(&{ name }).await.is_err() }).collect();
        let mut reading = stream::iter(reading).buffer_unordered(8);
        while let Some(failed) = reading.next().await {
            assert!(failed);
        }
        // A hundred times four attempts of this length, eight side by side, are 15 s.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

        server.script_gets(&[Act::Honest]);
        server.store(NAME, vec![7; 5000]);
        assert_eq!(repo.get(NAME).await.unwrap().unwrap(), vec![7; 5000], "it is back");
        assert_eq!(repo.silent_for(), None);
        let began = Instant::now();
        assert!(repo.folders("clusters").await.unwrap_err().is_transient());
        assert!(
            began.elapsed() < Duration::from_secs(40),
            "a page of a listing is no large object: {:?}",
            began.elapsed()
        );
    });
}

/// Whoever has little time for a silent store gives it up at once, also where it fell silent in the middle of an answer.
#[test]
fn who_has_little_time_asks_a_silent_store_once() {
    let wait = Duration::from_secs(2);
    runtime().block_on(async {
        for act in [Act::Silence { apply: true }, Act::Hang] {
            let server = Scripted::start(&[], &[act]).await;
            server.store(NAME, vec![7; 100_000]);
            let repo = Repository::open_with("s3://b", &env_of(server.env()), Timeouts::within(wait)).unwrap();
            let began = Instant::now();
            let error = repo.get(NAME).await.unwrap_err();
            assert!(error.to_string().contains("no answer from the store"), "{error}");
            // Four times would be 8 s.
            assert!(began.elapsed() < Duration::from_secs(6), "{act:?}: {:?}", began.elapsed());
            server.script_gets(&[Act::Honest]);
            assert_eq!(repo.get(NAME).await.unwrap().unwrap().len(), 100_000, "it is back");
        }
    });
    let of = |seconds| Timeouts::within(Duration::from_secs(seconds));
    let all = |timeouts: Timeouts| timeouts.base * timeouts.requests;
    for (seconds, requests) in [(1, 1), (10, 1), (15, 1), (20, 2), (59, 4), (60, 4), (3600, 4)] {
        assert_eq!(of(seconds).requests, requests, "{seconds}");
        assert_eq!(all(of(seconds)), Duration::from_secs(seconds.min(60)), "{seconds}");
    }
}

/// Random sequences of all that a server may do.
#[test]
fn any_sequence_of_answers() {
    let mut seed = Seed::of_run();
    let refuse = |apply, status, code| Act::Refuse { apply, status, code };
    let acts = [
        Act::Honest,
        Act::Half,
        Act::Close { apply: true },
        Act::Close { apply: false },
        Act::Silence { apply: true },
        Act::Silence { apply: false },
        CONFLICT,
        refuse(true, 409, "ConditionalRequestConflict"),
        refuse(true, 503, "SlowDown"),
        refuse(false, 500, "InternalError"),
        refuse(false, 412, "PreconditionFailed"),
        refuse(true, 200, ""),
    ];
    let script = |seed: &mut Seed, choice: usize| -> Vec<Act> {
        (0..seed.between(1, 4)).map(|_| acts[seed.below(choice as u64) as usize]).chain([Act::Honest]).collect()
    };
    runtime().block_on(async {
        let rounds = (0..120).map(|_| (script(&mut seed, acts.len()), script(&mut seed, 6)));
        let rounds = rounds.collect::<Vec<_>>().into_iter().map(|(puts, gets)| async move {
            // Whatever comes too late is asked about.
            let (result, ..) = outcome_within(SHORT, &puts, &gets, PATIENCE).await;
            let put = result.unwrap_or_else(|e| panic!("puts {puts:?} gets {gets:?}: {e}"));
            assert_ne!(put, Put::Equal);
        });
        join_all(rounds).await;
    });
}

/// Warnings of a store.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, of: &tracing::Metadata<'_>) -> bool {
        *of.level() <= tracing::Level::WARN && of.target().starts_with("walrecv::repo")
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Whoever reads the log of a night sees that it began and that it lasted, not each attempt.
#[test]
fn a_store_that_takes_nothing_is_told_once_and_not_with_each_attempt() {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let full = Act::Refuse { apply: false, status: 503, code: "SlowDown" };
        let server = Scripted::start(&[full], &[Act::Honest]).await;
        let repo = open(&server, PATIENCE);
        let names: Vec<String> = (0..6).map(|n| format!("{NAME}{n}")).collect();
        let puts = names.iter().map(|name| put(&repo, name, 1, 1, Duration::from_secs(2)));
        assert!(join_all(puts).await.iter().all(Result::is_err));
        assert!(server.put_heads().len() > 12, "each is tried again");
    });
    assert_eq!(warnings.0.load(Ordering::Relaxed), 1);
}
