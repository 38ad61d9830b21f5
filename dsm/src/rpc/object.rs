//! Bodies of object procedures.
//!
//! ```text
//! update, fetch, punch:  ObjectHeader  Record × record_count  checksum × checksum_count  dkey  keys  data
//! reply to fetch:        FetchHeader  FetchedRecord × record_count  FetchedPiece × piece_count  data
//! enumerate:             EnumerateHeader  dkey  akey  anchor
//! reply to enumerate:    EnumerateReply  anchor  (EnumeratedEntry bytes) × entry_count
//! query:                 ObjectHeader  dkey  akey (as one record)      reply: QueryReply
//! ```
//!
//! # Invariants
//!
//! * Lengths of the parts add up to the body, exactly.
//! * In an update, the lengths of values and extents add up to `data_length`, and the data is either all inline or all in
//!   the remote buffer, in the order of the records.
//! * Every value has one checksum; every extent one for each chunk of [`ObjectHeader::chunk_bytes`] that it touches.
//! * Records fit the type of the object: keys and values for a KV, extents for an array, both below one distribution key
//!   for a document.

use daos_types::{Epoch, KEY_BYTES_MAX, ObjectId, ObjectType};
use daos_xstream::RemoteBuffer;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::Malformed;
use crate::epochs::EPOCH_LAST;

mod encode;
mod enumerate;
mod fetched;
#[cfg(test)]
mod tests;

pub(crate) use encode::set_remote;
pub use encode::{ReadRecord, UpdateRecord, encode_fetch, encode_punch, encode_query, encode_update};
pub use enumerate::{
    Enumerate, EnumerateHeader, EnumerateKind, EnumerateReply, Enumerated, EnumeratedEntry, encode_enumerate,
    parse_enumerated,
};
pub use fetched::{
    FETCH_BULK, FetchHeader, FetchReply, FetchedPiece, FetchedRecord, Outcome, PieceKind, QueryReply,
    RecordReply,
};

/// Most bytes of data that one request may move.
pub const REQUEST_DATA_BYTES_MAX: u64 = 16 << 20;
/// Bytes of an extent that share a checksum, as this build's clients choose it.
pub const CHUNK_BYTES: u32 = 32 << 10;
/// First offset that no array reaches.
pub const ARRAY_BYTES_MAX: u64 = 1 << 63;

/// Bits of [`ObjectHeader::flags`].
pub mod flags {
    /// Reply only when the change survives any crash.
    pub const DURABLE: u16 = 1;
    /// A second write of the same handle to the same thing in the same epoch replaces the first; otherwise other content
    /// is refused.
    pub const LAST_WINS: u16 = 2;
    /// The data is in the remote buffer, or may be put there.
    pub const BULK: u16 = 4;
    /// The work of a rebuild: never overwrites what an application wrote in the same epoch.
    pub const REBUILD: u16 = 8;
    /// Punch: the whole object.
    pub const OBJECT: u16 = 16;
    /// Punch: a whole distribution key.
    pub const DKEY: u16 = 32;
    /// All of them.
    pub const ALL: u16 = 63;
}

/// The fixed part of update, fetch, punch and query.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ObjectHeader {
    pub(crate) object: [U64; 3],
    pub(crate) epoch: U64,
    pub(crate) remote: [U64; 3],
    pub(crate) data_length: U64,
    pub(crate) flags: U16,
    pub(crate) record_count: U16,
    pub(crate) dkey_length: U32,
    pub(crate) chunk_bytes: U32,
    pub(crate) checksum_count: U32,
}

/// The fixed part of one record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Record {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) reserved: U16,
    pub(crate) key_length: U32,
    pub(crate) offset: U64,
    pub(crate) length: U64,
}

const _: () = assert!(size_of::<ObjectHeader>() == 80 && size_of::<Record>() == 24);

/// The record has the key of the one before it: a further extent of the same akey.
const RECORD_SAME_KEY: u8 = 1;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A single value.
    Value,
    /// Bytes of an array.
    Extent,
    /// The punch of a key, whatever it holds.
    Punch,
    /// The punch of bytes of an array.
    PunchExtent,
}

