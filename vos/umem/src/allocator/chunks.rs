//! The set of free chunks: a bitmap with a hint where to look.

/// Which chunks are free.
pub(super) struct FreeChunks {
    /// A bit per chunk; 1 is free.
    words: Vec<u64>,
    chunk_count: usize,
    free: u64,
    /// No free chunk lies in a word before this one.
    first_word: usize,
}

impl FreeChunks {
    /// Nothing free among `chunk_count` chunks.
    pub fn none(chunk_count: usize) -> Self {
        Self { words: vec![0; chunk_count.div_ceil(64)], chunk_count, free: 0, first_word: 0 }
    }

    /// How many are free.
    pub fn count(&self) -> u64 {
        self.free
    }

    /// Marks `count` chunks from `chunk` free; those that are already stay so.
    pub fn insert(&mut self, chunk: u32, count: u32) {
        self.first_word = self.first_word.min(chunk as usize / 64);
        for chunk in chunk..chunk + count {
            let (word, bit) = (&mut self.words[chunk as usize / 64], 1 << (chunk % 64));
            self.free += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Marks `count` chunks from `chunk` used; those that are already stay so.
    pub fn remove(&mut self, chunk: u32, count: u32) {
        for chunk in chunk..chunk + count {
            let (word, bit) = (&mut self.words[chunk as usize / 64], 1 << (chunk % 64));
            self.free -= u64::from(*word & bit != 0);
            *word &= !bit;
        }
    }

    /// The lowest `count` free chunks in a row.
    pub fn find(&mut self, count: u32) -> Option<u32> {
        if self.free < u64::from(count) {
            return None;
        }
        while self.words[self.first_word] == 0 {
            self.first_word += 1;
        }
        if count == 1 {
            let word = self.words[self.first_word];
            return Some(self.first_word as u32 * 64 + word.trailing_zeros());
        }
        self.runs().find(|&(_, length)| length >= count).map(|(start, _)| start)
    }

    /// The length of the longest row of free chunks.
    pub fn longest(&self) -> u64 {
        self.runs().map(|(_, length)| u64::from(length)).max().unwrap_or(0)
    }

    /// The maximal rows of free chunks: (first chunk, length).
    fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut chunk = self.first_word * 64;
        std::iter::from_fn(move || {
            let start = self.next_from(chunk, true)?;
            let end = self.next_from(start, false).unwrap_or(self.chunk_count);
            chunk = end;
            Some((start as u32, (end - start) as u32))
        })
    }

    /// The first chunk from `chunk` on that is free, or is not.
    fn next_from(&self, chunk: usize, free: bool) -> Option<usize> {
        let mut word = chunk / 64;
        let mut mask = u64::MAX << (chunk % 64);
        while word < self.words.len() {
            let bits = if free { self.words[word] } else { !self.words[word] } & mask;
            if bits != 0 {
                let found = word * 64 + bits.trailing_zeros() as usize;
                return (found < self.chunk_count).then_some(found);
            }
            (word, mask) = (word + 1, u64::MAX);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_across_words_and_at_the_end() {
        let mut chunks = FreeChunks::none(200);
        assert_eq!((chunks.find(1), chunks.longest()), (None, 0));
        chunks.insert(60, 10);
        chunks.insert(190, 10);
        chunks.insert(3, 1);
        assert_eq!((chunks.count(), chunks.longest()), (21, 10));
        assert_eq!((chunks.find(1), chunks.find(2), chunks.find(10)), (Some(3), Some(60), Some(60)));
        chunks.remove(60, 1);
        assert_eq!((chunks.find(10), chunks.find(11)), (Some(190), None));
        chunks.remove(60, 1);
        assert_eq!(chunks.count(), 20, "removing twice counts once");
    }
}
