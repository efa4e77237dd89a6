//! Connection strings as libpq reads them: keyword/value, URI, `PG*` variables, `.pgpass`. An option that is not supported is refused by name.

use crate::error::Result;

/// A parsed connection string with every default filled in.
#[derive(Clone, Debug)]
pub struct Conninfo {}

impl Conninfo {
    /// Reads `text` and fills gaps from `PG*` variables (asked for through `env`) and libpq's defaults. Errors are `Kind::Usage`.
    pub fn parse(_text: &str, _env: &dyn Fn(&str) -> Option<String>) -> Result<Conninfo> {
        todo!()
    }

    pub fn application_name(&self) -> &str {
        todo!()
    }

    /// `host:port` or socket path, user: for messages; never a password.
    pub fn describe(&self) -> String {
        todo!()
    }

    /// The database for the SQL side: `dbname` as given, else `postgres`.
    pub fn database(&self) -> &str {
        todo!()
    }
}
