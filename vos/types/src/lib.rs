//! The vocabulary of stored data, shared by the store (VOS), the services above it and the client API.
//!
//! # Invariants
//!
//! * Types only: no I/O, no clock, nothing that depends on a world.
//! * A value that exists is valid: bytes from outside become one of these types by a function that can refuse.

#![forbid(unsafe_code)]

mod epoch;
mod key;
mod object;
mod size;
mod writer;

pub use epoch::{Epoch, EpochRange};
pub use key::{KEY_BYTES_MAX, KeyOrder};
pub use object::{ObjectClass, ObjectId, ObjectType, ParseError};
pub use size::{parse_size, show_size};
pub use writer::{Cookie, Writer, WriterKind};

/// CRC32C (Castagnoli) of a value or of a chunk of an extent, as its writer computed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Checksum(pub u32);
