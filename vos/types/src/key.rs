//! Keys of records: bytes, ordered as the object's type says.

use serde::{Deserialize, Serialize};

/// The longest key, in bytes. The empty key is a key.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

/// How the keys of an object order, and so which enumerations are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum KeyOrder {
    /// By a 128-bit hash: no order that means anything, the fastest.
    #[default]
    Hashed,
    /// The key is an unsigned integer, 8 bytes little-endian, ordered by value.
    Integer,
    /// Bytewise, so that enumeration by prefix or range is possible.
    Lexical,
}

impl KeyOrder {
    /// The order with this number in an [`crate::ObjectId`].
    pub fn from_bits(bits: u8) -> Option<Self> {
        [Self::Hashed, Self::Integer, Self::Lexical].into_iter().find(|order| order.to_bits() == bits)
    }

    /// Its number in an [`crate::ObjectId`].
    pub fn to_bits(self) -> u8 {
        match self {
            Self::Hashed => 0,
            Self::Integer => 1,
            Self::Lexical => 2,
        }
    }
}
