//! Replies to fetch and query.

use daos_types::{Checksum, Epoch};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::rpc::Malformed;

/// Bit of [`FetchHeader::flags`]: the data is in the remote buffer, each record's at its place, each piece's at its
/// distance from the beginning of the record's range. Otherwise it follows, packed, in the order of records and pieces.
pub const FETCH_BULK: u16 = 1;

/// The fixed part of a reply to a fetch.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FetchHeader {
    flags: U16,
    record_count: U16,
    piece_count: U32,
    data_length: U64,
}

/// What became of one record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FetchedRecord {
    outcome: u8,
    reserved: [u8; 3],
    piece_count: U32,
    checksum: U32,
    reserved_2: U32,
    epoch: U64,
    length: U64,
}

/// A piece of an extent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FetchedPiece {
    kind: u8,
    reserved: [u8; 3],
    checksum: U32,
    epoch: U64,
    length: U64,
}

const _: () = assert!(
    size_of::<FetchHeader>() == 16 && size_of::<FetchedRecord>() == 32 && size_of::<FetchedPiece>() == 24
);

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Never written at or before the epoch.
    Miss,
    /// Punched in this epoch.
    Punched(Epoch),
    /// A value.
    Value {
        /// Epoch in which it was written.
        epoch: Epoch,
        /// CRC32C that its writer computed.
        checksum: Checksum,
        /// Bytes.
        length: u64,
    },
    /// A value that neither the reply nor the record's room in the remote buffer can hold. Ask again with room.
    TooLong {
        /// Bytes.
        length: u64,
    },
    /// Pieces of an extent, of which the reply covers this many bytes from the beginning of the range; less than asked
    /// for if there are more pieces, or more data, than the reply has room for. Ask again for the rest.
    Extent {
        /// Bytes covered.
        covered: u64,
    },
}

/// What a piece of an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// Bytes, with their CRC32C.
    Data(Checksum),
    /// Explicitly removed.
    Punched,
    /// Never written.
    Miss,
}

impl FetchHeader {
    /// The header of a reply with so many records, pieces and bytes of data.
    pub fn new(flags: u16, record_count: u16, piece_count: u32, data_length: u64) -> Self {
        Self {
            flags: U16::new(flags),
            record_count: U16::new(record_count),
            piece_count: U32::new(piece_count),
            data_length: U64::new(data_length),
        }
    }
}

impl FetchedRecord {
    /// The record of an outcome; `piece_count` is 0 but for extents.
    pub fn new(outcome: Outcome, piece_count: u32) -> Self {
        let (kind, epoch, length, checksum) = match outcome {
            Outcome::Miss => (0, Epoch::ZERO, 0, Checksum(0)),
            Outcome::Punched(epoch) => (1, epoch, 0, Checksum(0)),
            Outcome::Value { epoch, checksum, length } => (2, epoch, length, checksum),
            Outcome::TooLong { length } => (3, Epoch::ZERO, length, Checksum(0)),
            Outcome::Extent { covered } => (4, Epoch::ZERO, covered, Checksum(0)),
        };
        Self {
            outcome: kind,
            reserved: [0; 3],
            piece_count: U32::new(piece_count),
            checksum: U32::new(checksum.0),
            reserved_2: U32::ZERO,
            epoch: U64::new(epoch.0),
            length: U64::new(length),
        }
    }

    fn outcome(&self) -> Option<Outcome> {
        let (epoch, length) = (Epoch(self.epoch.get()), self.length.get());
        let outcome = match self.outcome {
            0 => Outcome::Miss,
            1 => Outcome::Punched(epoch),
            2 => Outcome::Value { epoch, checksum: Checksum(self.checksum.get()), length },
            3 => Outcome::TooLong { length },
            4 => return Some(Outcome::Extent { covered: length }),
            _ => return None,
        };
        (self.piece_count.get() == 0).then_some(outcome)
    }
}

impl FetchedPiece {
    /// The record of a piece. `epoch` is that of its write or punch.
    pub fn new(kind: PieceKind, epoch: Epoch, length: u64) -> Self {
        let (kind, checksum) = match kind {
            PieceKind::Data(checksum) => (0, checksum),
            PieceKind::Punched => (1, Checksum(0)),
            PieceKind::Miss => (2, Checksum(0)),
        };
        Self {
            kind,
            reserved: [0; 3],
            checksum: U32::new(checksum.0),
            epoch: U64::new(epoch.0),
            length: U64::new(length),
        }
    }

    /// What the piece is. Total: what has parsed is one of the three.
    pub fn kind(&self) -> PieceKind {
        match self.kind {
            0 => PieceKind::Data(Checksum(self.checksum.get())),
            1 => PieceKind::Punched,
            _ => PieceKind::Miss,
        }
    }

