//! `walrecv run`: streams every configured cluster in one process.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::args::Common;
use super::context::{Context, Signals, meant, settings};
use super::events::Screen;
use super::receive::{board, clean, opened, options, place, status_socket, until_signalled, watched};
use crate::daemon::board::Board;
use crate::daemon::fleet::{self, Job};
use crate::error::{Error, Result};

pub async fn run(common: &Common) -> Result<()> {
    let (mut signals, screen) = (Signals::new()?, Arc::new(Screen::new(common, false)));
    let settings = settings(common, None)?;
    let meant = meant(common, &settings)?;
    let boards: Vec<_> = meant.iter().map(board).collect();
    let _socket = status_socket("run", &settings, boards.clone(), &screen).await;
    let open = async || {
        let contexts = Context::of_all(&settings, &meant).await?;
        if let Some(first) = contexts.first() {
            first.demand_readers().await?;
        }
        Ok(contexts)
    };
    let Some(contexts) = opened(open, &boards, &mut signals, &screen).await? else { return Ok(()) };
    let (mut jobs, mut outcome) = (Vec::new(), Ok(()));
    for (context, board) in contexts.iter().zip(&boards) {
        match prepared(context, board.clone(), &screen) {
            Ok(job) => jobs.push(job),
            // What is wrong with the settings of one cluster leaves the others alone.
            Err(error) => {
                let cluster = &context.cluster;
                if contexts.len() > 1 {
                    screen.failed(&cluster.name, &error, None);
                }
                board.failed(&error);
                outcome = outcome.and(Err(error.context(format!("cluster {}", cluster.name))));
            }
        }
    }
    let Some(first) = contexts.first().filter(|_| !jobs.is_empty()) else { return outcome };
    clean(first);
    let (ask, stop) = watch::channel(false);
    let shown = screen.clone();
    let failed = move |cluster: &str, error: &Error, wait: Duration| shown.failed(cluster, error, Some(wait));
    let ended = until_signalled(fleet::run(jobs, stop, failed), &ask, &boards, &mut signals, &screen).await?;
    for cluster in ended {
        match cluster.outcome {
            Ok(report) => screen.stopped(&cluster.cluster, &report),
            Err(error) if outcome.is_ok() => outcome = Err(error.context(format!("cluster {}", cluster.cluster))),
            Err(error) => screen.failed(&cluster.cluster, &error, None),
        }
    }
    outcome
}

fn prepared(context: &Context, board: Arc<Board>, screen: &Arc<Screen>) -> Result<Job> {
    let (options, place) = (options(context)?, place(context)?);
    let observer = watched(&place, board.clone(), screen);
    Ok(Job { options, place, observer, board })
}