impl RecordKind {
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            Self::Value => 1,
            Self::Extent => 2,
            Self::Punch => 3,
            Self::PunchExtent => 4,
        }
    }

    fn from_wire(kind: u8) -> Option<Self> {
        [Self::Value, Self::Extent, Self::Punch, Self::PunchExtent]
            .into_iter()
            .find(|known| known.to_wire() == kind)
    }
}

/// Which procedure a body is for: they share a layout and differ in what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Procedure {
    /// Values, extents and punches of keys, with data.
    Update,
    /// Values and extents to be read, without data.
    Fetch,
    /// Punches, without data.
    Punch,
    /// Nothing, or the key whose array is asked about.
    Query,
}

/// A request about one object, checked.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRequest<'a> {
    object: ObjectId,
    header: &'a ObjectHeader,
    records: &'a [Record],
    checksums: &'a [U32],
    dkey: &'a [u8],
    keys: &'a [u8],
    data: &'a [u8],
}

/// One record of a request.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// What it is about.
    pub kind: RecordKind,
    /// Key of a KV or akey of a document; empty for arrays.
    pub key: &'a [u8],
    /// First byte of an extent; 0 otherwise.
    pub offset: u64,
    /// Bytes of a value or extent to be written, or room for a value, or length of an extent, to be read or punched.
    pub length: u64,
    /// CRC32C of the value, or of each chunk of the extent; empty unless data is written.
    pub checksums: &'a [U32],
    /// Where the record's data begins within the data of the request.
    pub data_offset: u64,
    /// The data, if the request carries it.
    pub data: &'a [u8],
}

