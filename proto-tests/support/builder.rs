//! How a server is made: from a kept template of initdb, by pg_basebackup from another server, or on a data directory
//! that is there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use walrecv::pg::MajorVersion;

use super::clock::Clock;
use super::install::{bin_dir, home};
use super::server::{Files, Server};
use super::temp::TempDir;
use super::tls::Certificates;
use super::user::{as_postgres, give_to_postgres};

/// What `pg_hba.conf` asks of connections by TCP. Those by Unix socket are always trusted.
#[derive(Clone, Debug)]
pub enum Auth {
    Trust,
    /// `scram-sha-256`; the user `postgres` has this password.
    Scram(String),
    /// `md5`; the user `postgres` has this password, stored as MD5.
    Md5(String),
    /// `password`: in the clear.
    Clear(String),
}

enum Origin {
    /// A copy of a template; all of one version and segment size have one system identifier.
    Template,
    /// Its own initdb, and so its own system identifier.
    Initdb,
    /// `pg_basebackup` from the server that this connection string reaches.
    Standby(String),
    /// A data directory that is there already (a restored one).
    Existing(PathBuf),
}

/// Settings of a server that is not yet made.
pub struct Builder {
    version: MajorVersion,
    origin: Origin,
    segment_mb: u32,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    auth: Auth,
    tls: bool,
    client_certificates: bool,
    listen: &'static str,
    initdb: Vec<String>,
    env: Vec<(String, PathBuf)>,
}

impl Builder {
    pub(super) fn new(version: MajorVersion) -> Builder {
        Builder {
            version,
            origin: Origin::Template,
            segment_mb: 1,
            settings: Vec::new(),
            hba: Vec::new(),
            auth: Auth::Trust,
            tls: false,
            client_certificates: false,
            listen: "127.0.0.1",
            initdb: Vec::new(),
            env: Vec::new(),
        }
    }

    /// 1 unless said.
    pub fn segment_size_mb(mut self, mb: u32) -> Self {
        self.segment_mb = mb;
        self
    }

    /// A line of `postgresql.conf`; the last one for a name counts. Strings are quoted here.
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_string(), value.to_string()));
        self
    }

    /// A line of `pg_hba.conf` that comes before all others.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_string());
        self
    }

    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// `ssl = on` with a certificate for localhost and 127.0.0.1 that [`Server::ca_file`] has signed. Plain connections
    /// still work unless `hba` refuses them.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// As [`Builder::tls`], and the server asks for client certificates of its own authority.
    pub fn client_certificates(mut self) -> Self {
        self.client_certificates = true;
        self.tls()
    }

    /// Listens on ::1 too.
    pub fn ipv6(mut self) -> Self {
        self.listen = "127.0.0.1,::1";
        self
    }

    /// Goes by this clock, which must outlive the server.
    pub fn clock(mut self, clock: &Clock) -> Self {
        self.env = clock.env();
        self
    }

    /// Runs initdb for this server alone: otherwise all servers of one version and segment size have the same system
    /// identifier.
    pub fn own_identity(mut self) -> Self {
        self.origin = Origin::Initdb;
        self
    }

    /// An option for initdb, such as `--data-checksums`; implies [`Builder::own_identity`].
    pub fn initdb(mut self, option: &str) -> Self {
        self.initdb.push(option.to_string());
        self.own_identity()
    }

    /// Starts on a data directory that is there, which stays when the server goes. Settings are then given on the
    /// command line.
    pub fn on_data_dir(mut self, data: &Path) -> Self {
        self.origin = Origin::Existing(data.to_path_buf());
        self
    }

    pub(super) fn standby_of(mut self, conninfo: String) -> Self {
        self.origin = Origin::Standby(conninfo);
        self
    }

    /// Makes and starts it. Panics, with the server's log, if it does not come up.
    pub fn start(self) -> Server {
        let version = self.version;
        self.try_start().unwrap_or_else(|log| panic!("PostgreSQL {version} did not start:\n{log}"))
    }

    /// Makes and starts it; the server's log if it ends instead of accepting connections.
    pub fn try_start(self) -> Result<Server, String> {
        let temp = TempDir::for_postgres("pg");
        let sockets = temp.postgres_dir("s");
        let data = match &self.origin {
            Origin::Existing(data) => data.clone(),
            _ => temp.join("data"),
        };
        match &self.origin {
            Origin::Template => copy(&template(self.version, self.segment_mb), &data),
            Origin::Initdb => initdb(self.version, self.segment_mb, &data, &self.initdb),
            Origin::Standby(conninfo) => base_backup(self.version, conninfo, &data),
            Origin::Existing(_) => {}
        }
        let env = self.env.clone();
        let mut files = Files { data, sockets, ca: None, command_line: Vec::new(), env, listen: self.listen };
        if matches!(self.origin, Origin::Existing(_)) {
            files.command_line = self.settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        } else {
            self.configure(&mut files);
        }
        let server = Server::launch(self.version, files, temp)?;
        if let Auth::Scram(password) | Auth::Md5(password) | Auth::Clear(password) = &self.auth
            && !server.in_recovery()
        {
            let encryption = if matches!(self.auth, Auth::Md5(_)) { "md5" } else { "scram-sha-256" };
            let password = password.replace('\'', "''");
            server.sql(&format!("set password_encryption = '{encryption}'; alter role postgres password '{password}'"));
        }
        Ok(server)
    }

    fn configure(&self, files: &mut Files) {
        let mut settings: Vec<(String, String)> =
            DEFAULTS.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        if self.tls {
            let made = Certificates::write(&files.data);
            settings.push(("ssl".into(), "on".into()));
            settings.push(("ssl_cert_file".into(), made.server_cert.display().to_string()));
            settings.push(("ssl_key_file".into(), made.server_key.display().to_string()));
            if self.client_certificates {
                settings.push(("ssl_ca_file".into(), made.ca.display().to_string()));
            }
            files.ca = Some(made.ca);
        }
        settings.extend(self.settings.iter().cloned());
        let lines: String = settings.iter().map(|(k, v)| format!("{k} = '{}'\n", v.replace('\'', "''"))).collect();
        append(&files.data.join("postgresql.conf"), &lines);

        let method = match self.auth {
            Auth::Trust => "trust",
            Auth::Scram(_) => "scram-sha-256",
            Auth::Md5(_) => "md5",
            Auth::Clear(_) => "password",
        };
        let mut hba = self.hba.join("\n");
        hba.push_str("\nlocal all all trust\nlocal replication all trust\n");
        hba.push_str(&format!("host all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}\n"));
        hba.push_str(&format!("host all all ::1/128 {method}\nhost replication all ::1/128 {method}\n"));
        let path = files.data.join("pg_hba.conf");
        fs::write(&path, hba).expect("write pg_hba.conf");
        give_to_postgres(&path);
    }
}

