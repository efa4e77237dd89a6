//! Commits up to a target time that lie after the stop, beyond the WAL that was read for it: clocks are set back by hours, and so lead far behind it.

use super::scan::Route;
use super::target::Target;
use crate::error::Result;
use crate::pg::Lsn;

/// Where the first object with WAL behind `looked` begins that holds a commit or rollback up to the target, as its summary says. `None` where there is none, and
/// for targets that are no times. Of the open segment no summary speaks.
pub async fn beyond(route: &Route<'_>, looked: Lsn, target: &Target) -> Result<Option<Lsn>> {
    let Target::Time { time, inclusive } = *target else { return Ok(None) };
    let size = route.archive.names.segment_size;
    let behind = size.segment_before(looked).next();
    if route.inventory.last(route.path.target()).is_none_or(|last| last < behind) {
        return Ok(None);
    }
    let behind = behind.start(size);
    let mut first: Option<Lsn> = None;
    let see = |summary: &crate::seal::content::summary::Summary| {
        let wanted = summary.times.is_some_and(|(earliest, _)| earliest < time || inclusive && earliest == time);
        if wanted && first.is_none_or(|first| summary.start < first) {
            first = Some(summary.start);
        }
    };
    route.archive.summaries_along(route.path, behind, see).await?;
    Ok(first)
}
