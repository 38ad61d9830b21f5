//! The arena: one contiguous range of memory, reserved once and never moved.
//!
//! # Invariants
//!
//! * `base` is aligned to a page at least, and `length` bytes from it are readable and writable until the arena is dropped.
//! * Every byte has been initialised (by the system, with zeros, or by a mapped file).
//! * Only this value refers to the range; references into it borrow it. The only other readers and writers of a mapped
//!   file would be other processes, which the file's lock keeps out.

use std::{fmt, ptr::NonNull};

use crate::{Durable, HeapError, pmem::LINE_BYTES};

/// Bytes of a page: the unit in which memory is marked dirty and the arena is written to a file.
pub const PAGE_BYTES: u64 = 4096;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Who gave the memory, and so how it is given back.
enum Owner {
    /// An anonymous mapping: (start, length) of the whole reservation, which may begin before the arena to align it.
    Anonymous(NonNull<u8>, usize),
    /// Something else that keeps the memory valid while it lives, and gives it back when dropped.
    #[allow(dead_code, reason = "held for its destructor")]
    Held(Box<dyn std::any::Any>),
}

/// One contiguous range of memory that holds a heap.
pub struct Arena {
    base: NonNull<u8>,
    length: u64,
    owner: Owner,
}

impl Arena {
    /// Reserves `length` bytes of zeros, on huge pages where the system has them. Memory is taken as it is touched.
    pub fn reserve(length: u64) -> Result<Self, HeapError> {
        let no_memory = HeapError::NoMemory(length);
        let bytes = usize::try_from(length).map_err(|_| no_memory)?;
        let (start, mapped) =
            system::map(bytes.checked_add(HUGE_PAGE_BYTES).ok_or(no_memory)?).ok_or(no_memory)?;
        let skip = start.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `skip` is less than `HUGE_PAGE_BYTES`, by which the mapping is longer than `bytes`.
        let base = unsafe { start.add(skip) };
        system::advise_huge(base, bytes);
        Ok(Self { base, length, owner: Owner::Anonymous(start, mapped) })
    }

    /// An arena in plain memory with a copy of `bytes`: for tests that keep an image of their own.
    pub fn copy_of(bytes: &[u8]) -> Result<Self, HeapError> {
        let mut arena = Self::reserve(bytes.len() as u64)?;
        arena.as_mut_slice().copy_from_slice(bytes);
        Ok(arena)
    }

