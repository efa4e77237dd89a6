//! `walrecv receive`: stream in the foreground until a signal, or until `--until` is durable.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinError;

use super::args::{Common, ReceiveArgs};
use super::context::{Context, Signals, settings};
use super::events::Screen;
use super::output::rfc3339;
use crate::backoff::Backoff;
use crate::catalog;
use crate::config::settings::compression;
use crate::config::{ClusterSettings, Settings, duration};
use crate::daemon::board::Board;
use crate::daemon::report::{self, Document};
use crate::daemon::socket::StatusSocket;
use crate::daemon::{elsewhere, holes};
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::receive::{Observer, Place, ReceiveOptions, ReceiveReport, receive};
use crate::repo::cloud::lacks_credentials;

pub async fn run(common: &Common, args: &ReceiveArgs) -> Result<()> {
    let (mut signals, screen) = (Signals::new()?, Arc::new(Screen::new(common, true)));
    let settings = settings(common, None)?;
    let mut cluster = settings.cluster(common.cluster.as_deref())?.clone();
    cluster.flush_interval = flush_interval(args)?.unwrap_or(cluster.flush_interval);
    let board = board(&cluster);
    let _socket = status_socket("receive", &settings, vec![board.clone()], &screen).await;
    let boards = [board.clone()];
    let open = async || {
        let context = Context::of(settings.clone(), cluster.clone()).await?;
        context.demand_readers().await?;
        Ok(context)
    };
    let Some(context) = opened(open, &boards, &mut signals, &screen).await? else { return Ok(()) };
    let options = flags(options(&context)?, args)?;
    clean(&context);
    let place = place(&context)?;
    let observer = watched(&place, board, &screen);
    let (ask, stop) = watch::channel(false);
    // On a worker, where sockets are polled: what arrives from object storage wakes no second thread. (A local repository has a thread of its own.)
    let job = tokio::spawn(receive(options, place, observer, stop));
    let report = ended(until_signalled(job, &ask, &boards, &mut signals, &screen).await?)?;
    screen.stopped(&context.cluster.name, &report);
    Ok(())
}

/// A panic of the job goes on as one.
fn ended(outcome: std::result::Result<Result<ReceiveReport>, JoinError>) -> Result<ReceiveReport> {
    outcome.unwrap_or_else(|died| match died.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(died) => Err(Error::new(Kind::Failed, "the receiver has ended").caused_by(died)),
    })
}

/// The first and the longest wait for a repository that cannot be reached.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// What `open` gives, tried again for as long as what keeps it may pass by itself, which credentials that are nowhere do not; `None` where a signal came
/// first. The boards say what is waited for.
pub async fn opened<T>(
    open: impl AsyncFn() -> Result<T>,
    boards: &[Arc<Board>],
    signals: &mut Signals,
    screen: &Screen,
) -> Result<Option<T>> {
    let mut backoff = Backoff::new(FIRST, LONGEST, getrandom::u64().unwrap_or_default());
    // The first delay of a backoff is none.
    backoff.next_delay();
    let tries = async {
        loop {
            match open().await {
                Err(error) if error.is_transient() && !lacks_credentials(&error) => {
                    let wait = backoff.next_delay();
                    boards.iter().for_each(|board| board.awaits_repository(&error));
                    screen.waiting(&error, wait);
                    tokio::time::sleep(wait).await;
                }
                outcome => {
                    boards.iter().for_each(|board| board.repository_is_open());
                    return outcome.map(Some);
                }
            }
        }
    };
    tokio::select! {
        outcome = tries => outcome,
        _ = signals.next() => Ok(None),
    }
}

/// Runs `job`; a first signal asks it to stop, which the boards say from then on, a second one leaves at once.
pub async fn until_signalled<T>(
    job: impl Future<Output = T>,
    ask: &watch::Sender<bool>,
    boards: &[Arc<Board>],
    signals: &mut Signals,
    screen: &Screen,
) -> Result<T> {
    let mut job = std::pin::pin!(job);
    tokio::select! {
        outcome = &mut job => return Ok(outcome),
        name = signals.next() => screen.stopping(name),
    }
    boards.iter().for_each(|board| board.stopping());
    let _ = ask.send(true);
    tokio::select! {
        outcome = &mut job => Ok(outcome),
        name = signals.next() => Err(Error::new(Kind::Interrupted, format!("left at once by a second {name}"))
            .hint("nothing acknowledged is lost; the slot holds what is not stored")),
    }
}

