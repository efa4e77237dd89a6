//! Commits up to a target time that lie after the stop, beyond the WAL that was read for it: clocks are set back by hours, and so lead far behind it.

use super::commits::{READ, Tells, Told, Wish};
use super::scan::Route;
use super::target::Target;
use crate::error::Result;
use crate::pg::Lsn;

/// The first commit up to the target behind `looked` on this way, by what summaries tell and by reading the segment in which they tell of one: its summary speaks of
/// rollbacks too, and, where a timeline was left in it, of the branch that died. `None` where there is none, and for targets that are no times. Of the open
/// segment no summary speaks. Where the segment cannot be read, or [`READ`] others were read in vain, its
/// beginning stands for the commit.
pub async fn beyond(route: &Route<'_>, looked: Lsn, target: &Target) -> Result<Option<Lsn>> {
    if !matches!(target, Target::Time { .. }) {
        return Ok(None);
    }
    let size = route.archive.names.segment_size;
    let behind = size.segment_before(looked).next();
    let last = route.path.legs.iter().filter_map(|leg| route.inventory.last(leg.timeline)).max();
    if last.is_none_or(|last| last < behind) {
        return Ok(None);
    }
    let told = Told::of(route.archive, route.path, behind.start(size)).await?;
    let may = |tells: &Tells| tells.commits > 0 && tells.times.is_some_and(|(first, _)| target.takes(first));
    let worth = told.0.iter().filter(|(_, tells)| may(tells) || tells.is_mute);
    for (at, (number, tells)) in worth.enumerate() {
        if at >= READ {
            // Nobody looks any further, and it says that there is one.
            if may(tells) {
                return Ok(Some(number.start(size)));
            }
            continue;
        }
        let wish = Wish { target, begin: Lsn(0), segments: *number..=*number };
        let counted = route.count(&wish, told.reading_from(*number, size.segment_before(looked))).await;
        let short = || (may(tells) && counted.is_short).then(|| number.start(size));
        if let Some(lsn) = counted.first.map(|commit| commit.start).or_else(short) {
            return Ok(Some(lsn));
        }
    }
    Ok(None)
}
