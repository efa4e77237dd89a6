//! What happened, for a person who has to understand a failing seed.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

const KEPT: usize = 60;

/// The last events of a run, and a fingerprint of all of them. The first thing that must not be is kept.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

struct State {
    begun: Instant,
    last: VecDeque<String>,
    hasher: DefaultHasher,
    count: u64,
    violation: Option<String>,
    aloud: bool,
}

impl Trace {
    pub fn new(aloud: bool) -> Trace {
        let hasher = DefaultHasher::new();
        let last = VecDeque::new();
        Trace(Arc::new(Mutex::new(State { begun: Instant::now(), last, hasher, count: 0, violation: None, aloud })))
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn say(&self, text: impl AsRef<str>) {
        self.with(|state| {
            let line = format!("{:9.4} {}", state.begun.elapsed().as_secs_f64(), text.as_ref());
            line.hash(&mut state.hasher);
            state.count += 1;
            if state.aloud {
                println!("{line}");
            }
            state.last.push_back(line);
            if state.last.len() > KEPT {
                state.last.pop_front();
            }
        });
    }

    /// Something that must never be. Only the first counts.
    pub fn violated(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(format!("VIOLATION: {what}"));
        self.with(|state| _ = state.violation.get_or_insert(what));
    }

    pub fn violation(&self) -> Option<String> {
        self.with(|state| state.violation.clone())
    }

    pub fn last(&self) -> String {
        self.with(|state| Vec::from(state.last.clone()).join("\n"))
    }

    /// The same for two runs that went the same way.
    pub fn fingerprint(&self) -> u64 {
        self.with(|state| state.hasher.finish())
    }
}
