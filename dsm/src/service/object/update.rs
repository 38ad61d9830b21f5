//! Changes: from the body of a request to a transaction of the store.

use daos_types::{Checksum, ObjectType, Writer};
use daos_vos::{
    AkeyData, AkeyUpdate, Checksums, Conflict, Container, Error, ExtentData, ExtentUpdate, INLINE_BYTES_MAX,
    KeyUpdate, Pool, Punch, Sealed, StoredExtent, Update, Value,
};
use daos_xstream::{Env, IoBuffer};
use smallvec::SmallVec;

use crate::rpc::object::{ObjectRequest, RecordKind, RecordRef, flags};

/// Bytes from which a value or extent goes to the block tier, if it came by bulk.
const BLOCK_TIER_BYTES_MIN: u64 = 4096;
/// Records of a request for which no memory is allocated.
const FEW: usize = 8;

type Few<T> = SmallVec<[T; FEW]>;

fn conflict(request: &ObjectRequest<'_>) -> Conflict {
    if request.has(flags::LAST_WINS) { Conflict::LastWins } else { Conflict::Refuse }
}

/// The data of an update, as far as it did not come with the request.
#[derive(Default)]
pub(super) struct Pulled {
    /// All of it, in memory; `None` if the request carries it, or if it was moved to the block tier.
    pub bytes: Option<IoBuffer>,
    /// What has been written to the block tier, by record; empty if nothing was.
    pub stored: Vec<Option<StoredExtent>>,
}

impl Pulled {
    fn stored(&self, index: usize) -> Option<&StoredExtent> {
        self.stored.get(index).and_then(Option::as_ref)
    }

    fn bytes<'a>(&'a self, record: &RecordRef<'a>) -> Result<&'a [u8], Error> {
        if record.length as usize > INLINE_BYTES_MAX {
            return Err(Error::Invalid("a value or extent too long for a pool without block tier"));
        }
        let start = record.data_offset as usize;
        Ok(match &self.bytes {
            Some(buffer) => buffer.get(start..start + record.length as usize).unwrap_or_default(),
            None => record.data,
        })
    }

    fn value<'a>(&'a self, index: usize, record: &RecordRef<'a>, sum: Checksum) -> Result<Value<'a>, Error> {
        match self.stored(index) {
            Some(stored) => Ok(Value::Stored(stored)),
            None => Ok(Value::Inline(self.bytes(record)?, sum)),
        }
    }

    fn extent<'a>(
        &'a self,
        index: usize,
        record: &RecordRef<'a>,
        sums: Checksums<'a>,
    ) -> Result<ExtentUpdate<'a>, Error> {
        let data = match self.stored(index) {
            Some(stored) => ExtentData::Stored(stored),
            None => ExtentData::Inline(self.bytes(record)?, sums),
        };
        Ok(ExtentUpdate { offset: record.offset, data })
    }
}

/// Writes what is large to the block tier, if the pool has one. Done before the change, so that the change itself waits
/// for nothing.
pub(super) async fn store_large<E: Env>(
    vpool: &Pool<E>,
    request: &ObjectRequest<'_>,
    buffer: IoBuffer,
) -> Result<Pulled, Error> {
    let large = |record: &RecordRef<'_>| {
        matches!(record.kind, RecordKind::Value | RecordKind::Extent) && record.length >= BLOCK_TIER_BYTES_MIN
    };
    if vpool.usage()?.block_bytes == 0 || !request.records().any(|record| large(&record)) {
        return Ok(Pulled { bytes: Some(buffer), stored: Vec::new() });
    }
    let mut stored = Vec::with_capacity(request.record_count());
    let only = request.record_count() == 1;
    let mut buffer = Some(buffer);
    for record in request.records() {
        if !large(&record) {
            stored.push(None);
            continue;
        }
        let range = record.data_offset as usize..(record.data_offset + record.length) as usize;
        let whole = match only {
            // Straight from the memory that the client's data arrived in.
            true => buffer.take(),
            false => buffer.as_ref().and_then(|buffer| buffer.get(range)).map(IoBuffer::copy_of),
        };
        let whole = whole.ok_or(Error::Invalid("data beyond what the request brought"))?;
        let sums: SmallVec<[Checksum; 32]> = record.checksums.iter().map(|sum| Checksum(sum.get())).collect();
        let result = match (record.kind, sums.as_slice()) {
            (RecordKind::Value, [sum]) => vpool.store_value(whole, *sum).await.1,
            (_, chunks) => {
                let sums = Checksums { chunk_bytes: request.chunk_bytes(), chunks };
                vpool.store(whole, record.offset, sums).await.1
            }
        };
        stored.push(Some(result?));
    }
    Ok(Pulled { bytes: buffer, stored })
}

