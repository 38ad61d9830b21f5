//! Arrays: extents, their data, and what shares it.

use std::collections::BTreeMap;

use daos_types::Checksum;

use crate::{
    Error,
    extents::{self, ExtentSource, block_of, level_of},
    memory,
    records::{AGED, ArrayHead, DETACHED, EXTENT_BYTES, Extent, Extents, PUNCHED, REBUILD, STORED, VIEW},
};

use super::{Checker, groups::Named};

impl<'h> Checker<'h> {
    /// Checks the array whose head is at `head_place` (0: none). `holder` is what entries of groups call it.
    pub(super) fn array(
        &mut self,
        holder_place: u64,
        head_place: u64,
        holder: Named,
        newest: u64,
    ) -> Result<(), Error> {
        if head_place == 0 {
            return Ok(());
        }
        let head: &'h ArrayHead = memory::read(self.heap, head_place)?;
        self.reach(head_place, size_of::<ArrayHead>() as u64);
        let notes = self.entries.of_array(holder);
        if head.notes != notes && !self.destroying {
            self.fault(format!(
                "{notes} entries of groups name the array at {head_place:#x}, not {}",
                head.notes
            ));
        }
        if head.extents == 0 && head.notes == 0 && !self.destroying {
            self.corrupt("array without an extent", holder_place);
        }
        let mut all = Vec::new();
        // The extents that have data, and how many slots of the tree show it.
        let mut owners: BTreeMap<u64, u32> = BTreeMap::new();
        self.tree(Extents, head.extents, |checker, place| {
            let extent: &'h Extent = memory::read(checker.heap, place)?;
            checker.report.extents += 1;
            checker.counts.records += 1;
            let known = PUNCHED | STORED | REBUILD | AGED | VIEW | DETACHED;
            checker.stamp(place, (extent.epoch, newest.min(head.newest)), extent.flags, known);
            if extent.start >= extent.end || extent.end > crate::ARRAY_BYTES_MAX {
                checker.corrupt("extent that covers nothing", place);
                return Ok(());
            }
            if head.levels >> level_of(block_of(extent.start, extent.end)) & 1 == 0 {
                checker.corrupt("extent at a level that the array does not list", place);
            }
            if extent.flags & AGED == 0 {
                let block = block_of(extent.start, extent.end);
                checker.entries.expect(holder.at(block), extent.epoch, extent.cookie);
            }
            all.push((extent.epoch, extent.start, extent.end));
            let owner = extents::owner_of(checker.heap, place)?;
            if owner != place {
                checker.reach(place, EXTENT_BYTES + 8);
                let data: &Extent = memory::read(checker.heap, owner)?;
                if data.flags & (VIEW | PUNCHED) != 0 || extent.start < data.start || extent.end > data.end {
                    checker.corrupt("view of what it cannot show", place);
                    return Ok(());
                }
            }
            *owners.entry(owner).or_default() += 1;
            Ok(())
        });
        for (owner, references) in owners {
            let checked = self.owner(owner, references);
            self.note(checked);
        }
        all.sort_unstable();
        for pair in all.windows(2) {
            if pair[0].0 == pair[1].0 && pair[0].2 > pair[1].1 {
                self.fault(format!("two extents of epoch {} overlap at offset {}", pair[0].0, pair[1].1));
            }
        }
        Ok(())
    }

    /// Checks an extent with data (or a punch), and the data.
    fn owner(&mut self, place: u64, references: u32) -> Result<(), Error> {
        let extent: &'h Extent = memory::read(self.heap, place)?;
        if extent.references != references {
            self.fault(format!(
                "{references} extents show the data of {place:#x}, not {}",
                extent.references
            ));
        }
        if extent.flags & PUNCHED != 0 {
            self.reach(place, EXTENT_BYTES);
            return Ok(());
        }
        let length = extent.end.checked_sub(extent.start).filter(|&length| length > 0);
        let length = length.ok_or(Error::Corrupt { place: "extent", position: place })?;
        self.counts.data_bytes += length;
        let located = extents::locate(self.heap, place, extent.start..extent.end)?;
        let chunk = u64::from(extent.chunk_bytes);
        let count = (extent.end - 1) / chunk - extent.start / chunk + 1;
        match located {
            ExtentSource::Punched => {}
            ExtentSource::Inline(_) => {
                self.report.arena_bytes_verified += length;
                let sums = EXTENT_BYTES + (count * 4).next_multiple_of(8);
                match extents::detached_block(self.heap, place)? {
                    Some(block) => {
                        self.reach(place, sums + 8);
                        self.reach(block, length);
                    }
                    None => {
                        self.reach(place, sums + length);
                    }
                }
            }
            ExtentSource::Stored { position, checksums: (_, checksums), .. } => {
                self.reach(place, EXTENT_BYTES + 8 + count * 4);
                let mut start = extent.start;
                let chunks = checksums.iter().map(|&checksum| {
                    let end = ((start / chunk + 1) * chunk).min(extent.end);
                    let bytes = (end - start) as u32;
                    start = end;
                    (bytes, Checksum(checksum))
                });
                let chunks = chunks.collect();
                self.stored(position, chunks);
            }
        }
        Ok(())
    }
}
