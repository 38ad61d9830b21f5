//! Parking without a fabric.

use std::{future::ready, os::fd::RawFd};

use daos_xstream::{
    Access, Address, Credentials, Fabric, FabricError, IoBuffer, Park, PeerId, RemoteBuffer, Sink, Time,
};

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

    fn wake_at(&self) -> Time {
        Time::NEVER
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