/// Makes the change of an update.
pub(super) fn apply<E: Env>(
    container: &Container<E>,
    writer: Writer,
    request: &ObjectRequest<'_>,
    pulled: &Pulled,
) -> Result<Sealed, Error> {
    let checksums: SmallVec<[Checksum; 16]> =
        request.records().flat_map(|record| record.checksums.iter().map(|sum| Checksum(sum.get()))).collect();
    let mut left = checksums.as_slice();
    let mut take = |record: &RecordRef<'_>| {
        let (mine, rest) = left.split_at(record.checksums.len());
        left = rest;
        mine
    };
    let chunk_bytes = request.chunk_bytes();
    let commit = |update: &Update<'_>| {
        container.update(request.object(), request.epoch(), writer, conflict(request), update)
    };
    let object_type = request.object().object_type();
    let mut keys: Few<KeyUpdate<'_>> = Few::new();
    let mut extents: Few<ExtentUpdate<'_>> = Few::new();
    // The value of each record of a document that is none of an extent; `None` punches.
    let mut values: Few<Option<Value<'_>>> = Few::new();
    for (index, record) in request.records().enumerate() {
        let sums = take(&record);
        let value = match (record.kind, sums) {
            (RecordKind::Extent, chunks) => {
                extents.push(pulled.extent(index, &record, Checksums { chunk_bytes, chunks })?);
                continue;
            }
            (RecordKind::Value, [sum]) => Some(pulled.value(index, &record, *sum)?),
            _ => None,
        };
        match object_type {
            ObjectType::Document => values.push(value),
            _ => keys.push(KeyUpdate { key: record.key, value }),
        }
    }
    match object_type {
        ObjectType::KeyValue => commit(&Update::KeyValue(&keys)),
        ObjectType::Array => commit(&Update::Array(&extents)),
        ObjectType::Document => {
            let mut akeys: Few<AkeyUpdate<'_>> = Few::new();
            let (mut values, mut extents_left) = (values.into_iter(), extents.as_slice());
            let mut records = request.records().peekable();
            while let Some(record) = records.next() {
                let data = if record.kind == RecordKind::Extent {
                    let mut count = 1;
                    let same =
                        |next: &RecordRef<'_>| next.kind == RecordKind::Extent && next.key == record.key;
                    while records.next_if(same).is_some() {
                        count += 1;
                    }
                    let (run, rest) = extents_left.split_at(count);
                    extents_left = rest;
                    AkeyData::Extents(run)
                } else {
                    AkeyData::Single(values.next().flatten())
                };
                akeys.push(AkeyUpdate { akey: record.key, data });
            }
            commit(&Update::Document { dkey: request.dkey(), akeys: &akeys })
        }
    }
}

/// Makes the change of a punch. Several extents are punched one after the other.
pub(super) fn punch<E: Env>(
    container: &Container<E>,
    writer: Writer,
    request: &ObjectRequest<'_>,
) -> Result<Sealed, Error> {
    let (object, epoch, dkey, conflict) =
        (request.object(), request.epoch(), request.dkey(), conflict(request));
    if request.has(flags::OBJECT) {
        return container.punch(object, epoch, writer, conflict, &Punch::Object);
    }
    if request.has(flags::DKEY) {
        return container.punch(object, epoch, writer, conflict, &Punch::Dkey(dkey));
    }
    let ((), sealed) = container.reserved_transaction(|tx| {
        for record in request.records() {
            let range = record.offset..record.offset + record.length;
            let punch = match (object.object_type(), record.kind) {
                (ObjectType::KeyValue, _) => Punch::Key(record.key),
                (ObjectType::Array, _) => Punch::Extent(range),
                (ObjectType::Document, RecordKind::PunchExtent) => {
                    Punch::AkeyExtent { dkey, akey: record.key, range }
                }
                (ObjectType::Document, _) => Punch::Akey { dkey, akey: record.key },
            };
            tx.punch(object, epoch, writer, conflict, &punch)?;
        }
        Ok::<(), Error>(())
    })?;
    Ok(sealed)
}
