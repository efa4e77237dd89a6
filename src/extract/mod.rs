//! Floor 6: tables, or a database, as they were at a point in time, as a file of SQL: restored into a scratch server, dumped, and the server removed.

mod names;
mod narrow;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::names::{Known, Name};
use crate::archive::Archive;
use crate::disk::staged::Staged;
use crate::error::{Context, Error, Kind, Result};
use crate::restore::near;
use crate::restore::scratch::{ScratchServer, Setup};
use crate::restore::server::{dbname, ended};
use crate::restore::{Access, Plan, Prepared, lay};

/// What is wanted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    /// Definitions without rows.
    Schema,
    /// Rows without definitions.
    Data,
}

#[derive(Clone, Debug)]
pub struct Wish {
    /// As people write them: `orders`, `public.orders`, `"Odd Name"`. None: the whole database.
    pub tables: Vec<String>,
    /// `None`: the one database in which the tables are found.
    pub database: Option<String>,
    pub part: Part,
}

/// For whoever watches.
pub struct Watch<'a> {
    pub stage: &'a (dyn Fn(&str) + Sync),
    pub moved: lay::Progress<'a>,
}

/// A relation whose rows no dump of a restored server has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WithoutRows {
    pub table: String,
    pub why: &'static str,
}

/// What was written. The names of the fields are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Extracted {
    pub plan: Plan,
    pub database: String,
    /// With partitions and tables that inherit; empty: the whole database.
    pub tables: Vec<String>,
    /// Those of the file that had rows which it does not have.
    pub without_rows: Vec<WithoutRows>,
    pub file: String,
    pub bytes: u64,
    pub milliseconds: u64,
}

/// Writes the dump to `file`, which must not be there: whole, or not at all. Nothing else stays. Of the backup only the database is restored that is needed,
/// where its catalogs tell which one that is.
pub async fn extract(
    archive: &Archive,
    access: Access,
    setup: &Setup,
    prepared: &Prepared,
    wish: &Wish,
    file: &Path,
    watch: &Watch<'_>,
) -> Result<Extracted> {
    let begun = Instant::now();
    let wanted = wish.tables.iter().map(|text| Name::parse(text)).collect::<Result<Vec<Name>>>()?;
    let staged = Staged::create(file, 0o600)?;
    (watch.stage)("looking for the database");
    let narrowed = narrow::narrow(archive, prepared, wish.database.as_deref(), &wanted).await;
    let narrowed = match narrowed {
        // It saves time, and everything can be restored without it.
        Err(error) if error.kind() != Kind::Interrupted => {
            (watch.stage)(&format!("which database it is cannot be told ({error}): restoring all"));
            None
        }
        narrowed => narrowed?,
    };
    let (server, plan) = raise(archive, access, setup, (prepared, narrowed), wish, watch).await?;
    (watch.stage)("looking for the tables");
    let (database, tables) = find(&server, wish, &wanted).await?;
    let without_rows = without_rows(&server, &database, wish, &tables).await?;
    (watch.stage)("dumping");
    dump(&server, &database, &tables, wish.part, &staged).await?;
    let bytes = staged.commit()?;
    server.remove().context(format!("{} is written, but", file.display()))?;
    Ok(Extracted {
        plan,
        database,
        tables: tables.iter().map(Known::quoted).collect(),
        without_rows,
        file: file.display().to_string(),
        bytes,
        milliseconds: milliseconds(begun.elapsed()),
    })
}

/// A server with what is needed. The name of a database may be another's since the backup: then everything is restored.
async fn raise(
    archive: &Archive,
    access: Access,
    setup: &Setup,
    (all, narrowed): (&Prepared, Option<Prepared>),
    wish: &Wish,
    watch: &Watch<'_>,
) -> Result<(ScratchServer, Plan)> {
    let said = |line: &str| (watch.stage)(line);
    if let Some(mut narrowed) = narrowed {
        (watch.stage)("restoring");
        let server = setup.raise(archive, access.clone(), &mut narrowed, watch.moved, &said).await?;
        match &wish.database {
            Some(name) if server.left_out(name).await? => server.remove()?,
            _ => return Ok((server, narrowed.plan)),
        }
    }
    (watch.stage)("restoring");
    let mut all = all.clone();
    Ok((setup.raise(archive, access, &mut all, watch.moved, &said).await?, all.plan))
}

