//! Equal pieces of memory that libfabric may write to or read from while they are lent to it.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
};

/// `count` pieces of `stride` bytes each. It hands out raw pointers only: a reference would promise the compiler that
/// nobody else writes, which is untrue while a piece is posted.
pub(crate) struct Pieces {
    base: NonNull<u8>,
    stride: usize,
    count: usize,
}

impl Pieces {
    pub(crate) fn new(count: usize, stride: usize) -> Self {
        assert!(count > 0 && stride > 0, "an endpoint needs buffers");
        let layout = Self::layout(count, stride);
        // SAFETY: the layout has a non-zero size, asserted above.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Self { base, stride, count }
    }

    fn layout(count: usize, stride: usize) -> Layout {
        let bytes = count.checked_mul(stride).expect("buffers that fit in memory");
        Layout::from_size_align(bytes, 64).expect("buffers that fit in memory")
    }

    /// How many pieces there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of a piece.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Start of piece `index`.
    pub(crate) fn piece(&self, index: usize) -> *mut u8 {
        assert!(index < self.count, "buffer {index} of {}", self.count);
        // SAFETY: index < count, so the result lies within the one allocation of count × stride bytes.
        unsafe { self.base.as_ptr().add(index * self.stride) }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this same layout, and freed only here.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.count, self.stride)) }
    }
}
