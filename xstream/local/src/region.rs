//! The memory that an engine and one client share: a sealed memfd, mapped by both.
//!
//! # Invariants
//!
//! * The engine makes it, with its final size, and seals it (`F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL`) before anybody else gets
//!   the descriptor: a peer can neither truncate it (an access would raise SIGBUS) nor add a write seal. A client
//!   checks the seals and the size before it maps, so that it is as safe from the engine.
//! * A peer may punch holes. They read as zeros and fill again when written: costs, nothing else.
//! * It is reached only as words of [`AtomicU64`]: see [`crate::words`] for why that is sound.
//! * The engine closes the descriptor once it is sent. The memory is freed when both have unmapped it; a dead client's mapping
//!   is gone already when the kernel closes its socket or soon after.

use std::{
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create},
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
};

use crate::{
    atomic::AtomicU64,
    bulk::{PAGE_BYTES, TABLE_ENTRY_BYTES},
    ring::RingView,
    words::WORD_BYTES,
};

/// Distance of words that different sides write: two cache lines, because processors fetch lines in pairs.
const LINE_BYTES: u64 = 128;
/// Room for the published words of both rings; the rest of the first page is unused.
const CONTROL_BYTES: u64 = 4096;

/// Sizes of the parts of a region. Both sides compute the same places from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    ring_bytes: u64,
    bulk_bytes: u64,
}

/// One of the two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The client produces, the engine consumes.
    ToEngine,
    /// The engine produces, the client consumes.
    ToClient,
}

impl Layout {
    /// Bytes that each ring may have: a power of two between these.
    pub const RING_BYTES: std::ops::RangeInclusive<u64> = 128 << 10..=64 << 20;
    /// Bytes that the bulk area may have, at most; a multiple of [`PAGE_BYTES`].
    pub const BULK_BYTES_MAX: u64 = 1 << 30;

    /// Checks sizes that came from a configuration or from a peer.
    pub fn new(ring_bytes: u64, bulk_bytes: u64) -> Option<Self> {
        let valid = Self::RING_BYTES.contains(&ring_bytes)
            && ring_bytes.is_power_of_two()
            && (PAGE_BYTES..=Self::BULK_BYTES_MAX).contains(&bulk_bytes)
            && bulk_bytes.is_multiple_of(PAGE_BYTES);
        valid.then_some(Self { ring_bytes, bulk_bytes })
    }

    /// Bytes of each ring.
    pub fn ring_bytes(self) -> u64 {
        self.ring_bytes
    }

    /// Bytes of the bulk area.
    pub fn bulk_bytes(self) -> u64 {
        self.bulk_bytes
    }

    fn rings_at(self) -> u64 {
        CONTROL_BYTES
    }

    fn table_at(self) -> u64 {
        self.rings_at() + 2 * self.ring_bytes
    }

    fn table_bytes(self) -> u64 {
        (self.bulk_bytes / PAGE_BYTES * TABLE_ENTRY_BYTES).next_multiple_of(PAGE_BYTES)
    }

    fn bulk_at(self) -> u64 {
        self.table_at() + self.table_bytes()
    }

    /// Bytes of the whole region.
    pub fn bytes(self) -> u64 {
        self.bulk_at() + self.bulk_bytes
    }
}

/// A mapped region.
pub(crate) struct Region {
    base: NonNull<AtomicU64>,
    layout: Layout,
}

impl Region {
    /// Makes and maps a region. The descriptor is for the client and may be closed once it is sent.
    pub fn create(layout: Layout) -> Result<(Self, OwnedFd), Errno> {
        let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = match memfd_create(c"daos-local", base | MemfdFlags::NOEXEC_SEAL) {
            // Kernels before 6.3 do not know the flag.
            Err(Errno::INVAL) => memfd_create(c"daos-local", base)?,
            other => other?,
        };
        ftruncate(&memory, layout.bytes())?;
        fcntl_add_seals(&memory, Self::seals())?;
        Ok((Self::map(&memory, layout)?, memory))
    }

    /// Maps the region that an engine sent, after checking that it cannot shrink under us.
    pub fn open(memory: impl AsFd, layout: Layout) -> Result<Self, Errno> {
        let sealed = fcntl_get_seals(&memory)?.contains(Self::seals());
        let sized = fstat(&memory)?.st_size as u64 == layout.bytes();
        if !sealed || !sized {
            return Err(Errno::INVAL);
        }
        Self::map(memory, layout)
    }

    fn seals() -> SealFlags {
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
    }

