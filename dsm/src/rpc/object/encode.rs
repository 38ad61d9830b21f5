//! Writing requests about objects.

use daos_types::{Epoch, ObjectId};
use daos_xstream::RemoteBuffer;
use zerocopy::{
    IntoBytes,
    little_endian::{U16, U32, U64},
};

use super::{CHUNK_BYTES, ObjectHeader, RECORD_SAME_KEY, Record, RecordKind, flags};

/// One record to be written or punched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateRecord<'a> {
    /// A single value.
    Value {
        /// Key of a KV, akey of a document.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Bytes of an array.
    Extent {
        /// Akey of a document; empty for an array object.
        key: &'a [u8],
        /// First byte.
        offset: u64,
        /// The bytes; not empty.
        data: &'a [u8],
    },
    /// A key that shall be gone.
    Punch {
        /// Key of a KV, akey of a document.
        key: &'a [u8],
    },
    /// Bytes of an array that shall be gone. Only in a punch.
    PunchExtent {
        /// Akey of a document; empty for an array object.
        key: &'a [u8],
        /// First byte.
        offset: u64,
        /// Bytes; not 0.
        length: u64,
    },
}

impl<'a> UpdateRecord<'a> {
    /// The record's key.
    pub fn key(&self) -> &'a [u8] {
        self.parts().1
    }

    /// The record's data, empty for punches.
    pub fn data(&self) -> &'a [u8] {
        match *self {
            Self::Value { value, .. } => value,
            Self::Extent { data, .. } => data,
            Self::Punch { .. } | Self::PunchExtent { .. } => &[],
        }
    }

    fn parts(&self) -> (RecordKind, &'a [u8], u64, u64) {
        match *self {
            Self::Value { key, value } => (RecordKind::Value, key, 0, value.len() as u64),
            Self::Extent { key, offset, data } => (RecordKind::Extent, key, offset, data.len() as u64),
            Self::Punch { key } => (RecordKind::Punch, key, 0, 0),
            Self::PunchExtent { key, offset, length } => (RecordKind::PunchExtent, key, offset, length),
        }
    }
}

/// One record to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRecord<'a> {
    /// A single value.
    Value {
        /// Key of a KV, akey of a document.
        key: &'a [u8],
        /// Room for it in the remote buffer. Without one it is 0: the value comes if the reply has room.
        room: u64,
    },
    /// Bytes of an array.
    Extent {
        /// Akey of a document; empty for an array object.
        key: &'a [u8],
        /// First byte.
        offset: u64,
        /// Bytes; not 0.
        length: u64,
    },
}

