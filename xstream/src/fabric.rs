//! Messages and bulk transfers between processes.
//!
//! A message is one datagram-like unit up to [`Fabric::message_bytes_max`]; delivery is reliable and in order while the
//! peer lives, and undefined once it does not. Larger data goes by bulk: the *client* exposes a buffer for the time of one
//! request and the *engine* reads or writes it. An engine never exposes memory.

use std::{fmt, future::Future, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{FabricCounters, IoBuffer};

/// A peer of this endpoint: a slot and its generation, so that a number is never used for two peers.
/// Fabrics leave the top bit 0: [`Pair`](crate::Pair) marks its second fabric's peers with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

/// Where an endpoint can be reached, in the form `FABRIC://REST`: `tcp://127.0.0.1:10416`, `local:///run/daos/0.sock#0`,
/// `sim://3.0`. Fabrics parse the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address(String);

impl Address {
    /// The part before `://`: which fabric speaks this address.
    pub fn fabric(&self) -> &str {
        self.0.split_once("://").map_or("", |(fabric, _)| fabric)
    }

    /// The part after `://`, whose meaning is the fabric's.
    pub fn rest(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, rest)| rest)
    }
}

impl FromStr for Address {
    type Err = FabricError;

    fn from_str(text: &str) -> Result<Self, FabricError> {
        match text.split_once("://") {
            Some((fabric, rest)) if !fabric.is_empty() && !rest.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(FabricError::BadAddress(format!("{text:?} is not of the form FABRIC://PLACE"))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a peer is, as far as something better than the peer itself vouches for it (on `local`: the kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process ID.
    pub pid: u32,
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// What the engine may do with an exposed buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The engine reads it: data of a write.
    Read,
    /// The engine writes it: room for the data of a read.
    Write,
}

/// Names memory that a client has exposed; travels in a request. Its numbers mean something only to the fabric that made
/// it, and to an engine they are untrusted: a wrong one makes the transfer fail, nothing else.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(C)]
pub struct RemoteBuffer {
    /// Random key, chosen for this exposure.
    pub key: u64,
    /// Where the buffer starts, in the fabric's terms.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What a fabric reports when it is polled.
pub trait Sink {
    /// A message from `peer`. The bytes are private to this process and do not change, and are gone after the call.
    fn message(&mut self, peer: PeerId, bytes: &[u8]);
    /// `peer` is gone; its number will not come again and everything the fabric held for it is released.
    fn closed(&mut self, peer: PeerId);
}

/// One endpoint: the way of one xstream, or one client, to other processes.
pub trait Fabric: 'static {
    /// A buffer exposed to a peer. Dropping it revokes the key; the engine's access fails from then on.
    type Exposed: 'static;

    /// Where others reach this endpoint; empty for a client that cannot be called.
    fn addresses(&self) -> Vec<Address>;

    /// Finds or makes the peer at `address`. The connection itself may come about with the first message.
    fn connect(&self, address: &Address) -> impl Future<Output = Result<PeerId, FabricError>>;

    /// Hands each fabric's name (`local`, `ofi`) and counters to `visit`; an endpoint that joins several calls it for each. Cheap,
    /// but not meant for every request.
    fn visit_counters(&self, visit: &mut dyn FnMut(&'static str, FabricCounters)) {
        let _ = visit;
    }

    /// Forgets a peer and releases everything held for it. Transfers under way end with [`FabricError::PeerGone`].
    /// Nothing of this peer is handed up afterwards, not even [`Sink::closed`]. A peer that is not known is no error.
    fn disconnect(&self, peer: PeerId);

    /// Who `peer` is, where something vouches for it.
    fn credentials(&self, peer: PeerId) -> Option<Credentials>;

    /// The longest message that can be sent to every peer, in bytes.
    fn message_bytes_max(&self) -> usize;

    /// The longest message to `peer`, which may be more: an endpoint may reach different peers by different ways.
    fn message_bytes_max_to(&self, peer: PeerId) -> usize {
        let _ = peer;
        self.message_bytes_max()
    }

    /// Sends the concatenation of `parts` as one message, and copies it before it returns. [`FabricError::Busy`] means
    /// that nothing was sent and the caller may try again after progress.
    fn send(&self, peer: PeerId, parts: &[&[u8]]) -> Result<(), FabricError>;

    /// Moves the endpoint forward and hands what has arrived to `sink`, at most `limit` messages. Returns how many
    /// things happened.
    ///
    /// The sink may call every method of the same endpoint but `poll` itself: a message is often answered while it is
    /// handed up. So no borrow of the endpoint's state may be held while the sink runs.
    fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize;

    /// Exposes `buffer` to `peer`. With an error the buffer comes back: its data may be sent again.
    fn expose(
        &self,
        peer: PeerId,
        buffer: IoBuffer,
        access: Access,
    ) -> Result<Self::Exposed, (IoBuffer, FabricError)>;

    /// The name of an exposed buffer, to be sent in a request.
    fn remote(&self, exposed: &Self::Exposed) -> RemoteBuffer;

    /// Revokes an exposure and gives the buffer back, with what the peer wrote to it. For after the peer's answer: a peer
    /// answers when its transfers have ended.
    fn withdraw(&self, exposed: Self::Exposed) -> IoBuffer;

    /// Revokes an exposure whose request was not answered, so that the peer may still be at it, and gives back a buffer that
    /// the peer cannot reach, with what the exposed one held.
    fn withdraw_unanswered(&self, exposed: Self::Exposed) -> IoBuffer {
        self.withdraw(exposed)
    }

    /// Fills `buffer` (its length in use) from `remote`, `skip` bytes after its start.
    fn read(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static;

    /// Writes the bytes in use of `buffer` to `remote`, `skip` bytes after its start. When it completes the bytes are
    /// where the peer sees them before it sees any message sent afterwards.
    fn write(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static;
}

/// Why the fabric could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// The queue to the peer is full. Nothing was sent; retry after progress.
    #[error("the queue to the peer is full")]
    Busy,
    /// The peer is not there any more. Whether earlier messages reached it is unknown. Connect again.
    #[error("the peer is gone")]
    PeerGone,
    /// Nobody answers at the address. Nothing was sent; a retry helps once somebody does.
    #[error("nobody answers at {0}")]
    Unreachable(String),
    /// The text is no address of this fabric. A retry cannot help.
    #[error("bad address: {0}")]
    BadAddress(String),
    /// The message or transfer exceeds a limit. Nothing was sent.
    #[error("{length} bytes exceed the limit of {limit}")]
    TooLong {
        /// Bytes asked for.
        length: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The remote buffer is not exposed, or not for this. No byte was moved.
    #[error("the peer has not exposed that memory")]
    NotExposed,
    /// The machine lacks this fabric, or the fabric failed. The text says how.
    #[error("{0}")]
    Failed(String),
}
