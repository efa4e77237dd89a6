//! Backups that have begun and are none, as `list` shows them: under way, or interrupted.

use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::output;
use crate::archive::unfinished::{Stored, Unfinished};
use crate::backup::{self, Here};

/// Of which nothing has moved for so long, on another host, counts as dead: an expiry gives it up then.
const STALE: Duration = Duration::from_secs(86_400);

/// What such a backup is, as far as can be told from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The process that takes it holds its lock on this host, or something of it has moved within a day.
    Running,
    Interrupted,
    /// It was complete, and somebody removed its manifest.
    Missing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Interrupted => "interrupted",
            State::Missing => "missing",
        }
    }
}

/// All that are known, and this host's part in them.
pub struct Begun {
    known: Vec<(Unfinished, State)>,
    here: Here,
    now: SystemTime,
}

impl Begun {
    /// `unfinished` is in the order in which they began.
    pub fn new(unfinished: Vec<Unfinished>, state_dir: &Path, cluster: &str) -> Begun {
        let (here, now) = (backup::here(state_dir, cluster), SystemTime::now());
        let newest = unfinished.iter().rfind(|one| is_own(one, &here)).map(|one| one.id.clone());
        let judged = unfinished.into_iter().map(|one| {
            let newest = newest.as_ref() == Some(&one.id);
            let state = state(&one, &here, newest, now);
            (one, state)
        });
        Begun { known: judged.collect(), here, now }
    }

    /// What the process has noted that takes a backup on this host and has not announced it yet: it waits for its WAL, or for the checkpoint.
    fn beginning(&self) -> Option<&str> {
        let own = |(one, state): &(Unfinished, State)| *state == State::Running && is_own(one, &self.here);
        let busy = self.here.busy == Some(true) && !self.known.iter().any(own);
        busy.then(|| self.here.note.as_deref().unwrap_or("another process"))
    }

    pub fn lines(&self) -> Vec<String> {
        let beginning = self.beginning().map(|note| format!("RUNNING: a backup is beginning on this host: {note}"));
        self.known.iter().map(|(one, state)| line(one, *state, self.now)).chain(beginning).collect()
    }

    pub fn json(&self) -> Vec<Value> {
        let beginning = self.beginning().map(|note| {
            json!({
                "id": null, "state": "beginning", "started_at": null, "host": self.here.host, "note": note,
                "packs": null, "stored_bytes": null, "moved_at": null,
            })
        });
        self.known.iter().map(|(one, state)| as_json(one, *state)).chain(beginning).collect()
    }
}

/// Whether it was taken with the `state_dir` of this host.
fn is_own(one: &Unfinished, here: &Here) -> bool {
    one.intent.as_ref().is_some_and(|intent| Some(&intent.state) == here.state.as_ref() && intent.host == here.host)
}

/// `newest`: of this host's it is the one that began last, the only one that can be under way.
fn state(one: &Unfinished, here: &Here, newest: bool, now: SystemTime) -> State {
    if one.lost {
        return State::Missing;
    }
    let own = if is_own(one, here) { here.busy.map(|busy| busy && newest) } else { None };
    let moved = one.stored.map_or(one.announced, |stored| stored.moved);
    let fresh = now.duration_since(moved).is_ok_and(|age| age < STALE) || moved > now;
    match one.given_up.is_none() && own.unwrap_or(fresh) {
        true => State::Running,
        false => State::Interrupted,
    }
}

fn line(one: &Unfinished, state: State, now: SystemTime) -> String {
    let host = one.intent.as_ref().map(|intent| intent.host.as_str()).filter(|host| !host.is_empty());
    let began = began(one).map(|at| format!("began {}", output::time(at))).unwrap_or_default();
    let place = host.map(|host| format!(" on {host}")).unwrap_or_default();
    let stored = match &one.stored {
        Some(Stored { packs, bytes, .. }) => {
            format!("; stored so far {} in {}", output::bytes(*bytes), output::count(*packs, "pack"))
        }
        None => String::new(),
    };
    let head = format!("{}: {} {began}{place}", state.name().to_uppercase(), one.id);
    match state {
        State::Running => {
            let ago = |stored: &Stored| now.duration_since(stored.moved).unwrap_or_default().as_secs_f64();
            let last = one.stored.map(|s| format!(", last {} ago", output::seconds(ago(&s)))).unwrap_or_default();
            format!("{head}{stored}{last}")
        }
        State::Interrupted => {
            let why = one.given_up.as_ref().map(|given_up| format!(": {}", given_up.reason)).unwrap_or_default();
            format!("{head}{why}{stored}; the next backup there may use it, and `walrecv expire` frees what none does")
        }
        State::Missing => format!(
            "{head}{stored}; it was complete, and its manifest is gone: put backups/{} back from a copy of the repository",
            one.id
        ),
    }
}

