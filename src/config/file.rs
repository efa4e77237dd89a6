//! `walrecv.toml` as it is written: every key that exists, nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The file as a whole. Paths are relative to the file's directory.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// `file:///…`, `s3://bucket/prefix`, `gs://…`, `az://…`.
    pub repo: String,
    /// Public key of the repository identity; absent only in a repository made with `--no-encryption`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The repository secret, 0600: on every writer; absent only without encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<String>,
    /// A recipient's private key: needed to read contents, not to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<String>,
    /// A file with the passphrase of a passphrase recipient, in place of `identity_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase_file: Option<String>,
    /// Locks and caches: all of it can be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
    #[serde(default)]
    pub clusters: BTreeMap<String, ClusterTable>,
}

/// `[clusters.<name>]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterTable {
    pub dsn: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush_interval: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_grace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout: Option<String>,
    /// A folder on a local disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_dir: Option<String>,
    /// `stop` or `new-range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_gap: Option<String>,
    /// `create` or `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_after_failover: Option<String>,
    /// A size such as `50GB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillTable>,
}

/// `drill.…` of a cluster.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DrillTable {
    /// SQL, each of which must return one row that is true.
    #[serde(default)]
    pub assert: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Durations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<String>,
}

/// `backup.…` of a cluster.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BackupTable {
    /// A duration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_every: Option<String>,
}

impl ConfigFile {
    /// Reads the text of a file; `name` goes into the message. `Kind::Usage` for anything that is not right.
    pub fn parse(text: &str, name: &str) -> Result<ConfigFile> {
        toml::from_str(text).map_err(|error| {
            let line_of = |start: usize| 1 + text.bytes().take(start).filter(|b| *b == b'\n').count();
            let place = match error.span() {
                Some(span) => format!("{name}, line {}", line_of(span.start)),
                None => name.to_owned(),
            };
            Error::new(Kind::Usage, format!("{place}: {}", error.message()))
                .hint("the keys that exist are listed in docs/reference/configuration.md")
        })
    }

    /// The text to write, with a line on each key for the person who opens it.
    pub fn render(&self) -> String {
        let mut out = String::from("# walrecv configuration. Paths are relative to this file.\n");
        let mut line = |key: &str, value: &Option<String>, comment: &str| {
            if let Some(value) = value {
                out.push_str(&format!("{key} = {}{:width$}# {comment}\n", quoted(value), "", width = 2));
            }
        };
        line("repo", &Some(self.repo.clone()), "where WAL and backups are kept");
        line("identity", &self.identity, "public key of the repository: what walrecv encrypts for");
        line("secret_file", &self.secret_file, "repository secret: on every host that writes");
        line("identity_file", &self.identity_file, "private key: needed to restore, not to write");
        line("passphrase_file", &self.passphrase_file, "passphrase: needed to restore, not to write");
        line("state_dir", &self.state_dir, "locks and caches: all of it can be lost");
        for (name, table) in &self.clusters {
            out.push_str(&format!("\n[clusters.{}]\ndsn = {}\n", key(name), quoted(&table.dsn)));
            let backup = table.backup.clone().unwrap_or_default();
            let drill = table.drill.clone().unwrap_or_default();
            let optional = [
                ("slot", &table.slot),
                ("flush_interval", &table.flush_interval),
                ("compression", &table.compression),
                ("shutdown_grace", &table.shutdown_grace),
                ("stall_timeout", &table.stall_timeout),
                ("spool_dir", &table.spool_dir),
                ("on_gap", &table.on_gap),
                ("slot_after_failover", &table.slot_after_failover),
                ("give_up_at", &table.give_up_at),
                ("backup.full_every", &backup.full_every),
                ("drill.database", &drill.database),
                ("drill.rpo", &drill.rpo),
                ("drill.rto", &drill.rto),
            ];
            for (name, value) in optional {
                if let Some(value) = value {
                    out.push_str(&format!("{name} = {}\n", quoted(value)));
                }
            }
            if !drill.assert.is_empty() {
                let all = drill.assert.iter().map(|sql| quoted(sql)).collect::<Vec<_>>().join(", ");
                out.push_str(&format!("drill.assert = [{all}]\n"));
            }
        }
        out
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A TOML key: bare where it can be.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { quoted(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ConfigFile {
        let table = ClusterTable {
            dsn: "host=/tmp user=\"x\" dbname='a \\'b'".into(),
            slot: Some("walrecv_main".into()),
            flush_interval: Some("1s".into()),
            compression: None,
            shutdown_grace: None,
            stall_timeout: None,
            spool_dir: None,
            on_gap: None,
            slot_after_failover: None,
            give_up_at: None,
            backup: Some(BackupTable { full_every: Some("3d".into()) }),
            drill: Some(DrillTable {
                assert: vec!["select count(*) > 0 from \"t\"".into(), "select true".into()],
                database: Some("shop".into()),
                rpo: None,
                rto: Some("5min".into()),
            }),
        };
        ConfigFile {
            repo: "file:///r".into(),
            identity: Some("age1x".into()),
            secret_file: Some("walrecv-secret".into()),
            identity_file: None,
            passphrase_file: None,
            state_dir: None,
            clusters: BTreeMap::from([("main".to_owned(), table)]),
        }
    }

    #[test]
    fn what_is_rendered_reads_back() {
        let text = sample().render();
        let back = ConfigFile::parse(&text, "walrecv.toml").unwrap();
        assert_eq!(back.clusters["main"].dsn, sample().clusters["main"].dsn);
        assert_eq!(back.identity, sample().identity);
        assert_eq!(back.render(), text);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = ConfigFile::parse("repo = \"file:///r\"\n\nflush = 1\n", "walrecv.toml").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains("line 3"), "{error}");
        assert!(error.to_string().contains("flush"), "{error}");
    }
}
