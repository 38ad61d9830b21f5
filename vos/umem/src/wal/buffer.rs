//! The log in memory: sealed transactions on their way to media.
//!
//! # Invariants
//!
//! * Positions grow by the bytes written; the byte at position `p` lies at `p % log_bytes` of the log file.
//! * What lies between `tail` and the end of the newest frame never exceeds the log, so no frame overwrites one that a
//!   recovery would need.
//! * Transactions go into frames, and frames to media, in the order in which they were sealed.

use std::{collections::VecDeque, rc::Rc};

use daos_xstream::IoBuffer;

use crate::{
    HeapError,
    arena::Arena,
    signal::Signal,
    wal::{
        BLOCK,
        dirty::DirtyPages,
        frame::{
            FrameHeader, HEADER_BYTES, LogIdentity, RANGE_BYTES_MAX, RANGE_HEADER_BYTES,
            TRANSACTION_HEADER_BYTES, frame_bytes, range_of, range_word,
        },
    },
};
use zerocopy::IntoBytes;

/// Frames aim at this size; under load everything that gathered during a write goes out in frames of up to this.
const FRAME_BYTES: u64 = 1 << 20;
/// An open frame of this size goes out without being asked for.
const EAGER_BYTES: u64 = 256 << 10;
/// Closed frames in memory beyond which writers should wait.
const BACKLOG_FRAMES_MAX: usize = 4;
/// Ranges closer than this are written as one: the bytes between cost less than another range's head.
const GAP_BYTES_MAX: u64 = RANGE_HEADER_BYTES as u64;

/// A frame that is being filled, or waits to be written.
pub(crate) struct Frame {
    pub position: u64,
    buffer: IoBuffer,
    used: usize,
    transactions: u32,
}

/// Where the log stands, to begin or continue it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogStart {
    pub identity: LogIdentity,
    pub log_bytes: u64,
    pub generation: u64,
    /// The oldest position that recovery needs.
    pub tail: u64,
    /// Where the next frame goes, and its number.
    pub head: u64,
    pub sequence: u64,
}

/// Sealed transactions on their way to media, and what else a seal must tell the tasks behind it.
pub(crate) struct LogBuffer {
    identity: LogIdentity,
    log_bytes: u64,
    generation: u64,
    tail: u64,
    open: Frame,
    closed: VecDeque<Frame>,
    spare: Vec<IoBuffer>,
    /// The number of the next frame that goes to media.
    sequence: u64,
    pub dirty: DirtyPages,
    failed: bool,
    /// The running seal's ranges, as the words that they have in the log.
    ranges: Vec<u64>,
    /// Raised when there is something to write, or to write at once.
    pub flush: Rc<Signal>,
    /// Raised when the log is half full.
    pub checkpoint: Rc<Signal>,
}

impl LogBuffer {
    pub fn new(start: LogStart, dirty: DirtyPages, flush: Rc<Signal>, checkpoint: Rc<Signal>) -> Self {
        let mut log = Self {
            identity: start.identity,
            log_bytes: start.log_bytes,
            generation: start.generation,
            tail: start.tail,
            open: Frame {
                position: start.head,
                buffer: IoBuffer::zeroed(0),
                used: HEADER_BYTES,
                transactions: 0,
            },
            closed: VecDeque::new(),
            spare: Vec::new(),
            sequence: start.sequence,
            dirty,
            failed: false,
            ranges: Vec::with_capacity(64),
            flush,
            checkpoint,
        };
        log.open.buffer = log.frame_buffer(0);
        log
    }

    /// The most bytes that one transaction may put into the log.
    fn transaction_bytes_max(&self) -> u64 {
        self.log_bytes / 8 - BLOCK
    }

    fn frame_buffer(&mut self, bytes: u64) -> IoBuffer {
        let wanted = FRAME_BYTES.min((self.log_bytes / 16).next_multiple_of(BLOCK));
        let mut buffer = if bytes <= wanted {
            self.spare.pop().unwrap_or_else(|| IoBuffer::zeroed(wanted as usize))
        } else {
            IoBuffer::zeroed(bytes as usize)
        };
        buffer.set_len(buffer.capacity());
        buffer
    }

