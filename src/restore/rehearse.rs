//! What recovery will ask for, asked before a byte is laid: a program, a repository or a key that the server's user cannot get to shall not show after hours of
//! copying. It is asked in a folder that stands for the data directory for a moment, and goes again.

use std::path::Path;

use super::configure::{self, Options};
use super::target::Action;
use super::{Access, Prepared, plan_file, report, server};
use crate::archive::Archive;
use crate::disk::lay::{Ground, Over};
use crate::disk::throwaway::Throwaway;
use crate::error::{Error, Kind, Result};
use crate::pg::TimelineId;

/// What a server asks for that looks whether there is a newer timeline than the newest.
const NOBODY_HAS: TimelineId = TimelineId(u32::MAX);
/// `wal-fetch` proves that there is no such file.
const ABSENT: i32 = 1;

/// Has `wal-fetch` asked as the server will ask it, where the server's user is another than this one. A standby, which has no plan, is answered by the
/// configuration; any other recovery by its plan, for the first segment.
pub async fn rehearse(archive: &Archive, access: Access, prepared: &Prepared, options: &Options) -> Result<()> {
    let Some(account) = &options.account else { return Ok(()) };
    let near = options.pgdata.ancestors().skip(1).find(|folder| folder.is_dir());
    let made = near.map(|folder| Throwaway::make(folder, Some(account.ids)));
    let folder = match made {
        Some(Ok(folder)) => folder,
        // What cannot be tried is not held against it.
        _ => return Ok(()),
    };
    let ground = Ground {
        root: folder.path().to_owned(),
        tablespaces: Vec::new(),
        owner: options.account.as_ref().map(|a| a.ids),
        over: Over::Nothing,
    };
    ground.directory(b"pg_wal", 0o700)?;
    ground.directory(plan_file::DIRECTORY.as_bytes(), 0o700)?;
    let name = if options.action == Action::Follow {
        NOBODY_HAS.history_name()
    } else {
        configure::plan_file(archive, access, prepared).await?.write(&ground.root, ground.owner)?;
        ground.whole_file(b"recovery.signal", plan_file::SIGNAL, 0o600)?;
        report::first_segment(&prepared.choice, archive.names.segment_size).to_string()
    };
    ask(&ground.root, options, &name)
}

fn ask(root: &Path, options: &Options, name: &str) -> Result<()> {
    let mut command = server::command(options.account.as_ref(), &options.program);
    command.current_dir(root).arg("wal-fetch").args(without_prefetch(&options.fetch_arguments));
    command.args(["--prefetch", "0", name]).arg(format!("{}/asked", plan_file::DIRECTORY));
    let failed = |e| Error::new(Kind::Failed, "cannot run wal-fetch as the server's user").caused_by(e);
    let output = command.output().map_err(failed)?;
    if output.status.code() == Some(ABSENT) && options.action == Action::Follow {
        return Ok(());
    }
    let user = options.account.as_ref().map_or("the server's user", |account| &account.name);
    let hint = format!(
        "{user} must be able to run {} and to read what it reads; nothing was changed",
        options.program.display()
    );
    server::ended(output, &format!("wal-fetch as {user}")).map(|_| ()).map_err(|e| e.hint(hint))
}

/// A prefetcher would outlive the folder.
fn without_prefetch(arguments: &[String]) -> Vec<&String> {
    let flag = |at: usize| arguments.get(at).is_some_and(|argument| argument == "--prefetch");
    (0..arguments.len())
        .filter(|at| !flag(*at) && !at.checked_sub(1).is_some_and(flag))
        .filter_map(|at| arguments.get(at))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_fetching_ahead_is_asked_as_the_server_asks() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let left = |text: &str| without_prefetch(&words(text)).into_iter().cloned().collect::<Vec<_>>();
        assert_eq!(left("--config c --prefetch 1GB --cluster main"), words("--config c --cluster main"));
        assert_eq!(left("--config c"), words("--config c"));
    }
}
