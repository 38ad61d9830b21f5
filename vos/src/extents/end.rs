//! Where an array ends, found in slices.
//!
//! # Invariants
//!
//! * From [`EndSearch::before`] on nothing is visible; it comes down with every window that was looked at whole.
//! * A window of a single byte is always looked at whole: what holds one byte is little, one block of each level. So a search ends.
//! * The windows that a search takes are bounded by the extents, not by the bytes of the array: where there is little, the next one
//!   is wider, and one with too much becomes narrower.

use daos_umem::Heap;

use super::{Scratch, resolve::resolve_at_most};
use crate::{
    Error, memory,
    records::{ArrayHead, Extent, Extents, PUNCHED},
    tree,
};

/// Extents after which a call ends.
const LOOKED_AT_MAX: usize = 2048;
/// Extents of one window: some 0.8 ms. More than what any window has to pass by, one leaf or two of each of 64 levels.
const WINDOW_EXTENTS_MAX: usize = 8192;
/// Bytes of the first window.
const WINDOW_BYTES: u64 = 4096;

/// How far a search for the end of an array has come; at first, the [default](Default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndSearch {
    /// From here on nothing is visible.
    before: u64,
    /// Bytes that are looked at next.
    window: u64,
}

impl Default for EndSearch {
    fn default() -> Self {
        Self { before: u64::MAX, window: WINDOW_BYTES }
    }
}

impl EndSearch {
    /// The search in a form to be kept with the keys of an anchor.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        [self.before.to_le_bytes(), self.window.to_le_bytes()].concat()
    }

    /// The search that these bytes are; from the beginning if they are none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let Some((before, window)) = bytes.split_first_chunk() else { return Self::default() };
        let Ok(window) = window.try_into() else { return Self::default() };
        Self { before: u64::from_le_bytes(*before), window: u64::from_le_bytes(window).max(1) }
    }
}

/// The end of the last byte of data that is visible at `epochs` (floor, epoch); 0 if there is none. `None`: as many extents were
/// looked at as fit into a slice of time; go on with the same search. `looked_at` grows by the extents.
pub(crate) fn highest_end(
    heap: &Heap,
    head: &ArrayHead,
    epochs: (u64, u64),
    search: &mut EndSearch,
    scratch: &mut Scratch,
    looked_at: &mut usize,
) -> Result<Option<u64>, Error> {
    let most = *looked_at + LOOKED_AT_MAX;
    search.before = search.before.min(tree::summary(heap, Extents, head.extents)?.end);
    while search.before > 0 {
        if *looked_at >= most {
            return Ok(None);
        }
        let start = search.before.saturating_sub(search.window);
        let extents = if search.window == 1 { usize::MAX } else { WINDOW_EXTENTS_MAX };
        let whole = resolve_at_most(extents, heap, Some(head), start..search.before, epochs, scratch)?;
        *looked_at += scratch.looked_at;
        if !whole {
            search.window = (search.window / 16).max(1);
            continue;
        }
        for segment in scratch.segments.iter().rev() {
            if segment.extent != 0 && memory::read::<Extent>(heap, segment.extent)?.flags & PUNCHED == 0 {
                return Ok(Some(segment.end));
            }
        }
        search.before = start;
        // By what is in it, not by what had to be passed by: that does not become less in a narrow one.
        if scratch.candidates.len() < WINDOW_EXTENTS_MAX / 8 {
            search.window = search.window.saturating_mul(4);
        }
    }
    Ok(Some(0))
}
