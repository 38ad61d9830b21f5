//! Frames: the unit in which transactions reach the log.
//!
//! ```text
//! frame:        0    magic u32 │ CRC32C of the header u32 │ position u64
//!               16   sequence u64 │ generation u64
//!               32   payload bytes u32 │ CRC32C of the payload u32 │ transactions u32 │ zero u32
//!               48   UUID of the heap
//!               64   payload, then zeros to the next multiple of 4 KiB
//! transaction:  │ bytes of its ranges u32 │ number of ranges u32 │ ranges …
//! range:        │ arena offset << 18 | length  u64 │ the new bytes │
//! ```
//!
//! # Invariants
//!
//! * A frame starts on a block boundary, at the position that it names; its sequence number is that of the frame before
//!   plus one, its generation is not less.
//! * Ranges of a transaction ascend and do not overlap. Applying a transaction twice is applying it once.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wal::BLOCK;

const MAGIC: u32 = u32::from_le_bytes(*b"dfrm");
const LENGTH_BITS: u32 = 18;
/// The longest range; longer changes are several.
pub(crate) const RANGE_BYTES_MAX: u64 = (1 << LENGTH_BITS) - 1;
/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = size_of::<FrameHeader>();
/// Bytes before a transaction's ranges.
pub(crate) const TRANSACTION_HEADER_BYTES: usize = 8;
/// Bytes before a range's data.
pub(crate) const RANGE_HEADER_BYTES: usize = 8;

/// The first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct FrameHeader {
    magic: u32,
    checksum: u32,
    pub position: u64,
    pub sequence: u64,
    pub generation: u64,
    pub payload_bytes: u32,
    payload_checksum: u32,
    pub transactions: u32,
    reserved: u32,
    uuid: [u8; 16],
}

const _: () = assert!(HEADER_BYTES == 64 && std::mem::offset_of!(FrameHeader, uuid) == 48);

/// Whose log it is: goes into every checksum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogIdentity {
    pub uuid: [u8; 16],
    pub key: u64,
}

impl FrameHeader {
    /// The header of a frame with this payload.
    pub fn new(
        identity: &LogIdentity,
        (position, sequence, generation): (u64, u64, u64),
        transactions: u32,
        payload: &[u8],
    ) -> Self {
        let mut header = Self {
            magic: MAGIC,
            checksum: 0,
            position,
            sequence,
            generation,
            payload_bytes: payload.len() as u32,
            payload_checksum: payload_checksum(identity, position, payload),
            transactions,
            reserved: 0,
            uuid: identity.uuid,
        };
        header.checksum = header.computed(identity);
        header
    }

    /// The header at the beginning of `block`, if it is one of this log, whatever its place.
    pub fn parse(identity: &LogIdentity, block: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(block).ok()?;
        let whole = header.magic == MAGIC
            && header.uuid == identity.uuid
            && header.reserved == 0
            && header.checksum == header.computed(identity);
        whole.then_some(header)
    }

    /// Whether `block` looks like the first one of the frame with this position and number, whole or not.
    pub fn is_remnant(identity: &LogIdentity, block: &[u8], position: u64, sequence: u64) -> bool {
        let Ok((header, _)) = Self::read_from_prefix(block) else { return false };
        let alike = [
            header.magic == MAGIC,
            header.uuid == identity.uuid,
            header.position == position,
            header.sequence == sequence,
        ];
        // Damage may have met one of them.
        alike.into_iter().filter(|&alike| alike).count() >= 3
    }

    /// Whether `payload` is what this frame was written with.
    pub fn matches(&self, identity: &LogIdentity, payload: &[u8]) -> bool {
        payload.len() == self.payload_bytes as usize
            && payload_checksum(identity, self.position, payload) == self.payload_checksum
    }

    /// Bytes from this frame to the next.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(u64::from(self.payload_bytes))
    }

    fn computed(&self, identity: &LogIdentity) -> u32 {
        crc32c::crc32c_append(
            crc32c::crc32c(&identity.key.to_le_bytes()),
            Self { checksum: 0, ..*self }.as_bytes(),
        )
    }
}

/// Bytes that a frame with this payload takes.
pub(crate) fn frame_bytes(payload_bytes: u64) -> u64 {
    (HEADER_BYTES as u64 + payload_bytes).next_multiple_of(BLOCK)
}

fn payload_checksum(identity: &LogIdentity, position: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append((identity.key ^ position) as u32, payload)
}

/// A range's first word.
#[inline]
pub(crate) fn range_word(offset: u64, length: u64) -> u64 {
    debug_assert!((1..=RANGE_BYTES_MAX).contains(&length) && offset < 1 << (64 - LENGTH_BITS));
    offset << LENGTH_BITS | length
}

/// The offset and length in a range's first word.
#[inline]
pub(crate) fn range_of(word: u64) -> (u64, u64) {
    (word >> LENGTH_BITS, word & RANGE_BYTES_MAX)
}

/// Hands every range of a payload to `apply(offset, bytes)`, which says whether it can be. `None` if the payload is not
/// made of whole transactions.
pub(crate) fn apply_payload(
    transactions: u32,
    mut payload: &[u8],
    mut apply: impl FnMut(u64, &[u8]) -> Option<()>,
) -> Option<()> {
    for _ in 0..transactions {
        let (head, rest) = payload.split_at_checked(TRANSACTION_HEADER_BYTES)?;
        let bytes = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
        let count = u32::from_le_bytes(head[4..].try_into().ok()?);
        let (mut ranges, rest) = rest.split_at_checked(bytes)?;
        payload = rest;
        for _ in 0..count {
            let (word, rest) = ranges.split_at_checked(RANGE_HEADER_BYTES)?;
            let word = u64::from_le_bytes(word.try_into().ok()?);
            let (offset, length) = range_of(word);
            let (data, rest) = rest.split_at_checked(length as usize)?;
            ranges = rest;
            apply(offset, data)?;
        }
        if !ranges.is_empty() {
            return None;
        }
    }
    payload.is_empty().then_some(())
}
