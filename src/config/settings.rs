//! Settings: the file, overridden, with every default filled in and every value checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{ClusterTable, ConfigFile};
use super::{duration, size};
use crate::backup::FULL_EVERY;
use crate::error::{Error, Kind, Result};
use crate::receive::{AfterFailover, OnGap};
use crate::seal::sealer::Compression;

/// The configuration in the working directory: where `init` writes it, and looked for first when neither `--config` nor `WALRECV_CONFIG` is given.
pub const DEFAULT_CONFIG: &str = "walrecv.toml";
/// All places, in order.
pub const DEFAULT_PATHS: [&str; 2] = [DEFAULT_CONFIG, "/etc/walrecv/walrecv.toml"];
/// How often the tail of the open segment is made durable.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stopping server waits for walrecv at most.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long nothing may become durable before walrecv leaves the server.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Compression of WAL and packs.
pub const COMPRESSION: Compression = Compression::Zstd(1);

/// What flags and `WALRECV_*` variables put in the file's place.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub config: Option<PathBuf>,
    pub repo: Option<String>,
    pub cluster: Option<String>,
    pub identity_file: Option<PathBuf>,
}

/// All settings of one installation, paths made absolute against the file's directory.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config_path: PathBuf,
    pub repo: String,
    pub identity: Option<String>,
    pub secret_file: Option<PathBuf>,
    pub identity_file: Option<PathBuf>,
    pub passphrase_file: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub clusters: Vec<ClusterSettings>,
}

/// One cluster's settings.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    pub name: String,
    pub dsn: String,
    pub slot: Option<String>,
    pub flush_interval: Duration,
    pub compression: Compression,
    pub shutdown_grace: Duration,
    pub stall_timeout: Duration,
    /// Absolute.
    pub spool_dir: Option<PathBuf>,
    pub on_gap: OnGap,
    /// The file says so.
    pub on_gap_given: bool,
    pub after_failover: AfterFailover,
    pub give_up_at: Option<u64>,
    /// `backup.full_every`.
    pub full_every: Duration,
    pub drill: DrillSettings,
}

/// `drill.…` of a cluster.
#[derive(Clone, Debug, Default)]
pub struct DrillSettings {
    pub assertions: Vec<String>,
    pub database: Option<String>,
    pub rpo: Option<Duration>,
    pub rto: Option<Duration>,
}

impl Settings {
    /// Finds and reads the file, applies `overrides`, checks every value. Errors are `Kind::Usage` and name file and key.
    pub fn load(overrides: &Overrides) -> Result<Settings> {
        let path = find(overrides.config.as_deref())?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Error::new(Kind::Usage, format!("cannot read configuration {}", path.display()))
                .caused_by(error)
                .hint("name another file with --config, or make one with `walrecv init`")
        })?;
        Settings::from_file(ConfigFile::parse(&text, &path.display().to_string())?, &path, overrides)
    }

    fn from_file(file: ConfigFile, path: &Path, overrides: &Overrides) -> Result<Settings> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let at = |name: &String| folder.join(name);
        let clusters = file.clusters.iter().map(|(name, table)| cluster(&path, name, table)).collect::<Result<_>>()?;
        Ok(Settings {
            repo: overrides.repo.clone().unwrap_or(file.repo),
            identity: file.identity,
            secret_file: file.secret_file.as_ref().map(at),
            identity_file: overrides.identity_file.clone().or(file.identity_file.as_ref().map(at)),
            passphrase_file: file.passphrase_file.as_ref().map(at),
            state_dir: file.state_dir.as_ref().map_or_else(|| folder.join("walrecv-state"), at),
            clusters,
            config_path: path,
        })
    }

    /// The cluster that was asked for; without a name, the only one.
    pub fn cluster(&self, name: Option<&str>) -> Result<&ClusterSettings> {
        let names = || self.clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        let file = self.config_path.display();
        match (name, self.clusters.as_slice()) {
            (Some(name), all) => all.iter().find(|c| c.name == name).ok_or_else(|| {
                Error::new(Kind::Usage, format!("no cluster {name:?} in {file}"))
                    .hint(format!("configured clusters: {}", names()))
            }),
            (None, [only]) => Ok(only),
            (None, []) => Err(Error::new(Kind::Usage, format!("no cluster is configured in {file}"))
                .hint("add a [clusters.NAME] table with a dsn, or run `walrecv init`")),
            (None, _) => Err(Error::new(Kind::Usage, format!("{file} configures several clusters"))
                .hint(format!("choose one with --cluster: {}", names()))),
        }
    }
}

