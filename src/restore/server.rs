//! PostgreSQL's own programs: found by version, run as the owner of the data directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::disk::ahead;
use crate::disk::lay::Owner;
use crate::error::{Error, Kind, Result};
use crate::pg::MajorVersion;

/// The user that a data directory is given to, and that the server runs as.
#[derive(Clone, Debug)]
pub struct Account {
    pub name: String,
    pub ids: Owner,
}

impl Account {
    /// Looks a user up as the host does (`id` asks every name service). `Kind::Usage` for an unknown one.
    pub fn find(name: &str) -> Result<Account> {
        let number = |flag: &str| -> Result<u32> {
            let output = Command::new("id").args([flag, "--", name]).stdin(Stdio::null()).output();
            let output = output.map_err(|e| Error::new(Kind::Failed, "cannot run id").caused_by(e))?;
            let text = String::from_utf8_lossy(&output.stdout).trim().parse().ok().filter(|_| output.status.success());
            text.ok_or_else(|| {
                Error::new(Kind::Usage, format!("there is no user {name:?}"))
                    .hint("name the server's user with --owner")
            })
        };
        Ok(Account { name: name.to_owned(), ids: Owner { uid: number("-u")?, gid: number("-g")? } })
    }

    /// The account to use: `name` or `postgres` where this process is root, nobody else otherwise.
    pub fn choose(name: Option<&str>) -> Result<Option<Account>> {
        let own = rustix::process::geteuid().as_raw();
        match (own, name) {
            (0, name) => {
                let account = Account::find(name.unwrap_or("postgres"))?;
                if account.ids.uid == 0 {
                    return Err(Error::new(Kind::Usage, "PostgreSQL does not run as root")
                        .hint("name the server's user with --owner"));
                }
                Ok(Some(account))
            }
            (_, None) => Ok(None),
            (own, Some(name)) if Account::find(name)?.ids.uid == own => Ok(None),
            (_, Some(name)) => Err(Error::new(Kind::Usage, format!("only root can give files to {name}"))),
        }
    }
}

