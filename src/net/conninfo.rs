//! Connection strings as libpq reads them: keyword/value, URI, `PG*` variables, `.pgpass`. An option that is not supported is refused by name.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::client_certificate::{CertMode, Files};
use super::dialer::Dialer;
use super::host::{self, Host};
use super::settings::Settings;
use super::target::{self, Target};
use crate::error::{Error, Kind, Result};
use crate::wire::require_auth::RequireAuth;
use crate::wire::startup::ChannelBindingPolicy;

/// A text that is never printed.
#[derive(Clone)]
pub(super) struct Secret(pub(super) Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
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

/// Where lists of revoked certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Revocation {
    File(PathBuf),
    /// Every file in it.
    Directory(PathBuf),
    /// libpq's default file, if it exists.
    Default(PathBuf),
}

#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub mode: SslMode,
    pub roots: Option<Roots>,
    pub crl: Vec<Revocation>,
    pub cert_mode: CertMode,
    /// The client's certificate and key; `None` where not even the home directory is known.
    pub client: Option<Files>,
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
    /// In the order in which they are tried; never empty.
    pub(super) hosts: Vec<Host>,
    pub(super) target: Target,
    /// `load_balance_hosts=random`.
    pub(super) shuffle: bool,
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
    pub(super) require_auth: RequireAuth,
    /// `requirepeer`: the name of the user that the server must run as, where it is reached by a socket file.
    pub(super) require_peer: Option<String>,
    pub(super) tls: Tls,
    /// Takes the place of the sockets.
    pub(super) dialer: Option<Dialer>,
}

/// When `connect_timeout` is not given. (libpq would wait for ever, which no daemon should.)
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where another host waits for its turn.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(10);

impl Conninfo {
    /// Reads `text` and fills gaps from `PG*` variables (asked for through `env`) and libpq's defaults. Errors are `Kind::Usage`.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Conninfo> {
        let settings = Settings::read(text, env)?;
        settings.refuse_unsupported()?;
        let [names, addresses, ports] = ["host", "hostaddr", "port"].map(|name| settings.get(name));
        let hosts = host::list(names.as_deref(), addresses.as_deref(), ports.as_deref())?;
        let home = env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let user = settings.get("user").or_else(os_user).ok_or_else(|| {
            Error::new(Kind::Usage, "connection option user is missing, and the name of the current user is not known")
        })?;
        let default_passfile = || home.as_ref().map(|home| home.join(".pgpass"));
        let patience = if hosts.len() > 1 { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        Ok(Conninfo {
            hosts,
            target: settings.choice("target_session_attrs", Target::Any, &target::WORDS)?,
            shuffle: settings.choice("load_balance_hosts", false, &[("disable", false), ("random", true)])?,
            user,
            password: settings.get("password").map(|p| Secret(Zeroizing::new(p))),
            passfile: settings.get("passfile").map(PathBuf::from).or_else(default_passfile),
            dbname: settings.get("dbname"),
            application_name: settings
                .get("application_name")
                .or_else(|| settings.get("fallback_application_name"))
                .unwrap_or_else(|| "walrecv".to_owned()),
            connect_timeout: match settings.number("connect_timeout")? {
                None => Some(patience),
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
            require_auth: match settings.get("require_auth") {
                None => RequireAuth::default(),
                Some(text) => RequireAuth::parse(&text)
                    .map_err(|problem| Error::new(Kind::Usage, format!("connection option require_auth: {problem}")))?,
            },
            require_peer: settings.get("requirepeer"),
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

    /// Every `host:port` or socket path, user: for messages; never a password.
    pub fn describe(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(Host::describe).collect();
        format!("{} as {}", hosts.join(", "), self.user)
    }

    /// A connection string for this host alone, at this address, whatever kind of server it is.
    pub(super) fn narrowed(&self, host: &Host, address: Option<IpAddr>) -> Conninfo {
        Conninfo { hosts: vec![host.at(address)], target: Target::Any, shuffle: false, ..self.clone() }
    }

    /// The same without the host that `taken` leads to, which came from this string; `None`: there is no other.
    pub fn without(&self, taken: &Conninfo) -> Option<Conninfo> {
        let is_taken = |host: &Host| taken.hosts.iter().any(|other| host.leads_to(other));
        let hosts: Vec<Host> = self.hosts.iter().filter(|host| !is_taken(host)).cloned().collect();
        (!hosts.is_empty()).then(|| Conninfo { hosts, ..self.clone() })
    }

    /// The database for the SQL side: `dbname` as given, else `postgres`.
    pub fn database(&self) -> &str {
        self.dbname.as_deref().unwrap_or("postgres")
    }
}

/// The name of the user that runs this process.
fn os_user() -> Option<String> {
    user_name(rustix::process::geteuid().as_raw())
}

/// The name of a user of the operating system, from the passwd file.
pub(super) fn user_name(uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
    line.split(':').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        let several = parse("host=db1,db2 port=5433,5434 user=u target_session_attrs=read-write");
        assert_eq!(several.describe(), "db1:5433, db2:5434 as u");
        assert_eq!((several.target, several.connect_timeout), (Target::ReadWrite, Some(CONNECT_TIMEOUT_OF_SEVERAL)));
        let one = several.narrowed(&several.hosts[1], "10.0.0.2".parse().ok());
        let others = several.without(&one).expect("the others");
        assert_eq!(others.hosts, [&several.hosts[..1], &several.hosts[2..]].concat());
        assert!(one.without(&one).is_none());
        assert_eq!((one.describe().as_str(), one.target), ("db2:5434 as u", Target::Any));
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
            ("service=walrecv-no-such-service", "walrecv-no-such-service"),
            ("sslkey=pkcs11:x", "engine"),
            ("sslcertmode=maybe", "sslcertmode"),
            ("sslkeylogfile=x", "sslkeylogfile"),
            ("krbsrvname=x", "krbsrvname"),
            ("gssencmode=require", "gssencmode=require"),
            ("require_auth=kerberos", "require_auth"),
            ("target_session_attrs=master", "target_session_attrs"),
            ("load_balance_hosts=yes", "load_balance_hosts"),
            ("host=a,b port=1,2,3", "port lists 3"),
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
        for variable in ["PGREQUIRESSL", "PGMINPROTOCOLVERSION"] {
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