impl<'a> ObjectRequest<'a> {
    /// Takes the body of a request apart. Does not allocate.
    pub fn parse(procedure: Procedure, body: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) =
            ObjectHeader::ref_from_prefix(body).map_err(|_| Malformed("shorter than its header"))?;
        let [high, middle, low] = header.object;
        let object = ObjectId::from_parts(high.get(), middle.get(), low.get())
            .map_err(|_| Malformed("the object ID is none"))?;
        let (records, rest) = <[Record]>::ref_from_prefix_with_elems(rest, header.record_count.get().into())
            .map_err(|_| Malformed("shorter than its records"))?;
        let (checksums, rest) =
            <[U32]>::ref_from_prefix_with_elems(rest, header.checksum_count.get() as usize)
                .map_err(|_| Malformed("shorter than its checksums"))?;
        let dkey_length = header.dkey_length.get() as usize;
        if dkey_length > KEY_BYTES_MAX || dkey_length > rest.len() {
            return Err(Malformed("the distribution key is too long"));
        }
        let (dkey, rest) = rest.split_at(dkey_length);
        let mut request = Self { object, header, records, checksums, dkey, keys: &[], data: &[] };
        request.check_header(procedure)?;
        let totals = request.check_records(procedure)?;
        if totals.keys > rest.len() {
            return Err(Malformed("shorter than its keys"));
        }
        (request.keys, request.data) = rest.split_at(totals.keys);
        if totals.checksums != checksums.len() {
            return Err(Malformed("checksums are missing, or too many"));
        }
        let expected_data = match procedure {
            Procedure::Update => totals.data,
            Procedure::Fetch | Procedure::Punch | Procedure::Query => 0,
        };
        if totals.data > REQUEST_DATA_BYTES_MAX {
            return Err(Malformed("more data than one request may move"));
        }
        if header.data_length.get() != expected_data {
            return Err(Malformed("the data is not as long as its records"));
        }
        let inline = if request.is_bulk() { 0 } else { expected_data };
        if request.data.len() as u64 != inline {
            return Err(Malformed("the body is not as long as its parts"));
        }
        if request.is_bulk() && request.remote().length < totals.data {
            return Err(Malformed("the remote buffer is shorter than the data"));
        }
        Ok(request)
    }

    fn check_header(&self, procedure: Procedure) -> Result<(), Malformed> {
        let (flags, epoch) = (self.header.flags.get(), self.epoch());
        let allowed = match procedure {
            Procedure::Update => flags::DURABLE | flags::LAST_WINS | flags::BULK | flags::REBUILD,
            Procedure::Fetch => flags::BULK,
            Procedure::Punch => {
                flags::DURABLE | flags::LAST_WINS | flags::REBUILD | flags::OBJECT | flags::DKEY
            }
            Procedure::Query => 0,
        };
        if flags & !allowed != 0 {
            return Err(Malformed("a flag that does not belong there"));
        }
        let changes = matches!(procedure, Procedure::Update | Procedure::Punch);
        if changes && (epoch == Epoch::ZERO || epoch > EPOCH_LAST) {
            return Err(Malformed("an epoch that cannot be written"));
        }
        if self.object.object_type() != ObjectType::Document && !self.dkey.is_empty() {
            return Err(Malformed("a distribution key, and the object is no document"));
        }
        let whole = flags & (flags::OBJECT | flags::DKEY);
        if whole != 0 && (!self.records.is_empty() || whole == flags::OBJECT | flags::DKEY) {
            return Err(Malformed("a whole punch, and a part of it"));
        }
        if whole == flags::DKEY && self.object.object_type() != ObjectType::Document {
            return Err(Malformed("a punch of a distribution key, and the object is no document"));
        }
        let records_needed = match procedure {
            Procedure::Update | Procedure::Fetch => true,
            Procedure::Punch => whole == 0,
            Procedure::Query => false,
        };
        if records_needed && self.records.is_empty() {
            return Err(Malformed("no record"));
        }
        if procedure == Procedure::Query && self.records.len() > 1 {
            return Err(Malformed("more than one key"));
        }
        let chunk_bytes = self.header.chunk_bytes.get();
        if chunk_bytes != 0 && !(chunk_bytes.is_power_of_two() && (512..=1 << 20).contains(&chunk_bytes)) {
            return Err(Malformed("a checksum chunk of that size"));
        }
        Ok(())
    }

    fn check_records(&self, procedure: Procedure) -> Result<Totals, Malformed> {
        use RecordKind::{Extent, Punch, PunchExtent, Value};
        let object_type = self.object.object_type();
        let chunk_bytes = u64::from(self.header.chunk_bytes.get());
        let mut totals = Totals::default();
        let mut before = None;
        for record in self.records {
            let kind = RecordKind::from_wire(record.kind).ok_or(Malformed("an unknown kind of record"))?;
            let (offset, length) = (record.offset.get(), record.length.get());
            let fits_procedure = match procedure {
                Procedure::Update => kind != PunchExtent,
                Procedure::Fetch => matches!(kind, Value | Extent),
                Procedure::Punch => matches!(kind, Punch | PunchExtent),
                Procedure::Query => kind == Extent,
            };
            let fits_object = match object_type {
                ObjectType::KeyValue => matches!(kind, Value | Punch),
                ObjectType::Array => matches!(kind, Extent | PunchExtent),
                ObjectType::Document => true,
            };
            if !fits_procedure || !fits_object {
                return Err(Malformed("a record of a kind that does not belong there"));
            }
            let key_length = record.key_length.get() as usize;
            if key_length > KEY_BYTES_MAX || key_length > 0 && object_type == ObjectType::Array {
                return Err(Malformed("a key that is too long"));
            }
            match record.flags {
                0 => {}
                RECORD_SAME_KEY
                    if key_length == 0
                        && before == Some(kind)
                        && matches!(kind, Extent | PunchExtent)
                        && object_type == ObjectType::Document => {}
                _ => return Err(Malformed("a flag of a record that does not belong there")),
            }
            before = Some(kind);
            let checksums = match kind {
                Value if offset == 0 => 1,
                Extent if procedure == Procedure::Query && offset == 0 && length == 0 => 0,
                Extent if procedure == Procedure::Query => {
                    return Err(Malformed("an offset where none belongs"));
                }
                Extent | PunchExtent => {
                    let end = offset.checked_add(length).filter(|end| *end <= ARRAY_BYTES_MAX);
                    let end = end.filter(|_| length > 0).ok_or(Malformed("an extent beyond any array"))?;
                    if procedure == Procedure::Update && chunk_bytes == 0 {
                        return Err(Malformed("an extent without a size of checksum chunks"));
                    }
                    end.div_ceil(chunk_bytes.max(1)) - offset / chunk_bytes.max(1)
                }
                Punch if offset == 0 && length == 0 => 0,
                Value | Punch => return Err(Malformed("an offset where none belongs")),
            };
            if matches!(kind, Value | Extent) {
                totals.data = totals.data.saturating_add(length);
                if procedure == Procedure::Update {
                    // At most 2^54 for a record and 2^16 records: does not overflow.
                    totals.checksums = totals.checksums.saturating_add(checksums as usize);
                }
            }
            totals.keys += key_length;
        }
        Ok(totals)
    }

    /// The object.
    pub fn object(&self) -> ObjectId {
        self.object
    }

    /// The epoch to write in, or to read at.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.header.epoch.get())
    }

    /// Whether a flag of [`flags`] is set.
    pub fn has(&self, flag: u16) -> bool {
        self.header.flags.get() & flag != 0
    }

    /// Whether data is in the remote buffer, or may be put there.
    pub fn is_bulk(&self) -> bool {
        self.has(flags::BULK)
    }

    /// The client's buffer; means something only with [`flags::BULK`].
    pub fn remote(&self) -> RemoteBuffer {
        let [key, offset, length] = self.header.remote;
        RemoteBuffer { key: key.get(), offset: offset.get(), length: length.get() }
    }

    /// Distribution key of a document.
    pub fn dkey(&self) -> &'a [u8] {
        self.dkey
    }

    /// Bytes of data that an update carries, inline or in the remote buffer.
    pub fn data_length(&self) -> u64 {
        self.header.data_length.get()
    }

    /// Bytes of an extent that share a checksum.
    pub fn chunk_bytes(&self) -> u32 {
        self.header.chunk_bytes.get()
    }

    /// How many records there are.
    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// The records, in order.
    pub fn records(&self) -> Records<'a> {
        Records {
            records: self.records.iter(),
            checksums: self.checksums,
            keys: self.keys,
            data: self.data,
            chunk_bytes: u64::from(self.chunk_bytes()),
            data_offset: 0,
            key: &[],
        }
    }
}

