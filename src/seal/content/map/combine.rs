//! One path in several maps: the rule by which newer maps lie over older ones. Reading a backup and merging maps both go by it.

use super::{Entry, EntryKind, Run, Source, WHAT};
use crate::seal::content::Malformed;

/// What the entries `layers` of one path, newest first, say together: the same as they do one above the other, whatever maps lie below or
/// above. `oldest`: nothing lies below, so that an absent path is left out and every byte must be found. An entry whose runs cover the file is complete.
///
/// Errors: a page that these layers do not have and that no older map may give either, because a complete or absent entry, one of another kind, or one
/// whose size does not reach the page comes before.
pub fn combine(layers: Vec<Entry>, oldest: bool) -> Result<Option<Entry>, Malformed> {
    let mut layers = layers.into_iter();
    let Some(mut top) = layers.next() else { return Ok(None) };
    if top.kind == EntryKind::Absent {
        return Ok((!oldest).then_some(top));
    }
    let Some(unit) = top.kind.unit() else {
        top.complete |= oldest;
        return Ok(Some(top));
    };
    let unit = unit.bytes();
    let mut open = Vec::new();
    if top.size > 0 {
        open.push((0, top.size / unit));
    }
    let mut found = Vec::new();
    open = cover(open, std::mem::take(&mut top.runs), unit, &mut found);
    let mut ended = top.complete;
    for layer in layers {
        if ended || open.is_empty() {
            break;
        }
        // What the file had not had yet when the layer was written, older maps cannot give: between the two it may have been shorter.
        let beyond = open.last().is_some_and(|(_, end)| *end > layer.size / unit);
        if beyond || layer.kind != top.kind {
            ended = true;
            break;
        }
        open = cover(open, layer.runs, unit, &mut found);
        ended = layer.complete;
    }
    if let Some((first, end)) = open.first().filter(|_| ended || oldest) {
        let path = String::from_utf8_lossy(&top.path).into_owned();
        return Err(Malformed::new(WHAT, format!("no map says where {first} to {end} of {path:?} is")));
    }
    found.sort_unstable_by_key(|r: &Run| r.first);
    top.complete = open.is_empty();
    top.runs = join(found, unit);
    Ok(Some(top))
}

/// Cuts what `runs` give out of the open ranges (first, end) into `found`; returns what stays open.
fn cover(open: Vec<(u64, u64)>, runs: Vec<Run>, unit: u64, found: &mut Vec<Run>) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    let mut runs = runs.into_iter().peekable();
    for (mut first, end) in open {
        while let Some(run) = runs.peek() {
            let run_end = run.first + run.count;
            if run_end <= first {
                runs.next();
                continue;
            }
            if run.first >= end {
                break;
            }
            if run.first > first {
                left.push((first, run.first));
            }
            let (from, to) = (run.first.max(first), run_end.min(end));
            found.push(cut(run, from, to, unit));
            first = to;
            if run_end > end {
                break;
            }
            runs.next();
        }
        if first < end {
            left.push((first, end));
        }
    }
    left
}

/// The part of a run from `from` to `to`.
fn cut(run: &Run, from: u64, to: u64, unit: u64) -> Run {
    let source = match &run.source {
        Source::Zero => Source::Zero,
        Source::Pack { pack, frame, offset } => {
            // Inside a frame of at most 256 KiB: it fits 32 bits.
            let offset = offset + ((from - run.first) * unit) as u32;
            Source::Pack { pack: pack.clone(), frame: *frame, offset }
        }
    };
    Run { first: from, count: to - from, source }
}

/// Runs that go on where the one before ended, in the file and in the frame, become one.
fn join(runs: Vec<Run>, unit: u64) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match out.last_mut() {
            Some(last) if goes_on(last, &run, unit) => last.count += run.count,
            _ => out.push(run),
        }
    }
    out
}

fn goes_on(last: &Run, next: &Run, unit: u64) -> bool {
    last.first + last.count == next.first
        && match (&last.source, &next.source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Pack { pack: a, frame: f, offset: o }, Source::Pack { pack: b, frame: g, offset: p }) => {
                f == g
                    && u64::from(*o) + last.count * unit == u64::from(*p)
                    && (a.number, &a.backup) == (b.number, &b.backup)
            }
            _ => false,
        }
}