/// What every server of the tests has, unless a test says otherwise.
const DEFAULTS: [(&str, &str); 14] = [
    ("wal_level", "replica"),
    ("fsync", "on"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("track_commit_timestamp", "on"),
    ("shared_buffers", "16MB"),
    ("max_connections", "50"),
    ("huge_pages", "off"),
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("log_replication_commands", "on"),
    ("log_checkpoints", "on"),
];

/// A data directory as initdb made it, made once for each version and segment size and kept beside the servers.
fn template(version: MajorVersion, segment_mb: u32) -> PathBuf {
    let kept = home().join("templates");
    let made = kept.join(format!("{version}-{segment_mb}"));
    if made.join("PG_VERSION").exists() {
        return made;
    }
    fs::create_dir_all(&kept).expect("make the folder of templates");
    let new = TempDir::for_postgres("initdb");
    initdb(version, segment_mb, &new.join("data"), &[]);
    // Into place under one name at the end: another test program may be making the same one. Across file systems rename
    // does not work.
    let staged = kept.join(format!(".{version}-{segment_mb}.{}.{}", std::process::id(), super::free_port()));
    copy(&new.join("data"), &staged);
    if fs::rename(&staged, &made).is_err() {
        fs::remove_dir_all(&staged).expect("remove a template that was not needed");
    }
    made
}

fn initdb(version: MajorVersion, segment_mb: u32, data: &Path, options: &[String]) {
    let mut command = as_postgres(bin_dir(version).join("initdb"));
    command.args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--no-locale", "-D"]).arg(data);
    must(command.arg(format!("--wal-segsize={segment_mb}")).args(options));
}

fn base_backup(version: MajorVersion, conninfo: &str, data: &Path) {
    let mut command = as_postgres(bin_dir(version).join("pg_basebackup"));
    must(command.args(["--no-sync", "-R", "-X", "stream", "-c", "fast", "-d", conninfo, "-D"]).arg(data));
}

/// With `cp`, which keeps owner and mode.
fn copy(from: &Path, to: &Path) {
    must(Command::new("cp").arg("-a").arg(from).arg(to));
}

fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(text.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
