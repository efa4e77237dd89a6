//! Storing small objects of the index class.

use std::time::Duration;

use super::Archive;
use crate::error::{Error, Kind, Result};
use crate::repo::Found;
use crate::seal::header::Claims;
use crate::seal::key::WriterKeys;
use crate::seal::opener::read_header;
use crate::seal::sealer::{Compression, seal_index};

impl Archive {
    /// Creates an object that nobody else is to have created; it is durable when this returns. Anything that stands there already is `Kind::Diverged`.
    pub async fn put_index(
        &self,
        keys: &WriterKeys,
        name: &str,
        claims: Claims,
        content: &[u8],
        give_up: Duration,
    ) -> Result<()> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let sealed = seal_index(keys, claims, salt, Compression::Zstd(3), content);
        let judge = move |head: &[u8]| match read_header(head) {
            Ok((header, _)) if header.salt == salt => Found::Ours,
            _ => Found::Different,
        };
        self.repo.put_once(name, &sealed.bytes, &judge, give_up).await.map(|_| ())
    }
}
