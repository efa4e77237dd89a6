//! Connection strings as libpq reads them: keyword/value, URI, `PG*` variables, `.pgpass`. An option that is not supported is refused by name.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::conninfo_text;
use crate::error::{Error, Kind, Result};
use crate::wire::startup::ChannelBindingPolicy;

/// A text that is never printed.
#[derive(Clone)]
pub(super) struct Secret(pub(super) Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A directory with a socket in it.
    Socket(PathBuf),
    /// A name to look up, or to verify beside an address.
    Tcp { name: Option<String>, address: Option<IpAddr> },
}

/// `sslmode`, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// The authorities that the operating system trusts.
    System,
    /// A file that was named.
    File(PathBuf),
    /// libpq's default file, if it exists.
    Default(PathBuf),
}

#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub mode: SslMode,
    pub roots: Option<Roots>,
    /// libpq's default revocation list, if it exists.
    pub crl: Option<PathBuf>,
    /// TLS from the first byte, without SSLRequest (17+).
    pub direct: bool,
    pub sni: bool,
    /// Only TLS 1.3; only TLS 1.2.
    pub only_13: bool,
    pub only_12: bool,
}

/// TCP keepalives; zero stands for the system's own value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalives {
    pub idle: u32,
    pub interval: u32,
    pub count: u32,
}

/// A parsed connection string with every default filled in.
#[derive(Clone, Debug)]
pub struct Conninfo {
    pub(super) place: Place,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: Option<Secret>,
    /// The password file and whether it was named.
    pub(super) passfile: Option<PathBuf>,
    pub(super) dbname: Option<String>,
    pub(super) application_name: String,
    /// For one address, from the first packet to the end of the login; `None` without a limit.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) keepalives: Option<Keepalives>,
    pub(super) tcp_user_timeout: Option<Duration>,
    pub(super) options: String,
    pub(super) channel_binding: ChannelBindingPolicy,
    pub(super) tls: Tls,
}

/// When `connect_timeout` is not given. (libpq would wait for ever, which no daemon should.)
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Supported keywords and the variable that stands in for each.
const SUPPORTED: [(&str, &str); 30] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("dbname", "PGDATABASE"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    ("options", "PGOPTIONS"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslsni", "PGSSLSNI"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("client_encoding", "PGCLIENTENCODING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("gssencmode", "PGGSSENCMODE"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcompression", "PGSSLCOMPRESSION"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
];

/// Options of libpq that are refused by name, and the variable that would set each.
const UNSUPPORTED: [(&str, &str); 22] = [
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslpassword", ""),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslkeylogfile", ""),
    ("requirepeer", "PGREQUIREPEER"),
    ("require_auth", "PGREQUIREAUTH"),
    ("requiressl", "PGREQUIRESSL"),
    ("krbsrvname", ""),
    ("gsslib", ""),
    ("gssdelegation", ""),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("scram_client_key", ""),
    ("scram_server_key", ""),
    ("oauth_issuer", ""),
    ("oauth_client_id", ""),
    ("oauth_client_secret", ""),
    ("oauth_scope", ""),
    ("tty", ""),
];

impl Conninfo {
    /// Reads `text` and fills gaps from `PG*` variables (asked for through `env`) and libpq's defaults. Errors are `Kind::Usage`.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Conninfo> {
        let settings = Settings::read(text, env)?;
        settings.refuse_unsupported()?;
        let place = settings.place()?;
        let port = settings.number("port")?.unwrap_or(5432);
        let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| {
            Error::new(Kind::Usage, format!("connection option port: expected 1 to 65535, found {port}"))
        })?;
        let home = env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let user = settings.get("user").or_else(os_user).ok_or_else(|| {
            Error::new(Kind::Usage, "connection option user is missing, and the name of the current user is not known")
        })?;
        let default_passfile = || home.as_ref().map(|home| home.join(".pgpass"));
        let place = place.unwrap_or_else(|| Place::Socket(default_socket_directory(port)));
        Ok(Conninfo {
            place,
            port,
            user,
            password: settings.get("password").map(|p| Secret(Zeroizing::new(p))),
            passfile: settings.get("passfile").map(PathBuf::from).or_else(default_passfile),
            dbname: settings.get("dbname"),
            application_name: settings
                .get("application_name")
                .or_else(|| settings.get("fallback_application_name"))
                .unwrap_or_else(|| "walrecv".to_owned()),
            connect_timeout: match settings.number("connect_timeout")? {
                None => Some(CONNECT_TIMEOUT),
                Some(seconds) if seconds <= 0 => None,
                Some(seconds) => Some(Duration::from_secs(seconds.max(2).unsigned_abs())),
            },
            keepalives: settings.keepalives()?,
            tcp_user_timeout: settings
                .number("tcp_user_timeout")?
                .filter(|ms| *ms > 0)
                .map(|ms| Duration::from_millis(ms.unsigned_abs())),
            options: settings.get("options").unwrap_or_default(),
            channel_binding: settings.choice(
                "channel_binding",
                ChannelBindingPolicy::Prefer,
                &[
                    ("disable", ChannelBindingPolicy::Disable),
                    ("prefer", ChannelBindingPolicy::Prefer),
                    ("require", ChannelBindingPolicy::Require),
                ],
            )?,
            tls: settings.tls(home.as_deref())?,
        })
    }

    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// `host:port` or socket path, user: for messages; never a password.
    pub fn describe(&self) -> String {
        let place = match &self.place {
            Place::Socket(_) => self.socket_path().display().to_string(),
            Place::Tcp { name: Some(name), .. } if name.contains(':') => format!("[{name}]:{}", self.port),
            Place::Tcp { name: Some(name), .. } => format!("{name}:{}", self.port),
            Place::Tcp { address: Some(address), .. } => std::net::SocketAddr::new(*address, self.port).to_string(),
            Place::Tcp { .. } => format!("localhost:{}", self.port),
        };
        format!("{place} as {}", self.user)
    }

    /// The database for the SQL side: `dbname` as given, else `postgres`.
    pub fn database(&self) -> &str {
        self.dbname.as_deref().unwrap_or("postgres")
    }

    /// The socket file (`UNIXSOCK_PATH`); meaningless for a TCP server.
    pub(super) fn socket_path(&self) -> PathBuf {
        match &self.place {
            Place::Socket(directory) => directory.join(format!(".s.PGSQL.{}", self.port)),
            Place::Tcp { .. } => PathBuf::new(),
        }
    }
}

