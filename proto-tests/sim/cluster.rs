//! The servers behind one address: their WAL, timelines and slot, and what they were told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, TimelineId};

use super::audit::Audit;
use super::chance::Chance;
use super::trace::Trace;
use super::world::Plan;
use crate::support::wal_maker::WalMaker;

/// The size of segments where the plan says nothing else.
pub const SEGMENT: u64 = 1 << 20;
pub const SLOT: &str = "sim";

/// One history of WAL, and how it came to be. A snapshot that was rolled back begins another one under the same timeline.
#[derive(Clone)]
pub struct Branch {
    pub timeline: TimelineId,
    pub wal: WalMaker,
    /// The timelines that lead here, oldest first, and where each was left.
    pub ancestors: Vec<(TimelineId, Lsn)>,
    /// A byte that the server's disk has wrong.
    pub damaged: Option<Lsn>,
    /// A standby's: what it has of the WAL, which may end in the middle of a record.
    pub upto: Option<Lsn>,
}

impl Branch {
    /// Bytes of a segment.
    pub fn segment(&self) -> u64 {
        self.wal.config().segment_size.bytes()
    }

    /// The end of what this server has.
    pub fn end(&self) -> Lsn {
        self.upto.unwrap_or(self.wal.end())
    }

    /// The end of what this server has of a timeline; `None`: it is not in its history.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        if timeline == self.timeline {
            return Some(self.end());
        }
        self.ancestors.iter().find(|(ancestor, _)| *ancestor == timeline).map(|(_, end)| *end)
    }

    pub fn begin_of(&self, timeline: TimelineId) -> Lsn {
        let index = self.ancestors.iter().position(|(ancestor, _)| *ancestor == timeline);
        let before = index.unwrap_or(self.ancestors.len()).checked_sub(1);
        before.map_or(Lsn(0), |index| self.ancestors[index].1)
    }

    /// As the server reads it from its disk.
    pub fn served(&self, from: Lsn, to: Lsn) -> Vec<u8> {
        let mut bytes = self.wal.slice(from, to).to_vec();
        if let Some(at) = self.damaged.filter(|at| (from..to).contains(at)) {
            bytes[at.since(from) as usize] ^= 0x40;
        }
        bytes
    }

    fn history_file(&self) -> String {
        self.ancestors
            .iter()
            .map(|(timeline, at)| format!("{}\t{at}\tno recovery target specified\n", timeline.0))
            .collect()
    }

    fn history_of(&self, timeline: TimelineId) -> Option<String> {
        let kept = self.ancestors.iter().take_while(|(ancestor, _)| *ancestor < timeline).cloned().collect();
        let known = timeline.0 > 1 && self.end_of(timeline).is_some();
        known.then(|| Branch { ancestors: kept, ..self.clone() }.history_file())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Up,
    /// Shutting down: waits for its walsenders.
    Stopping,
    Down,
    /// Refuses with 57P03.
    Starting,
}

#[derive(Clone, Debug, Default)]
pub struct Slot {
    pub restart: Option<Lsn>,
    /// What a crash of the server leaves of it.
    pub saved: Option<Lsn>,
    pub active: Option<u64>,
    /// The server has removed what it held (`max_slot_wal_keep_size`), and holds nothing back for it any more.
    pub lost: bool,
}

impl Slot {
    /// As a server with this WAL makes one.
    pub fn reserved(state: &State) -> Slot {
        let restart = Some((state.removed + 40).min(state.end()));
        Slot { restart, saved: restart, ..Slot::default() }
    }
}

/// What decides whether a hole in the archive is an honest one.
#[derive(Clone, Default)]
pub struct Trail {
    /// Every flush position that was reported.
    pub told: BTreeSet<(TimelineId, Lsn)>,
    /// Where WAL was asked for that had been removed.
    pub refused: BTreeSet<(TimelineId, Lsn)>,
}

pub struct State {
    /// Bytes of a segment. The first one is where all WAL begins.
    pub segment: u64,
    pub branches: Vec<Branch>,
    pub current: usize,
    pub phase: Phase,
    /// Changes when every connection of a server is lost.
    pub epoch: u64,
    pub slot: Option<Slot>,
    /// WAL below was removed.
    pub removed: Lsn,
    /// Connections that the server has.
    pub sessions: u64,
    pub version: MajorVersion,
    pub sql: bool,
    /// The slot is lost at the very moment at which somebody begins to stream on it.
    pub lost_at_start: bool,
    /// The view of slots may not be read.
    pub view_refused: bool,
    pub synchronous: bool,
    /// What is told as written survives the loss of the receiver's host.
    pub spool: bool,
    /// The highest flush position that was reported, per branch and timeline.
    pub told: Vec<(usize, TimelineId, Lsn)>,
    pub trail: Trail,
    next_xid: u32,
}

