//! What checks have found of backups, put together from the newest to the oldest. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::seal::content::event::Verified;

/// Newest checks that are asked by whoever only looks. Each quick one says again what it was told by those before it.
pub const LOOKED_AT: usize = 16;

/// Of the checks so far.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Found hurt, and not found whole since.
    pub hurt: BTreeSet<String>,
    /// Found whole by a check that opened every byte, and when the store took the last such one.
    whole: BTreeMap<String, SystemTime>,
    /// The newest check that opened every byte of everything.
    deep: Option<Deep>,
}

#[derive(Debug)]
struct Deep {
    stored: SystemTime,
    /// What it could not judge, and nothing newer has.
    open: BTreeSet<String>,
}

impl Verdicts {
    /// Adds the next older check, by its own time; `stored` is when the store took it. Clocks of hosts differ: only what is newer by both times takes back what an
    /// older check found, and what is damage for want of that costs a backup that stores everything.
    pub fn add(&mut self, check: Verified, stored: SystemTime) {
        let stands = |id: &String| self.whole.get(id).is_none_or(|whole| *whole < stored);
        self.hurt.extend(check.hurt.into_iter().filter(stands));
        if !check.deep {
            return;
        }
        for id in check.whole {
            let last = self.whole.entry(id).or_insert(stored);
            *last = stored.max(*last);
        }
        if check.only.is_none() && self.deep.is_none() {
            self.deep = Some(Deep { stored, open: check.unknown.into_iter().collect() });
        }
        let judged = |id: &String| self.hurt.contains(id) || self.whole.contains_key(id);
        if let Some(deep) = &mut self.deep {
            deep.open.retain(|id| !judged(id));
        }
    }

    /// Whether older checks tell nothing more, the newest of which the store took at `behind`: a check of every byte of everything has judged all that was a backup
    /// then.
    pub fn are_final(&self, behind: SystemTime) -> bool {
        self.deep.as_ref().is_some_and(|deep| deep.open.is_empty() && behind <= deep.stored)
    }
}

/// Backups that the last deep check that judged them found hurt: from the newest check to the oldest, of which each quick one says again what it was told.
pub fn hurt_deep<'c>(checks: impl IntoIterator<Item = &'c Verified>) -> BTreeSet<String> {
    let (mut hurt, mut judged) = (BTreeSet::new(), BTreeSet::new());
    for check in checks {
        let found = if check.deep { &check.hurt } else { &check.remembered };
        hurt.extend(found.iter().filter(|id| !judged.contains(*id)).cloned());
        judged.extend(found.iter().chain(check.whole.iter().filter(|_| check.deep)));
    }
    hurt
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::seal::content::event::Outcome;

    /// Deep or not, of everything or one; whole, hurt and unknown ones.
    type Said<'a> = (bool, Option<&'a str>, [&'a [&'a str]; 3]);

    fn check((deep, only, [whole, hurt, unknown]): Said<'_>) -> Verified {
        let of = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let (whole, hurt, unknown, only) = (of(whole), of(hurt), of(unknown), only.map(str::to_owned));
        Verified { deep, only, outcome: Outcome::Ok, problems: 0, whole, hurt, unknown, remembered: vec![] }
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    /// From the newest to the oldest, with the times at which the store took them. What is hurt, and after how many checks that was final.
    fn found(checks: &[(u64, Said<'_>)]) -> (Vec<String>, usize) {
        let mut verdicts = Verdicts::default();
        for (place, (stored, said)) in checks.iter().enumerate() {
            verdicts.add(check(*said), at(*stored));
            let behind = checks.iter().skip(place + 1).map(|(stored, _)| *stored).max().unwrap_or(0);
            if verdicts.are_final(at(behind)) {
                return (verdicts.hurt.into_iter().collect(), place + 1);
            }
        }
        (verdicts.hurt.into_iter().collect(), checks.len())
    }

    #[test]
    fn a_check_takes_back_what_it_found_whole_and_nothing_else() {
        let hurt: Said = (true, None, [&["b"], &["a"], &[]]);
        let hurt_a = |checks: &[(u64, Said<'_>)]| found(checks).0 == ["a"];
        assert!(hurt_a(&[(1, hurt)]));
        assert!(hurt_a(&[(2, (true, None, [&["b"], &[], &["a"]])), (1, hurt)]), "it could not be read");
        assert!(hurt_a(&[(2, (false, None, [&["a", "b"], &[], &[]])), (1, hurt)]), "a quick look");
        assert!(hurt_a(&[(2, (true, Some("b"), [&["b"], &[], &[]])), (1, hurt)]), "another backup");
        assert!(!hurt_a(&[(2, (true, Some("a"), [&["a"], &[], &[]])), (1, hurt)]));
        assert!(!hurt_a(&[(2, (true, None, [&["a", "b"], &[], &[]])), (1, hurt)]));
        let unread: Said = (true, None, [&["b"], &[], &["a"]]);
        assert!(hurt_a(&[(4, unread), (3, unread), (2, hurt), (1, (true, None, [&["a", "b"], &[], &[]]))]));
        assert!(!hurt_a(&[(3, unread), (2, (true, None, [&["a", "b"], &[], &[]])), (1, hurt)]), "whole before that");
    }

    #[test]
    fn older_checks_are_asked_only_where_they_can_tell() {
        let whole: Said = (true, None, [&["a"], &[], &[]]);
        let quick: Said = (false, None, [&["a"], &[], &[]]);
        assert_eq!(found(&[(3, quick), (2, whole), (1, quick)]).1, 2);
        assert_eq!(found(&[(3, (true, None, [&[], &[], &["a"]])), (2, quick), (1, whole)]).1, 3);
    }

    #[test]
    fn what_a_deep_check_found_is_remembered_until_the_next_one() {
        let whole: Said = (true, None, [&["a", "b"], &[], &[]]);
        let hurt: Said = (true, None, [&["b"], &["a"], &[]]);
        let quick: Said = (false, None, [&["a", "b"], &[], &[]]);
        let told = Verified { remembered: vec!["a".to_owned()], ..check(quick) };
        let found = |checks: &[Verified]| hurt_deep(checks).into_iter().collect::<Vec<_>>();
        assert_eq!(found(&[check(quick), check(hurt)]), ["a"]);
        assert_eq!(found(&[check(quick), told.clone()]), ["a"], "the deep one is too old to be asked");
        assert_eq!(found(&[check(whole), told.clone(), check(hurt)]), [""; 0]);
        assert_eq!(found(&[told, check(whole)]), ["a"]);
        // What a quick one found by itself the next quick one finds, or it is mended.
        assert_eq!(found(&[check((false, None, [&["b"], &["a"], &[]]))]), [""; 0]);
    }

    #[test]
    fn a_clock_that_was_ahead_takes_nothing_back() {
        let whole: Said = (true, None, [&["a"], &[], &[]]);
        let hurt: Said = (true, None, [&[], &["a"], &[]]);
        // The check that found it whole says that it is of next year, and was stored first.
        assert_eq!(found(&[(1, whole), (2, hurt)]).0, ["a"]);
        assert_eq!(found(&[(2, whole), (2, hurt)]).0, [""; 0], "a store that tells seconds only");
    }
}
