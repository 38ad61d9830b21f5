//! How a core sleeps without missing anything: what a fabric must offer for it.

use std::{
    future::{Future, ready},
    os::fd::RawFd,
};

use daos_xstream::{Access, Address, Credentials, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Sink};

/// A fabric that can wake a parked core.
///
/// The core announces that it is about to park ([`prepare_to_park`](Self::prepare_to_park)), polls every source once
/// more, and only then waits. So a fabric that is asked to announce itself as sleeping *before* it looks at its queues
/// a last time cannot lose a message: either the last look finds it, or its sender sees the announcement and rings.
pub trait Park {
    /// Descriptors that become readable when the fabric wants to be polled. Asked once, when the xstream starts: a
    /// fabric whose descriptors come and go puts them into an epoll set of its own and names that. They must stay open
    /// as long as the fabric lives.
    fn descriptors(&self) -> Vec<RawFd>;

    /// Tells peers that from now on they have to wake this core. `false`: something is waiting already (or may be), do
    /// not park but poll.
    fn prepare_to_park(&self) -> bool;

    /// The core is awake again (or did not park after all): peers need not ring any more.
    fn unpark(&self);
}

/// A fabric that reaches nobody: for programs and tests that need only the local half of the world.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFabric;

impl Park for NoFabric {
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn prepare_to_park(&self) -> bool {
        true
    }

    fn unpark(&self) {}
}

impl Fabric for NoFabric {
    type Exposed = IoBuffer;

    fn addresses(&self) -> Vec<Address> {
        Vec::new()
    }

    async fn connect(&self, address: &Address) -> Result<PeerId, FabricError> {
        Err(FabricError::Unreachable(address.to_string()))
    }

    fn disconnect(&self, _peer: PeerId) {}

    fn credentials(&self, _peer: PeerId) -> Option<Credentials> {
        None
    }

    fn message_bytes_max(&self) -> usize {
        0
    }

    fn send(&self, _peer: PeerId, _parts: &[&[u8]]) -> Result<(), FabricError> {
        Err(FabricError::PeerGone)
    }

    fn poll(&self, _limit: usize, _sink: &mut impl Sink) -> usize {
        0
    }

    fn expose(
        &self,
        _peer: PeerId,
        buffer: IoBuffer,
        _access: Access,
    ) -> Result<IoBuffer, (IoBuffer, FabricError)> {
        Err((buffer, FabricError::PeerGone))
    }

    fn remote(&self, _exposed: &IoBuffer) -> RemoteBuffer {
        RemoteBuffer::default()
    }

    fn withdraw(&self, exposed: IoBuffer) -> IoBuffer {
        exposed
    }

    fn read(
        &self,
        _peer: PeerId,
        _remote: RemoteBuffer,
        _skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        ready((buffer, Err(FabricError::PeerGone)))
    }

    fn write(
        &self,
        _peer: PeerId,
        _remote: RemoteBuffer,
        _skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        ready((buffer, Err(FabricError::PeerGone)))
    }
}
