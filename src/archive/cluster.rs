//! `cluster.json`: what a cluster's folder belongs to, in the clear, for people and for readers without keys.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::pg::{SegmentSize, SystemIdentifier};
use crate::repo::{ClusterNames, Found, Repository};

#[derive(Serialize, Deserialize)]
struct Stored {
    cluster: String,
    /// As text: many readers of JSON keep only 53 bits of a number.
    system_identifier: String,
    segment_size: u64,
}

fn encode(names: &ClusterNames) -> Result<Vec<u8>> {
    let stored = Stored {
        cluster: names.cluster.clone(),
        system_identifier: names.system.to_string(),
        segment_size: names.segment_size.bytes(),
    };
    let mut out = serde_json::to_vec_pretty(&stored)
        .map_err(|e| Error::new(Kind::Failed, "cannot write the cluster file").caused_by(e))?;
    out.push(b'\n');
    Ok(out)
}

fn decode(bytes: &[u8]) -> Option<ClusterNames> {
    let stored: Stored = serde_json::from_slice(bytes).ok()?;
    Some(ClusterNames {
        cluster: stored.cluster,
        system: SystemIdentifier(stored.system_identifier.parse().ok()?),
        segment_size: SegmentSize::new(stored.segment_size)?,
    })
}

/// Creates the file once; one that says the same is accepted.
pub async fn write_cluster_file(repo: &Repository, names: &ClusterNames, give_up: Duration) -> Result<()> {
    let bytes = encode(names)?;
    let judge = |head: &[u8]| if decode(head).as_ref() == Some(names) { Found::Equal } else { Found::Different };
    repo.put_once(&names.cluster_file(), &[Bytes::from(bytes)], &judge, give_up).await?;
    Ok(())
}

/// Demands that the file, where there is one, says what its folder is called; `false` when there is none.
pub async fn check_cluster_file(repo: &Repository, names: &ClusterNames) -> Result<bool> {
    let name = names.cluster_file();
    let Some(bytes) = repo.get(&name).await? else { return Ok(false) };
    if decode(&bytes).as_ref() == Some(names) {
        return Ok(true);
    }
    Err(Error::new(Kind::Corrupt, format!("{name} does not describe the cluster that its folder is named after"))
        .hint("Find out who changed the repository: the file and its folder are only ever written together."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_was_told() {
        let names = ClusterNames {
            cluster: "main".to_owned(),
            system: SystemIdentifier(u64::MAX),
            segment_size: SegmentSize::new(1 << 30).unwrap(),
        };
        assert_eq!(decode(&encode(&names).unwrap()), Some(names));
        for bad in ["", "{}", r#"{"cluster":"a","system_identifier":"x","segment_size":1048576}"#] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad}");
        }
    }
}
