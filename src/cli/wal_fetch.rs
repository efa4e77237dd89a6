//! `walrecv wal-fetch %f %p`: 0 served, 1 proven absent, 200 for everything else.

use std::path::PathBuf;

use super::args::{Common, WalFetchArgs};
use super::context::{Context, env};
use super::exit::FETCH_UNKNOWN;
use super::output;
use crate::config::duration;
use crate::error::{Error, Kind};
use crate::restore::fetch::{Call, Outcome, answer};

/// Whatever happened, PostgreSQL is told one of three things. 2 (usage) or 101 (panic) would read as the end of the archive.
pub fn only_allowed(code: u8) -> u8 {
    match code {
        0 | 1 => code,
        other if other > 125 => other,
        _ => FETCH_UNKNOWN,
    }
}

/// The working directory is the data directory, as PostgreSQL calls it. Under a plan nothing else is read; without one the configuration is.
pub async fn run(common: &Common, args: &WalFetchArgs) -> u8 {
    let unknown = |error: Error| {
        output::error(&error, common.output);
        FETCH_UNKNOWN
    };
    let pgdata = match std::env::current_dir() {
        Ok(dir) => dir,
        Err(cause) => return unknown(Error::new(Kind::Failed, "cannot tell the working directory").caused_by(cause)),
    };
    let standby_wait = match duration::parse(&args.standby_wait) {
        Ok(wait) => wait,
        Err(problem) => return unknown(Error::new(Kind::Usage, format!("--standby-wait: {problem}"))),
    };
    let call = Call { name: args.file.clone(), destination: PathBuf::from(&args.path), pgdata, standby_wait };
    let open = || -> futures::future::BoxFuture<'static, _> {
        let common = common.clone();
        Box::pin(async move {
            let context = Context::open(&common).await?;
            let ring = context.content_ring().await?;
            context.archive(ring).await
        })
    };
    match answer(&call, &env, &open).await {
        Outcome::Served => 0,
        // Quiet: a standby asks for what is not there every few seconds, and each line goes to the server's log.
        Outcome::Absent => 1,
        Outcome::Unknown(error) => unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_can_be_read_as_the_end_of_the_archive_but_one() {
        for code in 2..=125 {
            assert_eq!(only_allowed(code), FETCH_UNKNOWN);
        }
        assert_eq!((only_allowed(0), only_allowed(1), only_allowed(200)), (0, 1, 200));
    }
}
