//! A single-producer single-consumer ring of messages in memory that both sides can write.
//!
//! # Invariants
//!
//! * Positions count bytes since the ring was made, are multiples of 8 and never wrap (2^64 bytes do not pass). The
//!   consumer owns `head`, the producer owns `tail`. Each side works with its **private** position and only *publishes* copies; what
//!   stands in shared memory is never read back by its owner.
//! * A record is one header word (low half: length in bytes; high half: number of the message) and the bytes, padded to
//!   whole words. A record is at most an eighth of the ring ([`RECORDS_MIN`]).
//! * Nothing that the other side wrote is used before it was copied once and checked: a position must lie where an honest
//!   peer's could, a length within the message limit and the published bytes, the message number is the next one. What fails is a [`Lie`],
//!   after which the ring is not touched again.
//! * The consumer publishes `head` when an eighth of the ring has been consumed since the last time, so that the producer's copy of that
//!   line stays in its cache. A producer that finds the ring full therefore knows that there are unread records and that reading
//!   them will publish: it can wait.
//!
//! # Sleeping, and why no wake-up is lost
//!
//! A consumer that wants to sleep, and a producer that has published a record, run
//!
//! ```text
//!   consumer                                  producer
//!   C1  asleep = 1                            P1  tail = new (release)
//!   C2  fence(SeqCst)                         P2  fence(SeqCst)
//!   C3  tail (acquire) == own head?           P3  asleep != 0?
//!       yes: may block; no: asleep = 0            yes: swap it to 0; if it still was 1, ring the doorbell
//! ```
//!
//! The two fences are totally ordered. If C2 comes first, P3 sees C1's store (or a later one), so the doorbell rings. If P2 comes first,
//! C3 sees P1's store, so the consumer does not sleep. Either way the record is not left lying. The swap makes sure that one
//! announcement rings at most once. A bell that rings although the consumer has changed its mind in C3 is spurious and harmless. `starved` is the
//! same protocol with the roles exchanged: a producer that finds the ring full announces it, fences and looks at `head` again;
//! a consumer that publishes `head` fences and looks at `starved`.
//!
//! A hostile peer that breaks the protocol harms only itself: it is not woken, or it rings too often, which is counted.

use crate::{
    atomic::{AtomicU64, Ordering, fence},
    words::{WORD_BYTES, load_ring, store_parts},
};

/// How many of the largest records a ring holds at least.
pub(crate) const RECORDS_MIN: u64 = 8;

/// The shared part of a ring: its bytes and the four words that the sides publish, each on cache lines of its own.
#[derive(Clone, Copy)]
pub(crate) struct RingView<'a> {
    /// The records; a power of two of words.
    pub words: &'a [AtomicU64],
    /// Written by the producer: where its records end.
    pub tail: &'a AtomicU64,
    /// Written by the consumer: everything before it may be overwritten.
    pub head: &'a AtomicU64,
    /// 1: the consumer sleeps and wants a doorbell after the next record.
    pub asleep: &'a AtomicU64,
    /// 1: the producer found no room and wants a doorbell when `head` moves.
    pub starved: &'a AtomicU64,
}

impl RingView<'_> {
    fn bytes(&self) -> u64 {
        (self.words.len() * WORD_BYTES) as u64
    }
}

/// The peer wrote something into shared memory that no honest peer would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// A published position lies outside of what is possible.
    Position,
    /// A record does not fit into the published bytes, or exceeds the limit of messages.
    Length,
    /// A record does not carry the number that comes next.
    Sequence,
}

/// Why a record could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// No room now. The producer is announced as starved: a doorbell follows when there is some.
    Full,
    /// The consumer's position is a lie.
    Lie(Lie),
}

/// The other side must be woken through its socket.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingDoorbell(pub bool);

/// The writing end, with its private state.
#[derive(Debug, Default)]
pub(crate) struct Producer {
    tail: u64,
    head_seen: u64,
    sequence: u32,
}

/// Bytes that a message of `length` bytes takes in a ring.
fn record_bytes(length: usize) -> u64 {
    (WORD_BYTES + length.next_multiple_of(WORD_BYTES)) as u64
}

/// The longest message that a ring of `ring_bytes` may carry.
pub(crate) fn message_bytes_limit(ring_bytes: u64) -> u64 {
    ring_bytes / RECORDS_MIN - WORD_BYTES as u64
}

