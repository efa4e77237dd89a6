//! `walrecv check`: explains a server and a repository before first use, and whenever something is odd. Every line says what was found, and, where
//! it is not in order, what to do.

mod report;
mod repository;
mod server;
mod settings;
mod slot;
mod stored;
mod synchronous;

use self::report::Report;
use super::args::Common;
use super::context::{self, Context};
use crate::error::{Context as _, Kind, Result};
use crate::net::Conninfo;

/// Shows all findings; the error is the first that failed. What cannot be looked at for want of something else is left out.
pub async fn run(common: &Common) -> Result<()> {
    let settings = context::settings(common, None)?;
    let cluster = settings.cluster(common.cluster.as_deref())?.clone();
    let info = Conninfo::parse(&cluster.dsn, &context::env).context(format!("clusters.{}.dsn", cluster.name))?;
    let mut report = Report::default();
    let context = match Context::open(common).await {
        Ok(context) => Some(context),
        Err(error) if error.kind() == Kind::Usage => return Err(error),
        Err(error) => {
            report.fail("repository", &error);
            None
        }
    };
    if let Some(context) = &context {
        repository::look(context, &mut report).await;
    }
    let seen = server::look(&cluster, &info, &mut report).await;
    if let Some(context) = &context {
        stored::look(context, seen.as_ref(), &mut report).await;
    }
    report.show(common);
    report.first_failure().map_or(Ok(()), Err)
}
