//! A server that is thrown away again: restored into a folder of its own, brought to its target, asked, stopped, removed.
//!
//! Nothing of it stays. It goes with its value, however this process leaves; after a kill the next run finds the folder by its lock, ends the server in it, and
//! removes both. It has a socket in a private folder and no TCP, and what would act on production is neutralised.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::recovery::{Scratch, Upstream};
use super::server::{self, Account, Programs};
use super::start::{LockFile, Start, Started};
use super::{Access, Action, Options, Prepared, Restored, lay, report};
use crate::archive::Archive;
use crate::disk::ahead;
use crate::disk::throwaway::Throwaway;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::MajorVersion;
use crate::seal::content::manifest::Manifest;

/// It has no TCP, so the number only names its socket.
const PORT: u16 = 5432;
/// Longest path of a socket (`UNIXSOCK_PATH_BUFLEN`, with its end).
const SOCKET_PATH: usize = 107;
/// How long a server may take to end at once, and to end in good order.
const AT_ONCE: Duration = Duration::from_secs(20);
const IN_ORDER: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// Beside the files: WAL that is fetched ahead, what recovery writes, room for sorting.
const ROOM: u64 = 1 << 30;

/// How to bring one up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The folder in which its own is made.
    pub work_dir: PathBuf,
    pub account: Option<Account>,
    pub pg_bindir: Option<PathBuf>,
    pub jobs: usize,
    /// How long recovery may stand still; `None`: for ever.
    pub patience: Option<Duration>,
    /// Absolute path of this program, for `restore_command`.
    pub program: PathBuf,
    /// Arguments that `wal-fetch` needs when no plan binds it.
    pub fetch_arguments: Vec<String>,
}

/// A scratch server that has reached its target and is open for writing.
#[derive(Debug)]
pub struct ScratchServer {
    data: PathBuf,
    sockets: PathBuf,
    account: Option<Account>,
    pub programs: Programs,
    /// A role with all rights.
    superuser: String,
    /// What `shared_preload_libraries` has loaded into it.
    pub libraries: String,
    pub restored: Restored,
    pub started: Started,
    /// Until all files were there and synced.
    pub laying: Duration,
    /// Object ids of databases that are there as holes.
    left_out: Vec<u32>,
    folder: Folder,
}

/// Ends the server in it when it goes, then removes all.
#[derive(Debug)]
struct Folder {
    data: PathBuf,
    throwaway: Throwaway,
}

impl Folder {
    fn of(throwaway: Throwaway) -> Folder {
        Folder { data: throwaway.path().join("data"), throwaway }
    }

    /// Where a tablespace goes.
    fn tablespace(&self, oid: u32) -> PathBuf {
        self.throwaway.path().join(format!("tablespace-{oid}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = end(&self.data, Signal::QUIT, AT_ONCE) {
            tracing::warn!("{error}");
        }
    }
}

/// The kernel takes the path of a socket in this directory.
pub fn demand_socket(directory: &Path, port: u16) -> Result<()> {
    let socket = directory.join(format!(".s.PGSQL.{port}"));
    if socket.as_os_str().len() <= SOCKET_PATH {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("{} is too long for the path of a socket", socket.display())))
}

impl Setup {
    /// Removes what runs that were killed have left in the work folder, servers included.
    pub fn clear(&self) {
        for left in Throwaway::left_in(&self.work_dir, self.account.as_ref().map(|account| account.ids)) {
            tracing::warn!("removing {}, which a run that was killed has left", left.path().display());
            drop(Folder::of(left));
        }
    }