impl State {
    pub fn branch(&self) -> &Branch {
        &self.branches[self.current]
    }

    pub fn end(&self) -> Lsn {
        self.branch().end()
    }

    pub fn told_end(&self) -> Lsn {
        let timeline = self.branch().timeline;
        let told = self.told.iter().filter(|(branch, t, _)| *branch == self.current && *t == timeline);
        told.map(|(_, _, lsn)| *lsn).max().unwrap_or_default()
    }

    /// The history file of a timeline, where this server has one.
    pub fn history(&self, timeline: TimelineId) -> Option<String> {
        self.branch().history_of(timeline)
    }
}

pub struct Cluster {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    pub trace: Trace,
    pub audit: Audit,
}

impl Cluster {
    pub fn new(plan: &Plan, trace: Trace, audit: Audit) -> Arc<Cluster> {
        let Plan { version, sql, synchronous, spool, .. } = *plan;
        let segment = plan.segment;
        let size = SegmentSize::new(segment).expect("a size");
        let mut wal = WalMaker::new(version, size, TimelineId(1), Lsn(segment));
        wal.checkpoint(false);
        while wal.end() < Lsn(segment + plan.before) {
            wal.filler(1, 30_000);
        }
        let branch = Branch { timeline: TimelineId(1), wal, ancestors: Vec::new(), damaged: None, upto: None };
        let start = Lsn(segment + 40);
        let slot = Slot { restart: Some(start), saved: Some(start), ..Slot::default() };
        let state = State {
            segment,
            branches: vec![branch],
            current: 0,
            phase: Phase::Up,
            epoch: 0,
            slot: Some(slot),
            removed: Lsn(segment),
            sessions: 0,
            version,
            sql,
            lost_at_start: false,
            view_refused: false,
            synchronous,
            spool,
            told: Vec::new(),
            trail: Trail::default(),
            next_xid: 700,
        };
        Arc::new(Cluster { state: Mutex::new(state), changed: watch::Sender::new(0), trace, audit })
    }

    /// Looks, or changes something that no connection waits for.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and wakes every connection.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
        done
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Work on the server: about `bytes` of WAL, ended by a commit.
    pub fn write(&self, bytes: u64, chance: &Chance) {
        self.change(|state| {
            let until = state.end() + bytes;
            let current = state.current;
            while state.end() < until {
                let xid = state.next_xid;
                state.next_xid += 1;
                let room = until.since(state.end()).clamp(64, 30_000);
                let lengths = [chance.between(27, 281), chance.between(285, 2000), chance.between(300, room.max(400))];
                let wal = &mut state.branches[current].wal;
                wal.filler(xid, chance.pick(&lengths) as u32);
                if chance.one_in(3) {
                    wal.commit(xid, PgTime(i64::from(xid) * 1_000_000));
                }
            }
            let xid = state.next_xid;
            state.branches[current].wal.commit(xid, PgTime(i64::from(xid) * 1_000_000));
            if chance.one_in(60) {
                state.branches[current].wal.switch();
            }
        });
    }

    /// Keeps what its slot demands of the WAL, and forgets the rest.
    pub fn checkpoint(&self) {
        self.change(|state| {
            let end = state.end();
            if let Some(slot) = &mut state.slot {
                slot.saved = slot.restart;
            }
            let slot = state.slot.as_ref().filter(|slot| !slot.lost);
            let keep = slot.and_then(|slot| slot.saved).unwrap_or(end).min(end);
            state.removed = state.removed.max(keep.align_down(state.segment));
        });
    }

    /// The slot is dropped, or loses what it held, and all WAL but the last `keep` bytes is removed. Whoever streams on it is ended.
    pub fn forget(&self, drops: bool, keep: u64) {
        self.change(|state| {
            let lost = Slot { lost: true, ..Slot::default() };
            state.slot = state.slot.take().filter(|_| !drops).map(|_| lost);
            let rest = state.end().0.saturating_sub(keep);
            state.removed = state.removed.max(Lsn(rest).align_down(state.segment));
        });
    }

