//! Copies between private bytes and shared memory, in 8-byte words.
//!
//! # Why words, and why relaxed atomics
//!
//! The other process may write any byte of the shared memory at any moment. A `memcpy`, or a `&[u8]`, over such memory
//! is undefined behaviour: the compiler may read a byte twice and assume that it got the same value. A relaxed atomic load
//! of an aligned word compiles to one plain `mov`, is performed exactly once, and yields *some* value whatever the other
//! side does. Only words are used, never single bytes, because overlapping atomics of different sizes are not defined
//! either. Long runs are copied as [`crate::atomic`] explains.
//!
//! Ordering comes from the positions of the ring (release and acquire), never from these copies.

use crate::atomic::{AtomicU64, Ordering, load_many, store_many};

/// Bytes of a word.
pub(crate) const WORD_BYTES: usize = 8;

/// Writes the concatenation of byte strings to words `start..` of a ring whose length is a power of two.
pub(crate) fn store_parts(ring: &[AtomicU64], start: usize, parts: &[&[u8]]) {
    let mask = ring.len() - 1;
    let mut index = start;
    // The bytes that do not fill a word yet wait in the low end of `carry`.
    let (mut carry, mut carried_bits) = (0u64, 0u32);
    for part in parts {
        let (words, rest) = part.as_chunks::<WORD_BYTES>();
        if carried_bits == 0 {
            let first = index & mask;
            let (before_wrap, after_wrap) = words.split_at(words.len().min(ring.len() - first));
            store_many(&ring[first..], before_wrap);
            store_many(ring, after_wrap);
            index += words.len();
        } else {
            for word in words {
                let word = u64::from_le_bytes(*word);
                ring[index & mask].store(carry | (word << carried_bits), Ordering::Relaxed);
                index += 1;
                carry = word >> (64 - carried_bits);
            }
        }
        for byte in rest {
            carry |= u64::from(*byte) << carried_bits;
            carried_bits += 8;
            if carried_bits == 64 {
                ring[index & mask].store(carry, Ordering::Relaxed);
                index += 1;
                (carry, carried_bits) = (0, 0);
            }
        }
    }
    if carried_bits != 0 {
        ring[index & mask].store(carry, Ordering::Relaxed);
    }
}

/// Fills `out` from words `start..` of a ring whose length is a power of two.
pub(crate) fn load_ring(ring: &[AtomicU64], start: usize, out: &mut [u8]) {
    let first = start & (ring.len() - 1);
    let (before_wrap, after_wrap) = out.split_at_mut(out.len().min((ring.len() - first) * WORD_BYTES));
    load_many(&ring[first..], before_wrap);
    load_many(ring, after_wrap);
}

/// Fills `out` from `area`, `skip` bytes after its start.
pub(crate) fn load_bytes(area: &[AtomicU64], skip: usize, out: &mut [u8]) {
    assert!(skip + out.len() <= area.len() * WORD_BYTES, "the range was checked against the area");
    let (mut index, unaligned) = (skip / WORD_BYTES, skip % WORD_BYTES);
    let mut out = out;
    if unaligned != 0 && !out.is_empty() {
        let bytes = area[index].load(Ordering::Relaxed).to_le_bytes();
        let length = out.len().min(WORD_BYTES - unaligned);
        let (first, rest) = out.split_at_mut(length);
        first.copy_from_slice(&bytes[unaligned..unaligned + length]);
        (out, index) = (rest, index + 1);
    }
    load_many(&area[index..], out);
}

/// Writes `bytes` to `area`, `skip` bytes after its start. A word that is only partly covered keeps its other bytes, as
/// long as nobody else writes that word meanwhile.
pub(crate) fn store_bytes(area: &[AtomicU64], skip: usize, bytes: &[u8]) {
    assert!(skip + bytes.len() <= area.len() * WORD_BYTES, "the range was checked against the area");
    let (mut index, unaligned) = (skip / WORD_BYTES, skip % WORD_BYTES);
    let merge = |index: usize, at: usize, piece: &[u8]| {
        let mut word = area[index].load(Ordering::Relaxed).to_le_bytes();
        word[at..at + piece.len()].copy_from_slice(piece);
        area[index].store(u64::from_le_bytes(word), Ordering::Relaxed);
    };
    let mut bytes = bytes;
    if unaligned != 0 && !bytes.is_empty() {
        let (first, rest) = bytes.split_at(bytes.len().min(WORD_BYTES - unaligned));
        merge(index, unaligned, first);
        (bytes, index) = (rest, index + 1);
    }
    let (whole, rest) = bytes.as_chunks::<WORD_BYTES>();
    store_many(&area[index..], whole);
    if !rest.is_empty() {
        merge(index + whole.len(), 0, rest);
    }
}
