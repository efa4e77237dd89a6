//! `walrecv wal-fetch %f %p`: 0 served, 1 proven absent, 200 for everything else.

use std::path::Path;
use std::time::Duration;

use futures::future::BoxFuture;

use super::args::{Common, WalFetchArgs, WalPrefetchArgs};
use super::context::{Context, env};
use super::exit::FETCH_UNKNOWN;
use super::output;
use crate::archive::Archive;
use crate::config::{duration, size};
use crate::error::{Error, Kind, Result};
use crate::repo::cloud::Timeouts;
use crate::restore::fetch::{self, Call, Outcome};
use crate::restore::hand_over::Launch;
use crate::restore::prefetch;

/// Whatever happened, PostgreSQL is told one of three things. 2 (usage) or 101 (panic) would read as the end of the archive.
pub fn only_allowed(code: u8) -> u8 {
    match code {
        0 | 1 => code,
        other if other > 125 => other,
        _ => FETCH_UNKNOWN,
    }
}

/// The answer to a call that needs neither the archive nor a runtime, if it is one.
pub fn at_hand(common: &Common, args: &WalFetchArgs) -> Option<u8> {
    // What is wrong with it is told where it matters.
    match call(args, launch(common, args).unwrap_or_default()) {
        Ok(call) => fetch::at_hand(&call).map(|outcome| told(common, outcome)),
        Err(error) => Some(told(common, Outcome::Unknown(error))),
    }
}

/// The answer to any other. Under a plan nothing but the plan and the archive is read; without one the configuration is.
pub async fn run(common: &Common, args: &WalFetchArgs) -> u8 {
    // What only makes it faster ends no recovery and no standby.
    let launch = launch(common, args).unwrap_or_else(|problem| {
        output::note(format!("warning: nothing is fetched ahead: {}", wrong(("prefetch", problem))));
        None
    });
    let outcome = match call(args, launch) {
        Ok(call) => {
            let open = opener(common, args.identity_file.as_deref(), call.patience());
            fetch::answer(&call, &env, &open).await
        }
        Err(error) => Outcome::Unknown(error),
    };
    told(common, outcome)
}

/// The working directory is the data directory, as PostgreSQL calls it.
fn call(args: &WalFetchArgs, launch: Option<Launch>) -> Result<Call> {
    let pgdata = std::env::current_dir()
        .map_err(|cause| Error::new(Kind::Failed, "cannot tell the working directory").caused_by(cause))?;
    let standby_wait = duration::parse(&args.standby_wait).map_err(|e| wrong(("standby-wait", e)))?;
    Ok(Call { name: args.file.clone(), destination: args.path.clone(), pgdata, standby_wait, launch })
}

fn told(common: &Common, outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Served => 0,
        // Quiet: a standby asks for what is not there every few seconds, and each line goes to the server's log.
        Outcome::Absent => 1,
        Outcome::Unknown(error) => {
            output::error(&error, common.output);
            FETCH_UNKNOWN
        }
    }
}

/// `walrecv wal-prefetch`: what [`run`] starts beside a recovery. It ends by itself.
pub async fn ahead(common: &Common, args: &WalPrefetchArgs) -> Result<()> {
    let pgdata = std::env::current_dir()
        .map_err(|cause| Error::new(Kind::Failed, "cannot tell the working directory").caused_by(cause))?;
    let budget = budget(&args.prefetch).map_err(|e| wrong(("prefetch", e)))?;
    let open = opener(common, args.identity_file.as_deref(), None);
    prefetch::run(&pgdata, budget, prefetch::IDLE, &env, &open).await
}

fn wrong((option, problem): (&str, String)) -> Error {
    Error::new(Kind::Usage, format!("--{option}: {problem}"))
}

/// Bytes for what is fetched ahead; 0 for nothing.
pub fn budget(text: &str) -> std::result::Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { size::parse(text) }
}

/// The same configuration as this call has.
fn launch(common: &Common, args: &WalFetchArgs) -> std::result::Result<Option<Launch>, String> {
    let prefetch = args.prefetch.as_str();
    if budget(prefetch)? == 0 {
        return Ok(None);
    }
    // Without a path of its own it cannot be started again; then nothing is fetched ahead.
    let Ok(program) = std::env::current_exe() else { return Ok(None) };
    let mut arguments = vec!["wal-prefetch".into(), "--prefetch".into(), prefetch.into()];
    for (flag, value) in [
        ("--config", common.config.as_ref().map(|c| c.clone().into_os_string())),
        ("--identity-file", args.identity_file.as_ref().map(|f| f.clone().into_os_string())),
        ("--cluster", common.cluster.as_ref().map(Into::into)),
        ("--repo", common.repo.as_ref().map(Into::into)),
    ] {
        arguments.extend(value.into_iter().flat_map(|value| [flag.into(), value]));
    }
    Ok(Some(Launch { program, arguments }))
}

/// Opens the archive that the configuration names. `patience`: how long a store that says nothing is waited for, where that is less than usual.
fn opener(
    common: &Common,
    identity_file: Option<&Path>,
    patience: Option<Duration>,
) -> impl Fn() -> BoxFuture<'static, Result<Archive>> + Sync + use<> {
    let (common, identity_file) = (common.clone(), identity_file.map(Path::to_owned));
    let timeouts = patience.map_or_else(Timeouts::default, Timeouts::within);
    move || {
        let (common, identity_file) = (common.clone(), identity_file.clone());
        Box::pin(async move {
            let context = Context::open_within(&common, identity_file.as_deref(), timeouts).await?;
            let ring = context.content_ring().await?;
            context.archive(ring).await
        })
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