    /// Epoch of the write or punch.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.get())
    }

    /// Bytes of the range that it covers.
    pub fn length(&self) -> u64 {
        self.length.get()
    }
}

/// A reply to a fetch, checked against itself.
#[derive(Clone, Copy, Debug)]
pub struct FetchReply<'a> {
    header: &'a FetchHeader,
    records: &'a [FetchedRecord],
    pieces: &'a [FetchedPiece],
    data: &'a [u8],
}

/// One record of a reply.
#[derive(Clone, Copy, Debug)]
pub struct RecordReply<'a> {
    /// What became of it.
    pub outcome: Outcome,
    /// The pieces of an extent: in order, covering exactly what the outcome says.
    pub pieces: &'a [FetchedPiece],
    /// The value, or the data of the pieces one after the other; empty if it is in the remote buffer.
    pub data: &'a [u8],
}

impl<'a> FetchReply<'a> {
    /// Takes the body of a reply apart. Does not allocate.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) =
            FetchHeader::ref_from_prefix(body).map_err(|_| Malformed("shorter than its header"))?;
        let (records, rest) =
            <[FetchedRecord]>::ref_from_prefix_with_elems(rest, header.record_count.get().into())
                .map_err(|_| Malformed("shorter than its records"))?;
        let (pieces, data) =
            <[FetchedPiece]>::ref_from_prefix_with_elems(rest, header.piece_count.get() as usize)
                .map_err(|_| Malformed("shorter than its pieces"))?;
        let reply = Self { header, records, pieces, data };
        let (mut pieces, mut data_length) = (pieces, 0u64);
        for record in records {
            let outcome = record.outcome().ok_or(Malformed("an unknown outcome"))?;
            let count = record.piece_count.get() as usize;
            if count > pieces.len() {
                return Err(Malformed("fewer pieces than its records say"));
            }
            let (mine, rest) = pieces.split_at(count);
            pieces = rest;
            let mut covered = 0u64;
            for piece in mine {
                if piece.kind > 2 {
                    return Err(Malformed("an unknown kind of piece"));
                }
                covered = covered.checked_add(piece.length.get()).ok_or(Malformed("pieces too long"))?;
            }
            let data = match outcome {
                Outcome::Extent { covered: expected } if covered != expected => {
                    return Err(Malformed("pieces that do not cover what they should"));
                }
                Outcome::Extent { .. } => data_of(mine),
                Outcome::Value { length, .. } => length,
                Outcome::Miss | Outcome::Punched(_) | Outcome::TooLong { .. } => 0,
            };
            data_length = data_length.checked_add(data).ok_or(Malformed("too much data"))?;
        }
        if !pieces.is_empty() {
            return Err(Malformed("more pieces than its records say"));
        }
        let inline = if reply.is_bulk() { 0 } else { data_length };
        if header.data_length.get() != data_length || reply.data.len() as u64 != inline {
            return Err(Malformed("the data is not as long as its records"));
        }
        Ok(reply)
    }

    /// Whether the data is in the remote buffer.
    pub fn is_bulk(&self) -> bool {
        self.header.flags.get() & FETCH_BULK != 0
    }

    /// How many records there are.
    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// The records, in the order of the request.
    pub fn records(&self) -> impl Iterator<Item = RecordReply<'a>> + use<'a> {
        let (mut pieces, mut data, bulk) = (self.pieces, self.data, self.is_bulk());
        self.records.iter().filter_map(move |record| {
            let outcome = record.outcome()?;
            let (mine, rest) = pieces.split_at(record.piece_count.get() as usize);
            pieces = rest;
            let length = match outcome {
                Outcome::Value { length, .. } if !bulk => length,
                Outcome::Extent { .. } if !bulk => data_of(mine),
                _ => 0,
            };
            let (bytes, rest) = data.split_at(length as usize);
            data = rest;
            Some(RecordReply { outcome, pieces: mine, data: bytes })
        })
    }
}

fn data_of(pieces: &[FetchedPiece]) -> u64 {
    let data = pieces.iter().filter(|piece| matches!(piece.kind(), PieceKind::Data(_)));
    data.fold(0, |sum, piece| sum.saturating_add(piece.length.get()))
}

/// Reply to a query of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryReply {
    exists: u8,
    reserved: [u8; 7],
    end: U64,
}

impl QueryReply {
    /// The reply for an object that is there or not, and the end of the data of its array.
    pub fn new(exists: bool, end: u64) -> Self {
        Self { exists: exists.into(), reserved: [0; 7], end: U64::new(end) }
    }

    /// Takes the body of a reply apart.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        Self::read_from_bytes(body).map_err(|_| Malformed("not as long as it should be"))
    }

    /// Whether the object has anything visible at the epoch.
    pub fn exists(&self) -> bool {
        self.exists != 0
    }

    /// One past the highest byte of the array that is written at the epoch; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.end.get()
    }
}
