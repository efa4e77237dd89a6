//! A set of backups, by their numbers in a list.

/// Grows as needed; empty sets take no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Bits {
    pub fn of(number: usize) -> Bits {
        let mut bits = Bits::default();
        bits.set(number);
        bits
    }

    pub fn set(&mut self, number: usize) {
        let word = number / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (number % 64);
        }
    }

    pub fn add(&mut self, other: &Bits) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own |= other;
        }
    }

    pub fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.0.len() * 64).filter(|number| self.has(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_set() {
        let mut bits = Bits::of(3);
        assert_eq!((bits.count(), Bits::default().count()), (1, 0));
        bits.set(130);
        bits.add(&Bits::of(64));
        bits.add(&Bits::of(200));
        assert_eq!(bits.iter().collect::<Vec<_>>(), [3, 64, 130, 200]);
        assert!(bits.has(64) && !bits.has(65) && !bits.has(9999));
        assert_eq!(bits.count(), 4);
    }
}
