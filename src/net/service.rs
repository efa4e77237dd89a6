//! Service files: named sets of connection options (`fe-connect.c:parseServiceInfo`, `parseServiceFile`).

use std::path::{Path, PathBuf};

use super::conninfo_text::Pairs;
use crate::error::{Error, Kind, Result};

/// Where the system's file stands when PGSYSCONFDIR does not say: as Debian and Red Hat build libpq.
const SYSTEM: [&str; 2] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql"];

/// The options of `service`. The user's file (`servicefile`, PGSERVICEFILE, `~/.pg_service.conf`) goes before the system's, which is read only where
/// the service is not in the first.
pub(super) fn look_up(
    service: &str,
    servicefile: Option<String>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Pairs> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let named = servicefile.or_else(|| set("PGSERVICEFILE")).map(PathBuf::from);
    let home = set("HOME").map(|home| Path::new(&home).join(".pg_service.conf"));
    let mut files: Vec<PathBuf> = match &named {
        Some(file) => vec![file.clone()],
        None => home.into_iter().collect(),
    };
    match set("PGSYSCONFDIR") {
        Some(directory) => files.push(Path::new(&directory).join("pg_service.conf")),
        None => files.extend(SYSTEM.iter().map(|directory| Path::new(directory).join("pg_service.conf"))),
    }
    for file in &files {
        // A file that was named must be there.
        if named.as_ref() != Some(file) && !file.exists() {
            continue;
        }
        let text = std::fs::read_to_string(file).map_err(|error| {
            let text = format!("service file {} cannot be read", file.display());
            Error::new(Kind::Usage, text).caused_by(error)
        })?;
        let found = find(&text, service)
            .map_err(|problem| Error::new(Kind::Usage, format!("service file {}, {problem}", file.display())))?;
        if let Some(pairs) = found {
            return Ok(pairs);
        }
    }
    let looked: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Err(Error::new(Kind::Usage, format!("service {service:?} is not defined in {}", looked.join(", ")))
        .hint("add a section with its name in brackets, or correct service (PGSERVICE)"))
}

/// The section of `service`; `None` if there is none. The first value of a keyword counts, so the pairs come in reverse. Values never appear in an
/// error: they may be passwords.
fn find(text: &str, service: &str) -> Result<Option<Pairs>, String> {
    let mut pairs: Option<Pairs> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if pairs.is_some() {
                break;
            }
            if section.split(']').next() == Some(service) && section.contains(']') {
                pairs = Some(Pairs::new());
            }
            continue;
        }
        let Some(pairs) = &mut pairs else { continue };
        let at = format!("line {}", index + 1);
        if line.starts_with("ldap") {
            return Err(format!("{at}: a service from an LDAP server is not supported"));
        }
        let (name, value) = line.split_once('=').ok_or_else(|| format!("{at}: expected keyword=value"))?;
        if matches!(name, "service" | "servicefile") {
            return Err(format!("{at}: a service cannot name another ({name})"));
        }
        pairs.insert(0, (name.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# host=no\n[other]\nhost=x\n\n[mine]\n  host=a,b\nport=1\nport=2\n # c\nuser=u v \n[mine]\nhost=z\n";

    #[test]
    fn one_section_is_read_and_the_first_value_counts() {
        let pairs = find(TEXT, "mine").unwrap().unwrap();
        let last = |name: &str| pairs.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((last("host"), last("port"), last("user")), (Some("a,b"), Some("1"), Some("u v")));
        assert_eq!(find(TEXT, "min").unwrap(), None);
        assert_eq!(find("[empty]\n", "empty").unwrap(), Some(Vec::new()));
        assert_eq!(find("host=outside\n[a", "a").unwrap(), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_line() {
        for (text, words) in [
            ("[s]\nservice=t", "line 2: a service cannot name another"),
            ("[s]\n\nhost", "line 3: expected keyword=value"),
            ("[s]\nldap://x/y?z=1", "line 2: a service from an LDAP server"),
        ] {
            let problem = find(text, "s").expect_err(words);
            assert!(problem.starts_with(words), "{problem}");
        }
        // In another section it does not matter.
        assert!(find("[t]\nnonsense\n[s]\nhost=a", "s").unwrap().is_some());
    }

    #[test]
    fn files_are_looked_for_in_libpqs_order() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = temp.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let given = write("given", "[s]\nhost=given\n");
        let variable = write("variable", "[s]\nhost=variable\n");
        write("home/.pg_service.conf", "[s]\nhost=home\n");
        write("sys/pg_service.conf", "[s]\nhost=system\n[only]\nhost=only-system\n");
        let env = |names: &'static [&'static str]| {
            let (variable, root) = (variable.clone(), temp.path().display().to_string());
            move |name: &str| {
                let value = match name {
                    "PGSERVICEFILE" => variable.clone(),
                    "HOME" => format!("{root}/home"),
                    "PGSYSCONFDIR" => format!("{root}/sys"),
                    _ => return None,
                };
                names.contains(&name).then_some(value)
            }
        };
        let host = |service: &str, file: Option<&String>, names| {
            look_up(service, file.cloned(), &env(names)).map(|pairs| pairs[0].1.clone()).map_err(|e| e.to_string())
        };
        let all: &[&str] = &["PGSERVICEFILE", "HOME", "PGSYSCONFDIR"];
        assert_eq!(host("s", Some(&given), all).unwrap(), "given");
        assert_eq!(host("s", None, all).unwrap(), "variable");
        assert_eq!(host("s", None, &["HOME", "PGSYSCONFDIR"]).unwrap(), "home");
        assert_eq!(host("s", None, &["PGSYSCONFDIR"]).unwrap(), "system");
        assert_eq!(host("only", None, all).unwrap(), "only-system");
        let missing = host("none", None, all).expect_err("no such service");
        assert!(missing.contains("\"none\"") && missing.contains("sys/pg_service.conf"), "{missing}");
        let absent = temp.path().join("absent").display().to_string();
        assert!(host("s", Some(&absent), all).expect_err("no such file").contains("absent"));
    }
}
