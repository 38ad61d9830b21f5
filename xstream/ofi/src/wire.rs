//! The header of this fabric's own, in front of every message.
//!
//! # Invariants
//!
//! * 16 bytes, little-endian. Nothing of a message is used before [`parse`] has accepted it.
//! * A message is attributed to a peer by its **token**: a random number that the receiver gave to that peer and to nobody
//!   else. A message without a valid token can only be an introduction.
//!
//! ```text
//! introduction:  A → B  Hello   { token 0,  A's address, a }      "send me messages under token a"
//!                B → A  Welcome { token a,  B's address, b }      proves to A that B is where it was called
//!                A → B  Pong    { token b }                       proves to B that A is where it said
//! ```

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::address::NAME_BYTES_MAX;

/// Bytes in front of every message.
pub(crate) const HEADER_BYTES: usize = 16;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(size_of::<Introduction>() == 80);

const MAGIC: u16 = 0xDA05;
const VERSION: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U16,
    version: u8,
    kind: u8,
    /// Bytes after the header: a second opinion on what the provider says.
    length: U32,
    token: U64,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A message of the layer above.
    Data = 1,
    /// An introduction by somebody who has no token yet.
    Hello = 2,
    /// The answer to it.
    Welcome = 3,
    /// Asks for a [`Kind::Pong`] with the same serial number.
    Ping = 4,
    /// Says that the sender lives, and has received everything sent before the ping.
    Pong = 5,
    /// The sender forgets the receiver.
    Bye = 6,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Introduction {
    reply_token: U64,
    name_bytes: U16,
    reserved: [u8; 6],
    name: [u8; NAME_BYTES_MAX],
}

/// A message that has been checked as far as this layer can.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Data(&'a [u8]),
    Hello(Stranger<'a>),
    Welcome(Stranger<'a>),
    Ping { serial: u64 },
    Pong { serial: u64 },
    Bye,
}

/// Who introduces itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stranger<'a> {
    /// The token it wants to see.
    pub(crate) reply_token: u64,
    /// The address it claims, in the provider's format; between 1 and [`NAME_BYTES_MAX`] bytes.
    pub(crate) name: &'a [u8],
}

/// The message in `bytes` and the token it came with; `None` if it is not one.
pub(crate) fn parse(bytes: &[u8]) -> Option<(u64, Message<'_>)> {
    let (header, body) = Header::ref_from_prefix(bytes).ok()?;
    if header.magic.get() != MAGIC || header.version != VERSION || header.length.get() as usize != body.len()
    {
        return None;
    }
    let message = match header.kind {
        kind if kind == Kind::Data as u8 => Message::Data(body),
        kind if kind == Kind::Hello as u8 => Message::Hello(parse_stranger(body)?),
        kind if kind == Kind::Welcome as u8 => Message::Welcome(parse_stranger(body)?),
        kind if kind == Kind::Ping as u8 => Message::Ping { serial: parse_serial(body)? },
        kind if kind == Kind::Pong as u8 => Message::Pong { serial: parse_serial(body)? },
        kind if kind == Kind::Bye as u8 && body.is_empty() => Message::Bye,
        _ => return None,
    };
    Some((header.token.get(), message))
}

fn parse_serial(body: &[u8]) -> Option<u64> {
    Some(U64::read_from_bytes(body).ok()?.get())
}

fn parse_stranger(body: &[u8]) -> Option<Stranger<'_>> {
    let introduction = Introduction::ref_from_bytes(body).ok()?;
    let name = introduction.name.get(..usize::from(introduction.name_bytes.get()))?;
    (!name.is_empty()).then(|| Stranger { reply_token: introduction.reply_token.get(), name })
}

/// Writes the header of a message of `length` bytes to the start of `place`.
pub(crate) fn put_header(place: &mut [u8], kind: Kind, token: u64, length: usize) {
    let header = Header {
        magic: U16::new(MAGIC),
        version: VERSION,
        kind: kind as u8,
        length: U32::new(length as u32),
        token: U64::new(token),
    };
    place[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

/// Longest control message.
pub(crate) const CONTROL_BYTES_MAX: usize = HEADER_BYTES + size_of::<Introduction>();

/// A whole control message.
pub(crate) struct Control {
    bytes: [u8; CONTROL_BYTES_MAX],
    length: usize,
}

impl Control {
    /// A ping, pong or bye; the serial number is not part of a bye.
    pub(crate) fn short(kind: Kind, token: u64, serial: u64) -> Self {
        let body = U64::new(serial);
        Self::with_body(kind, token, if kind == Kind::Bye { &[] } else { body.as_bytes() })
    }

    /// A hello or welcome. `name` is at most [`NAME_BYTES_MAX`] bytes.
    pub(crate) fn introduction(kind: Kind, token: u64, reply_token: u64, name: &[u8]) -> Self {
        let mut introduction = Introduction {
            reply_token: U64::new(reply_token),
            name_bytes: U16::new(name.len() as u16),
            reserved: [0; 6],
            name: [0; NAME_BYTES_MAX],
        };
        introduction.name[..name.len()].copy_from_slice(name);
        Self::with_body(kind, token, introduction.as_bytes())
    }

    fn with_body(kind: Kind, token: u64, body: &[u8]) -> Self {
        let mut bytes = [0; CONTROL_BYTES_MAX];
        put_header(&mut bytes, kind, token, body.len());
        bytes[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
        Self { bytes, length: HEADER_BYTES + body.len() }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_parses_as_what_was_written() {
        let name = [7_u8; 16];
        let stranger = || Stranger { reply_token: 9, name: &name };
        for (control, expected) in [
            (Control::introduction(Kind::Hello, 0, 9, &name), (0, Message::Hello(stranger()))),
            (Control::introduction(Kind::Welcome, 3, 9, &name), (3, Message::Welcome(stranger()))),
            (Control::short(Kind::Ping, 1, 5), (1, Message::Ping { serial: 5 })),
            (Control::short(Kind::Pong, 2, 6), (2, Message::Pong { serial: 6 })),
            (Control::short(Kind::Bye, 4, 0), (4, Message::Bye)),
        ] {
            assert_eq!(parse(control.as_bytes()), Some(expected));
        }
    }

    #[test]
    fn a_damaged_message_is_none() {
        let good = Control::introduction(Kind::Hello, 0, 9, &[7; 16]);
        let good = good.as_bytes();
        assert!(parse(good).is_some());
        assert!(parse(&good[..good.len() - 1]).is_none(), "cut off");
        for (position, value) in [(0, 0), (2, 9), (3, 0), (3, 77), (4, 1), (24, 65), (24, 0)] {
            let mut bad = good.to_vec();
            bad[position] = value;
            assert!(parse(&bad).is_none(), "byte {position} = {value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), claim in any::<bool>()) {
            if claim && bytes.len() >= HEADER_BYTES {
                let kind = bytes[3] % 8;
                let body = bytes.len() - HEADER_BYTES;
                put_header(&mut bytes, Kind::Data, 1, body);
                bytes[3] = kind;
            }
            let _ = parse(&bytes);
        }
    }
}
