//! What is referred to, against what is in use: blocks of the arena and of the block tier.

use daos_umem::{Heap, Off, space::SpaceMap};

use crate::{Error, error::from_heap};

const GRANULE_BYTES: u64 = 16;
const BLOCK: u64 = daos_xstream::BLOCK_BYTES as u64;

/// Blocks of the arena that something refers to: a bit for each place where a block can begin.
pub(super) struct Blocks(Vec<u64>);

impl Blocks {
    pub fn new(heap: &Heap) -> Self {
        Self(vec![0; (heap.arena_bytes() / GRANULE_BYTES / 64 + 1) as usize])
    }

    /// Notes a reference to the block at `offset`, which must have `bytes` bytes; says what is wrong with it.
    pub fn reach(&mut self, heap: &Heap, offset: u64, bytes: u64) -> Result<(), String> {
        let has = heap.block_bytes(Off::<u8>::new(offset));
        let has = has.map_err(|_| format!("a reference to {offset:#x}, where no block is in use"))?;
        if has < bytes {
            return Err(format!("the block at {offset:#x} has {has} bytes, its content {bytes}"));
        }
        let granule = offset / GRANULE_BYTES;
        let word = &mut self.0[(granule / 64) as usize];
        if *word >> (granule % 64) & 1 == 1 {
            return Err(format!("two references to the block at {offset:#x}"));
        }
        *word |= 1 << (granule % 64);
        Ok(())
    }

    /// How many blocks are in use, and what to say of those that nothing refers to.
    pub fn compare(&self, heap: &Heap) -> (u64, Option<String>) {
        let (mut blocks, mut lost, mut lost_bytes, mut first) = (0, 0u64, 0, 0);
        heap.for_each_block(&mut |offset, bytes| {
            blocks += 1;
            let granule = offset / GRANULE_BYTES;
            if self.0[(granule / 64) as usize] >> (granule % 64) & 1 == 0 {
                first = if lost == 0 { offset } else { first };
                (lost, lost_bytes) = (lost + 1, lost_bytes + bytes);
            }
        });
        let what =
            format!("nothing refers to {lost} blocks in use ({lost_bytes} bytes), the first at {first:#x}");
        (blocks, (lost > 0).then_some(what))
    }
}

/// Blocks of the block tier that records name.
pub(super) struct Tier {
    block_count: u64,
    words: Vec<u64>,
}

impl Tier {
    pub fn new(block_count: u64) -> Self {
        Self { block_count, words: vec![0; block_count.div_ceil(64) as usize] }
    }

    /// Notes that a record names these bytes; says what is wrong with that.
    pub fn reach(&mut self, position: u64, length: u64) -> Result<(), String> {
        let first = position / BLOCK;
        let end = position.checked_add(length).map(|end| end.div_ceil(BLOCK));
        let Some(end) = end.filter(|&end| end <= self.block_count && position.is_multiple_of(BLOCK)) else {
            return Err(format!("a record names {length} bytes at {position:#x} of the block tier"));
        };
        let mut twice = None;
        for block in first..end {
            let word = &mut self.words[(block / 64) as usize];
            if *word >> (block % 64) & 1 == 1 {
                twice = Some(block);
            }
            *word |= 1 << (block % 64);
        }
        match twice {
            Some(block) => {
                Err(format!("two records name the block at {:#x} of the block tier", block * BLOCK))
            }
            None => Ok(()),
        }
    }

    /// How the blocks named differ from those in use.
    pub fn compare(&self, heap: &Heap, space: &SpaceMap) -> Result<Vec<String>, Error> {
        let (mut lost, mut missing, mut first) = (0, 0, (0, 0));
        for (index, &named) in (0u64..).zip(&self.words) {
            let used = space.word(heap, index).map_err(from_heap)?;
            for (count, bits, first) in
                [(&mut lost, used & !named, &mut first.0), (&mut missing, named & !used, &mut first.1)]
            {
                if bits != 0 {
                    let place = (index * 64 + u64::from(bits.trailing_zeros())) * BLOCK;
                    *first = if *count == 0 { place } else { *first };
                    *count += bits.count_ones();
                }
            }
        }
        let mut differs = Vec::new();
        if lost > 0 {
            differs.push(format!(
                "nothing names {lost} blocks in use of the block tier, the first at {:#x}",
                first.0
            ));
        }
        if missing > 0 {
            differs.push(format!(
                "records name {missing} blocks of the block tier that the space map calls free, the first at {:#x}",
                first.1
            ));
        }
        Ok(differs)
    }
}
