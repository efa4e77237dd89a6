//! How long to wait before the next attempt. Computes, never sleeps.

use std::time::Duration;

/// Exponential backoff with jitter from a seed: immediate first, then `first`, doubling up to `max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempt: u32,
    seed: u64,
}

impl Backoff {
    /// `seed` spreads the waits of several processes; tests give a fixed one.
    pub fn new(first: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff { first, max, attempt: 0, seed }
    }

    /// The wait before the next attempt: zero the first time, then between half and all of the doubled step.
    pub fn next_delay(&mut self) -> Duration {
        let attempt = self.attempt;
        self.attempt = self.attempt.saturating_add(1);
        if attempt == 0 {
            return Duration::ZERO;
        }
        let step = self.first.saturating_mul(1u32 << (attempt - 1).min(20)).min(self.max);
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let share = (self.seed >> 33) as f64 / (1u64 << 31) as f64;
        step.mul_f64(0.5 + share / 2.0)
    }

    /// After a success: the next failure is answered at once again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_maximum_and_starts_again_after_a_success() {
        let max = Duration::from_secs(5);
        let mut backoff = Backoff::new(Duration::from_millis(100), max, 7);
        assert_eq!(backoff.next_delay(), Duration::ZERO);
        let delays: Vec<_> = (0..40).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] >= Duration::from_millis(50) && delays[0] <= Duration::from_millis(100));
        assert!(delays.iter().all(|d| *d <= max));
        assert!(delays[39] >= max / 2);
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::ZERO);
    }
}