fn milliseconds(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// The database, and in it the tables with their partitions and what inherits from them.
async fn find(server: &ScratchServer, wish: &Wish, wanted: &[Name]) -> Result<(String, Vec<Known>)> {
    let databases = server.databases().await?;
    if let Some(database) = &wish.database {
        if !databases.contains(database) {
            let named = server.named().await?;
            let near = near::nearest(database, named.iter().map(String::as_str));
            let text = format!("there is no database {database:?} at that time");
            let hint = match near.is_empty() {
                true => format!("there are: {}; `walrecv find` says when one was dropped", named.join(", ")),
                false => format!("there are: {}", near.join(", ")),
            };
            return Err(Error::new(Kind::Usage, text).hint(hint));
        }
        let tables = names::choose(wanted, &known(server, database).await?)?;
        return Ok((database.clone(), with_children(server, database, wish, tables).await?));
    }
    let mut found = Vec::new();
    let mut refused = None;
    let templates = ["template0", "template1"];
    for database in databases.iter().filter(|name| !templates.contains(&name.as_str())) {
        match names::choose(wanted, &known(server, database).await?) {
            Ok(tables) => found.push((database.clone(), tables)),
            // Of several databases one with names that are near tells most.
            Err(error) => {
                let near = |error: &Error| error.advice().is_some_and(|advice| advice.starts_with(names::LIKE));
                let better = |old: &Error| near(&error) && !near(old);
                if refused.as_ref().is_none_or(better) {
                    refused = Some(error.context(format!("database {database}")));
                }
            }
        }
    }
    match (found.len(), found.pop()) {
        (1, Some((database, tables))) => {
            let tables = with_children(server, &database, wish, tables).await?;
            Ok((database, tables))
        }
        (0, _) => Err(refused.unwrap_or_else(|| Error::new(Kind::Usage, "there is no database at that time"))),
        (_, last) => {
            let names = found.iter().chain(&last).map(|(database, _)| database.as_str()).collect::<Vec<_>>().join(", ");
            Err(Error::new(Kind::Usage, format!("several databases have such tables: {names}"))
                .hint("choose one with --database"))
        }
    }
}

const RELATIONS: &str = "select coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(n.nspname, c.relname, \
        c.relkind::pg_catalog.text, c.oid::pg_catalog.int8, c.relpersistence::pg_catalog.text)), '[]') \
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') \
    and n.nspname <> 'information_schema' and n.nspname !~ '^pg_(catalog$|toast|temp)'";

async fn known(server: &ScratchServer, database: &str) -> Result<Vec<Known>> {
    let text = server.ask(database, RELATIONS).await?;
    names::read(&text)
}

/// What SELECT reads with a table: partitions, which pg_dump follows in no version without being asked, and tables that inherit from it. A relation that was
/// named for its rows and cannot give them is refused.
async fn with_children(server: &ScratchServer, database: &str, wish: &Wish, tables: Vec<Known>) -> Result<Vec<Known>> {
    if let (true, Some((table, why))) =
        (wish.part != Part::Schema, tables.iter().find_map(|table| Some((table, table.without_rows()?))))
    {
        return Err(Error::new(Kind::Usage, format!("the rows of {} cannot be extracted: {why}", table.quoted()))
            .hint(
                "--schema-only extracts its definition; extract the tables that its rows come from, if there are any",
            ));
    }
    let mut all: Vec<Known> = Vec::new();
    for table in tables {
        let oid = table.oid;
        let children = table.has_children();
        all.push(table);
        if children {
            let sql = format!(
                "with recursive parts(oid) as (select inhrelid from pg_catalog.pg_inherits where inhparent = {oid} \
                 union select i.inhrelid from pg_catalog.pg_inherits i join parts on i.inhparent = parts.oid) \
                 {RELATIONS} and c.oid in (select oid from parts)"
            );
            all.extend(names::read(&server.ask(database, &sql).await?)?);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|table| seen.insert(table.oid));
    Ok(all)
}

/// What the file has no rows of, without having been named: children, or, of a whole database, whatever showed rows and is no view.
async fn without_rows(
    server: &ScratchServer,
    database: &str,
    wish: &Wish,
    tables: &[Known],
) -> Result<Vec<WithoutRows>> {
    let listed = |known: &[Known], counts: &dyn Fn(&Known) -> bool| {
        let told = |table: &Known| Some(WithoutRows { table: table.quoted(), why: table.without_rows()? });
        known.iter().filter(|table| counts(table)).filter_map(told).collect()
    };
    match (wish.part, tables.is_empty()) {
        (Part::Schema, _) => Ok(Vec::new()),
        (_, false) => Ok(listed(tables, &|_| true)),
        (_, true) => Ok(listed(&known(server, database).await?, &|table| table.kind != "v")),
    }
}

async fn dump(server: &ScratchServer, database: &str, tables: &[Known], part: Part, staged: &Staged) -> Result<()> {
    let mut command = server.client("pg_dump", &["-d", &dbname(database)]);
    // Names come as UTF-8; rows stay in the database's own encoding where that matters to no name.
    let plain = tables.iter().all(|table| table.quoted().is_ascii());
    if !plain && server.ask(database, "show server_encoding").await? != "SQL_ASCII" {
        command.env("PGCLIENTENCODING", "UTF8");
    }
    match part {
        Part::All => &mut command,
        Part::Schema => command.arg("--schema-only"),
        Part::Data => command.arg("--data-only"),
    };
    for table in tables {
        command.arg("-t").arg(table.quoted());
    }
    command.stdout(Stdio::from(staged.file()?));
    let child = command.spawn().map_err(|e| Error::new(Kind::Failed, "cannot run pg_dump").caused_by(e))?;
    let ran = child.wait_with_output().await;
    let ran = ran.map_err(|e| Error::new(Kind::Failed, "pg_dump was lost").caused_by(e))?;
    ended(ran, "pg_dump").map(|_| ())
}
