//! Reads: from the store to the body of a reply, or to the client's memory.

use std::rc::Rc;

use daos_types::{Checksum, Epoch, ObjectType};
use daos_vos::{BlockRef, Container, Data, Error, FetchRequest, Fetched, Piece, ValueRef};
use daos_xstream::{
    Bug, Class, Env, IoBuffer, RemoteBuffer, Spawn, join_all,
    rpc::{BulkRoom, Responder},
};
use zerocopy::IntoBytes;

use super::{ObjectService, fail};
use crate::{
    epochs::EPOCH_LAST,
    rpc::object::{
        FETCH_BULK, FetchHeader, FetchedPiece, FetchedRecord, ObjectRequest, Outcome, PieceKind, RecordKind,
        RecordRef,
    },
    service::{refusal::Refusal, target::Handle},
};

const HEADER_BYTES: usize = size_of::<FetchHeader>();
const RECORD_BYTES: usize = size_of::<FetchedRecord>();
const PIECE_BYTES: usize = size_of::<FetchedPiece>();

/// Loads from the block tier that overlap within one fetch.
const LOADS_AT_ONCE: usize = 8;

/// Everything that a fetch found.
#[derive(Default)]
struct Found {
    records: Vec<FetchedRecord>,
    pieces: Vec<FetchedPiece>,
    /// Data that lies in the arena, packed. Once a fetch is complete and goes inline, all data.
    data: Vec<u8>,
    /// Bytes of all data.
    data_bytes: u64,
    segments: Vec<Segment>,
}

/// A run of data.
struct Segment {
    /// Where in the client's memory.
    place: u64,
    length: usize,
    source: Source,
    /// The piece whose checksum is that of the data.
    piece: Option<usize>,
}

enum Source {
    /// From this byte of [`Found::data`] on.
    Arena(usize),
    /// On the block tier.
    Stored(BlockRef),
}

impl<E: Env> ObjectService<E> {
    /// Answers a fetch; one by bulk has `room` for what it finds.
    pub(super) fn fetch(
        &self,
        handle: &Rc<Handle<E>>,
        request: &ObjectRequest<'_>,
        room: Option<BulkRoom>,
        responder: Responder<E>,
    ) {
        if request.record_count() == 1
            && let Some(record) = request.records().next()
            && record.kind == RecordKind::Value
            && !request.is_bulk()
        {
            return self.fetch_one(handle, request, &record, responder);
        }
        let found = match find(&handle.container, request, responder.body_bytes_max()) {
            Ok(found) => found,
            Err(error) => return fail(responder, &error),
        };
        let fits = found.body_bytes() as u64 + found.data_bytes <= responder.body_bytes_max() as u64;
        if fits && found.segments.iter().all(|segment| matches!(segment.source, Source::Arena(_))) {
            handle.traffic.read.add(found.data_bytes);
            return found.reply(responder);
        }
        let remote = (!fits).then(|| request.remote());
        let handle = handle.clone();
        self.env.scheduler().spawn(Class::Foreground, "bulk fetch", async move {
            let _room = room;
            let completed = match remote {
                Some(remote) => found.push(&handle.container, remote, &responder).await,
                None => found.pack(&handle.container).await,
            };
            match completed {
                Ok(found) => {
                    handle.traffic.read.add(found.data_bytes);
                    match remote {
                        Some(_) => found.reply_by_bulk(responder),
                        None => found.reply(responder),
                    }
                }
                Err(refusal) => responder.fail(refusal.status, &refusal.message),
            }
        });
    }

    /// One value in the arena that fits the reply: straight from the store to the message.
    fn fetch_one(
        &self,
        handle: &Rc<Handle<E>>,
        request: &ObjectRequest<'_>,
        record: &RecordRef<'_>,
        responder: Responder<E>,
    ) {
        let room = responder.body_bytes_max() - HEADER_BYTES - RECORD_BYTES;
        let mut responder = Some(responder);
        let wanted = value_request(request, record);
        let fetched = handle.container.fetch(&wanted, epoch_of(&handle.container, request), |fetched| {
            let (outcome, data): (_, &[u8]) = match &fetched {
                Fetched::Miss => (Outcome::Miss, &[]),
                Fetched::Punched(epoch) => (Outcome::Punched(*epoch), &[]),
                Fetched::Value(value) if value.length as usize > room => {
                    (Outcome::TooLong { length: value.length }, &[])
                }
                Fetched::Value(value) => match &value.data {
                    Data::Inline(bytes) => (value_outcome(value), bytes),
                    Data::Stored(block) => return Some((value_outcome(value), block.clone())),
                },
            };
            let header = FetchHeader::new(0, 1, 0, data.len() as u64);
            let record = FetchedRecord::new(outcome, 0);
            if let Some(responder) = responder.take() {
                handle.traffic.read.add(data.len() as u64);
                responder.reply(&[header.as_bytes(), record.as_bytes(), data]);
            }
            None
        });
        let Some(responder) = responder else { return };
        match fetched {
            Ok(Some((outcome, block))) => {
                let mut found = Found::default();
                found.records.push(FetchedRecord::new(outcome, 0));
                found.add(0, None, Data::Stored(block));
                let handle = handle.clone();
                self.env.scheduler().spawn(Class::Foreground, "fetch from the block tier", async move {
                    match found.pack(&handle.container).await {
                        Ok(found) => {
                            handle.traffic.read.add(found.data_bytes);
                            found.reply(responder);
                        }
                        Err(refusal) => responder.fail(refusal.status, &refusal.message),
                    }
                });
            }
            Ok(None) => responder.fail(daos_xstream::rpc::Status::INTERNAL, ""),
            Err(error) => fail(responder, &error),
        }
    }
}

