//! A configuration as it was restored, read well enough to tell a person what it says. Never to decide safety: an included file may say anything.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// Something that the restored configuration takes from outside of the data directory, or that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outside {
    pub setting: String,
    pub path: String,
    /// Whether something stands there on this host.
    pub there: bool,
}

/// Directives that read further files (`ParseConfigFp`).
const INCLUDES: [&str; 3] = ["include", "include_if_exists", "include_dir"];
/// Settings that name a file, or the directory of the data.
const FILES: [&str; 10] = [
    "data_directory",
    "hba_file",
    "ident_file",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_dh_params_file",
    "krb_server_keyfile",
    "external_pid_file",
];

/// What `text` (the configuration in force, last value last) names outside of `root`, and what it includes that is not there.
pub fn outside(text: &str, root: &Path, there: &dyn Fn(&Path) -> bool) -> Vec<Outside> {
    let included = INCLUDES.iter().flat_map(|name| {
        let values = text.lines().filter_map(|line| setting_line(line, name));
        values.map(|value| (*name, value)).collect::<Vec<_>>()
    });
    let named = FILES.iter().filter_map(|name| Some((*name, value_of(text, name)?)));
    let mut out = Vec::new();
    for (setting, path) in included.chain(named).filter(|(_, path)| !path.is_empty()) {
        let place: PathBuf = root.join(&path);
        let (inside, exists) = (place.starts_with(root) && !path.contains(".."), there(&place));
        let needed = INCLUDES.contains(&setting) && setting != "include_if_exists";
        if !inside || (needed && !exists) {
            out.push(Outside { setting: setting.to_owned(), path, there: exists });
        }
    }
    out
}

/// The last value that a configuration text gives to a setting. Simple lines only.
pub fn value_of(text: &str, name: &str) -> Option<String> {
    text.lines().filter_map(|line| setting_line(line, name)).next_back()
}

fn setting_line(line: &str, name: &str) -> Option<String> {
    let line = line.trim_start();
    let rest = line.get(..name.len()).filter(|n| n.eq_ignore_ascii_case(name)).and_then(|_| line.get(name.len()..))?;
    let value = rest.trim_start_matches([' ', '\t', '=']);
    if value.len() == rest.len() {
        return None;
    }
    match value.strip_prefix('\'') {
        Some(quoted) => {
            let mut out = String::new();
            let mut chars = quoted.chars().peekable();
            while let Some(c) = chars.next() {
                match c {
                    '\'' if chars.peek() == Some(&'\'') => out.extend(chars.next()),
                    '\'' => break,
                    '\\' => out.extend(chars.next()),
                    c => out.push(c),
                }
            }
            Some(out)
        }
        None => Some(value.split(|c: char| c == '#' || c.is_whitespace()).next().unwrap_or_default().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_elsewhere_or_is_missing_is_named() {
        let text = "
            include_dir = 'conf.d'
            include_if_exists 'mine.conf'
            include '/etc/postgresql/common.conf'
            include 'gone.conf'
            include 'here.conf'
            hba_file = '/etc/postgresql/15/main/pg_hba.conf' # Debian
            ident_file = '/data/pg_ident.conf'
            ssl_key_file = '../server.key'
            ssl_cert_file = 'server.crt'
            #data_directory = '/srv/other'
            external_pid_file = ''
        ";
        let found = outside(text, Path::new("/data"), &|path| path.ends_with("here.conf") || path.starts_with("/etc"));
        let found: Vec<_> = found.iter().map(|o| (o.setting.as_str(), o.path.as_str(), o.there)).collect();
        assert_eq!(
            found,
            [
                ("include", "/etc/postgresql/common.conf", true),
                ("include", "gone.conf", false),
                ("include_dir", "conf.d", false),
                ("hba_file", "/etc/postgresql/15/main/pg_hba.conf", true),
                ("ssl_key_file", "../server.key", false),
            ]
        );
        let production = outside("data_directory = '/srv/pg'", Path::new("/data"), &|_| true);
        assert_eq!(production[0].setting, "data_directory");
        assert_eq!(outside("data_directory = '/data'", Path::new("/data"), &|_| true), []);
    }
}