    /// Appends a transaction: the present content of these ranges (offset, length; any order, overlapping or not).
    /// Gives its position. On an error nothing happened.
    pub fn append(
        &mut self,
        arena: &Arena,
        changed: impl Iterator<Item = (u64, u64)>,
    ) -> Result<u64, HeapError> {
        if self.failed {
            return Err(HeapError::ReadOnly);
        }
        let bytes = self.gather(changed);
        let whole = bytes + TRANSACTION_HEADER_BYTES as u64;
        if whole > self.transaction_bytes_max() {
            return Err(HeapError::TransactionTooLarge);
        }
        let fits = self.open.used as u64 + whole <= self.open.buffer.capacity() as u64;
        let (position, used) = if fits || self.open.transactions == 0 {
            (self.open.position, self.open.used as u64)
        } else {
            (self.open.position + frame_bytes((self.open.used - HEADER_BYTES) as u64), HEADER_BYTES as u64)
        };
        if (position + used + whole).next_multiple_of(BLOCK) - self.tail > self.log_bytes {
            self.checkpoint.raise();
            return Err(HeapError::LogFull);
        }
        if !fits {
            self.close();
            let needed = (HEADER_BYTES as u64 + whole).next_multiple_of(BLOCK);
            if needed > self.open.buffer.capacity() as u64 {
                let larger = self.frame_buffer(needed);
                let usual = std::mem::replace(&mut self.open.buffer, larger);
                self.recycle(usual);
            }
        }
        self.copy(arena, bytes);
        // Once when a frame gets its first transaction, and once when it is worth a write of its own.
        if self.open.transactions == 1 || (self.open.used as u64 >= EAGER_BYTES && used < EAGER_BYTES) {
            self.flush.raise();
        }
        if self.used() > self.log_bytes / 2 {
            self.checkpoint.raise();
        }
        Ok(self.open.position + self.open.used as u64)
    }

    /// Sorts and joins the ranges; gives the bytes that they take in a frame.
    fn gather(&mut self, changed: impl Iterator<Item = (u64, u64)>) -> u64 {
        self.ranges.clear();
        for (mut offset, mut length) in changed {
            while length > 0 {
                let part = length.min(RANGE_BYTES_MAX);
                self.ranges.push(range_word(offset, part));
                (offset, length) = (offset + part, length - part);
            }
        }
        // As words they are compared and moved as one number each.
        self.ranges.sort_unstable();
        let (mut kept, mut bytes) = (0, 0);
        let (mut start, mut end) = (0, 0);
        for index in 0..self.ranges.len() {
            let (offset, length) = range_of(self.ranges[index]);
            let joined = end.max(offset + length);
            if kept > 0 && offset <= end + GAP_BYTES_MAX && joined - start <= RANGE_BYTES_MAX {
                bytes += joined - end;
                end = joined;
            } else {
                // Too far away, or the two are too long together: then this one goes on where that ends, and ends beyond it.
                (start, end) = (offset.max(end), joined);
                bytes += end - start + RANGE_HEADER_BYTES as u64;
                kept += 1;
            }
            self.ranges[kept - 1] = range_word(start, end - start);
        }
        self.ranges.truncate(kept);
        bytes
    }

    fn copy(&mut self, arena: &Arena, bytes: u64) {
        let Self { open, ranges, dirty, .. } = self;
        let end = open.used + TRANSACTION_HEADER_BYTES + bytes as usize;
        let (head, mut room) =
            open.buffer.as_mut_slice()[open.used..end].split_at_mut(TRANSACTION_HEADER_BYTES);
        for &word in ranges.iter() {
            let (offset, length) = range_of(word);
            dirty.mark(offset, length);
            let (place, rest) = room.split_at_mut(RANGE_HEADER_BYTES);
            let (data, rest) = rest.split_at_mut(length as usize);
            place.copy_from_slice(&word.to_le_bytes());
            data.copy_from_slice(arena.values(0, offset, length).expect("a range that was changed"));
            room = rest;
        }
        head[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        head[4..].copy_from_slice(&(ranges.len() as u32).to_le_bytes());
        open.used = end;
        open.transactions += 1;
    }

    /// Ends the open frame, if it has anything, and begins the next. Gives where that begins, and its number.
    pub fn close(&mut self) -> (u64, u64) {
        if self.open.transactions > 0 {
            let position = self.open.position + frame_bytes((self.open.used - HEADER_BYTES) as u64);
            let buffer = self.frame_buffer(0);
            let next = Frame { position, buffer, used: HEADER_BYTES, transactions: 0 };
            self.closed.push_back(std::mem::replace(&mut self.open, next));
        }
        (self.open.position, self.sequence + self.closed.len() as u64)
    }

    /// The next frame for media, complete, with its position and its end.
    pub fn take(&mut self) -> Option<(u64, u64, IoBuffer)> {
        if self.closed.is_empty() {
            self.close();
        }
        let Frame { position, mut buffer, used, transactions } = self.closed.pop_front()?;
        let whole = used.next_multiple_of(BLOCK as usize);
        buffer.set_len(whole);
        let bytes = buffer.as_mut_slice();
        bytes[used..].fill(0);
        let numbers = (position, self.sequence, self.generation);
        let header = FrameHeader::new(&self.identity, numbers, transactions, &bytes[HEADER_BYTES..used]);
        bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        self.sequence += 1;
        Some((position, position + whole as u64, buffer))
    }

    /// Takes a frame's buffer back for the next one.
    pub fn recycle(&mut self, buffer: IoBuffer) {
        let usual = FRAME_BYTES.min((self.log_bytes / 16).next_multiple_of(BLOCK));
        if buffer.capacity() as u64 == usual && self.spare.len() < BACKLOG_FRAMES_MAX {
            self.spare.push(buffer);
        }
    }

    /// Whether nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.open.transactions == 0
    }

