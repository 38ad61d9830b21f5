//! Which redundancy group of an object holds what.
//!
//! # Invariants
//!
//! * Every byte of an array and every dkey belongs to exactly one group.
//! * Shards of an array keep the array's own offsets: a shard is the array with gaps where other groups' cells are. So the
//!   size of an array is the maximum over its shards.

use std::ops::Range;

use daos_types::ObjectId;

use crate::placement::hash;

/// How one object is striped over its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Striping {
    seed: u64,
    groups: u32,
    cell_bytes: u64,
}

/// A part of an array that lies in one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The group that holds it.
    pub group: u32,
    /// The array's bytes.
    pub range: Range<u64>,
}

impl Striping {
    /// Striping of `object` over `groups` groups.
    ///
    /// # Panics
    ///
    /// If there are no groups, or cells are empty.
    pub fn new(object: ObjectId, groups: u32, cell_bytes: u64) -> Self {
        assert!(groups > 0 && cell_bytes > 0, "striping over {groups} groups in cells of {cell_bytes} bytes");
        Self { seed: hash::hash_object(object), groups, cell_bytes }
    }

    /// How many groups there are.
    pub fn groups(&self) -> u32 {
        self.groups
    }

    /// The group of a distribution key. The object takes part, or else equal keys of many objects that are striped over
    /// all targets would meet on one target.
    pub fn group_of_key(&self, key: &[u8]) -> u32 {
        if self.groups == 1 {
            return 0;
        }
        hash::bucket(hash::hash_key(key) ^ self.seed, self.groups)
    }

    /// The group of an array's offset. Cells go round robin; the object decides which group is first.
    pub fn group_of_offset(&self, offset: u64) -> u32 {
        let groups = u64::from(self.groups);
        let first = self.seed % groups;
        ((offset / self.cell_bytes % groups + first) % groups) as u32
    }

    /// The cells that `range` touches, in order; one piece if there is one group.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + use<> {
        let striping = *self;
        let mut start = range.start;
        std::iter::from_fn(move || {
            if start >= range.end {
                return None;
            }
            let cell_end =
                (start / striping.cell_bytes).saturating_add(1).saturating_mul(striping.cell_bytes);
            let end = if striping.groups == 1 { range.end } else { cell_end.min(range.end) };
            let piece = Piece { group: striping.group_of_offset(start), range: start..end };
            start = end;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(low: u64) -> ObjectId {
        ObjectId::from_parts(0x0200_0000_0000_0000, 0, low).expect("an array's ID")
    }

    #[test]
    fn pieces_cover_the_range_and_go_round() {
        for low in 0..20 {
            let striping = Striping::new(object(low), 4, 100);
            let pieces: Vec<Piece> = striping.pieces(250..1020).collect();
            assert_eq!(pieces[0].range, 250..300);
            assert_eq!(pieces.last().map(|piece| piece.range.clone()), Some(1000..1020));
            for pair in pieces.windows(2) {
                assert_eq!(pair[0].range.end, pair[1].range.start);
                assert_eq!((pair[0].group + 1) % 4, pair[1].group);
            }
            assert!(pieces.iter().all(|piece| piece.group == striping.group_of_offset(piece.range.end - 1)));
        }
    }

    #[test]
    fn the_ends_of_the_offsets_are_reached() {
        let striping = Striping::new(object(1), 3, 1 << 20);
        assert_eq!(striping.pieces(7..7).count(), 0);
        let last: Vec<Piece> = striping.pieces(u64::MAX - 5..u64::MAX).collect();
        assert_eq!(last.len(), 1);
        assert_eq!(last[0].range, u64::MAX - 5..u64::MAX);
        assert_eq!(Striping::new(object(1), 1, 1 << 20).pieces(0..u64::MAX).count(), 1);
    }

    #[test]
    fn keys_and_first_cells_spread_over_groups() {
        let mut by_key = [0; 8];
        let mut by_first_cell = [0; 8];
        for low in 0..8000u64 {
            let striping = Striping::new(object(low), 8, 1 << 20);
            by_key[striping.group_of_key(b"the same key") as usize] += 1;
            by_first_cell[striping.group_of_offset(0) as usize] += 1;
        }
        for count in by_key.iter().chain(&by_first_cell) {
            assert!((850..1150).contains(count), "{by_key:?} {by_first_cell:?}");
        }
    }
}
