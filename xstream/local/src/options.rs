//! What can be configured.

use std::time::Duration;

use daos_xstream::FabricError;

use crate::{MESSAGE_BYTES_MAX, region::Layout, ring::message_bytes_limit};

/// Settings of an engine's socket and of the memory that its clients get. A client takes the sizes from its engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalOptions {
    /// Bytes of each of the two rings of a client: a power of two from 256 KiB on. Touched pages count, in the client's turn.
    pub ring_bytes: u64,
    /// Bytes of the bulk area of a client: what it may have exposed at a time; a multiple of 4 KiB, at most 1 GiB.
    /// Pages take memory only once they are used.
    pub bulk_bytes: u64,
    /// Clients that an xstream serves at a time.
    pub peers_max: u32,
    /// Of these, how many may be of one user, so that nobody can take all places.
    pub peers_per_user_max: u32,
    /// Connections that may be open without having said which xstream they want.
    pub handshakes_max: u32,
    /// Permissions of the socket file. Everybody may connect by default: who a client is, the kernel tells
    /// ([`daos_xstream::Fabric::credentials`]), and what it may do, pools and containers decide.
    pub socket_mode: u32,
    /// How long a peer must be silent before it is no longer polled and has to ring.
    pub idle: Duration,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            ring_bytes: 256 << 10,
            bulk_bytes: 16 << 20,
            peers_max: 1024,
            peers_per_user_max: 768,
            handshakes_max: 64,
            socket_mode: 0o666,
            idle: Duration::from_millis(1),
        }
    }
}

impl LocalOptions {
    pub(crate) fn layout(&self) -> Result<Layout, FabricError> {
        Layout::new(self.ring_bytes, self.bulk_bytes)
            .filter(|layout| message_bytes_limit(layout.ring_bytes()) >= MESSAGE_BYTES_MAX as u64)
            .ok_or_else(|| {
                FabricError::Failed(format!(
                    "rings of {} bytes with a bulk area of {} bytes are not possible",
                    self.ring_bytes, self.bulk_bytes
                ))
            })
    }

    /// Bytes of shared memory that one client can make the engine hold.
    pub fn client_bytes_max(&self) -> Result<u64, FabricError> {
        Ok(self.layout()?.bytes())
    }
}