/// Where the socket is looked for without `host`: as Debian builds libpq, or as upstream does.
pub(super) fn default_socket_directory(port: u16) -> PathBuf {
    let candidates = [Path::new("/var/run/postgresql"), Path::new("/tmp")];
    let file = format!(".s.PGSQL.{port}");
    let found = candidates.iter().find(|d| d.join(&file).exists()).or_else(|| candidates.iter().find(|d| d.is_dir()));
    found.map_or_else(|| PathBuf::from("/tmp"), |directory| directory.to_path_buf())
}

/// The name of the user that runs this process, from the passwd file.
fn os_user() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
    line.split(':').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

struct Settings<'a> {
    pairs: conninfo_text::Pairs,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Settings<'a> {
    fn read(text: &str, env: &'a dyn Fn(&str) -> Option<String>) -> Result<Settings<'a>> {
        let pairs = conninfo_text::split(text)?;
        for (name, _) in &pairs {
            if name == "replication" {
                return Err(Error::new(Kind::Usage, "connection option replication is walrecv's own to set")
                    .hint("leave replication out of the connection string"));
            }
            if let Some((name, _)) = UNSUPPORTED.iter().find(|(known, _)| known == name) {
                return Err(unsupported(&format!("connection option {name}")));
            }
            if !SUPPORTED.iter().any(|(known, _)| known == name) {
                return Err(Error::new(Kind::Usage, format!("unknown connection option {name:?}")));
            }
        }
        Ok(Settings { pairs, env })
    }

    /// The value of the string, else of the variable; an empty one stands for the default.
    fn get(&self, name: &str) -> Option<String> {
        let given = self.pairs.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        let variable = || {
            let (_, variable) = SUPPORTED.iter().find(|(n, _)| *n == name)?;
            if variable.is_empty() { None } else { (self.env)(variable) }
        };
        given.or_else(variable).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<i64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.trim().parse::<i32>() {
            Ok(number) => Ok(Some(number.into())),
            Err(_) => {
                Err(Error::new(Kind::Usage, format!("connection option {name}: expected a number, found {text:?}")))
            }
        }
    }

    fn choice<T: Copy>(&self, name: &str, default: T, choices: &[(&str, T)]) -> Result<T> {
        let Some(text) = self.get(name) else { return Ok(default) };
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let expected = words.join(", ");
            Error::new(Kind::Usage, format!("connection option {name}: expected one of {expected}, found {text:?}"))
        })
    }

    /// Options that are fine as long as they ask for what happens anyway, and variables that would change the meaning.
    fn refuse_unsupported(&self) -> Result<()> {
        for (_, variable) in UNSUPPORTED.iter().filter(|(_, variable)| !variable.is_empty()) {
            if (self.env)(variable).is_some_and(|value| !value.is_empty()) {
                return Err(unsupported(&format!("environment variable {variable}")));
            }
        }
        let harmless: [(&str, &[&str]); 6] = [
            ("target_session_attrs", &["any"]),
            ("gssencmode", &["disable", "prefer"]),
            ("sslcertmode", &["disable", "allow"]),
            ("sslcompression", &["0"]),
            ("load_balance_hosts", &["disable", "random"]),
            ("max_protocol_version", &["3.0", "3.2", "latest"]),
        ];
        for (name, words) in harmless {
            if let Some(value) = self.get(name).filter(|value| !words.contains(&value.as_str())) {
                return Err(unsupported(&format!("connection option {name}={value}")));
            }
        }
        Ok(())
    }

    fn place(&self) -> Result<Option<Place>> {
        let (name, address) = (self.get("host"), self.get("hostaddr"));
        if [&name, &address].into_iter().flatten().chain(&self.get("port")).any(|text| text.contains(',')) {
            return Err(unsupported("a list of several hosts").hint("name one server"));
        }
        let address = match address {
            Some(text) => Some(text.parse::<IpAddr>().map_err(|_| {
                Error::new(Kind::Usage, format!("connection option hostaddr: expected an IP address, found {text:?}"))
            })?),
            None => None,
        };
        match name {
            Some(name) if name.starts_with('@') => Err(unsupported("an abstract socket (host=@…)")),
            Some(name) if name.starts_with('/') && address.is_none() => Ok(Some(Place::Socket(name.into()))),
            None if address.is_none() => Ok(None),
            name => Ok(Some(Place::Tcp { name, address })),
        }
    }

    fn keepalives(&self) -> Result<Option<Keepalives>> {
        let number = |name: &str| -> Result<u32> {
            Ok(self.number(name)?.and_then(|value| u32::try_from(value).ok()).unwrap_or(0))
        };
        let keepalives = Keepalives {
            idle: number("keepalives_idle")?,
            interval: number("keepalives_interval")?,
            count: number("keepalives_count")?,
        };
        Ok((self.number("keepalives")?.unwrap_or(1) != 0).then_some(keepalives))
    }

    fn tls(&self, home: Option<&Path>) -> Result<Tls> {
        let default = |name: &str| home.map(|home| home.join(".postgresql").join(name));
        let roots = match self.get("sslrootcert").as_deref() {
            Some("system") => Some(Roots::System),
            Some(file) => Some(Roots::File(file.into())),
            None => default("root.crt").map(Roots::Default),
        };
        let system = roots == Some(Roots::System);
        let mode = self.choice(
            "sslmode",
            if system { SslMode::VerifyFull } else { SslMode::Prefer },
            &[
                ("disable", SslMode::Disable),
                ("allow", SslMode::Allow),
                ("prefer", SslMode::Prefer),
                ("require", SslMode::Require),
                ("verify-ca", SslMode::VerifyCa),
                ("verify-full", SslMode::VerifyFull),
            ],
        )?;
        if system && mode != SslMode::VerifyFull {
            return Err(Error::new(Kind::Usage, "connection option sslrootcert=system needs sslmode=verify-full")
                .hint("anyone can obtain a certificate from a public authority, so the name must be verified"));
        }
        let direct = self.choice("sslnegotiation", false, &[("postgres", false), ("direct", true)])?;
        if direct && mode < SslMode::Require {
            return Err(Error::new(
                Kind::Usage,
                "connection option sslnegotiation=direct needs sslmode=require or more",
            ));
        }
        let versions = [("TLSv1", 10), ("TLSv1.1", 11), ("TLSv1.2", 12), ("TLSv1.3", 13)];
        let min = self.choice("ssl_min_protocol_version", 12, &versions)?;
        let max = self.choice("ssl_max_protocol_version", 13, &versions)?;
        if max < 12 || min > max {
            return Err(Error::new(
                Kind::Usage,
                "connection options ssl_min_protocol_version, ssl_max_protocol_version leave no version",
            )
            .hint("TLS 1.2 and 1.3 are supported"));
        }
        Ok(Tls {
            mode,
            roots,
            crl: default("root.crl"),
            direct,
            sni: self.choice("sslsni", true, &[("1", true), ("0", false)])?,
            only_13: min == 13,
            only_12: max == 12,
        })
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(Kind::Usage, format!("{what} is not supported yet"))
}