fn began(one: &Unfinished) -> Option<Timestamp> {
    match &one.intent {
        Some(intent) => Some(intent.started_at),
        None => Timestamp::try_from(one.announced).ok(),
    }
}

fn as_json(one: &Unfinished, state: State) -> Value {
    let moved = one.stored.and_then(|stored| Timestamp::try_from(stored.moved).ok());
    json!({
        "id": one.id.to_string(), "state": state.name(), "started_at": began(one).map(output::rfc3339),
        "host": one.intent.as_ref().map(|intent| &intent.host),
        "note": one.given_up.as_ref().map(|given_up| &given_up.reason),
        "packs": one.stored.map(|stored| stored.packs), "stored_bytes": one.stored.map(|stored| stored.bytes),
        "moved_at": moved.map(output::rfc3339),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::SystemIdentifier;
    use crate::seal::content::BackupId;
    use crate::seal::content::intent::Intent;
    use crate::seal::content::manifest::Tombstone;

    const HOUR: Duration = Duration::from_secs(3600);

    fn unfinished(state: &str, host: &str, moved: SystemTime) -> Unfinished {
        let id = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let intent = Intent {
            version: Intent::VERSION,
            id: id.clone(),
            cluster: "main".into(),
            system: SystemIdentifier(7),
            started_at: "2026-01-31T02:00:00Z".parse().unwrap(),
            reuses: Vec::new(),
            state: state.into(),
            made_by: String::new(),
            full: false,
            identity: None,
            host: host.into(),
        };
        let stored = Some(Stored { packs: 3, bytes: 5 << 20, moved });
        Unfinished { id, intent: Some(intent), announced: moved - HOUR, given_up: None, lost: false, stored }
    }

    #[test]
    fn who_runs_is_told_by_the_lock_here_and_by_what_moves_elsewhere() {
        let now = SystemTime::UNIX_EPOCH + 1000 * HOUR;
        let here = |busy| Here { state: Some("mine".into()), host: "a".into(), busy, note: None };
        let of = |state: &str, host: &str, hours: u32| unfinished(state, host, now - hours * HOUR);
        let own = |busy, newest, hours| state(&of("mine", "a", hours), &here(busy), newest, now);
        assert_eq!(own(Some(true), true, 100), State::Running, "it holds its lock");
        assert_eq!(own(Some(true), false, 0), State::Interrupted, "a later one does");
        assert_eq!(own(Some(false), true, 0), State::Interrupted);
        assert_eq!((own(None, true, 1), own(None, true, 30)), (State::Running, State::Interrupted));
        for (digits, host) in [("mine", "b"), ("other", "a")] {
            let elsewhere = |hours| state(&of(digits, host, hours), &here(Some(true)), false, now);
            assert_eq!((elsewhere(23), elsewhere(24)), (State::Running, State::Interrupted));
        }
        let ahead = unfinished("other", "b", now + HOUR);
        assert_eq!(state(&ahead, &here(None), false, now), State::Running, "the store's clock is ahead");
        let given_up = Tombstone {
            version: Tombstone::VERSION,
            id: ahead.id.clone(),
            created_at: Timestamp::UNIX_EPOCH,
            reason: "the server went away".into(),
            made_by: String::new(),
            deleted: false,
        };
        let given_up = Unfinished { given_up: Some(given_up), ..ahead.clone() };
        assert_eq!(state(&given_up, &here(None), false, now), State::Interrupted);
        assert!(
            line(&given_up, State::Interrupted, now)
                .contains(": the server went away; stored so far 5.0 MiB in 3 packs;")
        );
        assert_eq!(state(&Unfinished { lost: true, ..ahead }, &here(None), false, now), State::Missing);
        let told = line(&of("other", "b", 2), State::Running, now);
        let expected =
            "1a2b began 2026-01-31 02:00:00.000000+00 on b; stored so far 5.0 MiB in 3 packs, last 2 h 0 min ago";
        assert!(told.starts_with("RUNNING: 2026") && told.ends_with(expected), "{told}");
    }
}