    /// Restores, starts, and waits until the target is reached. `moved` is told bytes of how many, `said` the server's newest line. Wherever this ends, the plan of
    /// `prepared` names no place of production's tablespaces any more, but those that this server has for them.
    pub async fn raise(
        &self,
        archive: &Archive,
        access: Access,
        prepared: &mut Prepared,
        moved: lay::Progress<'_>,
        said: &(dyn Fn(&str) + Sync),
    ) -> Result<ScratchServer> {
        let begun = Instant::now();
        prepared.plan.tablespaces.iter_mut().for_each(|tablespace| tablespace.place = None);
        let manifest = &prepared.choice.manifest;
        let programs = self.programs(manifest)?;
        self.clear();
        self.demand_room(prepared.plan.backup_bytes)?;
        let throwaway = Throwaway::make(&self.work_dir, self.account.as_ref().map(|account| account.ids))?;
        let folder = Folder::of(throwaway);
        let options = self.options(&folder, manifest)?;
        for tablespace in &mut prepared.plan.tablespaces {
            tablespace.place = Some(folder.tablespace(tablespace.oid).display().to_string());
        }
        self.demand_way(&folder)?;
        let restored = super::restore(archive, access, prepared, &options, moved).await?;
        if let Some(other) = restored.outside.iter().find(|one| one.setting == "data_directory") {
            let text = format!("the restored postgresql.conf sets data_directory = '{}': not started", other.path);
            return Err(Error::new(Kind::Failed, text).hint("take that line out on the server, then take a new backup"));
        }
        let laying = begun.elapsed();
        let start = Start {
            pgdata: folder.data.clone(),
            programs: programs.clone(),
            account: self.account.clone(),
            action: Action::Promote,
            patience: self.patience,
        };
        let first = report::first_segment(&prepared.choice, archive.names.segment_size);
        start.probe(&self.program, &self.fetch_arguments, first)?;
        // Its log goes with it.
        let gone = "walrecv restore --start --scratch leaves such a server, with its log, for you to look at";
        let started =
            start.run(&prepared.choice.landing, &prepared.target, said).await.map_err(|error| error.hint(gone))?;
        let mut server = ScratchServer {
            data: folder.data.clone(),
            sockets: folder.throwaway.path().join("s"),
            account: self.account.clone(),
            programs,
            superuser: String::new(),
            libraries: String::new(),
            restored,
            started,
            laying,
            left_out: prepared.only.iter().flat_map(|only| &only.left_out).map(|one| one.oid).collect(),
            folder,
        };
        server.superuser = server.find_superuser().await?;
        server.libraries = server.ask("template1", "show shared_preload_libraries").await?;
        Ok(server)
    }

    fn programs(&self, manifest: &Manifest) -> Result<Programs> {
        let number = manifest.version_num;
        let version = manifest.major().ok_or_else(|| {
            Error::new(Kind::Version, format!("the backup is of server version {number}, 13 to 18 are supported"))
        })?;
        Programs::find(version, self.pg_bindir.as_deref(), std::env::var_os("PATH").as_deref())
    }

    fn demand_room(&self, bytes: u64) -> Result<()> {
        let needed = bytes.saturating_add(ROOM);
        match ahead::free(&self.work_dir) {
            Some(free) if free < needed => {
                let place = self.work_dir.display();
                let text =
                    format!("{place} has {} MiB left, a scratch server needs about {} MiB", free >> 20, needed >> 20);
                Err(Error::new(Kind::Failed, text).hint("name a place with more room with --work-dir"))
            }
            _ => Ok(()),
        }
    }

    /// The server's user must get to the folder, and the socket's path be no longer than the kernel takes.
    fn demand_way(&self, folder: &Folder) -> Result<()> {
        let place = folder.throwaway.path();
        let hint = "name another place with --work-dir, such as one below /var/tmp";
        demand_socket(&place.join("s"), PORT).map_err(|error| error.hint(hint))?;
        let mut test = server::command(self.account.as_ref(), Path::new("test"));
        test.arg("-x").arg(place);
        let user = self.account.as_ref().map_or("this user", |account| &account.name);
        server::run(test, "test -x").map(|_| ()).map_err(|_| {
            let text = format!("{user} cannot get to {}", self.work_dir.display());
            Error::new(Kind::Usage, text).hint(hint)
        })
    }

    fn options(&self, folder: &Folder, manifest: &Manifest) -> Result<Options> {
        let place = folder.throwaway.path();
        let mut tablespaces = Vec::new();
        for tablespace in &manifest.tablespaces {
            let old = PathBuf::from(OsString::from_vec(tablespace.location.0.clone()));
            if old.is_absolute() {
                tablespaces.push((old, folder.tablespace(tablespace.oid)));
            }
        }
        Ok(Options {
            pgdata: folder.data.clone(),
            tablespaces,
            action: Action::Promote,
            jobs: self.jobs,
            account: self.account.clone(),
            delta: false,
            keep_archiving: false,
            keep_subscriptions: false,
            scratch: Some(Scratch { directory: place.join("s"), port: PORT }),
            upstream: Upstream::default(),
            program: self.program.clone(),
            fetch_arguments: self.fetch_arguments.clone(),
        })
    }
}