    /// Whether there is enough to write without being asked.
    pub fn is_eager(&self) -> bool {
        !self.closed.is_empty() || self.open.used as u64 >= EAGER_BYTES
    }

    /// Whether a transaction of any size that is allowed fits, and the writes have not fallen behind.
    pub fn has_room(&self) -> bool {
        self.log_bytes - self.used() >= self.log_bytes / 4 && self.closed.len() <= BACKLOG_FRAMES_MAX
    }

    /// Bytes of the log in use, those of the open frame included.
    pub fn used(&self) -> u64 {
        let open =
            if self.open.transactions == 0 { 0 } else { (self.open.used as u64).next_multiple_of(BLOCK) };
        self.open.position + open - self.tail
    }

    /// Bytes of the log.
    pub fn bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Gives the log before `tail` free.
    pub fn trim(&mut self, tail: u64) {
        self.tail = tail;
    }

    /// From now on nothing can be sealed.
    pub fn fail(&mut self) {
        self.failed = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wal::frame::apply_payload;

    const ARENA_BYTES: u64 = 4 << 20;

    fn log() -> LogBuffer {
        let start = LogStart {
            identity: LogIdentity { uuid: [7; 16], key: 7 },
            log_bytes: 64 << 20,
            generation: 1,
            tail: 0,
            head: 0,
            sequence: 1,
        };
        LogBuffer::new(start, DirtyPages::none(ARENA_BYTES), Rc::default(), Rc::default())
    }

    /// What the log holds of changes to these ranges: each range's offset and length.
    fn logged(arena: &Arena, changed: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut log = log();
        log.append(arena, changed.iter().copied()).expect("room");
        let (_, _, frame) = log.take().expect("a frame");
        let used =
            FrameHeader::parse(&log.identity, frame.as_slice()).expect("a frame").payload_bytes as usize;
        let mut ranges = Vec::new();
        let applied = apply_payload(1, &frame.as_slice()[HEADER_BYTES..][..used], |offset, bytes| {
            assert_eq!(arena.values::<u8>(0, offset, bytes.len() as u64), Ok(bytes));
            ranges.push((offset, bytes.len() as u64));
            Some(())
        });
        assert_eq!(applied, Some(()), "{changed:?}");
        ranges
    }

    fn arena() -> Arena {
        let mut arena = Arena::reserve(ARENA_BYTES).expect("memory");
        for (index, byte) in arena.as_mut_slice().iter_mut().enumerate() {
            *byte = (index % 251) as u8;
        }
        arena
    }

    #[test]
    fn near_ranges_are_joined_and_long_ones_divided() {
        let arena = arena();
        let max = RANGE_BYTES_MAX;
        for (changed, expected) in [
            (
                &[(100, 8), (40, 8), (44, 8), (60, 0), (60, 4), (200, 1)][..],
                &[(40, 24), (100, 8), (200, 1)][..],
            ),
            (&[(10, 8), (27, 1)], &[(10, 8), (27, 1)]),
            (&[(10, 8), (26, 1)], &[(10, 17)]),
            (&[(10, 100), (20, 5)], &[(10, 100)]),
            (&[(10, 2 * max + 3)], &[(10, max), (10 + max, max), (10 + 2 * max, 3)]),
            (&[(10, max), (10 + max + 8, 5)], &[(10, max), (10 + max + 8, 5)]),
            (&[(10, max), (100, max)], &[(10, max), (10 + max, 90)]),
            (&[(10, max), (11, 4), (10 + max - 1, 2)], &[(10, max), (10 + max, 1)]),
        ] {
            assert_eq!(logged(&arena, changed), expected, "{changed:?}");
        }
    }

    /// Up to sixty ranges, some of them long, in a part of the arena that may be crowded.
    fn changes() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let length = prop_oneof![9 => 1..300u64, 1 => 1..600_000u64];
        (10..22u32).prop_flat_map(move |bits| prop::collection::vec((0..1u64 << bits, length.clone()), 1..60))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_changed_is_logged_once(mut changed in changes()) {
            for (offset, length) in &mut changed {
                *length = (*length).min(ARENA_BYTES - *offset);
            }
            let ranges = logged(&arena(), &changed);
            prop_assert!(ranges.is_sorted_by(|a, b| a.0 + a.1 <= b.0));
            let mut is_logged = vec![false; ARENA_BYTES as usize];
            for &(offset, length) in &ranges {
                is_logged[offset as usize..(offset + length) as usize].fill(true);
            }
            for &(offset, length) in &changed {
                prop_assert!(is_logged[offset as usize..(offset + length) as usize].iter().all(|&is| is));
            }
        }
    }
}
