//! `walrecv run`: streams every configured cluster in one process.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::args::Common;
use super::context::{Context, Signals};
use super::events::Screen;
use super::receive::{clean, opened, options, place, status_socket, until_signalled, watched};
use crate::daemon::fleet::{self, Job};
use crate::error::{Error, Result};

pub async fn run(common: &Common) -> Result<()> {
    let (mut signals, screen) = (Signals::new()?, Arc::new(Screen::new(common, false)));
    let Some(contexts) = opened(async || Context::open_all(common).await, &mut signals, &screen).await? else {
        return Ok(());
    };
    let mut jobs = Vec::new();
    for context in &contexts {
        let options = options(context)?;
        let place = place(context)?;
        let (observer, board) = watched(context, &options, &place, &screen);
        jobs.push(Job { options, place, observer, board });
    }
    let Some(first) = contexts.first() else { return Ok(()) };
    clean(first);
    let boards = jobs.iter().map(|job| job.board.clone()).collect();
    let _socket = status_socket("run", first, boards, &screen).await;
    let (ask, stop) = watch::channel(false);
    let shown = screen.clone();
    let failed = move |cluster: &str, error: &Error, wait: Duration| shown.failed(cluster, error, Some(wait));
    let ended = until_signalled(fleet::run(jobs, stop, failed), &ask, &mut signals, &screen).await?;
    let mut outcome = Ok(());
    for cluster in ended {
        match cluster.outcome {
            Ok(report) => screen.stopped(&cluster.cluster, &report),
            Err(error) if outcome.is_ok() => outcome = Err(error.context(format!("cluster {}", cluster.cluster))),
            Err(error) => screen.failed(&cluster.cluster, &error, None),
        }
    }
    outcome
}
