//! Names of tables as people write them, and what they may have meant.

use crate::error::{Error, Kind, Result};
use crate::restore::near::nearest;

/// Begins the advice where names are suggested.
pub const LIKE: &str = "names like it: ";
/// A name that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub schema: Option<String>,
    pub table: String,
}

/// A relation that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub schema: String,
    pub table: String,
    /// `pg_class.relkind`.
    pub kind: String,
    pub oid: u64,
    /// `pg_class.relpersistence`.
    pub persistence: String,
}

impl Known {
    /// Whether its rows may stand in others: partitions, and tables that inherit from it, which SELECT reads with it.
    pub fn has_children(&self) -> bool {
        matches!(self.kind.as_str(), "r" | "p" | "f")
    }

    /// Why a dump of it brings no rows back, although SELECT showed some.
    pub fn without_rows(&self) -> Option<&'static str> {
        match (self.kind.as_str(), self.persistence.as_str()) {
            ("m", _) => {
                Some("it is a materialised view, which loading the file computes anew from what its tables hold then")
            }
            ("f", _) => Some("it is a foreign table, whose rows are on another server"),
            ("v", _) => Some("it is a view, which has no rows of its own"),
            ("r", "u") => Some("it is unlogged, and every recovery empties it"),
            _ => None,
        }
    }

    /// Such that every program takes it for this name and no pattern.
    pub fn quoted(&self) -> String {
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }
}

impl Name {
    /// By the rules of SQL: ASCII folded to lower case but in double quotes (`downcase_identifier`), a dot between schema and table.
    pub fn parse(text: &str) -> Result<Name> {
        let mut parts = vec![String::new()];
        let mut quoted = false;
        let mut chars = text.trim().chars().peekable();
        while let Some(c) = chars.next() {
            let Some(part) = parts.last_mut() else { break };
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => part.extend(chars.next()),
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                c if quoted => part.push(c),
                c => part.push(c.to_ascii_lowercase()),
            }
        }
        let wrong = || {
            Error::new(Kind::Usage, format!("--table {text:?} is no name of a table"))
                .hint("write orders, public.orders, or '\"Odd Name\"' with its double quotes")
        };
        if quoted || parts.iter().any(String::is_empty) {
            return Err(wrong());
        }
        let table = parts.pop().ok_or_else(wrong)?;
        let schema = parts.pop();
        if parts.is_empty() { Ok(Name { schema, table }) } else { Err(wrong()) }
    }

    fn is(&self, known: &Known) -> bool {
        self.table == known.table && self.schema.as_ref().is_none_or(|schema| *schema == known.schema)
    }
}

/// What a server printed: an array of arrays of schema, table, kind, object id and persistence.
pub fn read(json: &str) -> Result<Vec<Known>> {
    let rows: Vec<(String, String, String, u64, String)> = serde_json::from_str(json)
        .map_err(|e| Error::new(Kind::Failed, "the scratch server's list of tables cannot be read").caused_by(e))?;
    let known = |(schema, table, kind, oid, persistence)| Known { schema, table, kind, oid, persistence };
    Ok(rows.into_iter().map(known).collect())
}

/// The relations that are meant: exactly one for each name. Another number is `Kind::Usage`, with the nearest names.
pub fn choose(wanted: &[Name], known: &[Known]) -> Result<Vec<Known>> {
    let one = |name: &Name| {
        let meant: Vec<&Known> = known.iter().filter(|known| name.is(known)).collect();
        match meant.as_slice() {
            [only] => Ok((*only).clone()),
            [] => Err(absent(name, known)),
            many => {
                let names = many.iter().map(|known| known.quoted()).collect::<Vec<_>>().join(", ");
                Err(Error::new(Kind::Usage, format!("several schemas have a table {:?}: {names}", name.table))
                    .hint("name the schema too"))
            }
        }
    };
    wanted.iter().map(one).collect()
}

fn absent(name: &Name, known: &[Known]) -> Error {
    let asked = match &name.schema {
        Some(schema) => format!("{schema}.{}", name.table),
        None => name.table.clone(),
    };
    let all: Vec<(String, &Known)> = known
        .iter()
        .map(|known| match name.schema {
            Some(_) => (format!("{}.{}", known.schema, known.table), known),
            None => (known.table.clone(), known),
        })
        .collect();
    let near = nearest(&asked, all.iter().map(|(text, _)| text.as_str()));
    let hint = match near.is_empty() {
        true => "no table has a name like it; walrecv find tells when tables were dropped".to_owned(),
        false => format!("{LIKE}{}", near.join(", ")),
    };
    Error::new(Kind::Usage, format!("there is no table {asked:?} at that time")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<(Option<String>, String)> {
        Name::parse(text).ok().map(|name| (name.schema, name.table))
    }

    fn known(schema: &str, table: &str) -> Known {
        let [schema, table, kind, persistence] = [schema, table, "r", "p"].map(str::to_owned);
        Known { schema, table, kind, oid: 1, persistence }
    }

    #[test]
    fn what_a_dump_has_no_rows_of() {
        let of = |kind: &str, persistence: &str| {
            let (kind, persistence) = (kind.to_owned(), persistence.to_owned());
            Known { kind, persistence, ..known("a", "b") }.without_rows().is_some()
        };
        assert_eq!([of("r", "p"), of("p", "p"), of("p", "u"), of("S", "p"), of("S", "u")], [false; 5]);
        assert_eq!([of("r", "u"), of("m", "p"), of("f", "p"), of("v", "p"), of("m", "u")], [true; 5]);
    }

    #[test]
    fn names_as_sql_reads_them() {
        let some = |schema: &str, table: &str| Some((Some(schema.to_owned()), table.to_owned()));
        assert_eq!(name("Orders"), Some((None, "orders".to_owned())));
        assert_eq!(name("Public.Orders"), some("public", "orders"));
        assert_eq!(name("Public.ÉTÉ"), some("public", "ÉtÉ"));
        assert_eq!(name("public.\"Odd.Na\"\"me\""), some("public", "Odd.Na\"me"));
        for bad in ["", ".", "a.", ".b", "a.b.c", "\"a", "a..b"] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(known("a", "Odd\"Name").quoted(), "\"a\".\"Odd\"\"Name\"");
    }

    #[test]
    fn one_table_is_meant_or_the_nearest_are_named() {
        let all =
            [known("public", "orders"), known("public", "order_items"), known("old", "orders"), known("old", "x")];
        let choose = |text: &str| choose(&[Name::parse(text).unwrap()], &all);
        assert_eq!(choose("public.orders").unwrap(), [known("public", "orders")]);
        assert_eq!(choose("x").unwrap(), [known("old", "x")]);
        let several = choose("orders").unwrap_err();
        assert!(several.to_string().contains("\"old\".\"orders\""), "{several}");
        let none = choose("ordres").unwrap_err();
        assert_eq!(none.advice(), Some("names like it: orders"));
        assert!(choose("nothing_like_this").unwrap_err().advice().unwrap().starts_with("no table"));
    }
}