fn find(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    DEFAULT_PATHS.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(|| {
        Error::new(Kind::Usage, format!("no configuration: looked for {}", DEFAULT_PATHS.join(" and ")))
            .hint("make one with `walrecv init --repo URL --dsn CONNINFO`, or name it with --config")
    })
}

fn cluster(path: &Path, name: &str, table: &ClusterTable) -> Result<ClusterSettings> {
    let place = |key: &str, problem: String| {
        Error::new(Kind::Usage, format!("{}: clusters.{name}.{key}: {problem}", path.display()))
            .hint(format!("correct this key in [clusters.{name}]; docs/reference/configuration.md explains each"))
    };
    check_cluster_name(name)?;
    let time = |key: &str, value: &Option<String>, default: Duration| match value {
        Some(text) => duration::parse(text).map_err(|problem| place(key, problem)),
        None => Ok(default),
    };
    if let Some(slot) = &table.slot {
        check_slot_name(slot).map_err(|problem| place("slot", problem))?;
    }
    let on_gap = match table.on_gap.as_deref() {
        None | Some("stop") => OnGap::Stop,
        Some("new-range") => OnGap::NewRange,
        Some(other) => return Err(place("on_gap", format!("expected stop or new-range, found {other:?}"))),
    };
    let give_up_at = table.give_up_at.as_deref().map(size::parse).transpose();
    let give_up_at = give_up_at.map_err(|problem| place("give_up_at", problem))?;
    if give_up_at.is_some() && on_gap == OnGap::Stop {
        let problem =
            "giving up leaves a hole, behind which nothing would be streamed: it needs on_gap = \"new-range\"";
        return Err(place("give_up_at", problem.to_owned()));
    }
    let flush_interval = time("flush_interval", &table.flush_interval, FLUSH_INTERVAL)?;
    let stall_timeout = time("stall_timeout", &table.stall_timeout, STALL_TIMEOUT)?;
    if stall_timeout.is_zero() {
        // Any wait for the repository would look like one that takes nothing.
        return Err(place("stall_timeout", "expected more than 0".to_owned()));
    }
    let backup = table.backup.clone().unwrap_or_default();
    let drill = table.drill.clone().unwrap_or_default();
    let limit = |key: &str, value: &Option<String>| match value {
        Some(text) => duration::parse(text).map(Some).map_err(|problem| place(key, problem)),
        None => Ok(None),
    };
    Ok(ClusterSettings {
        full_every: time("backup.full_every", &backup.full_every, FULL_EVERY)?,
        drill: DrillSettings {
            rpo: limit("drill.rpo", &drill.rpo)?,
            rto: limit("drill.rto", &drill.rto)?,
            assertions: drill.assert,
            database: drill.database,
        },
        on_gap,
        on_gap_given: table.on_gap.is_some(),
        give_up_at,
        after_failover: match table.slot_after_failover.as_deref() {
            None | Some("create") => AfterFailover::Create,
            Some("stop") => AfterFailover::Stop,
            Some(other) => {
                return Err(place("slot_after_failover", format!("expected create or stop, found {other:?}")));
            }
        },
        name: name.to_owned(),
        dsn: table.dsn.clone(),
        slot: table.slot.clone(),
        flush_interval,
        compression: match &table.compression {
            Some(text) => compression(text).map_err(|problem| place("compression", problem))?,
            None => COMPRESSION,
        },
        shutdown_grace: time("shutdown_grace", &table.shutdown_grace, SHUTDOWN_GRACE)?,
        stall_timeout,
        spool_dir: table.spool_dir.as_ref().map(|spool| path.parent().unwrap_or(Path::new("/")).join(spool)),
    })
}

/// `none`, `lz4`, `zstd` or `zstd:LEVEL` (1 to 19).
pub fn compression(text: &str) -> Result<Compression, String> {
    let level = |text: &str| text.parse::<i32>().ok().filter(|level| (1..=19).contains(level));
    match text {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(COMPRESSION),
        _ => text
            .strip_prefix("zstd:")
            .and_then(level)
            .map(Compression::Zstd)
            .ok_or_else(|| format!("expected none, lz4, zstd or zstd:1 to zstd:19, found {text:?}")),
    }
}

