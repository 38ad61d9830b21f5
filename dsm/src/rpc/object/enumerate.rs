//! Enumeration: requests, and replies that are a list of entries.

use daos_types::{Epoch, KEY_BYTES_MAX, ObjectId, ObjectType};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::rpc::Malformed;

/// Longest anchor, in bytes: a key and what the store adds to it.
pub const ANCHOR_BYTES_MAX: usize = KEY_BYTES_MAX + 64;

/// What is enumerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnumerateKind {
    /// Objects of the container on this target. The object of the request means nothing.
    Objects,
    /// Keys of a KV.
    Keys,
    /// Distribution keys of a document.
    Dkeys,
    /// Attribute keys below a distribution key.
    Akeys,
    /// Written extents of an array, or of an akey of a document.
    Extents,
}

const KINDS: [EnumerateKind; 5] = [
    EnumerateKind::Objects,
    EnumerateKind::Keys,
    EnumerateKind::Dkeys,
    EnumerateKind::Akeys,
    EnumerateKind::Extents,
];

/// The fixed part of an enumeration.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EnumerateHeader {
    object: [U64; 3],
    epoch: U64,
    kind: U16,
    reserved: U16,
    entries_max: U32,
    dkey_length: U32,
    akey_length: U32,
    anchor_length: U32,
    reserved_2: U32,
}

/// The fixed part of the reply to an enumeration.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EnumerateReply {
    entry_count: U32,
    anchor_length: U32,
    at_end: u8,
    reserved: [u8; 7],
}

/// The fixed part of an entry: what it means depends on what is enumerated.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EnumeratedEntry {
    length: U32,
    reserved: U32,
    low: U64,
    high: U64,
    epoch: U64,
}

const _: () = assert!(
    size_of::<EnumerateHeader>() == 56
        && size_of::<EnumerateReply>() == 16
        && size_of::<EnumeratedEntry>() == 32
);

/// An enumeration, checked.
#[derive(Clone, Copy, Debug)]
pub struct Enumerate<'a> {
    /// The object; `None` for an enumeration of objects.
    pub object: Option<ObjectId>,
    /// What is visible at this epoch is listed.
    pub epoch: Epoch,
    /// What is enumerated.
    pub kind: EnumerateKind,
    /// At most so many entries; as many as fit into the reply if that is less.
    pub entries_max: u32,
    /// Distribution key.
    pub dkey: &'a [u8],
    /// Attribute key.
    pub akey: &'a [u8],
    /// Where to go on; empty at the beginning.
    pub anchor: &'a [u8],
}

impl<'a> Enumerate<'a> {
    /// Takes the body of a request apart. Does not allocate.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) =
            EnumerateHeader::ref_from_prefix(body).map_err(|_| Malformed("shorter than its header"))?;
        let kind = *KINDS
            .get(usize::from(header.kind.get()))
            .ok_or(Malformed("there is nothing of that kind to enumerate"))?;
        let object = match kind {
            EnumerateKind::Objects => None,
            _ => {
                let [high, middle, low] = header.object;
                let object = ObjectId::from_parts(high.get(), middle.get(), low.get());
                Some(object.map_err(|_| Malformed("the object ID is none"))?)
            }
        };
        let (dkey, rest) = take(rest, header.dkey_length, KEY_BYTES_MAX)?;
        let (akey, rest) = take(rest, header.akey_length, KEY_BYTES_MAX)?;
        let (anchor, rest) = take(rest, header.anchor_length, ANCHOR_BYTES_MAX)?;
        if !rest.is_empty() {
            return Err(Malformed("longer than its parts"));
        }
        let object_type = object.map(ObjectId::object_type);
        let document = object_type == Some(ObjectType::Document);
        let fits = match kind {
            EnumerateKind::Objects => true,
            EnumerateKind::Keys => object_type == Some(ObjectType::KeyValue),
            EnumerateKind::Dkeys | EnumerateKind::Akeys => document,
            EnumerateKind::Extents => document || object_type == Some(ObjectType::Array),
        };
        let keys_fit = match kind {
            EnumerateKind::Akeys => akey.is_empty(),
            EnumerateKind::Extents => document || dkey.is_empty() && akey.is_empty(),
            _ => dkey.is_empty() && akey.is_empty(),
        };
        if !fits || !keys_fit {
            return Err(Malformed("an object, or keys, that have nothing of that kind"));
        }
        let (epoch, entries_max) = (Epoch(header.epoch.get()), header.entries_max.get());
        Ok(Self { object, epoch, kind, entries_max, dkey, akey, anchor })
    }
}

fn take(bytes: &[u8], length: U32, limit: usize) -> Result<(&[u8], &[u8]), Malformed> {
    let length = length.get() as usize;
    if length > limit {
        return Err(Malformed("a key or anchor that is too long"));
    }
    bytes.split_at_checked(length).ok_or(Malformed("shorter than its keys"))
}

