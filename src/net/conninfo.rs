//! Connection strings as libpq reads them: keyword/value, URI, `PG*` variables, `.pgpass`. An option that is not supported is refused by name.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::dialer::Dialer;
use super::settings::Settings;
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
    /// Takes the place of the sockets.
    pub(super) dialer: Option<Dialer>,
}

/// When `connect_timeout` is not given. (libpq would wait for ever, which no daemon should.)
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

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
            dialer: None,
        })
    }

    /// The same server, reached by `dialer` and not by the network: without TLS, everything else as usual.
    pub fn through(mut self, dialer: Dialer) -> Conninfo {
        self.dialer = Some(dialer);
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn parse(text: &str) -> Conninfo {
        Conninfo::parse(text, &none).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn defaults_and_descriptions() {
        let info = parse("host=db1 user=walrecv");
        assert_eq!(info.describe(), "db1:5432 as walrecv");
        assert_eq!((info.application_name(), info.database()), ("walrecv", "postgres"));
        assert_eq!(info.connect_timeout, Some(CONNECT_TIMEOUT));
        assert_eq!((info.tls.mode, info.channel_binding), (SslMode::Prefer, ChannelBindingPolicy::Prefer));
        assert!(info.keepalives.is_some() && info.tcp_user_timeout.is_none());
        assert_eq!(parse("host=/run/pg port=5433 user=u").describe(), "/run/pg/.s.PGSQL.5433 as u");
        assert_eq!(parse("hostaddr=::1 user=u").describe(), "[::1]:5432 as u");
        assert_eq!(parse("host=2001:db8::1 user=u").describe(), "[2001:db8::1]:5432 as u");
        assert_eq!(parse("host=a user=u connect_timeout=0").connect_timeout, None);
        assert_eq!(parse("host=a user=u connect_timeout=1").connect_timeout, Some(Duration::from_secs(2)));
        assert!(parse("host=a user=u keepalives=0").keepalives.is_none());
        assert_eq!(parse("host=a host=b user=u").describe(), "b:5432 as u");
        assert!(!parse("user=u").describe().is_empty());
    }

    #[test]
    fn names_of_the_application() {
        assert_eq!(parse("fallback_application_name=a").application_name(), "a");
        assert_eq!(parse("fallback_application_name=a application_name=b").application_name(), "b");
        let env = |name: &str| (name == "PGAPPNAME").then(|| "c".to_owned());
        let info = Conninfo::parse("fallback_application_name=a", &env).unwrap();
        assert_eq!(info.application_name(), "c");
    }

    #[test]
    fn variables_fill_gaps_and_the_string_goes_first() {
        let env = |name: &str| {
            let values = [
                ("PGHOST", "db1"),
                ("PGPORT", "5433"),
                ("PGUSER", "env"),
                ("PGPASSWORD", "hidden"),
                ("PGDATABASE", "d"),
                ("PGSSLMODE", "require"),
                ("PGCONNECT_TIMEOUT", "7"),
                ("PGOPTIONS", "-c a=b"),
                ("HOME", "/home/x"),
            ];
            values.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        let info = Conninfo::parse("user=given", &env).unwrap();
        assert_eq!((info.describe().as_str(), info.database()), ("db1:5433 as given", "d"));
        assert_eq!((info.tls.mode, info.connect_timeout), (SslMode::Require, Some(Duration::from_secs(7))));
        assert_eq!(info.options, "-c a=b");
        assert_eq!(info.passfile.as_deref(), Some(Path::new("/home/x/.pgpass")));
        assert_eq!(info.tls.roots, Some(Roots::Default("/home/x/.postgresql/root.crt".into())));
        assert_eq!(info.password.as_ref().map(|p| p.0.as_str()), Some("hidden"));
        let uri = Conninfo::parse("postgres://u:p%40ss@db2/x", &env).unwrap();
        assert_eq!((uri.describe().as_str(), uri.database()), ("db2:5433 as u", "x"));
    }

    #[test]
    fn passwords_are_never_printed() {
        let info = parse("host=a user=u password=topsecret");
        assert!(!format!("{info:?} {}", info.describe()).contains("topsecret"));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (text, name) in [
            ("service=x", "service"),
            ("sslcert=x", "sslcert"),
            ("sslkey=x", "sslkey"),
            ("sslcrl=x", "sslcrl"),
            ("requirepeer=postgres", "requirepeer"),
            ("krbsrvname=x", "krbsrvname"),
            ("gssencmode=require", "gssencmode=require"),
            ("require_auth=md5", "require_auth"),
            ("target_session_attrs=primary", "target_session_attrs=primary"),
            ("host=a,b", "several hosts"),
            ("host=@abstract", "abstract"),
            ("replication=true", "replication"),
            ("nonsense=1", "nonsense"),
            ("sslmode=verify_full", "sslmode"),
            ("sslmode=require sslrootcert=system", "sslrootcert=system"),
            ("sslnegotiation=direct", "sslnegotiation=direct"),
            ("ssl_max_protocol_version=TLSv1.1", "ssl_max_protocol_version"),
            ("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", "leave no version"),
            ("port=0", "port"),
            ("port=65536", "port"),
            ("port=x", "port"),
            ("hostaddr=db1", "hostaddr"),
            ("channel_binding=yes", "channel_binding"),
            ("connect_timeout=1s", "connect_timeout"),
        ] {
            let error = Conninfo::parse(text, &none).expect_err(text);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(name), "{text}: {error}");
        }
        for variable in ["PGSERVICE", "PGSSLCERT", "PGREQUIREPEER"] {
            let env = |name: &str| (name == variable).then(|| "x".to_owned());
            let error = Conninfo::parse("host=a", &env).expect_err(variable);
            assert!(error.to_string().contains(variable), "{error}");
        }
        parse(
            "client_encoding=latin1 target_session_attrs=any gssencmode=prefer sslcompression=0 load_balance_hosts=disable",
        );
        parse("ssl_min_protocol_version=TLSv1");
    }
}
