//! `walrecv run`: streams every configured cluster in one process.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::args::Common;
use super::context::Context;
use super::events::Screen;
use super::receive::{clean, options, place, status_socket, until_signalled, watched};
use crate::daemon::fleet::{self, Job};
use crate::error::{Error, Result};

pub async fn run(common: &Common) -> Result<()> {
    let contexts = Context::open_all(common).await?;
    let screen = Arc::new(Screen::new(common, false));
    let mut jobs = Vec::new();
    for context in &contexts {
        let options = options(context)?;
        let (observer, board) = watched(context, &options, &screen);
        jobs.push(Job { options, place: place(context)?, observer, board });
    }
    let Some(first) = contexts.first() else { return Ok(()) };
    clean(first);
    let boards = jobs.iter().map(|job| job.board.clone()).collect();
    let _socket = status_socket("run", first, boards, &screen).await;
    let (ask, stop) = watch::channel(false);
    let shown = screen.clone();
    let failed = move |cluster: &str, error: &Error, wait: Duration| shown.failed(cluster, error, Some(wait));
    let ended = until_signalled(fleet::run(jobs, stop, failed), &ask, &screen).await?;
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
