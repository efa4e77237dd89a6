//! Bad pages that are none: read while they were written, their first half with an older position before that and the rest after it. Whoever sees such bytes pass
//! by cannot tell them from damage, but the WAL of the backup can: with `full_page_writes`, which a backup forces, it has the whole page, and recovery replaces what
//! was read before anything looks at it. So does it with a page that is damaged on the server's disk alone, and written anew from memory.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::BackupOptions;
use crate::archive::Archive;
use crate::archive::path::Path;
use crate::archive::replay::Replay;
use crate::error::{Error, Kind, Result};
use crate::pg::bare::ForkFile;
use crate::pg::data_page::relation_block;
use crate::pg::replaced::{Block, Replaced};
use crate::pg::{TimelineHistory, TimelineId};
use crate::seal::content::manifest::{BadPage, Manifest};

/// WAL of a backup that is read at most: a minute's work on a local disk.
const LONGEST: u64 = 16 << 30;

/// Moves the bad pages that the WAL of the backup replaces to those that were torn. It must be stored up to the stop. Whatever goes wrong here leaves them bad.
pub async fn settle(archive: &Archive, manifest: &mut Manifest, options: &BackupOptions) {
    if manifest.bad_pages.is_empty() {
        return;
    }
    let replaced = async {
        let contents = match &options.contents {
            Some(open) => open().await?,
            None => archive.clone(),
        };
        read(&contents, manifest).await
    };
    match replaced.await {
        Ok(replaced) => part(manifest, &replaced),
        Err(error) => {
            tracing::warn!("whether the WAL of the backup replaces pages with a wrong checksum is not known: {error}");
        }
    }
}

/// Reads the WAL until all pages are known.
async fn read(archive: &Archive, manifest: &Manifest) -> Result<Replaced> {
    let (from, to, timeline) = (manifest.start, manifest.consistent(), manifest.stop_timeline);
    if to.since(from) > LONGEST {
        let text = format!("its {} GiB are too long to be read for that", to.since(from) >> 30);
        return Err(Error::new(Kind::Failed, text));
    }
    let unknown = || Error::new(Kind::Version, format!("server version {}", manifest.version_num));
    let version = manifest.major().ok_or_else(unknown)?;
    let history = if timeline == TimelineId(1) { None } else { archive.parsed_history(timeline).await? };
    let path = Arc::new(Path::of(&history.unwrap_or_else(|| TimelineHistory::root(timeline))));
    let inventory = Arc::new(archive.newest(|_| from).await?);
    let mut replaced = Replaced::new(version, manifest.bad_pages.iter().filter_map(|page| block(manifest, page)));
    let replay = Replay { path, inventory, version, from, to };
    archive
        .replay(&replay, &mut |record| {
            let open = replaced.see(record)?;
            Ok(if open { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })
        .await?;
    Ok(replaced)
}

fn block(manifest: &Manifest, page: &BadPage) -> Option<Block> {
    let (_, block) = relation_block(&page.path.0, page.page, manifest.control.relation_segment_pages);
    Some((ForkFile::of_path(&page.path.0)?, u32::try_from(block).ok()?))
}

fn part(manifest: &mut Manifest, replaced: &Replaced) {
    let all = std::mem::take(&mut manifest.bad_pages);
    let is_replaced = |page: &BadPage| block(manifest, page).is_some_and(|block| replaced.has(&block));
    let (torn, bad): (Vec<BadPage>, Vec<BadPage>) = all.into_iter().partition(is_replaced);
    manifest.bad_page_count = manifest.bad_page_count.saturating_sub(torn.len() as u64);
    for page in &torn {
        let path = String::from_utf8_lossy(&page.path.0);
        tracing::info!(%path, page = page.page, "the WAL of the backup replaces this page");
    }
    (manifest.torn_pages, manifest.bad_pages) = (torn, bad);
}

#[cfg(test)]
mod tests {
    use super::super::orphans::tests::manifest_of;
    use super::*;
    use crate::pg::Lsn;
    use crate::pg::MajorVersion;
    use crate::pg::record::{RM_HEAP, Record};
    use crate::seal::content::BackupId;
    use crate::seal::content::manifest::Raw;

    /// A record that makes block 1 of the second segment of a relation anew.
    fn made_anew() -> Vec<u8> {
        let mut body = vec![0, 0x40, 0, 0];
        for word in [1663u32, 5, 16384, 131_072 + 1] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.extend_from_slice(&[255, 0]);
        body
    }

    #[test]
    fn pages_that_are_replaced_are_told_apart_and_counted_off() {
        let id = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let page = |path: &str, page| BadPage { path: Raw(path.as_bytes().to_vec()), page };
        let all = vec![page("base/5/16384", 1), page("base/5/16384.1", 1), page("pg_xact/0000", 1)];
        let mut manifest = Manifest { bad_pages: all.clone(), bad_page_count: 1003, ..manifest_of(&id) };
        let blocks: Vec<_> = all.iter().filter_map(|page| block(&manifest, page)).collect();
        assert_eq!(blocks.len(), 2, "the last is no relation's");
        let mut replaced = Replaced::new(MajorVersion::V15, blocks);
        let (body, at) = (made_anew(), Lsn(0));
        let record = Record {
            start: at,
            end: at,
            written: at,
            prev: at,
            xid: 1,
            rmid: RM_HEAP,
            info: 0,
            total_len: 0,
            crc: 0,
            body: Some(&body),
        };
        assert!(replaced.see(&record).unwrap(), "the other one is still looked for");
        part(&mut manifest, &replaced);
        assert_eq!(manifest.torn_pages, [all[1].clone()]);
        assert_eq!((manifest.bad_pages, manifest.bad_page_count), (vec![all[0].clone(), all[2].clone()], 1002));
    }
}