    /// Takes over memory that somebody else mapped.
    ///
    /// # Safety
    ///
    /// `length` initialised bytes from `base`, which is aligned to [`PAGE_BYTES`], are valid for reads and writes while
    /// `holder` lives, and nothing else refers to them.
    pub(crate) unsafe fn adopt(base: NonNull<u8>, length: u64, holder: Box<dyn std::any::Any>) -> Self {
        Self { base, length, owner: Owner::Held(holder) }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether `offset..offset + length` lies within, `offset` being at least `first`.
    #[inline]
    fn holds(&self, first: u64, offset: u64, length: u64) -> bool {
        // Neither subtraction can wrap where it is looked at: `length <= self.length - first` is asked first.
        let room = self.length - first;
        length <= room && offset.wrapping_sub(first) <= room - length
    }

    /// The value at `offset`, which must not begin before `first`.
    #[inline]
    pub(crate) fn value<T: Durable>(&self, first: u64, offset: u64) -> Result<&T, HeapError> {
        Ok(&self.values::<T>(first, offset, 1)?[0])
    }

    /// `count` values from `offset`, which must not begin before `first`.
    #[inline]
    pub(crate) fn values<T: Durable>(&self, first: u64, offset: u64, count: u64) -> Result<&[T], HeapError> {
        const { assert!(align_of::<T>() <= PAGE_BYTES as usize, "the arena is aligned to a page only") };
        let length = count.saturating_mul(size_of::<T>() as u64);
        if !self.holds(first, offset, length) {
            return Err(HeapError::OutOfBounds { offset, length });
        }
        if !offset.is_multiple_of(align_of::<T>() as u64) {
            return Err(HeapError::Misaligned(offset));
        }
        // SAFETY: the range lies in the arena, is aligned (so is the base), is initialised, and any bytes are a `T`. The
        // result borrows the arena, whose bytes change only through `&mut self`.
        Ok(unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().add(offset as usize).cast::<T>(), count as usize)
        })
    }

    /// `length` bytes from `offset`, which must not begin before `first`, writable.
    #[inline]
    pub(crate) fn bytes_mut(&mut self, first: u64, offset: u64, length: u64) -> Result<&mut [u8], HeapError> {
        if !self.holds(first, offset, length) {
            return Err(HeapError::OutOfBounds { offset, length });
        }
        // SAFETY: the range lies in the arena and is initialised; `&mut self` makes the borrow the only one.
        Ok(unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr().add(offset as usize), length as usize)
        })
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the whole range is initialised and borrowed from `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length as usize) }
    }

    /// All bytes, writable.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the whole range is initialised, and `&mut self` makes the borrow the only one.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.length as usize) }
    }

    /// Hints that `lines` cache lines from `offset` on will be read soon, so that several misses can be waited for together. Does
    /// nothing if not all of them lie in the arena.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: u64, lines: u64) {
        if lines * LINE_BYTES > self.length.saturating_sub(offset) {
            return;
        }
        for line in 0..lines {
            // SAFETY: the address lies in the arena, and a prefetch reads nothing that the program can see.
            unsafe { system::prefetch(self.base.as_ptr().add((offset + line * LINE_BYTES) as usize)) }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Owner::Anonymous(start, length) = self.owner {
            // SAFETY: this is the mapping that `reserve` made, and nothing borrows it any more.
            unsafe { system::unmap(start, length) }
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} bytes)", self.length)
    }
}

#[cfg(not(miri))]
mod system {
    use std::ptr::{NonNull, null_mut};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    /// Maps at least `bytes` bytes of zeros; gives the mapping's start and length.
    pub fn map(bytes: usize) -> Option<(NonNull<u8>, usize)> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address that the kernel chooses touches no memory in use.
        let start =
            unsafe { mmap_anonymous(null_mut(), bytes, protection, MapFlags::PRIVATE | MapFlags::NORESERVE) };
        Some((NonNull::new(start.ok()?.cast())?, bytes))
    }

    /// Asks for huge pages. Without them the arena is slower, not wrong, so a refusal is no error.
    pub fn advise_huge(base: std::ptr::NonNull<u8>, bytes: usize) {
        // SAFETY: the range is a mapping of ours, and the advice does not change what it holds.
        let _ = unsafe { madvise(base.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
    }

    /// # Safety
    ///
    /// The range is a mapping made by [`map`], and nothing uses it any more.
    pub unsafe fn unmap(start: NonNull<u8>, length: usize) {
        // SAFETY: as the caller promises. A failure would leak address space; there is nobody to tell.
        let _ = unsafe { munmap(start.as_ptr().cast(), length) };
    }

    /// # Safety
    ///
    /// `address` lies in mapped memory.
    #[inline]
    pub unsafe fn prefetch(address: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no effect that the program can see.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }
}

/// Under Miri memory comes from the allocator.
#[cfg(miri)]
mod system {
    use std::{
        alloc::{Layout, alloc_zeroed, dealloc},
        ptr::NonNull,
    };

    pub fn map(bytes: usize) -> Option<(NonNull<u8>, usize)> {
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(Layout::from_size_align(bytes, super::HUGE_PAGE_BYTES).ok()?) };
        Some((NonNull::new(start)?, bytes))
    }

    pub fn advise_huge(_: NonNull<u8>, _: usize) {}

    pub unsafe fn unmap(start: NonNull<u8>, length: usize) {
        let layout =
            Layout::from_size_align(length, super::HUGE_PAGE_BYTES).expect("the layout it was made with");
        // SAFETY: `map` made it with this layout, and the caller promises that nothing uses it any more.
        unsafe { dealloc(start.as_ptr(), layout) }
    }

    pub unsafe fn prefetch(_: *const u8) {}
}