/// The epoch at which a request reads.
fn epoch_of<E: Env>(container: &Container<E>, request: &ObjectRequest<'_>) -> Epoch {
    match container.pool().env().planted(Bug::ReadBeyondEpoch) {
        true => EPOCH_LAST,
        false => request.epoch(),
    }
}

fn value_outcome(value: &ValueRef<'_>) -> Outcome {
    Outcome::Value { epoch: value.epoch, checksum: value.checksum, length: value.length }
}

fn value_request<'a>(request: &ObjectRequest<'a>, record: &RecordRef<'a>) -> FetchRequest<'a> {
    let object = request.object();
    match object.object_type() {
        ObjectType::Document => FetchRequest { object, dkey: request.dkey(), akey: Some(record.key) },
        _ => FetchRequest { object, dkey: record.key, akey: None },
    }
}

/// Reads all records of a request. Without a remote buffer, what does not fit into `room` is left out as the protocol says.
fn find<E: Env>(container: &Container<E>, request: &ObjectRequest<'_>, room: usize) -> Result<Found, Error> {
    let mut found = Found::default();
    let fixed = HEADER_BYTES + request.record_count() * RECORD_BYTES;
    let mut body_room = room.saturating_sub(fixed);
    let mut base = 0u64;
    for record in request.records() {
        let data_room = if request.is_bulk() { usize::MAX } else { body_room };
        let before = (found.pieces.len(), found.data_bytes);
        match record.kind {
            RecordKind::Extent => {
                find_extent(container, request, &record, base, (body_room, data_room), &mut found)?;
            }
            _ => {
                // With a remote buffer, what the client has made room for, all of it together being limited by the parser.
                let slot = if request.is_bulk() { record.length as usize } else { data_room };
                let wanted = value_request(request, &record);
                container.fetch(&wanted, epoch_of(container, request), |fetched| match fetched {
                    Fetched::Miss => found.records.push(FetchedRecord::new(Outcome::Miss, 0)),
                    Fetched::Punched(epoch) => {
                        found.records.push(FetchedRecord::new(Outcome::Punched(epoch), 0));
                    }
                    Fetched::Value(value) if value.length as usize > slot => {
                        let outcome = Outcome::TooLong { length: value.length };
                        found.records.push(FetchedRecord::new(outcome, 0));
                    }
                    Fetched::Value(value) => {
                        found.records.push(FetchedRecord::new(value_outcome(&value), 0));
                        found.add(base, None, value.data);
                    }
                })?;
            }
        }
        base += record.length;
        let pieces_bytes = (found.pieces.len() - before.0) * PIECE_BYTES;
        let data_bytes = if request.is_bulk() { 0 } else { (found.data_bytes - before.1) as usize };
        body_room = body_room.saturating_sub(pieces_bytes + data_bytes);
    }
    Ok(found)
}

/// Reads one extent, as far as `room` for the body and for data reaches.
fn find_extent<E: Env>(
    container: &Container<E>,
    request: &ObjectRequest<'_>,
    record: &RecordRef<'_>,
    base: u64,
    room: (usize, usize),
    found: &mut Found,
) -> Result<(), Error> {
    let (mut body_room, mut data_room) = room;
    let document = request.object().object_type() == ObjectType::Document;
    let keys = document.then_some((request.dkey(), record.key));
    let range = record.offset..record.offset + record.length;
    let (mut covered, mut full, mut pieces) = (0u64, false, 0u32);
    container.fetch_array(
        request.object(),
        keys,
        range,
        epoch_of(container, request),
        |piece: Piece<'_>| {
            let length = piece.range.end - piece.range.start;
            let data_bytes = if matches!(piece.content, Fetched::Value(_)) { length as usize } else { 0 };
            let needed = if request.is_bulk() { PIECE_BYTES } else { PIECE_BYTES + data_bytes };
            full |= needed > body_room || data_bytes > data_room;
            if full {
                return;
            }
            body_room -= needed;
            data_room -= data_bytes;
            let place = base + (piece.range.start - record.offset);
            let (kind, epoch) = match piece.content {
                Fetched::Miss => (PieceKind::Miss, Epoch::ZERO),
                Fetched::Punched(epoch) => (PieceKind::Punched, epoch),
                Fetched::Value(data) => {
                    let checksum = match &data.data {
                        Data::Inline(bytes) => Checksum(crc32c::crc32c(bytes)),
                        // Computed once it has been loaded.
                        Data::Stored(_) => Checksum(0),
                    };
                    let index = found.pieces.len();
                    found.add(place, Some(index), data.data);
                    (PieceKind::Data(checksum), data.epoch)
                }
            };
            found.pieces.push(FetchedPiece::new(kind, epoch, length));
            pieces += 1;
            covered += length;
        },
    )?;
    found.records.push(FetchedRecord::new(Outcome::Extent { covered }, pieces));
    Ok(())
}