#[derive(Default)]
struct Totals {
    keys: usize,
    checksums: usize,
    data: u64,
}

/// Iterator over the records of a request.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    records: std::slice::Iter<'a, Record>,
    checksums: &'a [U32],
    keys: &'a [u8],
    data: &'a [u8],
    chunk_bytes: u64,
    data_offset: u64,
    key: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordRef<'a>;

    fn next(&mut self) -> Option<RecordRef<'a>> {
        let record = self.records.next()?;
        let kind = RecordKind::from_wire(record.kind)?;
        let (offset, length) = (record.offset.get(), record.length.get());
        if record.flags & RECORD_SAME_KEY == 0 {
            (self.key, self.keys) = self.keys.split_at(record.key_length.get() as usize);
        }
        let has_data = matches!(kind, RecordKind::Value | RecordKind::Extent);
        // Without checksums (a fetch) or data (a bulk request) there is nothing to be taken.
        let checksum_count = match kind {
            RecordKind::Value => 1,
            RecordKind::Extent if self.chunk_bytes > 0 => {
                ((offset + length).div_ceil(self.chunk_bytes) - offset / self.chunk_bytes) as usize
            }
            _ => 0,
        };
        let (checksums, rest) = self.checksums.split_at(checksum_count.min(self.checksums.len()));
        self.checksums = rest;
        let data_length = if has_data { length.min(self.data.len() as u64) as usize } else { 0 };
        let (data, rest) = self.data.split_at(data_length);
        self.data = rest;
        let data_offset = self.data_offset;
        if has_data {
            self.data_offset += length;
        }
        Some(RecordRef { kind, key: self.key, offset, length, checksums, data_offset, data })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.records.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}
