//! Byte arrays.

use daos_types::{Epoch, ObjectId, ObjectType};
use daos_xstream::IoBuffer;

use super::{
    ARRAY_BYTES_MAX, DsrError, Extent, ExtentKind, Punch, TargetObjects, TargetRef, all, object::Object,
};
use crate::striping::Piece;

/// A byte array, striped over the shards in cells.
#[derive(Debug)]
pub struct Array<T>(Object<T>);

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOutcome {
    /// What each part of the range was, in order, covering the range exactly; neighbours are of different kinds.
    pub extents: Vec<Extent>,
}

impl ReadOutcome {
    /// Bytes that hold data.
    pub fn data_bytes(&self) -> u64 {
        self.extents
            .iter()
            .filter(|extent| extent.kind == ExtentKind::Data)
            .map(|extent| extent.range.end - extent.range.start)
            .sum()
    }
}

impl<T: TargetObjects> Array<T> {
    /// A handle of the array `id`. No request is made.
    pub fn open(targets: &T, id: ObjectId) -> Result<Self, DsrError> {
        Object::open(targets, id, ObjectType::Array).map(Self)
    }

    /// Its ID.
    pub fn id(&self) -> ObjectId {
        self.0.id()
    }

    /// Writes the buffer's bytes in use at `offset` and gives the buffer back. Data of one cell goes out without being
    /// copied; data of several is split into a buffer for each.
    pub async fn write(
        &self,
        epoch: Epoch,
        offset: u64,
        mut data: IoBuffer,
    ) -> (IoBuffer, Result<(), DsrError>) {
        loop {
            let (back, result) = self.write_once(epoch, offset, data).await;
            match result {
                Err(DsrError::StaleMap { .. }) => data = back,
                done => return (back, done),
            }
        }
    }

    async fn write_once(
        &self,
        epoch: Epoch,
        offset: u64,
        data: IoBuffer,
    ) -> (IoBuffer, Result<(), DsrError>) {
        let pieces = match self.pieces(offset, data.len() as u64) {
            Ok(pieces) => pieces,
            Err(error) => return (data, Err(error)),
        };
        match pieces.as_slice() {
            [] => (data, Ok(())),
            [(_, shard)] => self.0.targets().write(*shard, epoch, offset, data).await,
            several => {
                let writes = several
                    .iter()
                    .map(|(piece, shard)| {
                        let part = (piece.range.start - offset) as usize..(piece.range.end - offset) as usize;
                        let part = IoBuffer::copy_of(&data.as_slice()[part]);
                        self.0.targets().write(*shard, epoch, piece.range.start, part)
                    })
                    .collect();
                let results = all(writes).await;
                (data, results.into_iter().try_for_each(|(_, result)| result))
            }
        }
    }

    /// Fills the buffer's bytes in use from `offset`; what holds no data becomes zero.
    pub async fn read(
        &self,
        epoch: Epoch,
        offset: u64,
        mut room: IoBuffer,
    ) -> (IoBuffer, Result<ReadOutcome, DsrError>) {
        loop {
            let (back, result) = self.read_once(epoch, offset, room).await;
            match result {
                Err(DsrError::StaleMap { .. }) => room = back,
                done => return (back, done),
            }
        }
    }

    async fn read_once(
        &self,
        epoch: Epoch,
        offset: u64,
        room: IoBuffer,
    ) -> (IoBuffer, Result<ReadOutcome, DsrError>) {
        let pieces = match self.pieces(offset, room.len() as u64) {
            Ok(pieces) => pieces,
            Err(error) => return (room, Err(error)),
        };
        match pieces.as_slice() {
            [] => (room, Ok(ReadOutcome { extents: Vec::new() })),
            [(_, shard)] => {
                let (room, result) = self.0.targets().read(*shard, epoch, offset, room).await;
                (room, result.map(|extents| ReadOutcome { extents: merge(extents) }))
            }
            several => {
                let reads = several
                    .iter()
                    .map(|(piece, shard)| {
                        let part = IoBuffer::zeroed((piece.range.end - piece.range.start) as usize);
                        self.0.targets().read(*shard, epoch, piece.range.start, part)
                    })
                    .collect();
                let results = all(reads).await;
                let mut room = room;
                let mut extents = Vec::new();
                for ((piece, _), (part, result)) in several.iter().zip(results) {
                    match result {
                        Ok(found) => extents.extend(found),
                        Err(error) => return (room, Err(error)),
                    }
                    let start = (piece.range.start - offset) as usize;
                    room.as_mut_slice()[start..start + part.len()].copy_from_slice(part.as_slice());
                }
                (room, Ok(ReadOutcome { extents: merge(extents) }))
            }
        }
    }

    /// Removes the bytes of a range (an end beyond the last offset is the last offset); they read as zeros from this epoch
    /// on.
    pub async fn punch_range(&self, epoch: Epoch, start: u64, end: u64) -> Result<(), DsrError> {
        self.0
            .repeat(async || {
                let end = end.min(ARRAY_BYTES_MAX);
                if start >= end {
                    return Ok(());
                }
                let striping = self.0.striping()?;
                // A shard has no bytes of other shards' cells: one punch of the whole range per shard that is touched is enough.
                let mut groups: Vec<u32> = striping
                    .pieces(start..end)
                    .take(striping.groups() as usize + 1)
                    .map(|piece| piece.group)
                    .collect();
                groups.sort_unstable();
                groups.dedup();
                let shards =
                    groups.into_iter().map(|group| self.0.shard(group)).collect::<Result<Vec<_>, _>>()?;
                let punches = shards
                    .into_iter()
                    .map(|shard| self.0.targets().punch(shard, epoch, Punch::Range(start, end)))
                    .collect();
                all(punches).await.into_iter().collect()
            })
            .await
    }

    /// One more than the highest offset that holds data at `epoch`: the maximum over the shards.
    pub async fn size(&self, epoch: Epoch) -> Result<u64, DsrError> {
        self.0
            .repeat(async || {
                let shards = self.0.shards()?;
                let queries = shards.into_iter().map(|shard| self.0.targets().query(shard, epoch)).collect();
                let mut size = 0;
                for answer in all(queries).await {
                    size = size.max(answer?.size);
                }
                Ok(size)
            })
            .await
    }

    /// Removes all bytes. Earlier epochs keep them.
    pub async fn punch(&self, epoch: Epoch) -> Result<(), DsrError> {
        self.0.punch(epoch).await
    }

    fn pieces(&self, offset: u64, length: u64) -> Result<Vec<(Piece, TargetRef)>, DsrError> {
        let end = offset.checked_add(length).filter(|end| *end <= ARRAY_BYTES_MAX);
        let end = end.ok_or(DsrError::BadRange { offset, length })?;
        let striping = self.0.striping()?;
        striping.pieces(offset..end).map(|piece| Ok((piece.clone(), self.0.shard(piece.group)?))).collect()
    }
}

/// Joins neighbours of the same kind, so that an answer does not depend on the striping.
fn merge(extents: Vec<Extent>) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match merged.last_mut() {
            Some(last) if last.kind == extent.kind && last.range.end == extent.range.start => {
                last.range.end = extent.range.end;
            }
            _ => merged.push(extent),
        }
    }
    merged
}
