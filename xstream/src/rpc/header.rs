//! The fixed part of every message: 64 bytes, little-endian, read in place.
//!
//! ```text
//!  0        2        3       4        6        8                 16       20       24            28            32
//!  | magic  | version| kind  | opcode | flags  | request_id      | rank   | target | map_version | deadline_us |
//! 32                                  48       52            56              60               64
//!  | handle                           | status | body_length  | body_checksum | header_checksum |
//! ```
//!
//! # Invariants
//!
//! * In every version of the protocol the header is 64 bytes, its first 16 bytes mean the same, and the last 4 are the
//!   CRC32C of the 60 before them. So peers of different versions can tell each other so.
//! * `body_length` counts all bytes that follow the header, and `body_checksum` is their CRC32C.
//! * `status` is zero in a request.

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I32, U16, U32, U64},
};

use super::Status;

/// Version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u8 = 1;
/// The oldest version that this build still answers.
pub const PROTOCOL_VERSION_MIN: u8 = 1;
/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 64;
/// "Whichever rank you are": in requests before the caller knows the pool map.
pub const RANK_ANY: u32 = u32::MAX;

const MAGIC: u16 = 0xda05;

/// Which procedure of which module a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Opcode(pub u16);

impl Opcode {
    /// Procedure `procedure` of module `module`.
    pub const fn new(module: u8, procedure: u8) -> Self {
        Self((module as u16) << 8 | procedure as u16)
    }

    /// The module's number.
    pub const fn module(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The procedure's number within its module.
    pub const fn procedure(self) -> u8 {
        self.0 as u8
    }
}

/// Request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Asks for a procedure.
    Request = 1,
    /// Answers a request.
    Reply = 2,
}

/// The fixed part of every message. See the [module](self) for the layout.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    magic: U16,
    version: u8,
    kind: u8,
    opcode: U16,
    flags: U16,
    request_id: U64,
    rank: U32,
    target: U32,
    map_version: U32,
    deadline_us: U32,
    handle: [u8; 16],
    status: I32,
    body_length: U32,
    body_checksum: U32,
    header_checksum: U32,
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_BYTES);
    assert!(std::mem::offset_of!(Header, request_id) == 8);
    assert!(std::mem::offset_of!(Header, handle) == 32);
    assert!(std::mem::offset_of!(Header, header_checksum) == 60);
};

/// The fields of a request that its caller chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestFields {
    pub opcode: Opcode,
    pub flags: u16,
    pub request_id: u64,
    pub rank: u32,
    pub target: u32,
    pub map_version: u32,
    pub deadline_us: u32,
    pub handle: Uuid,
}

impl Header {
    pub(super) fn request(fields: &RequestFields, body: &[&[u8]]) -> Self {
        Self {
            magic: U16::new(MAGIC),
            version: PROTOCOL_VERSION,
            kind: Kind::Request as u8,
            opcode: U16::new(fields.opcode.0),
            flags: U16::new(fields.flags),
            request_id: U64::new(fields.request_id),
            rank: U32::new(fields.rank),
            target: U32::new(fields.target),
            map_version: U32::new(fields.map_version),
            deadline_us: U32::new(fields.deadline_us),
            handle: fields.handle.into_bytes(),
            status: I32::ZERO,
            body_length: U32::ZERO,
            body_checksum: U32::ZERO,
            header_checksum: U32::ZERO,
        }
        .sealed(body)
    }

    pub(super) fn reply(
        opcode: Opcode,
        request_id: u64,
        status: Status,
        map_version: u32,
        body: &[&[u8]],
    ) -> Self {
        Self {
            magic: U16::new(MAGIC),
            version: PROTOCOL_VERSION,
            kind: Kind::Reply as u8,
            opcode: U16::new(opcode.0),
            flags: U16::ZERO,
            request_id: U64::new(request_id),
            rank: U32::new(RANK_ANY),
            target: U32::ZERO,
            map_version: U32::new(map_version),
            deadline_us: U32::ZERO,
            handle: [0; 16],
            status: I32::new(status.0),
            body_length: U32::ZERO,
            body_checksum: U32::ZERO,
            header_checksum: U32::ZERO,
        }
        .sealed(body)
    }

