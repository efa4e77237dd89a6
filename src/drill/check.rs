//! What a scratch server is asked.

use super::report::State;
use crate::archive::backups::BackupList;
use crate::error::{Error, Kind, Result};
use crate::restore::report::PassedShown;
use crate::restore::scratch::ScratchServer;
use crate::restore::server::dbname;

/// Every B-tree index that can be checked, and its table's rows in it where that computes expressions with the rights of the table's owner only (13.7 and later,
/// CVE-2022-1552). Their functions may need the database's search_path, so nothing here is found by one.
const INDEXES: &str = "select pg_catalog.count(*) from (select pg_catalog.bt_index_check(c.oid::pg_catalog.regclass, \
    pg_catalog.current_setting('server_version_num')::pg_catalog.int4 operator(pg_catalog.>=) 130007) \
    from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) i.indexrelid \
    join pg_catalog.pg_am a on a.oid operator(pg_catalog.=) c.relam where a.amname operator(pg_catalog.=) 'btree' \
    and c.relpersistence operator(pg_catalog.<>) 't' and i.indisvalid and i.indisready) checked";

/// The extension's functions, where nobody but a superuser can have made others of their names: pg_amcheck calls them by the schema that they stand in, and
/// by the name alone, with an object id that another function may take too.
const INSTALL: &str = "set client_min_messages = error; create extension if not exists amcheck with schema pg_catalog; \
    alter extension amcheck set schema pg_catalog";

/// Each backup of the archive can be read.
pub fn readable(list: &BackupList) -> State {
    let Some((name, error)) = list.unreadable.first() else {
        return State::Passed(format!("{} can be read", list.complete.len()));
    };
    let more = list.unreadable.len() - 1;
    let others = if more > 0 { format!(", and {more} more") } else { String::new() };
    let text = format!("{name} cannot be read: {error}{others}");
    let corrupt = list.unreadable.iter().any(|(_, error)| error.kind() == Kind::Corrupt);
    if corrupt { State::Corrupt(text) } else { State::Failed(text) }
}

/// The backup that is restored is the newest one: an older one proves nothing of it. Where the target is `earlier` than the end, an older one may be the right one.
pub fn newest(restored: &str, passed_over: &[PassedShown], newest: &str, earlier: bool) -> State {
    if restored == newest {
        return State::Passed(format!("{newest} is the one that is restored"));
    }
    let passed = passed_over.iter().find(|passed| passed.id == newest);
    let why = passed.map(|passed| format!(": {}", passed.why)).unwrap_or_default();
    let text = format!("{newest} is not the one that is restored, {restored} is{why}");
    if earlier { State::Skipped(text) } else { State::Failed(text) }
}

/// One row, one column, true.
pub async fn assertion(server: &ScratchServer, database: &str, sql: &str) -> Result<State> {
    Ok(match server.ask_as_written(database, sql).await {
        Ok(answer) if answer == "t" => State::Passed("true".to_owned()),
        Ok(answer) => State::Failed(format!("expected one row that is true, found {answer:?}")),
        Err(error) => State::Failed(error.to_string()),
    })
}

/// Tables and indexes of all databases.
pub async fn amcheck(server: &ScratchServer, jobs: usize) -> Result<State> {
    for database in server.databases().await? {
        if let Err(error) = server.ask(&database, INSTALL).await {
            return Ok(State::Failed(format!("{database}: {error}")));
        }
    }
    if !server.programs.path("pg_amcheck").exists() {
        return indexes(server).await;
    }
    let jobs = jobs.to_string();
    let arguments = ["--all", "--jobs", &jobs];
    let mut command = server.client("pg_amcheck", &arguments);
    let ran = command.output().await;
    let ran = ran.map_err(|e| Error::new(Kind::Failed, "cannot run pg_amcheck").caused_by(e))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().next().unwrap_or("nothing").to_owned();
    Ok(match ran.status.code() {
        Some(0) => State::Passed("pg_amcheck found nothing wrong in any database".to_owned()),
        // It ran to its end and found corruption.
        Some(2) => State::Corrupt(format!("pg_amcheck found corruption: {}", said(&ran.stdout))),
        _ => State::Failed(format!("pg_amcheck ended with {}, saying: {}", ran.status, said(&ran.stderr))),
    })
}

/// For 13, which has no pg_amcheck.
async fn indexes(server: &ScratchServer) -> Result<State> {
    let mut checked = 0;
    for database in server.databases().await? {
        // Class XX is damage: it is in front of the message.
        let arguments = ["-X", "-A", "-t", "-q", "-v", "VERBOSITY=verbose", "-v", "ON_ERROR_STOP=1"];
        let mut command = server.as_written("psql", &arguments);
        command.args(["-d", &dbname(&database), "-c", INDEXES]);
        match output_of(command).await {
            Ok(count) => checked += count.trim().parse::<u64>().unwrap_or_default(),
            Err(error) if error.kind() == Kind::Corrupt => return Ok(State::Corrupt(format!("{database}: {error}"))),
            Err(error) => return Ok(State::Failed(format!("{database}: {error}"))),
        }
    }
    Ok(State::Passed(format!("bt_index_check found nothing wrong in {checked} indexes of all databases")))
}

/// What psql prints; an error of class XX is `Kind::Corrupt`.
async fn output_of(mut command: tokio::process::Command) -> Result<String> {
    let ran = command.output().await.map_err(|e| Error::new(Kind::Failed, "cannot run psql").caused_by(e))?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    let first = said.lines().find(|line| line.contains("ERROR:")).unwrap_or("nothing").to_owned();
    let kind = if first.contains("ERROR:  XX") { Kind::Corrupt } else { Kind::Failed };
    Err(Error::new(kind, first))
}

/// Every page of every file, with the server stopped in good order. For the last check, since it ends the server.
pub async fn checksums(server: &ScratchServer) -> Result<State> {
    if server.ask("template1", "show data_checksums").await? != "on" {
        return Ok(State::Skipped("the cluster has no page checksums".to_owned()));
    }
    server.shut_down().await?;
    Ok(match server.examine("pg_checksums", &["--check"]).await {
        Ok(said) => {
            let blocks = said.lines().find_map(|line| line.strip_prefix("Blocks scanned:"));
            State::Passed(format!("pg_checksums found nothing wrong in {} pages", blocks.unwrap_or("all").trim()))
        }
        // It has no status of its own for what it finds.
        Err(error) if error.to_string().contains("checksum verification failed") => State::Corrupt(error.to_string()),
        Err(error) => State::Failed(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_backup_proves_nothing_of_the_newest() {
        assert!(matches!(newest("b2", &[], "b2", false), State::Passed(_)));
        let passed = [PassedShown { id: "b2".to_owned(), why: "it is elsewhere".to_owned() }];
        let State::Failed(text) = newest("b1", &passed, "b2", false) else { panic!("it passed") };
        assert!(text.contains("b2") && text.contains("it is elsewhere"), "{text}");
        assert!(matches!(newest("b1", &passed, "b2", true), State::Skipped(_)), "the target is older than it");
    }

    #[test]
    fn a_backup_that_cannot_be_read_fails_the_drill() {
        let mut list = BackupList::default();
        assert_eq!(readable(&list), State::Passed("0 can be read".to_owned()));
        list.unreadable.push(("b1".to_owned(), Error::new(Kind::Key, "no key")));
        assert!(matches!(readable(&list), State::Failed(_)));
        list.unreadable.push(("b2".to_owned(), Error::new(Kind::Corrupt, "damaged")));
        assert_eq!(readable(&list), State::Corrupt("b1 cannot be read: no key, and 1 more".to_owned()));
    }
}
