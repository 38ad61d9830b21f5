//! A transaction over one container, and what every change needs: records placed in nests, groups, counts.

use daos_types::{Cookie, Epoch};
use daos_umem::{
    Heap, Transaction,
    space::{Freed, SpaceMap},
};

use crate::{
    Error, StoredExtent,
    blocks::{self, Reservation},
    groups, memory,
    records::{ContainerRecord, Counts, KeyRecord},
};

/// What a pool keeps in memory to make the next change cheaper. Lost without harm.
#[derive(Default)]
pub(crate) struct Cache {
    /// The group that the last change of the pool went to, with its container's record. There is one for the pool and not
    /// one per handle: a group that a discard through one handle has removed must not be remembered by another.
    pub group: Option<(u64, Epoch, Cookie, u64)>,
    /// Where records are put together before they are written.
    pub scratch: Vec<u8>,
}

/// A transaction over one container.
pub(crate) struct Editor<'t, 'h> {
    pub tx: &'t mut Transaction<'h>,
    /// Offset of the [`ContainerRecord`].
    pub container: u64,
    /// Seed of key hashes.
    pub seed: u64,
    pub cache: &'t mut Cache,
    /// How the counts change.
    objects: i64,
    records: i64,
    data_bytes: i64,
    /// Extents of the block tier that the transaction gives back: (position, bytes).
    pub freed_blocks: Vec<(u64, u64)>,
    /// Extents of the block tier that the transaction publishes.
    pub published: Vec<Reservation>,
    /// The space of the block tier, if there is one.
    space: Option<&'t SpaceMap>,
    /// What the transaction frees there.
    pub freed: Vec<Freed>,
    /// Bytes that trimming and merging have written: what a slice of aggregation is measured by.
    pub compacted_bytes: u64,
}

impl<'t, 'h> Editor<'t, 'h> {
    pub fn new(
        tx: &'t mut Transaction<'h>,
        container: u64,
        seed: u64,
        cache: &'t mut Cache,
        space: Option<&'t SpaceMap>,
    ) -> Self {
        Self {
            tx,
            container,
            seed,
            cache,
            objects: 0,
            records: 0,
            data_bytes: 0,
            freed_blocks: Vec::new(),
            published: Vec::new(),
            space,
            freed: Vec::new(),
            compacted_bytes: 0,
        }
    }

    pub fn heap(&self) -> &Heap {
        self.tx.heap()
    }

    #[inline]
    pub fn read<T: daos_umem::Durable>(&self, offset: u64) -> Result<&T, Error> {
        memory::read(self.tx.heap(), offset)
    }

    #[inline]
    pub fn write<T: daos_umem::Durable>(&mut self, offset: u64, value: &T) -> Result<(), Error> {
        memory::write(self.tx, offset, value)
    }

    /// The place of a field of the container record.
    pub fn container_field(&self, offset: usize) -> u64 {
        self.container + offset as u64
    }

    pub fn count_object(&mut self, change: i64) {
        self.objects += change;
    }

    pub fn count_record(&mut self, change: i64, data_bytes: i64) {
        self.records += change;
        self.data_bytes += data_bytes;
    }

    /// Notes a change in the group of its epoch and cookie.
    pub fn note(&mut self, epoch: Epoch, cookie: Cookie, entry: &[u64]) -> Result<(), Error> {
        groups::append(self, epoch, cookie, entry)
    }

    /// Notes that a record of this transaction names bytes on the block tier.
    pub fn publish(&mut self, stored: &StoredExtent) -> Result<(), Error> {
        if stored.is_published() || self.published.iter().any(|other| other.is(&stored.reservation)) {
            return Err(Error::Invalid("stored bytes can be named by one record only"));
        }
        let space = self.space.ok_or(Error::Invalid("the pool has no block tier"))?;
        stored.reservation.publish(space, self.tx)?;
        self.published.push(stored.reservation.clone());
        Ok(())
    }

    /// Writes the counts; the last step of a transaction.
    pub fn finish(&mut self) -> Result<(), Error> {
        for extent in std::mem::take(&mut self.freed_blocks) {
            let space = self.space.ok_or(Error::Corrupt { place: "block tier", position: extent.0 })?;
            self.freed.push(blocks::free(space, self.tx, extent)?);
        }
        if (self.objects, self.records, self.data_bytes) == (0, 0, 0) {
            return Ok(());
        }
        let place = self.container_field(std::mem::offset_of!(ContainerRecord, counts));
        let old: Counts = *self.read(place)?;
        let counts = Counts {
            objects: old.objects.wrapping_add_signed(self.objects),
            records: old.records.wrapping_add_signed(self.records),
            data_bytes: old.data_bytes.wrapping_add_signed(self.data_bytes),
        };
        (self.objects, self.records, self.data_bytes) = (0, 0, 0);
        self.write(place, &counts)
    }

    /// Room for a record of `bytes` bytes below the key at `parent`: its nest, or a block.
    pub fn place_below(&mut self, parent: Option<u64>, bytes: u64) -> Result<u64, Error> {
        if let Some(parent) = parent {
            let mut key: KeyRecord = *self.read(parent)?;
            if !key.nested() && bytes <= key.nest_bytes() {
                key.set_nested(true);
                self.write(parent + std::mem::offset_of!(KeyRecord, shape) as u64, &key.shape)?;
                return Ok(key.nest(parent));
            }
        }
        memory::allocate(self.tx, bytes)
    }

    /// Gives back a record that [`place_below`](Self::place_below) placed.
    pub fn release_below(&mut self, parent: Option<u64>, record: u64) -> Result<(), Error> {
        if let Some(parent) = parent {
            let mut key: KeyRecord = *self.read(parent)?;
            if key.nested() && key.nest(parent) == record {
                key.set_nested(false);
                return self.write(parent + std::mem::offset_of!(KeyRecord, shape) as u64, &key.shape);
            }
        }
        memory::free(self.tx, record)
    }
}