impl ScratchServer {
    /// One of PostgreSQL's programs, set up to reach this server and no other: nothing of the environment speaks of one. It comes as a superuser, so it finds no
    /// names but PostgreSQL's own.
    pub fn client(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.client_as(&self.superuser, program, arguments);
        // A role may have a language of its own. Only a superuser may choose another.
        command.env("PGOPTIONS", format!("-c lc_messages=C {} {}", server::NO_SEARCH_PATH, self.unhurried()));
        command
    }

    /// As [`ScratchServer::client`], with the search_path of role and database: for what a person asks, and for statements that name everything in full. It may
    /// take longer here than in production all the same.
    pub fn as_written(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.client(program, arguments);
        command.env("PGOPTIONS", format!("-c lc_messages=C {}", self.unhurried()));
        command
    }

    fn unhurried(&self) -> String {
        server::unhurried(self.programs.version)
    }

    fn client_as(&self, role: &str, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.program(program);
        command.arg("-h").arg(&self.sockets).arg("-p").arg(PORT.to_string());
        command.args(["-w", "-U", role]).args(arguments);
        command.env("PGOPTIONS", format!("{} {}", server::NO_SEARCH_PATH, self.unhurried()));
        command
    }

    /// One of PostgreSQL's programs as the server's user, in English, since what it says is searched.
    fn program(&self, program: &str) -> Command {
        let mut command = server::client(self.account.as_ref(), &self.programs.path(program));
        server::unmoved(&mut command);
        command.current_dir("/").env("LC_ALL", "C");
        let mut command = Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// What psql prints of a query's rows: columns split by `|`. Names that are not PostgreSQL's own are found in full only.
    pub async fn ask(&self, database: &str, sql: &str) -> Result<String> {
        self.answer(database, sql, &|arguments| self.client("psql", arguments)).await
    }

    /// The same of a person's own query, which means what it means in production.
    pub async fn ask_as_written(&self, database: &str, sql: &str) -> Result<String> {
        self.answer(database, sql, &|arguments| self.as_written("psql", arguments)).await
    }

    async fn answer(&self, database: &str, sql: &str, psql: &(dyn Fn(&[&str]) -> Command + Sync)) -> Result<String> {
        let database = server::dbname(database);
        let arguments = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", &database, "-c", sql];
        let mut command = psql(&arguments);
        command.env("PGCLIENTENCODING", "UTF8");
        let answer = match output(command, "psql").await {
            // A database of SQL_ASCII holds any bytes: they are taken as they are.
            Err(error) if error.to_string().contains("invalid byte sequence for encoding \"UTF8\"") => {
                output(psql(&arguments), "psql").await?
            }
            other => other?,
        };
        Ok(text(&answer))
    }

    /// Whoever is there may come in, so any role tells which one has all rights.
    async fn find_superuser(&self) -> Result<String> {
        let owner = self.account.as_ref().map(|account| account.name.clone());
        let own = std::env::var("USER").ok();
        let mut last = None;
        let sql = "select rolname from pg_catalog.pg_roles where rolsuper and rolcanlogin order by oid limit 1";
        for role in ["postgres".to_owned()].into_iter().chain(owner).chain(own) {
            let command = self.client_as(&role, "psql", &["-X", "-A", "-t", "-q", "-d", "template1", "-c", sql]);
            match output(command, "psql").await.map(|answer| text(&answer)) {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => {}
                Err(error) => last = Some(error),
            }
        }
        let none = || Error::new(Kind::Failed, "the restored server has no superuser who may log in");
        Err(last.unwrap_or_else(none).hint("name the system user that is a role of the server with --owner"))
    }

    /// The databases that take connections; those that the restore left out do not, and none that was being dropped (`DATCONNLIMIT_INVALID_DB`).
    pub async fn databases(&self) -> Result<Vec<String>> {
        let out = self.left_out.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let sql = format!("datallowconn and datconnlimit <> -2 and oid <> all ('{{{out}}}'::pg_catalog.oid[])");
        self.names_where(&sql).await
    }

    /// The names of all databases that are there for users, those that were left out too.
    pub async fn named(&self) -> Result<Vec<String>> {
        self.names_where("datallowconn and datconnlimit <> -2").await
    }

    /// A name may hold a line break.
    async fn names_where(&self, condition: &str) -> Result<Vec<String>> {
        let sql = format!(
            "select coalesce(pg_catalog.json_agg(datname order by datname), '[]') from pg_catalog.pg_database where {condition}"
        );
        let told = self.ask("template1", &sql).await?;
        serde_json::from_str(&told)
            .map_err(|e| Error::new(Kind::Failed, format!("expected names of databases, found {told:?}")).caused_by(e))
    }

    /// Whether a database of this name is there and was left out: the backup had it under another name.
    pub async fn left_out(&self, name: &str) -> Result<bool> {
        let sql = format!("select oid from pg_catalog.pg_database where datname = {}", literal(name));
        let oids = self.ask("template1", &sql).await?;
        Ok(oids.lines().any(|oid| self.left_out.iter().any(|out| out.to_string() == oid)))
    }

    /// Switches off what `event_triggers` (17 and later) does not: production's event triggers, those that fire for replicas too. No such statement fires one.
    pub async fn disable_event_triggers(&self) -> Result<()> {
        if self.programs.version >= MajorVersion::V17 {
            return Ok(());
        }
        let sql = "select pg_catalog.string_agg(pg_catalog.format('alter event trigger %I disable', evtname), '; ') \
            from pg_catalog.pg_event_trigger where evtenabled <> 'D'";
        for database in self.databases().await? {
            let disable = self.ask(&database, sql).await?;
            if !disable.is_empty() {
                self.ask(&database, &disable).await.context(format!("database {database}"))?;
            }
        }
        Ok(())
    }

    /// Ends the server in good order, so that its files can be looked at.
    pub async fn shut_down(&self) -> Result<()> {
        let data = self.data.clone();
        // It takes its time, in which a signal must be heard.
        let ended = tokio::task::spawn_blocking(move || end(&data, Signal::INT, IN_ORDER)).await;
        ended.map_err(|e| Error::new(Kind::Failed, "the scratch server was not ended").caused_by(e))?
    }

    /// What a program says of the files of the server that has ended.
    pub async fn examine(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.program(program);
        command.args(arguments).arg("-D").arg(&self.data);
        let output = output(command, program).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends the server and removes everything.
    pub fn remove(self) -> Result<()> {
        end(&self.data, Signal::QUIT, AT_ONCE)?;
        self.folder.throwaway.remove()
    }
}

/// A string of SQL, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// What psql printed.
fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
}

/// Runs a command to its end; one that fails is an error with the last that it said.
pub async fn output(mut command: Command, what: &str) -> Result<std::process::Output> {
    let failed = |e| Error::new(Kind::Failed, format!("cannot run {what}")).caused_by(e);
    server::ended(command.output().await.map_err(failed)?, what)
}

/// Ends the server that runs in `data`, if one does, and waits for it. A link would lead to a server that is none of ours.
fn end(data: &Path, signal: Signal, limit: Duration) -> Result<()> {
    if data.is_symlink() {
        return Err(Error::new(Kind::Failed, format!("{} is a link: the server there was not ended", data.display()))
            .hint("see who made it"));
    }
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let runs = |pid: u32| ahead::identity(data).is_some_and(|place| server::stands_in(pid, place));
    let Some(pid) = LockFile::parse(&text).pid.filter(|pid| runs(*pid)) else { return Ok(()) };
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    kill_process(number, signal)
        .map_err(|e| Error::new(Kind::Failed, format!("cannot end process {pid}")).caused_by(e))
        .context("the scratch server")?;
    let begun = Instant::now();
    while runs(pid) {
        if begun.elapsed() > limit {
            let text = format!("the scratch server (process {pid}) has not ended after {} s", limit.as_secs());
            return Err(Error::new(Kind::Failed, text).hint("end that process, then remove its folder"));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_behind_a_link_is_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("production"), dir.path().join("data"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&real).spawn().unwrap();
        std::fs::write(real.join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        let refused = end(&link, Signal::KILL, AT_ONCE);
        let lives = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(refused.is_err() && lives);
        end(&real, Signal::KILL, AT_ONCE).unwrap();
    }
}