    /// Every connection breaks at once; the slot is as it was last saved.
    pub fn crash(&self, phase: Phase) {
        self.change(|state| {
            state.epoch += 1;
            state.phase = phase;
            if let Some(slot) = &mut state.slot {
                slot.restart = slot.saved;
                slot.active = None;
            }
        });
    }

    /// A standby takes over under the same address; it had received up to `at` (or the record before).
    pub fn promote(&self, at: Lsn, with_slot: bool) {
        self.change(|state| {
            let old = state.branch().clone();
            let timeline = TimelineId(old.timeline.0 + 1);
            let mut wal = old.wal.until(at).fork(timeline);
            let fork = wal.end();
            wal.end_of_recovery(PgTime(i64::from(state.next_xid) * 1_000_000));
            let mut ancestors = old.ancestors.clone();
            ancestors.push((old.timeline, fork));
            state.branches.push(Branch { timeline, wal, ancestors, damaged: None, upto: None });
            state.current = state.branches.len() - 1;
            let slot = state.slot.clone().unwrap_or_default();
            let restart = slot.saved.map(|lsn| lsn.min(fork));
            state.removed = state.removed.min(restart.unwrap_or(fork).align_down(state.segment));
            // Whoever is still connected to a standby that is promoted keeps its slot.
            state.slot = with_slot.then_some(Slot { restart, saved: restart, active: slot.active, lost: false });
        });
    }

    /// The server is set back to a snapshot of when its WAL ended at `at`, and goes on otherwise.
    pub fn roll_back(&self, at: Lsn) {
        self.change(|state| {
            let old = state.branch().clone();
            let wal = old.wal.until(at);
            let back = wal.end();
            state.branches.push(Branch { wal, damaged: None, upto: None, ..old });
            state.current = state.branches.len() - 1;
            state.next_xid += 100_000;
            // A snapshot has the WAL that it ends in.
            state.removed = state.removed.min(back.align_down(state.segment));
            // What the slot was told later is forgotten with the rest.
            if let Some(slot) = &mut state.slot {
                slot.saved = slot.saved.map(|lsn| lsn.min(back));
                slot.restart = slot.saved;
            }
        });
    }

    /// A failover is given up: the old primary comes back with a snapshot of when its WAL ended at `at`, and goes on otherwise on its own timeline.
    pub fn go_back(&self, at: Lsn) {
        self.change(|state| {
            let before = state.branch().ancestors.last().map(|(timeline, _)| *timeline);
            let old = state.branches.iter().rposition(|branch| Some(branch.timeline) == before);
            state.current = old.unwrap_or(state.current);
            let restart = state.told_end().min(at).max(Lsn(state.segment + 40));
            state.slot = Some(Slot { restart: Some(restart), saved: Some(restart), ..Slot::default() });
            state.removed = state.removed.min(restart.align_down(state.segment));
        });
        self.roll_back(at);
    }

    /// A status update of a walsender's client.
    pub fn told(&self, timeline: TimelineId, written: Lsn, flushed: Lsn) {
        self.change(|state| {
            let current = state.current;
            let held = state.branch().end_of(timeline).unwrap_or_default();
            if flushed > held || written > held || written < flushed {
                let text = format!(
                    "was told written {written}, flushed {flushed}; of timeline {timeline} it holds up to {held}"
                );
                return self.trace.violated(text);
            }
            if !flushed.is_valid() {
                return;
            }
            if state.spool && written > flushed {
                let from = flushed.max(Lsn(state.segment));
                self.audit.promised_written(state.branch(), timeline, from, written, &state.trail);
            }
            state.trail.told.insert((timeline, flushed));
            // From 16 on a lost slot stays lost.
            let comes_back = state.version < MajorVersion::V16;
            if let Some(slot) = state.slot.as_mut().filter(|slot| comes_back || !slot.lost) {
                (slot.restart, slot.lost) = (Some(flushed), false);
            }
            let known = state.told.iter().position(|(branch, t, _)| (*branch, *t) == (current, timeline));
            let from = match known {
                Some(index) if state.told[index].2 >= flushed => return,
                Some(index) => std::mem::replace(&mut state.told[index].2, flushed),
                None => {
                    state.told.push((current, timeline, flushed));
                    Lsn(state.segment)
                }
            };
            self.audit.promised(state.branch(), timeline, from, flushed, &state.trail);
        });
    }
}
