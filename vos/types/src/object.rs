//! Object identifiers: 192 bits, of which the caller chooses 160 and the rest says what the object is.
//!
//! ```text
//!  high   63..56        55..52      51..48      47..32   31..0
//!         object type   dkey order  akey order  class    caller, top 32 of 160 bits
//!  middle, low                                           caller, lower 128 bits
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::KeyOrder;

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ObjectType {
    /// Key → value.
    KeyValue,
    /// A byte array with offsets of 64 bits.
    Array,
    /// Distribution key → attribute key → value or byte array.
    Document,
}

/// The number of an object class: a schema of redundancy and striping, whose meaning is DSR's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectClass(pub u16);

/// The address of an object within its container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    high: u64,
    middle: u64,
    low: u64,
}

/// Why a text or number is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

impl ObjectId {
    /// The identifier of an object. `caller` is (top 32 bits, middle 64, low 64) of the caller's 160 bits. Orders of
    /// keys that the type does not have (akeys of a KV, any of an array) are stored as hashed.
    pub fn new(
        object_type: ObjectType,
        dkey_order: KeyOrder,
        akey_order: KeyOrder,
        class: ObjectClass,
        caller: (u32, u64, u64),
    ) -> Self {
        let (type_bits, dkey_order, akey_order) = match object_type {
            ObjectType::KeyValue => (1u64, dkey_order, KeyOrder::Hashed),
            ObjectType::Array => (2, KeyOrder::Hashed, KeyOrder::Hashed),
            ObjectType::Document => (3, dkey_order, akey_order),
        };
        let high = type_bits << 56
            | u64::from(dkey_order.to_bits()) << 52
            | u64::from(akey_order.to_bits()) << 48
            | u64::from(class.0) << 32
            | u64::from(caller.0);
        Self { high, middle: caller.1, low: caller.2 }
    }

    /// The identifier with these 192 bits, if its type and orders are ones that exist.
    pub fn from_parts(high: u64, middle: u64, low: u64) -> Result<Self, ParseError> {
        let id = Self { high, middle, low };
        let object_type = match high >> 56 {
            1 => ObjectType::KeyValue,
            2 => ObjectType::Array,
            3 => ObjectType::Document,
            other => {
                return Err(ParseError(format!(
                    "object ID {id}: {other} is no object type (1 KV, 2 array, 3 document)"
                )));
            }
        };
        let order = |bits: u64| {
            KeyOrder::from_bits(bits as u8 & 0xf)
                .ok_or_else(|| ParseError(format!("object ID {id}: {} is no key order", bits & 0xf)))
        };
        let (dkey, akey) = (order(high >> 52)?, order(high >> 48)?);
        let canonical = Self::new(object_type, dkey, akey, id.class(), (high as u32, middle, low));
        if canonical != id {
            return Err(ParseError(format!(
                "object ID {id}: a key order is set that its type does not have"
            )));
        }
        Ok(id)
    }

    /// The 192 bits: (high, middle, low).
    pub fn to_parts(self) -> (u64, u64, u64) {
        (self.high, self.middle, self.low)
    }

    /// What the object holds.
    pub fn object_type(self) -> ObjectType {
        match self.high >> 56 {
            1 => ObjectType::KeyValue,
            2 => ObjectType::Array,
            _ => ObjectType::Document,
        }
    }

    /// Order of a document's distribution keys, or of a KV's keys.
    pub fn dkey_order(self) -> KeyOrder {
        KeyOrder::from_bits((self.high >> 52) as u8 & 0xf).unwrap_or_default()
    }

    /// Order of a document's attribute keys.
    pub fn akey_order(self) -> KeyOrder {
        KeyOrder::from_bits((self.high >> 48) as u8 & 0xf).unwrap_or_default()
    }

    /// The object's class.
    pub fn class(self) -> ObjectClass {
        ObjectClass((self.high >> 32) as u16)
    }

    /// The caller's 160 bits: (top 32, middle 64, low 64).
    pub fn caller(self) -> (u32, u64, u64) {
        (self.high as u32, self.middle, self.low)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}", self.high, self.middle, self.low)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong =
            || ParseError(format!("{text:?} is no object ID: three hexadecimal numbers, HIGH.MIDDLE.LOW"));
        let mut parts = text.split('.').map(|part| {
            if part.starts_with('+') {
                Err(wrong())
            } else {
                u64::from_str_radix(part, 16).map_err(|_| wrong())
            }
        });
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(high), Some(middle), Some(low), None) => Self::from_parts(high?, middle?, low?),
            _ => Err(wrong()),
        }
    }
}

impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.to_parts().serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            let (high, middle, low) = <(u64, u64, u64)>::deserialize(deserializer)?;
            Self::from_parts(high, middle, low).map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prints_parses_and_keeps_its_parts() {
        let id = ObjectId::new(
            ObjectType::Document,
            KeyOrder::Lexical,
            KeyOrder::Integer,
            ObjectClass(0xabcd),
            (0x1234_5678, u64::MAX, 7),
        );
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.object_type(), ObjectType::Document);
        assert_eq!((id.dkey_order(), id.akey_order()), (KeyOrder::Lexical, KeyOrder::Integer));
        assert_eq!((id.class(), id.caller()), (ObjectClass(0xabcd), (0x1234_5678, u64::MAX, 7)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "",
            "1.2",
            "1.2.3.4",
            "0.0.0",
            "0900000000000000.0.0",
            "x.0.0",
            "+100000000000000.0.0",
            "01f0000000000000.0.0",
            "0201000000000000.0.0",
            "10000000000000000.0.0",
        ] {
            assert!(text.parse::<ObjectId>().is_err(), "{text:?} was taken");
        }
        assert!("100000000000000.0.0".parse::<ObjectId>().is_ok());
    }
}