/// Appends the body of an update to `body`. With `remote` the data is left out: it is in that buffer, in the order of the
/// records.
pub fn encode_update(
    body: &mut Vec<u8>,
    object: ObjectId,
    epoch: Epoch,
    flags: u16,
    dkey: &[u8],
    records: &[UpdateRecord<'_>],
    remote: Option<RemoteBuffer>,
) {
    let parts = || records.iter().map(UpdateRecord::parts);
    encode(body, object, epoch, flags, dkey, parts, remote, |body, header| {
        for record in records {
            match record {
                UpdateRecord::Value { value, .. } => {
                    body.extend_from_slice(&crc32c::crc32c(value).to_le_bytes());
                    header.checksum_count += 1;
                }
                UpdateRecord::Extent { offset, data, .. } => {
                    let mut rest = *data;
                    let mut room = u64::from(CHUNK_BYTES) - offset % u64::from(CHUNK_BYTES);
                    while !rest.is_empty() {
                        let (chunk, after) = rest.split_at(rest.len().min(room as usize));
                        body.extend_from_slice(&crc32c::crc32c(chunk).to_le_bytes());
                        header.checksum_count += 1;
                        (rest, room) = (after, u64::from(CHUNK_BYTES));
                    }
                    header.chunk_bytes.set(CHUNK_BYTES);
                }
                UpdateRecord::Punch { .. } | UpdateRecord::PunchExtent { .. } => {}
            }
            header.data_length += record.data().len() as u64;
        }
    });
    if remote.is_none() {
        for record in records {
            body.extend_from_slice(record.data());
        }
    }
}

/// Appends the body of a fetch to `body`. With `remote`, data that does not fit the reply is put there: each record's at
/// the sum of the lengths (or rooms) of the records before it.
pub fn encode_fetch(
    body: &mut Vec<u8>,
    object: ObjectId,
    epoch: Epoch,
    dkey: &[u8],
    records: &[ReadRecord<'_>],
    remote: Option<RemoteBuffer>,
) {
    let parts = || {
        records.iter().map(|record| match *record {
            ReadRecord::Value { key, room } => (RecordKind::Value, key, 0, room),
            ReadRecord::Extent { key, offset, length } => (RecordKind::Extent, key, offset, length),
        })
    };
    encode(body, object, epoch, 0, dkey, parts, remote, |_, _| {});
}

/// Appends the body of a punch to `body`: of the object or of the distribution key, as `flags` says, or of the records.
pub fn encode_punch(
    body: &mut Vec<u8>,
    object: ObjectId,
    epoch: Epoch,
    flags: u16,
    dkey: &[u8],
    records: &[UpdateRecord<'_>],
) {
    let parts = || records.iter().map(UpdateRecord::parts);
    encode(body, object, epoch, flags, dkey, parts, None, |_, _| {});
}

/// Appends the body of a query to `body`. `akey` names the array within a document.
pub fn encode_query(body: &mut Vec<u8>, object: ObjectId, epoch: Epoch, document: Option<(&[u8], &[u8])>) {
    let (dkey, akey) = document.unzip();
    let parts = || akey.into_iter().map(|akey| (RecordKind::Extent, akey, 0, 0));
    encode(body, object, epoch, 0, dkey.unwrap_or_default(), parts, None, |_, _| {});
}

/// Puts another remote buffer into a body that was encoded with one.
pub(crate) fn set_remote(body: &mut [u8], remote: RemoteBuffer) {
    let place = std::mem::offset_of!(ObjectHeader, remote);
    let remote = [remote.key, remote.offset, remote.length].map(U64::new);
    body[place..place + size_of_val(&remote)].copy_from_slice(remote.as_bytes());
}

#[expect(clippy::too_many_arguments, reason = "the one place that lays out all parts of a body")]
fn encode<'a, I: Iterator<Item = (RecordKind, &'a [u8], u64, u64)>>(
    body: &mut Vec<u8>,
    object: ObjectId,
    epoch: Epoch,
    flags: u16,
    dkey: &[u8],
    parts: impl Fn() -> I,
    remote: Option<RemoteBuffer>,
    checksums: impl FnOnce(&mut Vec<u8>, &mut ObjectHeader),
) {
    let (high, middle, low) = object.to_parts();
    let bulk = if remote.is_some() { flags::BULK } else { 0 };
    let remote = remote.unwrap_or_default();
    let mut header = ObjectHeader {
        object: [high, middle, low].map(U64::new),
        epoch: U64::new(epoch.0),
        remote: [remote.key, remote.offset, remote.length].map(U64::new),
        data_length: U64::ZERO,
        flags: U16::new(flags | bulk),
        record_count: U16::ZERO,
        dkey_length: U32::new(dkey.len() as u32),
        chunk_bytes: U32::ZERO,
        checksum_count: U32::ZERO,
    };
    let start = body.len();
    body.extend_from_slice(header.as_bytes());
    let mut before = None;
    for (kind, key, offset, length) in parts() {
        // Further extents of one akey share its key.
        let extent = matches!(kind, RecordKind::Extent | RecordKind::PunchExtent);
        let same = extent && !key.is_empty() && before == Some((kind, key));
        let record = Record {
            kind: kind.to_wire(),
            flags: if same { RECORD_SAME_KEY } else { 0 },
            reserved: U16::ZERO,
            key_length: U32::new(if same { 0 } else { key.len() as u32 }),
            offset: U64::new(offset),
            length: U64::new(length),
        };
        body.extend_from_slice(record.as_bytes());
        header.record_count += 1;
        before = Some((kind, key));
    }
    checksums(body, &mut header);
    body.extend_from_slice(dkey);
    let mut before = None;
    for (kind, key, ..) in parts() {
        let extent = matches!(kind, RecordKind::Extent | RecordKind::PunchExtent);
        if !(extent && !key.is_empty() && before == Some((kind, key))) {
            body.extend_from_slice(key);
        }
        before = Some((kind, key));
    }
    body[start..start + size_of::<ObjectHeader>()].copy_from_slice(header.as_bytes());
}
