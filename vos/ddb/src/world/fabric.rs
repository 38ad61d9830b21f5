//! A tool talks to nobody.

use std::{
    convert::Infallible,
    future::{Future, ready},
};

use daos_xstream::{Access, Address, Credentials, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Sink};

/// The fabric of a process that has no peers.
pub struct NoFabric;

fn nobody<T>() -> Result<T, FabricError> {
    Err(FabricError::PeerGone)
}

impl Fabric for NoFabric {
    type Exposed = Infallible;

    fn addresses(&self) -> Vec<Address> {
        Vec::new()
    }
    fn connect(&self, _: &Address) -> impl Future<Output = Result<PeerId, FabricError>> {
        ready(nobody())
    }
    fn disconnect(&self, _: PeerId) {}
    fn credentials(&self, _: PeerId) -> Option<Credentials> {
        None
    }
    fn message_bytes_max(&self) -> usize {
        0
    }
    fn send(&self, _: PeerId, _: &[&[u8]]) -> Result<(), FabricError> {
        nobody()
    }
    fn poll(&self, _: usize, _: &mut impl Sink) -> usize {
        0
    }
    fn expose(&self, _: PeerId, buffer: IoBuffer, _: Access) -> Result<Infallible, (IoBuffer, FabricError)> {
        nobody().map_err(|error| (buffer, error))
    }
    fn remote(&self, exposed: &Infallible) -> RemoteBuffer {
        match *exposed {}
    }
    fn withdraw(&self, exposed: Infallible) -> IoBuffer {
        match exposed {}
    }
    fn read(
        &self,
        _: PeerId,
        _: RemoteBuffer,
        _: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        ready((buffer, nobody()))
    }
    fn write(
        &self,
        _: PeerId,
        _: RemoteBuffer,
        _: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        ready((buffer, nobody()))
    }
}
