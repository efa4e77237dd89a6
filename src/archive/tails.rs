//! Looking at the tails of a segment: several runs' at once, some damaged, some merged or deleted while they are read.
//!
//! A listing is no snapshot. A piece that is listed and gone, and a hole before a listed piece, both mean: look again. What was read stays read: objects never
//! change, so each look needs only what is new. A writer never merges the newest piece away, so whatever a listing missed, something later is in it.

use std::collections::BTreeMap;

use futures::future::try_join_all;

use super::join::{Run, reach};
use crate::error::{Error, Result};

/// How many tails are read at a time.
const AT_ONCE: usize = 8;
/// How often a hole before a later tail is looked at again: there may really be one, where a put is under way or failed.
const HOLE_LOOKS: u32 = 2;

/// Bytes of a segment, as offsets in it: from, and to where.
pub(super) trait Span {
    fn span(&self) -> (u64, u64);
}

impl Span for (u64, u64) {
    fn span(&self) -> (u64, u64) {
        *self
    }
}

impl Span for Run {
    fn span(&self) -> (u64, u64) {
        (self.offset, self.offset + self.bytes.len() as u64)
    }
}

/// A stored tail.
pub(super) enum Tail<T> {
    Sound(T),
    Damaged(Damage),
}

/// A tail that cannot be read. It does no harm where others hold its bytes.
pub(super) struct Damage {
    /// Which bytes of the segment it may have held.
    pub span: (u64, u64),
    pub error: Error,
}

/// What was seen of a segment's tails, over several looks.
pub(super) struct Looks<T> {
    /// Names to look at next; `None`: list them first.
    pub listed: Option<Vec<String>>,
    seen: BTreeMap<String, Tail<T>>,
    hole_looks: u32,
    /// Where the pieces of the first listing end: what a busy writer adds later is not run after.
    goal: Option<u64>,
}

impl<T: Span> Looks<T> {
    pub fn new(listed: Option<Vec<String>>) -> Looks<T> {
        Looks { listed, seen: BTreeMap::new(), hole_looks: HOLE_LOOKS, goal: None }
    }

    /// Looks at those that were not seen yet; `false` when one of them is gone. `piece` says which bytes a piece holds by its name.
    pub async fn look<F>(
        &mut self,
        names: Vec<String>,
        piece: impl Fn(&str) -> Option<(u64, u64)>,
        look: impl Fn(String) -> F,
    ) -> Result<bool>
    where
        F: Future<Output = Result<Option<Tail<T>>>>,
    {
        let ends = names.iter().filter_map(|name| piece(name)).map(|(_, to)| to);
        let goal = *self.goal.get_or_insert(ends.max().unwrap_or(u64::MAX));
        let wanted = |name: &String| piece(name).is_none_or(|(from, _)| from < goal) && !self.seen.contains_key(name);
        let new: Vec<String> = names.into_iter().filter(wanted).collect();
        let mut all = true;
        for some in new.chunks(AT_ONCE) {
            let found = try_join_all(some.iter().map(|name| look(name.clone()))).await?;
            for (name, tail) in some.iter().zip(found) {
                match tail {
                    Some(tail) => self.add(name.clone(), tail),
                    None => all = false,
                }
            }
        }
        Ok(all)
    }

    pub fn add(&mut self, name: String, tail: Tail<T>) {
        self.seen.insert(name, tail);
    }

    /// Whether something stands behind a hole, with `others` beside the tails, and it may be worth while to look again.
    pub fn doubts(&mut self, others: &[(u64, u64)]) -> bool {
        let mut spans: Vec<(u64, u64)> = others.to_vec();
        spans.extend(self.seen.values().filter_map(|tail| match tail {
            Tail::Sound(sound) => Some(sound.span()),
            Tail::Damaged(_) => None,
        }));
        let end = reach(spans.clone());
        let hole = spans.iter().any(|(from, to)| *from > end && to > from);
        let again = hole && self.hole_looks > 0;
        self.hole_looks = self.hole_looks.saturating_sub(1);
        again
    }

    /// What can be read, and what cannot.
    pub fn settled(self) -> (Vec<T>, Damages) {
        let (mut sound, mut damaged) = (Vec::new(), Vec::new());
        for (name, tail) in self.seen {
            match tail {
                Tail::Sound(tail) => sound.push(tail),
                Tail::Damaged(damage) => damaged.push((name, damage)),
            }
        }
        (sound, Damages(damaged))
    }
}

/// The damaged tails of a segment.
pub(super) struct Damages(Vec<(String, Damage)>);

impl Damages {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Without a hole the sound ones reach to `end`: an error when a damaged one may have gone on there.
    pub fn demand_covered(self, end: u64) -> Result<()> {
        for (name, damage) in self.0 {
            let (from, to) = damage.span;
            if from <= end && end < to {
                return Err(damage.error);
            }
            tracing::warn!(name, error = %damage.error, "a damaged tail is passed over: others hold its bytes");
        }
        Ok(())
    }
}