/// A command that runs as `account`, with all groups of that user, in a session as the host gives one (limits of `pam_limits` for a server).
pub fn command(account: Option<&Account>, program: &Path) -> Command {
    let mut command = match account {
        Some(account) => {
            let mut command = Command::new("runuser");
            command.args(["-u", &account.name, "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.stdin(Stdio::null());
    command
}

/// The same of a program that has no session and ends when it is killed: `runuser` waits beside the program that it starts, and killed it would leave that behind.
pub fn client(account: Option<&Account>, program: &Path) -> Command {
    let Some(account) = account else { return command(None, program) };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &account.name, "--regid", &account.ids.gid.to_string(), "--init-groups", "--"]);
    command.arg(program).stdin(Stdio::null());
    // libpq looks the user's own home up.
    command.env_remove("HOME").env("USER", &account.name).env("LOGNAME", &account.name);
    command
}

/// Takes out of a client's surroundings whatever speaks of a server (`PGHOST`, `PGOPTIONS`, `PGSERVICE` and the like).
pub fn unmoved(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
}

/// Takes a client's search_path, so that it finds names in `pg_catalog` alone, as PostgreSQL's own programs do: whoever may make objects in a restored database,
/// or owns it, could otherwise give a superuser's statements another meaning. What a role or a database sets counts for less than this.
pub const NO_SEARCH_PATH: &str = "-c search_path=";

/// Takes from a session what a role or a database has set for its own, and what would end it, or keep it from writing, for no fault of the data: limits of time, and
/// transactions that are read only. What the connection asks for counts for more than those settings.
pub fn unhurried(version: MajorVersion) -> String {
    let limits = [
        ("statement_timeout", MajorVersion::V13),
        ("lock_timeout", MajorVersion::V13),
        ("idle_in_transaction_session_timeout", MajorVersion::V13),
        ("idle_session_timeout", MajorVersion::V14),
        ("transaction_timeout", MajorVersion::V17),
    ];
    let known = limits.iter().filter(|(_, since)| version >= *since);
    let limits: String = known.map(|(limit, _)| format!("-c {limit}=0 ")).collect();
    limits + "-c default_transaction_read_only=off"
}

/// A database's name as clients take it for `-d`, where one with `=` or `://` in it is read as a whole connection (`PQconninfoParse`).
pub fn dbname(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The folder of the programs of one major version.
#[derive(Clone, Debug)]
pub struct Programs {
    pub folder: PathBuf,
    pub version: MajorVersion,
}

impl Programs {
    /// In `folder` if given, else where Debian installs them, else on the search path. Another major version cannot start the data directory.
    pub fn find(
        version: MajorVersion,
        folder: Option<&Path>,
        search_path: Option<&std::ffi::OsStr>,
    ) -> Result<Programs> {
        let candidates: Vec<PathBuf> = match folder {
            Some(folder) => vec![folder.to_path_buf()],
            // Where the packages of Debian and of the RPM repositories of PostgreSQL have them.
            None => [format!("/usr/lib/postgresql/{version}/bin"), format!("/usr/pgsql-{version}/bin")]
                .into_iter()
                .map(PathBuf::from)
                .chain(search_path.iter().flat_map(std::env::split_paths))
                .collect(),
        };
        let mut found = Vec::new();
        for folder in candidates {
            match major_of(&folder.join("postgres")) {
                Some(major) if major == version.number() => return Ok(Programs { folder, version }),
                Some(major) => found.push(format!("{major} in {}", folder.display())),
                None => {}
            }
        }
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        let message = format!("the backup is of PostgreSQL {version}; servers found: {found}");
        Err(Error::new(Kind::Version, message)
            .hint(format!("install PostgreSQL {version}, or name its folder with --pg-bindir")))
    }

    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }
}

fn major_of(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").stdin(Stdio::null()).output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

/// From `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_in(text: &str) -> Option<u32> {
    let number = text.split("(PostgreSQL) ").nth(1)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Runs a command to its end; a failure to run it, or another status than 0, is an error with what it said.
pub fn run(mut command: Command, what: &str) -> Result<Output> {
    let output = command.output().map_err(|e| Error::new(Kind::Failed, format!("cannot run {what}")).caused_by(e))?;
    ended(output, what)
}

/// The output of a command that has ended well; of any other an error with what it said of it.
pub fn ended(output: Output, what: &str) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(Kind::Failed, format!("{what} ended with {}, saying: {}", output.status, essence(&said))))
}

/// The line that says what went wrong: hints, details and a place in SQL stand behind it. Where none is marked as an error, the last.
fn essence(said: &str) -> &str {
    let marks = |line: &&str| ["ERROR:", "FATAL:", "PANIC:", "error:"].iter().any(|mark| line.contains(mark));
    let lines = || said.trim().lines();
    lines().find(marks).or(lines().last()).unwrap_or("nothing").trim()
}

/// Whether a process stands in a directory, of which this is device and inode. Every process of a server stays in its data directory (`ChangeToDataDir`), and in
/// a container that goes by another path; another process that has got the number of an old one since does not.
pub fn stands_in(pid: u32, place: (u64, u64)) -> bool {
    ahead::identity(Path::new(&format!("/proc/{pid}/cwd"))) == Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_program_said_the_error_is_told() {
        let psql =
            "ERROR:  relation \"nosuch\" does not exist\nLINE 1: select 1 from nosuch\n                      ^\n";
        assert_eq!(essence(psql), "ERROR:  relation \"nosuch\" does not exist");
        let own = "walrecv: error: cannot open /r/walrecv.json\nhint: Let the user that walrecv runs as read there.\n";
        assert_eq!(essence(own), "walrecv: error: cannot open /r/walrecv.json");
        assert_eq!((essence("one\ntwo\n"), essence(" \n")), ("two", "nothing"));
    }

    #[test]
    fn versions_as_the_programs_print_them() {
        assert_eq!(version_in("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(version_in("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(version_in("something else 15.1"), None);
    }

    #[test]
    fn another_version_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("postgres");
        std::fs::write(&script, "#!/bin/sh\necho 'postgres (PostgreSQL) 14.3'\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(Programs::find(MajorVersion::V14, Some(folder.path()), None).is_ok());
        let error = Programs::find(MajorVersion::V18, Some(folder.path()), None).unwrap_err();
        assert_eq!(error.kind(), Kind::Version);
        assert!(error.to_string().contains("PostgreSQL 18; servers found: 14 in "), "{error}");
        let on_path = Programs::find(MajorVersion::V14, None, Some(folder.path().as_os_str()));
        assert!(on_path.is_ok() || Path::new("/usr/lib/postgresql/14/bin/postgres").exists());
    }

    #[test]
    fn no_name_of_a_database_leads_elsewhere() {
        assert_eq!(dbname("shop"), "dbname='shop'");
        assert_eq!(dbname("host=db1 dbname=shop"), "dbname='host=db1 dbname=shop'");
        assert_eq!(dbname(r"a'b\c"), r"dbname='a\'b\\c'");
    }

    #[test]
    fn no_server_is_asked_to_lift_a_limit_that_it_does_not_know() {
        let of = |version, limit: &str| unhurried(version).contains(&format!("-c {limit}=0 "));
        for version in MajorVersion::ALL {
            assert!(of(version, "statement_timeout") && of(version, "lock_timeout"), "{version}");
            assert_eq!(of(version, "idle_session_timeout"), version >= MajorVersion::V14);
            assert_eq!(of(version, "transaction_timeout"), version >= MajorVersion::V17);
            assert!(unhurried(version).ends_with(" -c default_transaction_read_only=off"));
        }
    }

    #[test]
    fn a_killed_client_leaves_nothing_behind() {
        let root = rustix::process::geteuid().is_root();
        let account = root.then(|| Account::find("nobody").unwrap());
        let mut child = client(account.as_ref(), Path::new("sleep")).arg("60").spawn().unwrap();
        // Only what the kill reaches may be the program: nothing stands between.
        let place = format!("/proc/{}", child.id());
        let is_it = || std::fs::read(format!("{place}/cmdline")).unwrap() == b"sleep\x0060\0";
        let begun = std::time::Instant::now();
        while !is_it() && begun.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let (found, status) = (is_it(), std::fs::read_to_string(format!("{place}/status")).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found, "{status}");
        let ids = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        if let Some(account) = account {
            let Owner { uid, gid } = account.ids;
            assert_eq!(ids("Uid:"), format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"));
            assert_eq!(ids("Gid:"), format!("Gid:\t{gid}\t{gid}\t{gid}\t{gid}"));
        }
    }

    #[test]
    fn an_unknown_user_is_wrong_usage() {
        assert_eq!(Account::find("no such user").unwrap_err().kind(), Kind::Usage);
        assert_eq!(Account::find("root").unwrap().ids, Owner { uid: 0, gid: 0 });
    }
}