    fn sealed(mut self, body: &[&[u8]]) -> Self {
        let (mut length, mut checksum) = (0, 0);
        for part in body.iter().filter(|part| !part.is_empty()) {
            length += part.len();
            checksum = crc32c::crc32c_append(checksum, part);
        }
        // A body over 4 GiB exceeds every fabric's limit; the send refuses it by its length.
        self.body_length.set(u32::try_from(length).unwrap_or(u32::MAX));
        self.body_checksum.set(checksum);
        self.header_checksum.set(self.computed_checksum());
        self
    }

    fn computed_checksum(&self) -> u32 {
        // Copied to words first: the checksum of aligned memory takes half as long, and there are four per RPC.
        let words: [u64; HEADER_BYTES / 8] = zerocopy::transmute!(*self);
        crc32c::crc32c(&words.as_bytes()[..HEADER_BYTES - 4])
    }

    /// Takes a message apart. What comes back has been checked in full but for the meaning of the opcode.
    pub fn parse(message: &[u8]) -> Result<(&Header, &[u8]), Rejected<'_>> {
        let unanswerable = |reason| Rejected { reason, header: None };
        let Ok((header, body)) = Header::ref_from_prefix(message) else {
            return Err(unanswerable(Malformed::Truncated));
        };
        if header.magic.get() != MAGIC {
            return Err(unanswerable(Malformed::Magic));
        }
        if header.header_checksum.get() != header.computed_checksum() {
            return Err(unanswerable(Malformed::HeaderChecksum));
        }
        let answerable = |reason| Rejected { reason, header: Some(header) };
        if !(PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&header.version) {
            return Err(answerable(Malformed::Version(header.version)));
        }
        if header.kind != Kind::Request as u8 && header.kind != Kind::Reply as u8 {
            return Err(unanswerable(Malformed::Kind(header.kind)));
        }
        if header.body_length.get() as usize != body.len() {
            return Err(answerable(Malformed::BodyLength));
        }
        let body_checksum = if body.is_empty() { 0 } else { crc32c::crc32c(body) };
        if header.body_checksum.get() != body_checksum {
            return Err(answerable(Malformed::BodyChecksum));
        }
        Ok((header, body))
    }

    /// Request or reply. Total: what parsed is one of the two, and what did not counts as a request.
    pub fn kind(&self) -> Kind {
        if self.kind == Kind::Reply as u8 { Kind::Reply } else { Kind::Request }
    }

    /// Protocol version of the sender.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The procedure.
    pub fn opcode(&self) -> Opcode {
        Opcode(self.opcode.get())
    }

    /// Bits whose meaning is the procedure's.
    pub fn flags(&self) -> u16 {
        self.flags.get()
    }

    /// The caller's number for the request; comes back in the reply.
    pub fn request_id(&self) -> u64 {
        self.request_id.get()
    }

    /// The rank that the request is meant for, or [`RANK_ANY`].
    pub fn rank(&self) -> u32 {
        self.rank.get()
    }

    /// The target of that rank.
    pub fn target(&self) -> u32 {
        self.target.get()
    }

    /// The sender's pool map version; 0 if it has none.
    pub fn map_version(&self) -> u32 {
        self.map_version.get()
    }

    /// How long the caller waits, in microseconds from the receipt of the request; 0 for no limit.
    pub fn deadline_us(&self) -> u32 {
        self.deadline_us.get()
    }

    /// The pool or container handle that the request is made with; nil if none.
    pub fn handle(&self) -> Uuid {
        Uuid::from_bytes(self.handle)
    }

    /// The result, in a reply.
    pub fn status(&self) -> Status {
        Status(self.status.get())
    }
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Shorter than a header.
    #[error("the message is shorter than a header")]
    Truncated,
    /// Not a message of this protocol.
    #[error("the message is not of this protocol")]
    Magic,
    /// The header does not match its checksum.
    #[error("the header does not match its checksum")]
    HeaderChecksum,
    /// A version that this build does not speak.
    #[error("protocol version {0} is not spoken here (this is {PROTOCOL_VERSION})")]
    Version(u8),
    /// Neither request nor reply.
    #[error("unknown kind of message: {0}")]
    Kind(u8),
    /// The body is longer or shorter than the header says.
    #[error("the body is not as long as its header says")]
    BodyLength,
    /// The body does not match its checksum.
    #[error("the body does not match its checksum")]
    BodyChecksum,
}

