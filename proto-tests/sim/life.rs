//! One process of walrecv: it lives until it is killed, and what is dead changes nothing any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio::sync::Notify;

/// A handle on a simulated process. The disk, the store and the network ask it before every effect.
#[derive(Clone)]
pub struct Life(Arc<State>);

struct State {
    id: u32,
    alive: AtomicBool,
    /// Effects until it is killed; below zero: not by counting.
    left: AtomicI64,
    /// The whole host went: nobody told the peers.
    silently: AtomicBool,
    /// Its disk answers nothing.
    hangs: AtomicBool,
    /// No server lets it in.
    barred: AtomicBool,
    died: Notify,
}

impl Life {
    pub fn new(id: u32) -> Life {
        Life(Arc::new(State {
            id,
            alive: AtomicBool::new(true),
            left: AtomicI64::new(-1),
            silently: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            barred: AtomicBool::new(false),
            died: Notify::new(),
        }))
    }

    pub fn id(&self) -> u32 {
        self.0.id
    }

    pub fn is_alive(&self) -> bool {
        self.0.alive.load(Ordering::SeqCst)
    }

    /// Killed before its `effects`-th next effect: between any two steps of what it does.
    pub fn dies_after(&self, effects: u64) {
        self.0.left.store(effects as i64, Ordering::SeqCst);
    }

    /// About to change something. `false`: it is dead, and must not.
    pub fn step(&self) -> bool {
        if self.0.left.load(Ordering::SeqCst) >= 0 && self.0.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.kill();
        }
        self.is_alive()
    }

    pub fn kill(&self) {
        self.0.alive.store(false, Ordering::SeqCst);
        self.0.died.notify_waiters();
    }

    /// Killed with its whole host: its peers are not told.
    pub fn falls_with_its_host(&self) {
        self.0.silently.store(true, Ordering::SeqCst);
        self.kill();
    }

    pub fn fell_with_its_host(&self) -> bool {
        self.0.silently.load(Ordering::SeqCst)
    }

    /// From now on its disk answers nothing, or does so again.
    pub fn hang(&self, hangs: bool) {
        self.0.hangs.store(hangs, Ordering::SeqCst);
    }

    pub fn hangs(&self) -> bool {
        self.0.hangs.load(Ordering::SeqCst)
    }

    /// From now on no server lets it in.
    pub fn bar(&self) {
        self.0.barred.store(true, Ordering::SeqCst);
    }

    pub fn is_barred(&self) -> bool {
        self.0.barred.load(Ordering::SeqCst)
    }

    /// Returns once it is dead.
    pub async fn death(&self) {
        loop {
            let died = self.0.died.notified();
            if !self.is_alive() {
                return;
            }
            died.await;
        }
    }
}
