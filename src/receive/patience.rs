//! Work that waits for the repository, and is left for a while once nothing comes of it.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use crate::stats::StreamStats;

/// How often it is looked whether anything was stored.
const LOOK: Duration = Duration::from_secs(1);

/// `work`, unless nothing is stored for `limit` before it is done; what it has begun must bear being left.
pub async fn unless_stalled<T>(work: impl Future<Output = T>, stats: &StreamStats, limit: Duration) -> Option<T> {
    let mut work = pin!(work);
    let stored = || (stats.durable.get(), stats.puts.get(), stats.flushes.get());
    let (mut last, mut at) = (stored(), Instant::now());
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            () = tokio::time::sleep(LOOK.min(limit)) => {}
        }
        if std::mem::replace(&mut last, stored()) != last {
            at = Instant::now();
        } else if at.elapsed() >= limit {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Puts so many objects, `pause` apart.
    async fn put(stats: &StreamStats, objects: u32, pause: Duration) -> u32 {
        for _ in 0..objects {
            tokio::time::sleep(pause).await;
            stats.puts.add(1);
        }
        objects
    }

    #[tokio::test(start_paused = true)]
    async fn slow_work_is_waited_for_and_dead_work_is_left() {
        let stats = StreamStats::default();
        let slow = put(&stats, 20, LIMIT * 4 / 5);
        assert_eq!(unless_stalled(slow, &stats, LIMIT).await, Some(20));
        let begun = Instant::now();
        assert_eq!(unless_stalled(put(&stats, 1, LIMIT * 2), &stats, LIMIT).await, None);
        assert_eq!(begun.elapsed(), LIMIT);
    }
}
