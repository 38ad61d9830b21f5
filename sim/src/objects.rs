//! The objects that clients work on. Every slot (a client, in all its lives) has places of its own, so that what a place
//! holds follows from one writer at a time; containers, epochs and some objects are shared.

use daos_dsr::class::{CELL_BYTES, S1, S2, SX};
use daos_types::{KeyOrder, ObjectId, ObjectType};

/// Keys that a slot has in its own KV.
const KEYS: usize = 6;
/// Keys that a slot has in the shared KV.
const SHARED_KEYS: usize = 3;
/// Dkeys, and akeys of each, that a slot has in its document.
const DKEYS: usize = 3;

/// An object of a slot, or the slot's part of a shared one.
#[derive(Clone, Debug)]
pub struct Part {
    /// The object.
    pub object: ObjectId,
    /// The slot has it for itself and may remove it as a whole.
    pub own: bool,
    /// Values of the slot: (dkey, akey), or (empty, key).
    pub keys: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The parts of a slot.
pub fn parts(slot: usize) -> Vec<Part> {
    let id = |object_type, class, order, number: usize| {
        ObjectId::new(object_type, order, KeyOrder::Lexical, class, (0, 7, number as u64))
    };
    let class = [S1, S2, SX][slot % 3];
    let order = [KeyOrder::Lexical, KeyOrder::Hashed][slot % 2];
    let key = |name: String| (Vec::new(), name.into_bytes());
    let document_keys = (0..DKEYS * DKEYS).map(|index| {
        (format!("dkey{}", index / DKEYS).into_bytes(), format!("akey{}", index % DKEYS).into_bytes())
    });
    vec![
        Part {
            object: id(ObjectType::KeyValue, class, order, 100 + slot),
            own: true,
            keys: (0..KEYS).map(|index| key(format!("key{index}"))).collect(),
        },
        Part { object: id(ObjectType::Array, S2, order, 200 + slot), own: true, keys: Vec::new() },
        Part {
            object: id(ObjectType::Document, SX, order, 300 + slot),
            own: true,
            keys: document_keys.collect(),
        },
        Part {
            object: id(ObjectType::KeyValue, SX, KeyOrder::Lexical, 1),
            own: false,
            keys: (0..SHARED_KEYS).map(|index| key(format!("slot{slot}-{index}"))).collect(),
        },
    ]
}

/// Where the ranges of arrays begin: at the start, and across the border between two shards.
pub const RANGES: [u64; 2] = [0, CELL_BYTES - 12_000];
/// How far a range of an array reaches from there.
pub const RANGE_BYTES: u64 = 40_000;
