//! Which pages of the arena differ from the heap file.

use crate::PAGE_BYTES;

/// A bit per page.
pub(crate) struct DirtyPages {
    words: Vec<u64>,
    count: u64,
}

impl DirtyPages {
    /// All clean.
    pub fn none(arena_bytes: u64) -> Self {
        Self { words: vec![0; arena_bytes.div_ceil(PAGE_BYTES * 64) as usize], count: 0 }
    }

    /// Marks the pages that `length` bytes from `offset` touch.
    #[inline]
    pub fn mark(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        for page in offset / PAGE_BYTES..=(offset + length - 1) / PAGE_BYTES {
            let (word, bit) = (&mut self.words[(page / 64) as usize], 1 << (page % 64));
            self.count += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Takes the first dirty page at or after `page` out.
    pub fn take_from(&mut self, page: u64) -> Option<u64> {
        let mut word = (page / 64) as usize;
        let mut mask = u64::MAX << (page % 64);
        while word < self.words.len() {
            let bits = self.words[word] & mask;
            if bits != 0 {
                let bit = bits.trailing_zeros();
                self.words[word] &= !(1 << bit);
                self.count -= 1;
                return Some(word as u64 * 64 + u64::from(bit));
            }
            (word, mask) = (word + 1, u64::MAX);
        }
        None
    }

    /// How many pages are dirty.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_once_and_in_order() {
        let mut dirty = DirtyPages::none(1 << 20);
        dirty.mark(4095, 2);
        dirty.mark(0, 1);
        dirty.mark(200 * PAGE_BYTES, PAGE_BYTES);
        dirty.mark(5, 0);
        assert_eq!(dirty.count(), 3);
        assert_eq!(
            (dirty.take_from(1), dirty.take_from(1), dirty.take_from(0)),
            (Some(1), Some(200), Some(0))
        );
        assert_eq!((dirty.take_from(0), dirty.count()), (None, 0));
    }
}