impl Found {
    fn add(&mut self, place: u64, piece: Option<usize>, data: Data<'_>) {
        let (length, source) = match data {
            Data::Inline(bytes) => {
                let at = self.data.len();
                self.data.extend_from_slice(bytes);
                (bytes.len(), Source::Arena(at))
            }
            Data::Stored(block) => (block.len() as usize, Source::Stored(block)),
        };
        self.data_bytes += length as u64;
        self.segments.push(Segment { place, length, source, piece });
    }

    fn body_bytes(&self) -> usize {
        HEADER_BYTES + self.records.len() * RECORD_BYTES + self.pieces.len() * PIECE_BYTES
    }

    /// Loads what is on the block tier, and packs everything in order.
    async fn pack<E: Env>(mut self, container: &Container<E>) -> Result<Self, Refusal> {
        let mut packed = Vec::with_capacity(self.data_bytes as usize);
        let segments = std::mem::take(&mut self.segments);
        for group in segments.chunks(LOADS_AT_ONCE) {
            for (segment, loaded) in group.iter().zip(self.load(container, group).await?) {
                match (&segment.source, loaded) {
                    (Source::Arena(at), _) => packed.extend_from_slice(&self.data[*at..at + segment.length]),
                    (Source::Stored(_), loaded) => {
                        packed.extend_from_slice(loaded.as_ref().map_or(&[], IoBuffer::as_slice));
                    }
                }
            }
        }
        self.data = packed;
        Ok(self)
    }

    /// Brings everything to the client's memory. What is on the block tier goes there from the memory that it was loaded
    /// into.
    async fn push<E: Env>(
        mut self,
        container: &Container<E>,
        remote: RemoteBuffer,
        responder: &Responder<E>,
    ) -> Result<Self, Refusal> {
        let segments = std::mem::take(&mut self.segments);
        for group in segments.chunks(LOADS_AT_ONCE) {
            let mut loaded = self.load(container, group).await?.into_iter();
            let mut rest = group;
            while let Some(first) = rest.first() {
                let mut length = first.length;
                let (count, buffer) = match first.source {
                    Source::Stored(_) => (1, loaded.next().flatten()),
                    Source::Arena(at) => {
                        // What lies side by side here and there goes in one transfer.
                        let mut count = 1;
                        while let Some(next) = rest.get(count)
                            && matches!(next.source, Source::Arena(_))
                            && next.place == first.place + length as u64
                        {
                            length += next.length;
                            count += 1;
                        }
                        loaded.nth(count - 1);
                        (count, Some(IoBuffer::copy_of(&self.data[at..at + length])))
                    }
                };
                let buffer = buffer.unwrap_or_else(|| IoBuffer::zeroed(0));
                responder.push(remote, first.place, buffer).await.1?;
                rest = &rest[count..];
            }
        }
        Ok(self)
    }

    /// Loads those segments that are on the block tier, all at once, and fills in the checksums of their pieces.
    async fn load<E: Env>(
        &mut self,
        container: &Container<E>,
        segments: &[Segment],
    ) -> Result<Vec<Option<IoBuffer>>, Refusal> {
        let loads = segments.iter().map(async |segment| match &segment.source {
            Source::Arena(_) => Ok(None),
            Source::Stored(block) => container.pool().load(block).await.map(Some),
        });
        let loaded = join_all(loads).await.into_iter().collect::<Result<Vec<_>, Error>>()?;
        for (segment, buffer) in segments.iter().zip(&loaded) {
            if let (Some(piece), Some(buffer)) = (segment.piece, buffer) {
                let old = self.pieces[piece];
                let checksum = Checksum(crc32c::crc32c(buffer.as_slice()));
                self.pieces[piece] = FetchedPiece::new(PieceKind::Data(checksum), old.epoch(), old.length());
            }
        }
        Ok(loaded)
    }

    fn reply<E: Env>(&self, responder: Responder<E>) {
        let header =
            FetchHeader::new(0, self.records.len() as u16, self.pieces.len() as u32, self.data_bytes);
        let (records, pieces) = (self.records.as_bytes(), self.pieces.as_bytes());
        responder.reply(&[header.as_bytes(), records, pieces, &self.data]);
    }

    fn reply_by_bulk<E: Env>(&self, responder: Responder<E>) {
        let (records, pieces) = (self.records.len() as u16, self.pieces.len() as u32);
        let header = FetchHeader::new(FETCH_BULK, records, pieces, self.data_bytes);
        responder.reply(&[header.as_bytes(), self.records.as_bytes(), self.pieces.as_bytes()]);
    }
}