    fn map(memory: impl AsFd, layout: Layout) -> Result<Self, Errno> {
        let length = layout.bytes() as usize;
        // SAFETY: the kernel chooses an unused range, and the file has `length` bytes that can never become fewer.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                0,
            )?
        };
        let region = Self { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?, layout };
        // SAFETY: the range is the mapping just made. A child of fork(2) must not have it: two producers would
        // write one ring.
        unsafe { madvise(base, length, Advice::LinuxDontFork)? };
        Ok(region)
    }

    /// The sizes.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `bytes()` long (a multiple of 8), page-aligned, readable and writable, and lives until
        // `drop`, which outlives the borrow. Bytes of a fresh mapping are zeros, and any bit pattern is a
        // valid `AtomicU64`. This process only ever reaches the memory through these atomics; what the other process does to it
        // happens outside of this program and can only change the values that the atomic loads return.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.bytes() as usize / WORD_BYTES) }
    }

    fn part(&self, start: u64, bytes: u64) -> &[AtomicU64] {
        let start = start as usize / WORD_BYTES;
        &self.words()[start..start + bytes as usize / WORD_BYTES]
    }

    /// One of the rings.
    #[inline]
    pub fn ring(&self, direction: Direction) -> RingView<'_> {
        let which = direction as u64;
        let line = |number: u64| &self.words()[((which * 4 + number) * LINE_BYTES) as usize / WORD_BYTES];
        RingView {
            words: self.part(self.layout.rings_at() + which * self.layout.ring_bytes, self.layout.ring_bytes),
            tail: line(0),
            head: line(1),
            asleep: line(2),
            starved: line(3),
        }
    }

    /// The table of exposures: [`TABLE_ENTRY_BYTES`] for each page of the bulk area.
    pub fn table(&self) -> &[AtomicU64] {
        self.part(self.layout.table_at(), self.layout.bulk_bytes / PAGE_BYTES * TABLE_ENTRY_BYTES)
    }

    /// The bulk area.
    pub fn bulk(&self) -> &[AtomicU64] {
        self.part(self.layout.bulk_at(), self.layout.bulk_bytes)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `map` got, and no borrow of it outlives `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.layout.bytes() as usize) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::fallocate;

    use super::*;

    #[test]
    fn parts_do_not_overlap_and_fill_the_region() {
        let layout = Layout::new(128 << 10, 1 << 20).unwrap();
        assert_eq!(layout.table_at(), 4096 + (256 << 10));
        assert_eq!(layout.bulk_at(), layout.table_at() + 256 * TABLE_ENTRY_BYTES);
        assert_eq!(layout.bytes() % PAGE_BYTES, 0);
        const { assert!(8 * LINE_BYTES <= CONTROL_BYTES) };
    }

    #[test]
    fn bad_sizes_are_refused() {
        for (ring, bulk) in
            [(0, 4096), (64 << 10, 4096), (129 << 10, 4096), (128 << 20, 4096), (128 << 10, 0)]
        {
            assert_eq!(Layout::new(ring, bulk), None, "{ring} {bulk}");
        }
        assert_eq!(Layout::new(128 << 10, 4097), None);
        assert_eq!(Layout::new(128 << 10, u64::MAX), None);
    }

    #[test]
    fn nobody_can_resize_or_write_protect_a_region() {
        let layout = Layout::new(128 << 10, 1 << 20).unwrap();
        let (region, memory) = Region::create(layout).unwrap();
        assert_eq!(ftruncate(&memory, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&memory, 1 << 30), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(&memory, SealFlags::WRITE), Err(Errno::PERM));
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        fallocate(&memory, hole, 0, layout.bytes()).unwrap();
        let other = Region::open(&memory, layout).unwrap();
        region.bulk()[5].store(7, crate::atomic::Ordering::Relaxed);
        assert_eq!(other.bulk()[5].load(crate::atomic::Ordering::Relaxed), 7);
    }

    #[test]
    fn a_region_that_could_shrink_is_not_mapped() {
        let layout = Layout::new(128 << 10, 1 << 20).unwrap();
        let memory = memfd_create(c"unsealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&memory, layout.bytes()).unwrap();
        assert!(Region::open(&memory, layout).is_err());
        fcntl_add_seals(&memory, Region::seals()).unwrap();
        assert!(Region::open(&memory, layout).is_ok());
        assert!(Region::open(&memory, Layout::new(128 << 10, 2 << 20).unwrap()).is_err(), "another size");
    }
}
