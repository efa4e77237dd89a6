//! What checks have found of backups, put together from the newest to the oldest. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::seal::content::event::{Spoiled, Verified};

/// Checks that are asked at most, the newest ones. Where none of every byte of everything is among them, each says again what it was told by those before it.
pub const ASKED: usize = 512;
/// By how much a store's times may be rounded.
const GRAIN: Duration = Duration::from_secs(2);

/// A check that was noted.
#[derive(Clone, Debug)]
pub struct Noted {
    /// By the clock of the host that checked.
    pub at: Timestamp,
    /// When the store took it.
    pub stored: SystemTime,
    pub check: Verified,
}

/// What is known of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Whole,
    /// Something that it needs is missing or damaged.
    Hurt,
    /// It could not be read.
    Unknown,
}

/// Of the checks so far.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Newest first, by the clocks of the hosts that checked.
    checks: Vec<Noted>,
    /// Found hurt, and not found whole since.
    hurt: BTreeMap<String, Hurt>,
    whole: Whole,
    /// What was missing or damaged, each with the backups that the same check found hurt: it counts as long as one of these is.
    spoiled: Vec<(BTreeSet<String>, Spoiled)>,
    /// The newest check that opened every byte of everything.
    deep: Option<Deep>,
}

/// How a backup was found hurt.
#[derive(Clone, Copy, Debug)]
struct Hurt {
    /// The place of the newest check that said so.
    told: usize,
    /// By a check that opened every byte, so that no other takes it back.
    deep: bool,
}

/// When the last check began that found a backup whole, by the store's time.
#[derive(Debug, Default)]
struct Whole {
    by_any: BTreeMap<String, SystemTime>,
    /// By one that opened every byte.
    by_deep: BTreeMap<String, SystemTime>,
}

#[derive(Debug)]
struct Deep {
    /// By the store's time.
    began: SystemTime,
    /// What it could not judge, and nothing newer has.
    open: BTreeSet<String>,
}

impl Verdicts {
    /// Adds the next older check, by its own time. Clocks of hosts differ, and a check takes up to hours: what an older one found is taken back only by one that
    /// is newer by its own time and that began, by the store's time, when the older one had been noted. What counts as damage for want of that costs a backup that
    /// stores everything.
    pub fn add(&mut self, noted: Noted) {
        let Noted { stored, check, .. } = &noted;
        let by_deep = |id: &String| check.deep || check.remembered.contains(id);
        for id in check.hurt.iter().chain(&check.remembered) {
            if !self.whole.since(id, by_deep(id), *stored) {
                let hurt = self.hurt.entry(id.clone()).or_insert(Hurt { told: self.checks.len(), deep: false });
                hurt.deep |= by_deep(id);
            }
        }
        if !check.spoiled.is_empty() {
            let hurt = check.hurt.iter().chain(&check.remembered).cloned().collect();
            self.spoiled.push((hurt, check.spoiled.clone()));
        }
        let began = stored.checked_sub(Duration::from_secs(check.seconds)).unwrap_or(SystemTime::UNIX_EPOCH);
        self.whole.add(check, began);
        if check.deep && check.only.is_none() && self.deep.is_none() {
            self.deep = Some(Deep { began, open: check.unknown.iter().cloned().collect() });
        }
        let judged = |id: &String| self.hurt.contains_key(id) || self.whole.by_deep.contains_key(id);
        if let Some(deep) = &mut self.deep {
            deep.open.retain(|id| !judged(id));
        }
        self.checks.push(noted);
    }

    /// Whether older checks tell nothing more, the newest of which the store took at `behind`: a check of every byte of everything has judged all that was a backup
    /// then.
    pub fn are_final(&self, behind: SystemTime) -> bool {
        self.deep.as_ref().is_some_and(|deep| deep.open.is_empty() && behind <= deep.began + GRAIN)
    }

    /// Those that were asked, newest first.
    pub fn checks(&self) -> &[Noted] {
        &self.checks
    }

    /// The newest one that opened every byte of everything.
    pub fn newest_deep(&self) -> Option<&Noted> {
        self.checks.iter().find(|noted| noted.check.deep && noted.check.only.is_none())
    }

    pub fn is_hurt(&self, id: &str) -> bool {
        self.hurt.contains_key(id)
    }

    /// Backups that need something which is missing or damaged, also such as were deleted since.
    pub fn hurt(&self) -> impl Iterator<Item = &String> {
        self.hurt.keys()
    }

    /// Those of them that only a check of every byte can find whole again.
    pub fn hurt_deep(&self) -> impl Iterator<Item = &String> {
        self.hurt.iter().filter(|(_, hurt)| hurt.deep).map(|(id, _)| id)
    }