/// A cluster's name is a folder of the repository: letters, digits, `_`, `-` and `.`, not starting with a dot, at most 63.
pub fn check_cluster_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if (1..=63).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("not a cluster name: {name:?}"))
        .hint("use 1 to 63 letters, digits, '_', '-' or '.', not starting with a dot"))
}

/// As the server demands it (`ReplicationSlotValidateName`): 1 to 63 of `a-z`, `0-9`, `_`.
pub fn check_slot_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("expected 1 to 63 lower-case letters, digits or underscores, found {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings> {
        let file = ConfigFile::parse(text, "t.toml")?;
        Settings::from_file(file, Path::new("/etc/walrecv/t.toml"), &Overrides::default())
    }

    #[test]
    fn defaults_are_filled_in_and_paths_are_absolute() {
        let text = "repo = \"file:///r\"\nsecret_file = \"s\"\nidentity_file = \"/k\"\n[clusters.main]\ndsn = \"\"\n";
        let settings = load(text).unwrap();
        assert_eq!(settings.secret_file.as_deref(), Some(Path::new("/etc/walrecv/s")));
        assert_eq!(settings.identity_file.as_deref(), Some(Path::new("/k")));
        assert_eq!(settings.cluster(None).unwrap().flush_interval, FLUSH_INTERVAL);
        assert_eq!(settings.cluster(None).unwrap().compression, COMPRESSION);
        assert_eq!(settings.cluster(None).unwrap().full_every, FULL_EVERY);
    }

    #[test]
    fn values_are_checked_by_name() {
        for (line, key) in [
            ("slot = \"Upper\"", "clusters.main.slot"),
            ("flush_interval = \"1\"", "clusters.main.flush_interval"),
            ("compression = \"gzip\"", "clusters.main.compression"),
            ("on_gap = \"jump\"", "clusters.main.on_gap"),
            ("slot_after_failover = \"maybe\"", "clusters.main.slot_after_failover"),
            ("give_up_at = \"50GB\"", "clusters.main.give_up_at"),
            ("on_gap = \"new-range\"\ngive_up_at = \"many\"", "clusters.main.give_up_at"),
            ("stall_timeout = \"0\"", "clusters.main.stall_timeout"),
            ("backup.full_every = \"weekly\"", "clusters.main.backup.full_every"),
            ("drill.rpo = \"soon\"", "clusters.main.drill.rpo"),
            ("drill.rto = \"1\"", "clusters.main.drill.rto"),
            ("compression = \"zstd:99\"", "clusters.main.compression"),
        ] {
            let error = load(&format!("repo = \"file:///r\"\n[clusters.main]\ndsn = \"\"\n{line}\n")).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(key), "{error}");
        }
        assert!(load("repo = \"file:///r\"\n[clusters.\"../x\"]\ndsn = \"\"\n").is_err());
    }

    #[test]
    fn giving_up_is_off_until_both_keys_say_so() {
        let given =
            |lines: &str| load(&format!("repo = \"file:///r\"\n[clusters.main]\ndsn = \"\"\n{lines}\n")).unwrap();
        let main = given("").cluster(None).unwrap().clone();
        assert_eq!((main.on_gap, main.after_failover, main.give_up_at), (OnGap::Stop, AfterFailover::Create, None));
        let main = given("on_gap = \"new-range\"\ngive_up_at = \"50GB\"").cluster(None).unwrap().clone();
        assert_eq!((main.on_gap, main.give_up_at), (OnGap::NewRange, Some(50 << 30)));
    }

    #[test]
    fn one_cluster_needs_no_name_and_several_do() {
        let two = "repo = \"file:///r\"\n[clusters.a]\ndsn = \"\"\n[clusters.b]\ndsn = \"\"\n";
        let settings = load(two).unwrap();
        assert_eq!(settings.cluster(Some("b")).unwrap().name, "b");
        assert!(settings.cluster(None).unwrap_err().advice().unwrap().contains("a, b"));
        assert!(settings.cluster(Some("c")).is_err());
    }
}
