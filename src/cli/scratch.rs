//! What the commands have in common that bring up a scratch server.

use std::path::PathBuf;

use super::args::{Common, ScratchArgs};
use super::context::Context;
use crate::config::duration;
use crate::disk::private;
use crate::error::{Error, Kind, Result};
use crate::restore::scratch::Setup;
use crate::restore::server::Account;

/// Where and as whom. `cluster` is the one that is restored.
pub fn setup(common: &Common, context: &Context, args: &ScratchArgs) -> Result<Setup> {
    let program = std::env::current_exe().map_err(|e| {
        Error::new(Kind::Failed, "cannot tell the path of this program, which restore_command needs").caused_by(e)
    })?;
    let patience = duration::parse(&args.stall_limit)
        .map_err(|problem| Error::new(Kind::Usage, format!("--stall-limit: {problem}")))?;
    let account = Account::choose(args.owner.as_deref())?;
    let work_dir = match &args.work_dir {
        Some(folder) => std::path::absolute(folder)
            .map_err(|e| Error::new(Kind::Usage, format!("not a path: {}", folder.display())).caused_by(e))?,
        // The server's user may not be able to get to the state of root. What is in /tmp may be in memory, which a database would fill.
        None if account.is_some() => PathBuf::from("/var/tmp"),
        None => {
            private::folder(&context.settings.state_dir)?;
            context.settings.state_dir.clone()
        }
    };
    Ok(Setup {
        work_dir,
        account,
        pg_bindir: args.pg_bindir.clone(),
        jobs: usize::from(args.jobs),
        patience: (!patience.is_zero()).then_some(patience),
        program,
        fetch_arguments: fetch_arguments(common, context),
    })
}

/// For `wal-fetch`, after the plan.
fn fetch_arguments(common: &Common, context: &Context) -> Vec<String> {
    let mut arguments = vec!["--config".to_owned(), context.settings.config_path.display().to_string()];
    arguments.extend(common.repo.iter().flat_map(|repo| ["--repo".to_owned(), repo.clone()]));
    arguments.extend(["--cluster".to_owned(), context.cluster.name.clone()]);
    arguments
}

/// A line that tells how it goes, where somebody watches.
pub struct Ticker {
    bar: indicatif::ProgressBar,
}

impl Ticker {
    pub fn new() -> Ticker {
        let bar = indicatif::ProgressBar::new_spinner();
        if !super::output::watched() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Ticker { bar }
    }

    pub fn say(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        self.bar.tick();
    }

    pub fn moved(&self, done: u64, total: u64) {
        let (done, total) = (super::output::bytes(done), super::output::bytes(total));
        self.say(&format!("restoring: {done} of {total}"));
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