    /// What is missing or damaged of what backups need, or needed.
    pub fn spoiled(&self) -> Spoiled {
        let mut all = Spoiled::default();
        for (_, spoiled) in self.spoiled.iter().filter(|(of, _)| of.iter().any(|id| self.is_hurt(id))) {
            all.merge(spoiled);
        }
        all
    }

    /// What is known of a backup, and the check that it is known from; `None`: none that was asked has looked at it.
    pub fn of(&self, id: &str) -> Option<(&Noted, Found)> {
        if let Some(noted) = self.hurt.get(id).and_then(|hurt| self.checks.get(hurt.told)) {
            return Some((noted, Found::Hurt));
        }
        let has = |ids: &[String]| ids.iter().any(|other| other == id);
        self.checks.iter().find_map(|noted| match &noted.check {
            check if has(&check.unknown) => Some((noted, Found::Unknown)),
            check if has(&check.whole) => Some((noted, Found::Whole)),
            _ => None,
        })
    }
}

impl Whole {
    fn add(&mut self, check: &Verified, began: SystemTime) {
        let last = |of: &mut BTreeMap<String, SystemTime>, id: &String| {
            let last = of.entry(id.clone()).or_insert(began);
            *last = began.max(*last);
        };
        for id in &check.whole {
            last(&mut self.by_any, id);
            if check.deep {
                last(&mut self.by_deep, id);
            }
        }
    }

    /// Whether a check has found it whole since one that the store took at `stored`; `deep`: one that opened every byte.
    fn since(&self, id: &str, deep: bool, stored: SystemTime) -> bool {
        let of = if deep { &self.by_deep } else { &self.by_any };
        of.get(id).is_some_and(|began| *began + GRAIN >= stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deep or not, of everything or one; whole, hurt and unknown ones.
    type Said<'a> = (bool, Option<&'a str>, [&'a [&'a str]; 3]);

    fn check((deep, only, [whole, hurt, unknown]): Said<'_>) -> Verified {
        let of = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let (whole, hurt, unknown, only) = (of(whole), of(hurt), of(unknown), only.map(str::to_owned));
        Verified { deep, only, whole, hurt, unknown, ..Verified::default() }
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    /// From the newest to the oldest, with the times at which the store took them, until they are final.
    fn verdicts(checks: &[(u64, Verified)]) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for (place, (stored, check)) in checks.iter().enumerate() {
            let own = Timestamp::from_second(-(place as i64)).unwrap();
            verdicts.add(Noted { at: own, stored: at(*stored), check: check.clone() });
            let behind = checks.iter().skip(place + 1).map(|(stored, _)| *stored).max().unwrap_or(0);
            if verdicts.are_final(at(behind)) {
                break;
            }
        }
        verdicts
    }