/// Appends the body of an enumeration to `body`.
pub fn encode_enumerate(body: &mut Vec<u8>, request: &Enumerate<'_>) {
    let (high, middle, low) = request.object.map_or((0, 0, 0), ObjectId::to_parts);
    let kind = KINDS.iter().position(|kind| *kind == request.kind).unwrap_or_default();
    let header = EnumerateHeader {
        object: [high, middle, low].map(U64::new),
        epoch: U64::new(request.epoch.0),
        kind: U16::new(kind as u16),
        reserved: U16::ZERO,
        entries_max: U32::new(request.entries_max),
        dkey_length: U32::new(request.dkey.len() as u32),
        akey_length: U32::new(request.akey.len() as u32),
        anchor_length: U32::new(request.anchor.len() as u32),
        reserved_2: U32::ZERO,
    };
    body.extend_from_slice(header.as_bytes());
    for part in [request.dkey, request.akey, request.anchor] {
        body.extend_from_slice(part);
    }
}

impl EnumerateReply {
    /// The fixed part of a reply.
    pub fn new(entry_count: u32, anchor_length: u32, at_end: bool) -> Self {
        Self {
            entry_count: U32::new(entry_count),
            anchor_length: U32::new(anchor_length),
            at_end: at_end.into(),
            reserved: [0; 7],
        }
    }
}

/// One thing that was enumerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enumerated<'a> {
    /// A key, a distribution key or an attribute key.
    Key(&'a [u8]),
    /// An object.
    Object(ObjectId),
    /// Bytes that were written, or punched, in this epoch.
    Extent {
        /// First byte.
        low: u64,
        /// One past the last.
        high: u64,
        /// When.
        epoch: Epoch,
        /// Whether it is a punch.
        punched: bool,
    },
}

impl Enumerated<'_> {
    /// Bytes that the entry takes in a reply.
    pub fn encoded_bytes(&self) -> usize {
        let variable = match self {
            Self::Key(key) => key.len(),
            Self::Object(_) => 24,
            Self::Extent { .. } => 1,
        };
        size_of::<EnumeratedEntry>() + variable
    }

    /// Appends the entry to `body`.
    pub fn encode(&self, body: &mut Vec<u8>) {
        let entry = |length: usize, low, high, epoch: Epoch| EnumeratedEntry {
            length: U32::new(length as u32),
            reserved: U32::ZERO,
            low: U64::new(low),
            high: U64::new(high),
            epoch: U64::new(epoch.0),
        };
        match *self {
            Self::Key(key) => {
                body.extend_from_slice(entry(key.len(), 0, 0, Epoch::ZERO).as_bytes());
                body.extend_from_slice(key);
            }
            Self::Object(object) => {
                let (high, middle, low) = object.to_parts();
                body.extend_from_slice(entry(24, 0, 0, Epoch::ZERO).as_bytes());
                body.extend_from_slice([high, middle, low].map(U64::new).as_bytes());
            }
            Self::Extent { low, high, epoch, punched } => {
                body.extend_from_slice(entry(1, low, high, epoch).as_bytes());
                body.push(punched.into());
            }
        }
    }
}

/// Takes the body of a reply apart: hands every entry to `visit`, and returns where to go on, `None` at the end. What
/// `visit` has got before an error is to be forgotten.
pub fn parse_enumerated<'a>(
    kind: EnumerateKind,
    body: &'a [u8],
    mut visit: impl FnMut(Enumerated<'a>),
) -> Result<Option<&'a [u8]>, Malformed> {
    let (header, rest) =
        EnumerateReply::ref_from_prefix(body).map_err(|_| Malformed("shorter than its header"))?;
    let (anchor, mut rest) = take(rest, header.anchor_length, ANCHOR_BYTES_MAX)?;
    for _ in 0..header.entry_count.get() {
        let (entry, after) =
            EnumeratedEntry::ref_from_prefix(rest).map_err(|_| Malformed("shorter than its entries"))?;
        let (bytes, after) = take(after, entry.length, KEY_BYTES_MAX)?;
        rest = after;
        visit(match kind {
            EnumerateKind::Keys | EnumerateKind::Dkeys | EnumerateKind::Akeys => Enumerated::Key(bytes),
            EnumerateKind::Objects => {
                let [high, middle, low] =
                    <[U64; 3]>::read_from_bytes(bytes).map_err(|_| Malformed("an object ID is none"))?;
                let object = ObjectId::from_parts(high.get(), middle.get(), low.get());
                Enumerated::Object(object.map_err(|_| Malformed("an object ID is none"))?)
            }
            EnumerateKind::Extents => {
                let (low, high) = (entry.low.get(), entry.high.get());
                let &[punched] = bytes else { return Err(Malformed("an extent is none")) };
                if low >= high || punched > 1 {
                    return Err(Malformed("an extent is none"));
                }
                Enumerated::Extent { low, high, epoch: Epoch(entry.epoch.get()), punched: punched == 1 }
            }
        });
    }
    if !rest.is_empty() {
        return Err(Malformed("longer than its entries"));
    }
    Ok((header.at_end == 0).then_some(anchor))
}
