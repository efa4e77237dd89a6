//! Random bytes: salts, which are never used twice, and tokens that keep the files of two runs apart.

use crate::error::{Error, Kind, Result};

/// Fresh random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(Kind::Failed, "the operating system gives no random bytes").caused_by(e))?;
    Ok(bytes)
}

/// Sixteen hexadecimal digits that no other file has.
pub fn token() -> Result<String> {
    Ok(random::<8>()?.iter().map(|b| format!("{b:02x}")).collect())
}