    fn of(checks: &[(u64, Said<'_>)]) -> Verdicts {
        verdicts(&checks.iter().map(|(stored, said)| (*stored, check(*said))).collect::<Vec<_>>())
    }

    fn hurt(checks: &[(u64, Said<'_>)]) -> Vec<String> {
        of(checks).hurt().cloned().collect()
    }

    const WHOLE: Said = (true, None, [&["a", "b"], &[], &[]]);
    const HURT: Said = (true, None, [&["b"], &["a"], &[]]);
    const QUICK: Said = (false, None, [&["a", "b"], &[], &[]]);
    const NONE: [&str; 0] = [];

    #[test]
    fn a_check_takes_back_what_it_found_whole_and_nothing_else() {
        let hurt_a = |checks: &[(u64, Said<'_>)]| hurt(checks) == ["a"];
        assert!(hurt_a(&[(10, HURT)]));
        assert!(hurt_a(&[(20, (true, None, [&["b"], &[], &["a"]])), (10, HURT)]), "it could not be read");
        assert!(hurt_a(&[(20, QUICK), (10, HURT)]), "a quick look");
        assert!(hurt_a(&[(20, (true, Some("b"), [&["b"], &[], &[]])), (10, HURT)]), "another backup");
        assert!(!hurt_a(&[(20, (true, Some("a"), [&["a"], &[], &[]])), (10, HURT)]));
        assert!(!hurt_a(&[(20, WHOLE), (10, HURT)]));
        let unread: Said = (true, None, [&["b"], &[], &["a"]]);
        assert!(hurt_a(&[(40, unread), (30, unread), (20, HURT), (10, WHOLE)]));
        assert!(!hurt_a(&[(30, unread), (20, WHOLE), (10, HURT)]), "whole before that");
    }

    #[test]
    fn what_a_quick_check_found_the_next_quick_one_finds_or_it_is_mended() {
        let missing: Said = (false, None, [&["b"], &["a"], &[]]);
        assert_eq!(hurt(&[(10, missing)]), ["a"]);
        assert_eq!(hurt(&[(20, (false, Some("b"), [&["b"], &[], &[]])), (10, missing)]), ["a"]);
        assert_eq!(hurt(&[(20, QUICK), (10, missing)]), NONE);
        // It said again what it had been told by a deep one.
        let told = Verified { remembered: vec!["a".to_owned()], ..check(missing) };
        assert_eq!(verdicts(&[(20, check(QUICK)), (10, told.clone())]).hurt_deep().collect::<Vec<_>>(), ["a"]);
        assert!(verdicts(&[(20, check(WHOLE)), (10, told)]).hurt_deep().next().is_none());
        // Of a backup that it did not look at.
        let other = Verified { remembered: vec!["a".to_owned()], ..check((true, Some("b"), [&["b"], &[], &[]])) };
        assert!(verdicts(&[(20, check(QUICK)), (10, other)]).is_hurt("a"));
    }

    #[test]
    fn older_checks_are_asked_only_where_they_can_tell() {
        let asked = |checks: &[(u64, Said<'_>)]| of(checks).checks().len();
        assert_eq!(asked(&[(30, QUICK), (20, WHOLE), (10, QUICK)]), 2);
        assert_eq!(asked(&[(30, (true, None, [&[], &[], &["a"]])), (20, QUICK), (10, WHOLE)]), 3);
        let one: Said = (true, Some("b"), [&["b"], &[], &[]]);
        let many: Vec<(u64, Said<'_>)> = (1..=100).rev().map(|n| (10 + n * 10, one)).chain([(10, HURT)]).collect();
        assert_eq!((asked(&many), hurt(&many)), (101, vec!["a".to_owned()]), "none of them looked at it");
    }

    #[test]
    fn a_clock_that_was_ahead_takes_nothing_back() {
        // The check that found it whole says that it is of next year, and was stored first.
        assert_eq!(hurt(&[(10, WHOLE), (20, HURT)]), ["a"]);
        let told = of(&[(10, WHOLE), (20, HURT)]);
        assert_eq!(told.of("a").map(|(noted, found)| (noted.stored, found)), Some((at(20), Found::Hurt)));
        assert_eq!(told.of("b").map(|(noted, found)| (noted.stored, found)), Some((at(10), Found::Whole)));
        // A quick one knows no more than that.
        assert_eq!(hurt(&[(30, QUICK), (10, WHOLE), (20, HURT)]), ["a"]);
        assert_eq!(hurt(&[(20, WHOLE), (21, HURT)]), NONE, "a store that tells seconds only");
    }

    #[test]
    fn a_long_check_takes_back_nothing_that_was_found_while_it_ran() {
        let long = |seconds| Verified { seconds, ..check(WHOLE) };
        let hurt = |seconds| verdicts(&[(1000, long(seconds)), (500, check(HURT))]).is_hurt("a");
        assert!(hurt(900), "it may have read those bytes before they rotted");
        assert!(!hurt(400));
        assert_eq!(verdicts(&[(1000, long(900)), (500, check(HURT)), (50, check(QUICK))]).checks().len(), 2);
    }

    #[test]
    fn what_is_spoiled_counts_until_those_that_need_it_are_whole() {
        let mut spoiled = Spoiled::default();
        spoiled.add_packs("q", [5]);
        let named = |deep| Verified { spoiled: spoiled.clone(), ..check((deep, None, [&["b"], &["a"], &[]])) };
        assert!(verdicts(&[(10, named(true))]).spoiled().has_pack("q", 5));
        assert!(verdicts(&[(20, check(QUICK)), (10, named(true))]).spoiled().has_pack("q", 5));
        assert!(verdicts(&[(20, check(QUICK)), (10, named(false))]).spoiled().is_empty());
        assert!(verdicts(&[(20, check(WHOLE)), (10, named(true))]).spoiled().is_empty());
        // The backup was deleted since: what it needed others may need too, unless a check of everything says otherwise.
        let other: Said = (true, Some("b"), [&["b"], &[], &[]]);
        assert!(verdicts(&[(20, check(other)), (10, named(true))]).spoiled().has_pack("q", 5));
        assert!(verdicts(&[(20, check((true, None, [&["b"], &[], &[]]))), (10, named(true))]).spoiled().is_empty());
    }
}
