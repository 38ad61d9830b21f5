//! What a fetch brought.

use std::ops::Range;

use daos_types::{Checksum, Epoch};
use daos_xstream::{IoBuffer, rpc::Reply};

use super::limits::{is_data, outcomes_fit, too_far};
use crate::{
    client::DsmError,
    rpc::{
        Malformed,
        object::{FetchReply, Outcome, PieceKind, ReadRecord, RecordReply},
    },
};

/// Everything that a fetch brought: one record for each that was asked for, in order.
pub struct Fetched {
    reply: Reply,
    bulk: Option<IoBuffer>,
    rooms: Vec<u64>,
}

/// One record that was fetched.
#[derive(Clone, Debug)]
pub struct FetchedData<'a> {
    /// What became of it.
    pub outcome: Outcome,
    /// The value; empty for extents.
    pub value: &'a [u8],
    /// The pieces of an extent with their data (empty for holes), from the beginning of the range.
    pub pieces: Vec<(ReadPiece, &'a [u8])>,
}

/// A piece of an extent. For [`super::ObjectIo::read`], offsets are those of the array; within a [`FetchedData`] they
/// count from the beginning of the range that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPiece {
    /// Bytes that it covers.
    pub range: Range<u64>,
    /// What is there.
    pub kind: PieceKind,
    /// Epoch of the write or punch.
    pub epoch: Epoch,
}

impl Fetched {
    pub(super) fn new(
        reply: Reply,
        bulk: Option<IoBuffer>,
        rooms: Vec<u64>,
        records: usize,
    ) -> Result<Self, DsmError> {
        let fetched = Self { reply, bulk, rooms };
        let parsed = FetchReply::parse(fetched.reply.body())?;
        if parsed.record_count() != records {
            return Err(DsmError::BadReply(Malformed("another number of records than was asked for")));
        }
        Ok(fetched)
    }

    /// The records, in the order in which they were asked for.
    pub fn records(&self) -> impl Iterator<Item = FetchedData<'_>> {
        // It has parsed when this was made.
        let reply = FetchReply::parse(self.reply.body()).ok();
        let bulk = reply.as_ref().filter(|reply| reply.is_bulk()).map(|_| self.bulk_bytes());
        let mut base = 0usize;
        let mut rooms = self.rooms.iter();
        reply.into_iter().flat_map(|reply| reply.records()).map(move |record| {
            let place = base;
            base += rooms.next().map_or(0, |room| *room as usize);
            data_of(&record, bulk.map(|bytes| bytes.get(place..).unwrap_or_default()))
        })
    }

    /// Room that each record needs in a buffer to be fetched whole; empty if all are here.
    pub(super) fn rooms_needed(&self, records: &[ReadRecord<'_>]) -> Vec<u64> {
        let Ok(reply) = FetchReply::parse(self.reply.body()) else { return Vec::new() };
        let had_rooms = !self.rooms.is_empty();
        let short = |(record, got): (&ReadRecord<'_>, RecordReply<'_>)| match (record, got.outcome) {
            (_, Outcome::TooLong { .. }) => true,
            // An extent that is short although there was room has more pieces than a reply can name.
            (ReadRecord::Extent { length, .. }, Outcome::Extent { covered }) => {
                covered < *length && !had_rooms
            }
            _ => false,
        };
        if !records.iter().zip(reply.records()).any(short) {
            return Vec::new();
        }
        let room = |(record, got): (&ReadRecord<'_>, RecordReply<'_>)| match (record, got.outcome) {
            (ReadRecord::Extent { length, .. }, _) => *length,
            (_, Outcome::TooLong { length } | Outcome::Value { length, .. }) => length,
            _ => 0,
        };
        records.iter().zip(reply.records()).map(room).collect()
    }

    /// Whether outcomes fit and everything matches its checksum.
    pub(super) fn is_intact(&self) -> bool {
        self.records().all(|record| {
            let value = match record.outcome {
                Outcome::Value { checksum, length, .. } => {
                    record.value.len() as u64 == length && Checksum(crc32c::crc32c(record.value)) == checksum
                }
                _ => true,
            };
            value && record.pieces.iter().all(|(piece, data)| piece_is_intact(piece.kind, data))
        })
    }

    fn bulk_bytes(&self) -> &[u8] {
        self.bulk.as_ref().map(IoBuffer::as_slice).unwrap_or_default()
    }
}

fn piece_is_intact(kind: PieceKind, data: &[u8]) -> bool {
    match kind {
        PieceKind::Data(checksum) => Checksum(crc32c::crc32c(data)) == checksum,
        PieceKind::Punched | PieceKind::Miss => true,
    }
}

/// The data of a record: within `place`, its part of a buffer, or within the reply.
fn data_of<'a>(record: &RecordReply<'a>, place: Option<&'a [u8]>) -> FetchedData<'a> {
    let value = match (record.outcome, place) {
        (Outcome::Value { length, .. }, Some(place)) => place.get(..length as usize).unwrap_or_default(),
        (Outcome::Value { .. }, None) => record.data,
        _ => &[],
    };
    let (mut start, mut packed) = (0u64, record.data);
    let pieces = record.pieces.iter().map(|piece| {
        let range = start..start + piece.length();
        start = range.end;
        let data = match place {
            _ if !is_data(piece.kind()) => &[],
            Some(place) => place.get(range.start as usize..range.end as usize).unwrap_or_default(),
            None => {
                let (data, rest) = packed.split_at((piece.length() as usize).min(packed.len()));
                packed = rest;
                data
            }
        };
        (ReadPiece { range, kind: piece.kind(), epoch: piece.epoch() }, data)
    });
    FetchedData { outcome: record.outcome, value, pieces: pieces.collect() }
}

/// Brings the only record of `reply`, an extent that begins at `start`, to `place`: copies data that came inline, clears
/// what is a hole, and checks data that came by bulk. Returns how much of `place` is covered.
pub(super) fn take_extent(
    reply: &Reply,
    start: u64,
    place: &mut [u8],
    pieces: &mut Vec<ReadPiece>,
) -> Result<usize, DsmError> {
    let reply = FetchReply::parse(reply.body())?;
    let asked = [ReadRecord::Extent { key: b"", offset: start, length: place.len() as u64 }];
    if !outcomes_fit(&asked, &reply) {
        return Err(too_far());
    }
    let record = reply.records().next().ok_or_else(too_far)?;
    let (mut done, mut packed) = (0usize, record.data);
    for piece in record.pieces {
        let end = done + piece.length() as usize;
        let there = place.get_mut(done..end).ok_or_else(too_far)?;
        if !is_data(piece.kind()) {
            there.fill(0);
        } else if !reply.is_bulk() {
            let (data, rest) = packed.split_at_checked(there.len()).ok_or_else(too_far)?;
            there.copy_from_slice(data);
            packed = rest;
        }
        if is_data(piece.kind()) && !piece_is_intact(piece.kind(), there) {
            return Err(DsmError::BadChecksum);
        }
        let range = start + done as u64..start + end as u64;
        pieces.push(ReadPiece { range, kind: piece.kind(), epoch: piece.epoch() });
        done = end;
    }
    Ok(done)
}
