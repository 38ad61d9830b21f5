//! The atomics of the shared memory, and copies of many words at once. `tests/ring_under_loom.rs` compiles the ring with those of a
//! model checker instead.
//!
//! # Why a copy in assembly is sound
//!
//! Relaxed atomic loads are never vectorised, which makes a loop over them several times slower than `memcpy`; and `memcpy` over memory
//! that somebody else may write is undefined behaviour. The string instruction stands outside of the language's memory
//! model, like a system call that fills a buffer would: the compiler knows only that this block reads and writes memory,
//! and cannot assume anything about what it read. The hardware reads each byte at some moment, which is all that is asked for:
//! what arrives in private memory is checked there. Its stores come before later ones (only those *within* one
//! instruction may be seen in another order), so publishing a position afterwards with release semantics covers them.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes from which the string instruction beats a loop, in spite of its start-up time.
const STRING_BYTES_MIN: usize = 768;

/// Fills `to` from the start of `from`, which is at least as long.
#[inline]
pub(crate) fn load_many(from: &[AtomicU64], to: &mut [u8]) {
    assert!(to.len() <= size_of_val(from));
    if cfg!(target_arch = "x86_64") && to.len() >= STRING_BYTES_MIN {
        // SAFETY: `from` is readable and `to` writable for `to.len()` bytes; they do not overlap, as `to` is borrowed
        // exclusively.
        unsafe { copy_string(from.as_ptr().cast(), to.as_mut_ptr(), to.len()) };
        return;
    }
    let mut from = from.iter().map(|word| word.load(Ordering::Relaxed).to_le_bytes());
    let (whole, rest) = to.as_chunks_mut::<8>();
    whole.iter_mut().zip(&mut from).for_each(|(to, from)| *to = from);
    if let Some(last) = from.next().filter(|_| !rest.is_empty()) {
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Writes whole words to the start of `to`, which is at least as long.
#[inline]
pub(crate) fn store_many(to: &[AtomicU64], from: &[[u8; 8]]) {
    assert!(from.len() <= to.len());
    if cfg!(target_arch = "x86_64") && size_of_val(from) >= STRING_BYTES_MIN {
        // SAFETY: `from` is readable and `to` writable (atomics may be written through a shared reference) for that many
        // bytes; they do not overlap, as no plain reference to shared memory ever exists.
        unsafe { copy_string(from.as_ptr().cast(), to.as_ptr().cast_mut().cast(), size_of_val(from)) };
        return;
    }
    to.iter().zip(from).for_each(|(to, from)| to.store(u64::from_le_bytes(*from), Ordering::Relaxed));
}

/// # Safety
///
/// `from` must be readable and `to` writable for `bytes`, and they must not overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_string(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: as the caller promises; the direction flag is clear by the calling convention.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// # Safety
///
/// Nobody calls it.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_string(_from: *const u8, _to: *mut u8, _bytes: usize) {
    unreachable!("other processors copy word by word")
}
