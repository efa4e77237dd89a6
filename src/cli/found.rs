//! What `find` has found, in words: which relations, what was done, and the lines that bring it back.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::args::{Common, FindArgs};
use super::output;
use crate::find::{Book, Deed, Finding, Named, Relation, Searched, Touched};
use crate::pg::Lsn;
use crate::pg::xact::PgTime;
use crate::restore::recovery::shell_word;
use crate::seal::content::manifest::Manifest;

/// Relations that are named behind a deed on a line.
const NAMED: usize = 6;

pub struct Told<'a> {
    pub common: &'a Common,
    pub args: &'a FindArgs,
    pub backups: &'a [Manifest],
    pub searched: &'a Searched,
    pub book: &'a Book,
}

impl Told<'_> {
    /// What was asked for, in the order of WAL. What has no name may be what is meant, and is shown.
    pub fn shown(&self) -> Vec<&Finding> {
        let all = &self.searched.tallied.found;
        all.iter().filter(|finding| self.asked_for(finding) && !self.aside(finding)).collect()
    }

    /// How many more there are that were not asked for.
    pub fn hidden(&self) -> usize {
        let all = &self.searched.tallied.found;
        all.iter().filter(|finding| !self.asked_for(finding) && !self.aside(finding)).count()
    }

    fn asked_for(&self, finding: &Finding) -> bool {
        self.in_database(finding) && self.of_table(finding)
    }

    fn in_database(&self, finding: &Finding) -> bool {
        let (Some(asked), Some(database)) = (&self.args.database, finding.database) else { return true };
        let other = |named: Named<'_, str>| !named.later && named.what != asked;
        *asked == database.to_string() || !self.book.database(finding, database).is_some_and(other)
    }

    fn of_table(&self, finding: &Finding) -> bool {
        self.is_of_table(finding) || self.may_be_of_table(finding)
    }

    /// It is known to be of the table that was asked for, if one was.
    fn is_of_table(&self, finding: &Finding) -> bool {
        let Some(asked) = &self.args.table else { return true };
        let is = |relation: &Relation| relation.name == *asked || relation.full_name() == *asked;
        let named = finding.touched.iter().filter_map(|one| self.relation(finding, one));
        // Every table went with its database.
        finding.deed == Deed::DropDatabase || named.chain(self.locked(finding)).any(is)
    }

    /// What has no name, or only one that a later backup gives, may have had the name that was asked for.
    fn may_be_of_table(&self, finding: &Finding) -> bool {
        let mut named = finding.touched.iter().map(|one| self.book.relation(finding, one));
        named.any(|named| named.is_none_or(|named| named.later))
    }

    /// It is shown for want of a name from then alone.
    fn is_unsure(&self, finding: &Finding) -> bool {
        !self.is_of_table(finding)
    }

    /// Rows of a TOAST table are told with those of its table.
    fn aside(&self, finding: &Finding) -> bool {
        let toast = |finding: &Finding| {
            finding.touched.iter().all(|one| self.relation(finding, one).is_some_and(|found| found.kind == 't'))
        };
        let counts = |finding: &Finding| matches!(finding.deed, Deed::Delete | Deed::Update);
        let mut others = self.searched.tallied.found.iter().filter(|other| other.lsn == finding.lsn && counts(other));
        counts(finding) && toast(finding) && others.any(|other| !toast(other))
    }

    /// Where the tables that it was done to have no known name: those that the transaction locked against everybody. What it dropped or emptied may be among
    /// them, and so is what it only touched: dropping a table locks all that it refers to.
    fn locked_tables(&self, finding: &Finding) -> Vec<&Relation> {
        let named = |one: &Touched| self.relation(finding, one).is_some();
        let files = matches!(finding.deed, Deed::Drop | Deed::Truncate | Deed::Rewrite);
        if !files || !self.tables(finding).is_empty() || finding.touched.iter().all(named) {
            return Vec::new();
        }
        self.locked(finding).filter(|relation| relation.is_table()).collect()
    }

    fn locked(&self, finding: &Finding) -> impl Iterator<Item = &Relation> {
        let all = finding.locked.iter().filter_map(|(database, oid)| self.book.object(finding, *database, *oid));
        all.map(|named| named.what)
    }

    fn relation(&self, finding: &Finding, touched: &Touched) -> Option<&Relation> {
        self.book.relation(finding, touched).map(|named| named.what)
    }

    /// The backups that give names and were taken after it.
    fn named_later(&self, finding: &Finding) -> BTreeSet<&str> {
        let touched = finding.touched.iter().filter_map(|one| self.book.relation(finding, one));
        let database = finding.database.and_then(|oid| self.book.database(finding, oid));
        let locked = match self.locked_tables(finding).is_empty() {
            true => &[][..],
            false => &finding.locked,
        };
        let locked = locked.iter().filter_map(|(database, oid)| self.book.object(finding, *database, *oid));
        let relations = touched.chain(locked).filter(|named| named.later).map(|named| named.backup);
        relations.chain(database.filter(|named| named.later).map(|named| named.backup)).collect()
    }

    /// The tables that it was done to, as far as they have names.
    fn tables(&self, finding: &Finding) -> Vec<&Relation> {
        let all = finding.touched.iter().filter_map(|one| self.relation(finding, one));
        let mut tables: Vec<&Relation> = all.filter(|relation| relation.is_table()).collect();
        tables.sort_by_key(|table| table.object);
        tables.dedup_by_key(|table| table.object);
        tables
    }

    /// `public.orders and 3 files of indexes and the like`; numbers as WAL has them where nothing has a name.
    fn names(&self, finding: &Finding) -> String {
        let tables = self.tables(finding);
        let name = |one: &Touched| match (self.relation(finding, one), one.file, one.object) {
            (Some(relation), _, _) => relation.full_name(),
            (None, Some(file), _) => format!("{}/{}", one.database, file.number),
            (None, None, object) => format!("{}/{}", one.database, object.unwrap_or_default()),
        };
        let known = |one: &&Touched| self.relation(finding, one).is_some();
        let (known, unknown): (Vec<&Touched>, Vec<&Touched>) = finding.touched.iter().partition(known);
        let numbers = first(unknown.iter().copied().map(name).collect());
        let count = unknown.len();
        let mut text = match (tables.is_empty(), known.is_empty()) {
            (true, true) if matches!(finding.deed, Deed::Drop | Deed::Truncate | Deed::Rewrite) => {
                return format!("files of no known name ({numbers}){}", self.locks(finding));
            }
            (true, true) => return numbers,
            (true, false) => first(known.into_iter().map(name).collect()),
            (false, _) => {
                let beside = |one: &&&Touched| self.relation(finding, one).is_some_and(|found| !found.is_table());
                let others = known.iter().filter(beside).count();
                let others =
                    if others > 0 { format!(" ({others} files of indexes and the like)") } else { String::new() };
                first(tables.iter().map(|table| table.full_name()).collect()) + &others
            }
        };
        if count > 0 {
            text.push_str(&format!(" ({count} files of no known name: {numbers})"));
        }
        text + &self.locks(finding)
    }

    /// Behind the names, and never in their place.
    fn locks(&self, finding: &Finding) -> String {
        match first(self.locked_tables(finding).iter().map(|table| table.full_name()).collect()) {
            none if none.is_empty() => none,
            names => format!("; it had locked: {names}"),
        }
    }

    /// One line of what was done by whom.
    pub fn what(&self, finding: &Finding) -> String {
        let Finding { deed, lsn, wal_bytes, .. } = finding;
        let least = if finding.at_least { "at least " } else { "" };
        let rows = format!("{least}{} rows", finding.rows);
        let names = self.names(finding);
        let database = finding.database.map_or_else(String::new, |oid| {
            self.book.database(finding, oid).map_or_else(|| oid.to_string(), |named| named.what.to_owned())
        });
        let what = match deed {
            Deed::Drop => format!("DROPPED {names}"),
            Deed::Truncate => format!("EMPTIED (truncated, or dropped and made anew) {names}"),
            Deed::Rewrite => format!("rewritten, or dropped beside something new: {names}"),
            Deed::Delete => format!("DELETED {rows} of {names}"),
            Deed::Update => format!("UPDATED {rows} of {names}"),
            Deed::DropDatabase => format!("DROPPED DATABASE {database}"),
            Deed::CreateDatabase => format!("created database {database}"),
            Deed::RestorePoint => format!("restore point {:?}", finding.name.as_deref().unwrap_or_default()),
            Deed::Large if finding.touched.is_empty() => "large commit".to_owned(),
            Deed::Large => format!("large commit: {rows} written, most of them of {names}"),
        };
        let within = match deed {
            Deed::DropDatabase | Deed::CreateDatabase | Deed::RestorePoint => String::new(),
            _ if database.is_empty() => String::new(),
            _ => format!("database {database}, "),
        };
        let who = finding.xid.map_or_else(String::new, |xid| {
            format!("transaction {xid}, {least}{} of WAL, ", output::bytes(*wal_bytes))
        });
        let later: Vec<&str> = self.named_later(finding).into_iter().collect();
        let named = match later.is_empty() {
            true => String::new(),
            false => format!("; named as in {}, which was taken later", later.join(", ")),
        };
        let unsure = match self.is_unsure(finding) {
            true => "; no backup from before names it, so it may be what was asked for",
            false => "",
        };
        format!("{what} ({within}{who}{lsn}){named}{unsure}")
    }

    /// What to type for a server as it was just before (for a restore point: right after it), and for the tables alone.
    pub fn lines(&self, finding: &Finding) -> Vec<String> {
        if !self.reachable(finding.lsn) {
            return vec!["no backup is older: it cannot be restored".to_owned()];
        }
        let guess = self.guess(finding).map(|line| format!("a guess, by what it had locked: {line}"));
        std::iter::once(self.restore(finding)).chain(self.extract(finding)).chain(guess).collect()
    }

    fn begin(&self, command: &str, finding: &Finding) -> Vec<String> {
        let mut words = vec!["walrecv".to_owned()];
        let mut option = |name: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{name} {}", shell_word(&value))));
        };
        option("--config", self.common.config.as_ref().map(|path| path.display().to_string()));
        option("--cluster", self.common.cluster.clone());
        option("--repo", self.common.repo.clone());
        words.push(command.to_owned());
        words.push(format!("--target-lsn {}", finding.lsn));
        // Right after a restore point: by its name another one of that name could be meant.
        if finding.deed != Deed::RestorePoint {
            words.push("--exclusive".to_owned());
        }
        words.extend(self.args.timeline.map(|timeline| format!("--target-timeline {timeline}")));
        words
    }

    fn restore(&self, finding: &Finding) -> String {
        let mut words = self.begin("restore", finding);
        words.push("--pgdata DIR".to_owned());
        words.join(" ")
    }

    fn extract(&self, finding: &Finding) -> Option<String> {
        use Deed::{Delete, Drop, Rewrite, Truncate, Update};
        let lost = matches!(finding.deed, Drop | Truncate | Rewrite | Delete | Update);
        self.extract_of(finding, self.tables(finding)).filter(|_| lost)
    }

    fn guess(&self, finding: &Finding) -> Option<String> {
        self.extract_of(finding, self.locked_tables(finding))
    }

    fn extract_of(&self, finding: &Finding, mut tables: Vec<&Relation>) -> Option<String> {
        // No dump has the rows of a materialised view.
        tables.retain(|table| table.kind != 'm');
        if tables.is_empty() {
            return None;
        }
        let mut words = self.begin("extract", finding);
        let database = finding.database.and_then(|oid| self.book.database(finding, oid));
        words.extend(database.map(|named| format!("--database {}", shell_word(named.what))));
        for table in tables {
            let name = format!("{}.{}", quoted(&table.schema), quoted(&table.name));
            words.push(format!("--table {}", shell_word(&name)));
        }
        words.push("--file FILE".to_owned());
        Some(words.join(" "))
    }

    /// Whether a backup that is complete ended before it.
    fn reachable(&self, lsn: Lsn) -> bool {
        let path = &self.searched.path;
        self.backups.iter().any(|backup| backup.stop <= lsn && path.holds(backup.stop_timeline, backup.stop))
    }

    pub fn json(&self, finding: &Finding) -> Value {
        let time = |time: PgTime| output::moment(time).map(output::rfc3339);
        let reachable = self.reachable(finding.lsn);
        let relation = |one: &Touched| {
            let known = self.book.relation(finding, one);
            let known = known.as_ref();
            json!({
                "database": one.database,
                "tablespace": one.file.map(|file| file.tablespace),
                "filenode": one.file.map(|file| file.number),
                "oid": one.object.or(known.map(|known| known.what.object)),
                "name": known.map(|known| known.what.full_name()),
                "kind": known.map(|known| known.what.kind.to_string()),
                "named_by": known.map(|known| known.backup),
                "named_later": known.map(|known| known.later),
            })
        };
        let locked = |(database, oid): &(u32, u32)| {
            let name = self.book.object(finding, *database, *oid).map(|known| known.what.full_name());
            json!({ "database": database, "oid": oid, "name": name })
        };
        json!({
            "what": finding.deed,
            "time": time(finding.time),
            "lsn": finding.lsn.to_string(),
            "timeline": self.searched.path.timeline_at(finding.lsn).0,
            "xid": finding.xid,
            "database": finding.database,
            "database_name": finding.database.and_then(|oid| self.book.database(finding, oid)).map(|named| named.what),
            "tables": self.tables(finding).into_iter().map(Relation::full_name).collect::<Vec<_>>(),
            "relations": finding.touched.iter().map(relation).collect::<Vec<_>>(),
            "locked": finding.locked.iter().map(locked).collect::<Vec<_>>(),
            "rows": finding.rows,
            "at_least": finding.at_least,
            "wal_bytes": finding.wal_bytes,
            "name": finding.name,
            "unsure": self.is_unsure(finding),
            "restore": reachable.then(|| self.restore(finding)),
            "extract": reachable.then(|| self.extract(finding)).flatten(),
            "extract_guess": reachable.then(|| self.guess(finding)).flatten(),
        })
    }
}

/// The first few.
fn first(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut text = names.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// As SQL reads it back.
fn quoted(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.bytes().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}
