//! The options of a connection string: which there are, where each comes from, and what each may be.

use std::path::{Path, PathBuf};

use super::client_certificate::{CertMode, Files};
use super::conninfo::{Keepalives, Revocation, Roots, SslMode, Tls};
use super::conninfo_text::{self, Pairs};
use super::service;
use crate::error::{Context, Error, Kind, Result};

/// Supported keywords and the variable that stands in for each.
const SUPPORTED: [(&str, &str); 39] = [
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslpassword", ""),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("requirepeer", "PGREQUIREPEER"),
    ("require_auth", "PGREQUIREAUTH"),
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
const UNSUPPORTED: [(&str, &str); 13] = [
    ("sslkeylogfile", ""),
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

pub(super) struct Settings<'a> {
    /// Of the string.
    pairs: Pairs,
    /// Of the service that the string or PGSERVICE names.
    service: Pairs,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Settings<'a> {
    pub(super) fn read(text: &str, env: &'a dyn Fn(&str) -> Option<String>) -> Result<Settings<'a>> {
        let pairs = conninfo_text::split(text)?;
        check_names(&pairs)?;
        let mut settings = Settings { pairs, service: Pairs::new(), env };
        if let Some(name) = settings.get("service") {
            settings.service = service::look_up(&name, settings.get("servicefile"), env)?;
            check_names(&settings.service).context(format!("service {name:?}"))?;
        }
        Ok(settings)
    }

    /// The value of the string, else of the service, else of the variable; an empty one stands for the default.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let last = |pairs: &Pairs| pairs.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        let given = last(&self.pairs).or_else(|| last(&self.service));
        let variable = || {
            let (_, variable) = SUPPORTED.iter().find(|(n, _)| *n == name)?;
            if variable.is_empty() { None } else { (self.env)(variable) }
        };
        given.or_else(variable).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<i64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.trim().parse::<i32>() {
            Ok(number) => Ok(Some(number.into())),
            Err(_) => {
                Err(Error::new(Kind::Usage, format!("connection option {name}: expected a number, found {text:?}")))
            }
        }
    }

    pub(super) fn choice<T: Copy>(&self, name: &str, default: T, choices: &[(&str, T)]) -> Result<T> {
        let Some(text) = self.get(name) else { return Ok(default) };
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let expected = words.join(", ");
            Error::new(Kind::Usage, format!("connection option {name}: expected one of {expected}, found {text:?}"))
        })
    }

    /// Options that are fine as long as they ask for what happens anyway, and variables that would change the meaning.
    pub(super) fn refuse_unsupported(&self) -> Result<()> {
        for (_, variable) in UNSUPPORTED.iter().filter(|(_, variable)| !variable.is_empty()) {
            if (self.env)(variable).is_some_and(|value| !value.is_empty()) {
                return Err(unsupported(&format!("environment variable {variable}")));
            }
        }
        let harmless: [(&str, &[&str]); 3] = [
            ("gssencmode", &["disable", "prefer"]),
            ("sslcompression", &["0"]),
            ("max_protocol_version", &["3.0", "3.2", "latest"]),
        ];
        for (name, words) in harmless {
            if let Some(value) = self.get(name).filter(|value| !words.contains(&value.as_str())) {
                return Err(unsupported(&format!("connection option {name}={value}")));
            }
        }
        Ok(())
    }

    pub(super) fn keepalives(&self) -> Result<Option<Keepalives>> {
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

    /// `sslcrl` and `sslcrldir`; without either libpq's default file.
    fn revocation(&self, home: Option<&Path>) -> Vec<Revocation> {
        let file = self.get("sslcrl").map(|file| Revocation::File(file.into()));
        let directory = self.get("sslcrldir").map(|directory| Revocation::Directory(directory.into()));
        let named: Vec<Revocation> = file.into_iter().chain(directory).collect();
        match (named.is_empty(), home) {
            (true, Some(home)) => vec![Revocation::Default(home.join(".postgresql").join("root.crl"))],
            _ => named,
        }
    }

    pub(super) fn tls(&self, home: Option<&Path>) -> Result<Tls> {
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
        let cert_mode = self.choice(
            "sslcertmode",
            CertMode::Allow,
            &[("disable", CertMode::Disable), ("allow", CertMode::Allow), ("require", CertMode::Require)],
        )?;
        let named = self.get("sslcert");
        if let Some(engine) = self.get("sslkey").filter(|key| key.contains(':')) {
            return Err(unsupported(&format!("a key in an OpenSSL engine (sslkey={engine})")));
        }
        let cert = named.as_ref().map(PathBuf::from).or_else(|| default("postgresql.crt"));
        let key = self.get("sslkey").map(PathBuf::from).or_else(|| default("postgresql.key"));
        let client = cert.zip(key).map(|(cert, key)| Files { cert, key, named: named.is_some() });
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
            crl: self.revocation(home),
            cert_mode,
            client,
            direct,
            sni: self.choice("sslsni", true, &[("1", true), ("0", false)])?,
            only_13: min == 13,
            only_12: max == 12,
        })
    }
}

/// Every keyword must be one that is known and supported.
fn check_names(pairs: &Pairs) -> Result<()> {
    for (name, _) in pairs {
        if name == "replication" {
            return Err(Error::new(Kind::Usage, "connection option replication is walrecv's own to set")
                .hint("leave replication out of the connection string"));
        }
        if let Some((name, _)) = UNSUPPORTED.iter().find(|(known, _)| known == name) {
            return Err(unsupported(&format!("connection option {name}")));
        }
        if !SUPPORTED.iter().any(|(known, _)| known == name) {
            return Err(Error::new(Kind::Usage, format!("unknown connection option {name:?}"))
                .hint("correct its name: options are those of libpq, such as host, port, user, sslmode"));
        }
    }
    Ok(())
}

fn unsupported(what: &str) -> Error {
    Error::new(Kind::Usage, format!("{what} is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_stands_on_the_page_of_the_configuration() {
        let page = include_str!("../../docs/reference/configuration.md");
        for (name, _) in SUPPORTED {
            assert!(page.contains(&format!("`{name}`")), "{name} is not on the page");
        }
    }
}