impl Producer {
    /// Appends the concatenation of `parts` (`length` bytes, at most [`message_bytes_limit`]) as one record.
    pub fn push(
        &mut self,
        ring: RingView<'_>,
        parts: &[&[u8]],
        length: usize,
    ) -> Result<RingDoorbell, PushError> {
        let record = record_bytes(length);
        debug_assert!(record <= ring.bytes() / RECORDS_MIN, "the fabric checks the message limit");
        if !self.has_room(ring, record) {
            self.refresh_head(ring)?;
            if !self.has_room(ring, record) {
                ring.starved.store(1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                self.refresh_head(ring)?;
                if !self.has_room(ring, record) {
                    return Err(PushError::Full);
                }
                ring.starved.store(0, Ordering::Relaxed);
            }
        }
        let start = (self.tail / WORD_BYTES as u64) as usize;
        let header = length as u64 | (u64::from(self.sequence) << 32);
        ring.words[start & (ring.words.len() - 1)].store(header, Ordering::Relaxed);
        store_parts(ring.words, start + 1, parts);
        self.sequence = self.sequence.wrapping_add(1);
        self.tail += record;
        ring.tail.store(self.tail, Ordering::Release);
        Ok(announced(ring.asleep))
    }

    fn has_room(&self, ring: RingView<'_>, record: u64) -> bool {
        ring.bytes() - (self.tail - self.head_seen) >= record
    }

    fn refresh_head(&mut self, ring: RingView<'_>) -> Result<(), PushError> {
        let head = ring.head.load(Ordering::Acquire);
        if head < self.head_seen || head > self.tail || !head.is_multiple_of(WORD_BYTES as u64) {
            return Err(PushError::Lie(Lie::Position));
        }
        self.head_seen = head;
        Ok(())
    }
}

/// Steps P2 and P3: whether the other side has announced that it waits. Takes the announcement back.
fn announced(flag: &AtomicU64) -> RingDoorbell {
    fence(Ordering::SeqCst);
    RingDoorbell(flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::AcqRel) != 0)
}

/// The reading end, with its private state.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    head: u64,
    head_published: u64,
    tail_seen: u64,
    sequence: u32,
    /// No record behind `tail_seen` counts any more.
    frozen: bool,
}

/// A record that was copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Popped {
    /// Bytes of the message.
    pub length: usize,
    /// Whether the producer waits for room and must be woken.
    pub doorbell: RingDoorbell,
}

impl Consumer {
    /// Copies the next message to the start of `out`, if there is one. `out` bounds the length of a message.
    #[inline]
    pub fn pop(&mut self, ring: RingView<'_>, out: &mut [u8]) -> Result<Option<Popped>, Lie> {
        if self.head == self.tail_seen {
            if self.frozen {
                return Ok(None);
            }
            let tail = ring.tail.load(Ordering::Acquire);
            if tail == self.head {
                return Ok(None);
            }
            self.accept_tail(ring, tail)?;
        }
        self.take(ring, out).map(Some)
    }

    fn accept_tail(&mut self, ring: RingView<'_>, tail: u64) -> Result<(), Lie> {
        if tail < self.tail_seen || tail - self.head > ring.bytes() || !tail.is_multiple_of(WORD_BYTES as u64)
        {
            return Err(Lie::Position);
        }
        self.tail_seen = tail;
        Ok(())
    }

    fn take(&mut self, ring: RingView<'_>, out: &mut [u8]) -> Result<Popped, Lie> {
        let start = (self.head / WORD_BYTES as u64) as usize;
        let header = ring.words[start & (ring.words.len() - 1)].load(Ordering::Relaxed);
        let length = (header & u64::from(u32::MAX)) as usize;
        if (header >> 32) as u32 != self.sequence {
            return Err(Lie::Sequence);
        }
        let record = record_bytes(length);
        if record > self.tail_seen - self.head {
            return Err(Lie::Length);
        }
        let Some(out) = out.get_mut(..length) else {
            return Err(Lie::Length);
        };
        load_ring(ring.words, start + 1, out);
        self.sequence = self.sequence.wrapping_add(1);
        self.head += record;
        let due = self.head - self.head_published >= ring.bytes() / RECORDS_MIN;
        let doorbell = if due { self.publish(ring) } else { RingDoorbell(false) };
        Ok(Popped { length, doorbell })
    }

    fn publish(&mut self, ring: RingView<'_>) -> RingDoorbell {
        self.head_published = self.head;
        ring.head.store(self.head, Ordering::Release);
        announced(ring.starved)
    }

    /// Steps C1 to C3. True: no record is left, and the next one rings the doorbell.
    pub fn announce_sleep(&self, ring: RingView<'_>) -> bool {
        ring.asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let quiet = ring.tail.load(Ordering::Acquire) == self.head;
        if !quiet {
            self.announce_awake(ring);
        }
        quiet
    }

    /// The consumer polls again: no more doorbells, please.
    pub fn announce_awake(&self, ring: RingView<'_>) {
        ring.asleep.store(0, Ordering::Relaxed);
    }

    /// Takes what is published now as the last that will come: the other process has ended.
    pub fn freeze(&mut self, ring: RingView<'_>) -> Result<(), Lie> {
        self.frozen = true;
        let tail = ring.tail.load(Ordering::Acquire);
        self.accept_tail(ring, tail)
    }
}