/// What crashed runs left; nothing waits for it, and nothing depends on it.
pub fn clean(context: &Context) {
    let repo = context.repo.clone();
    tokio::spawn(async move { repo.clean_staging().await });
}

/// Where a cluster's WAL goes.
pub fn place(context: &Context) -> Result<Place> {
    Ok(Place {
        repo: context.repo.clone(),
        cluster: context.cluster.name.clone(),
        writer: Arc::new(context.writer_ring()?),
        reader: Arc::new(context.index_ring()?),
    })
}

/// The board of a cluster.
pub fn board(cluster: &ClusterSettings) -> Arc<Board> {
    Arc::new(Board::new(&cluster.name, cluster.slot.as_deref(), cluster.flush_interval, Arc::default()))
}

/// An observer that shows events and keeps the board, which from now on also follows what the repository says of holes and, while another receiver has the
/// slot, whether that one fills it.
pub fn watched(place: &Place, board: Arc<Board>, screen: &Arc<Screen>) -> Observer {
    tokio::spawn(holes::watch(place.clone(), board.clone()));
    tokio::spawn(elsewhere::watch(place.clone(), board.clone()));
    let screen = screen.clone();
    Observer::with_stats(board.stats().clone(), move |event| {
        board.see(&event);
        screen.show(board.cluster(), &event);
    })
}

/// Tells `walrecv status` how the boards are. Without a place for its socket only that is missing.
pub async fn status_socket(
    command: &'static str,
    settings: &Settings,
    boards: Vec<Arc<Board>>,
    screen: &Screen,
) -> Option<StatusSocket> {
    let started = rfc3339(jiff::Timestamp::now());
    let document = move || Document {
        version: report::VERSION,
        command: command.to_owned(),
        program: concat!("walrecv ", env!("CARGO_PKG_VERSION")).to_owned(),
        pid: std::process::id(),
        started_at: started.clone(),
        at: rfc3339(jiff::Timestamp::now()),
        clusters: boards.iter().map(|board| board.report()).collect(),
    };
    match StatusSocket::open(&settings.state_dir, document).await {
        Ok(socket) => Some(socket),
        Err(error) => {
            screen.say(&format!("warning: `walrecv status` cannot ask this process: {error}"));
            None
        }
    }
}

/// As configured.
pub fn options(context: &Context) -> Result<ReceiveOptions> {
    let cluster = &context.cluster;
    let mut options = ReceiveOptions::new(context.conninfo()?);
    options.slot = cluster.slot.clone();
    options.flush_interval = cluster.flush_interval;
    options.compression = cluster.compression;
    options.shutdown_grace = cluster.shutdown_grace;
    options.stall_timeout = cluster.stall_timeout;
    options.spool_dir = cluster.spool_dir.clone();
    options.on_gap = cluster.on_gap;
    options.after_failover = cluster.after_failover;
    options.give_up_at = cluster.give_up_at;
    options.catalog = Some(catalog::path_in(&context.settings.state_dir, &cluster.name));
    Ok(options)
}

fn usage(flag: &str, problem: String) -> Error {
    Error::new(Kind::Usage, format!("{flag}: {problem}"))
}

fn flush_interval(args: &ReceiveArgs) -> Result<Option<Duration>> {
    let Some(text) = &args.flush_interval else { return Ok(None) };
    duration::parse(text).map(Some).map_err(|problem| usage("--flush-interval", problem))
}

fn flags(mut options: ReceiveOptions, args: &ReceiveArgs) -> Result<ReceiveOptions> {
    if let Some(text) = &args.compression {
        options.compression = compression(text).map_err(|problem| usage("--compression", problem))?;
    }
    if let Some(text) = &args.until {
        options.until = Some(text.parse::<Lsn>().map_err(|problem| usage("--until", problem.to_string()))?);
    }
    Ok(options)
}