impl Malformed {
    /// The status that tells the sender.
    pub fn status(self) -> Status {
        match self {
            Malformed::BodyChecksum => Status::BAD_CHECKSUM,
            _ => Status::BAD_PROTOCOL,
        }
    }
}

/// A message that did not parse.
#[derive(Clone, Copy, Debug)]
pub struct Rejected<'a> {
    /// What is wrong.
    pub reason: Malformed,
    /// The header, if its checksum held: who asked can be told.
    pub header: Option<&'a Header>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<u8> {
        let fields = RequestFields {
            opcode: Opcode::new(5, 7),
            flags: 3,
            request_id: 0x0102_0304_0506_0708,
            rank: 9,
            target: 10,
            map_version: 11,
            deadline_us: 12,
            handle: Uuid::from_u128(13),
        };
        let mut message = Header::request(&fields, &[body]).as_bytes().to_vec();
        message.extend_from_slice(body);
        message
    }

    fn reseal(message: &mut [u8]) {
        let checksum = crc32c::crc32c(&message[..60]);
        message[60..64].copy_from_slice(&checksum.to_le_bytes());
    }

    #[test]
    fn fields_come_back() {
        let message = message(b"body");
        let (header, body) = Header::parse(&message).unwrap();
        assert_eq!(body, b"body");
        assert_eq!(header.kind(), Kind::Request);
        assert_eq!((header.opcode().module(), header.opcode().procedure()), (5, 7));
        assert_eq!((header.flags(), header.request_id()), (3, 0x0102_0304_0506_0708));
        assert_eq!((header.rank(), header.target(), header.map_version()), (9, 10, 11));
        assert_eq!((header.deadline_us(), header.handle()), (12, Uuid::from_u128(13)));
        assert_eq!(header.status(), Status::OK);
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let message = message(b"");
        assert_eq!(message.len(), HEADER_BYTES);
        assert_eq!(&message[..4], &[0x05, 0xda, 1, 1]);
        assert_eq!(&message[4..8], &[7, 5, 3, 0]);
        assert_eq!(&message[8..16], &[8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(&message[16..32], &[9, 0, 0, 0, 10, 0, 0, 0, 11, 0, 0, 0, 12, 0, 0, 0]);
    }

    #[test]
    fn each_defect_is_told_apart() {
        let reason = |message: &[u8]| Header::parse(message).unwrap_err().reason;
        let good = message(b"some body");
        for length in 0..HEADER_BYTES {
            assert_eq!(reason(&good[..length]), Malformed::Truncated);
        }
        for length in HEADER_BYTES..good.len() {
            assert_eq!(reason(&good[..length]), Malformed::BodyLength);
        }
        let mut changed = good.clone();
        changed[0] ^= 1;
        assert_eq!(reason(&changed), Malformed::Magic);
        let mut changed = good.clone();
        changed[70] ^= 1;
        assert_eq!(reason(&changed), Malformed::BodyChecksum);
        let mut changed = good.clone();
        changed[2] = 200;
        reseal(&mut changed);
        assert_eq!(reason(&changed), Malformed::Version(200));
        assert!(Header::parse(&changed).unwrap_err().header.is_some(), "another version can be told");
        let mut changed = good.clone();
        changed[3] = 3;
        reseal(&mut changed);
        assert_eq!(reason(&changed), Malformed::Kind(3));
    }

    #[test]
    fn no_single_bit_flip_goes_unnoticed() {
        let good = message(b"payload");
        for bit in 0..good.len() * 8 {
            let mut changed = good.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&changed).is_err(), "bit {bit}");
        }
    }
}
