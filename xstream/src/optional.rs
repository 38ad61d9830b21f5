//! A fabric that this process may not have.

use std::future::Future;

use crate::{
    Access, Address, Credentials, Fabric, FabricCounters, FabricError, IoBuffer, PeerId, RemoteBuffer, Sink,
};

/// `None` reaches nobody and has no peer, so that a process can be built with fewer fabrics than its type allows.
impl<F: Fabric> Fabric for Option<F> {
    type Exposed = F::Exposed;

    fn addresses(&self) -> Vec<Address> {
        self.as_ref().map(F::addresses).unwrap_or_default()
    }

    async fn connect(&self, address: &Address) -> Result<PeerId, FabricError> {
        match self {
            Some(fabric) => fabric.connect(address).await,
            None => Err(FabricError::Unreachable(format!(
                "{address} (this process was started without that fabric)"
            ))),
        }
    }

    fn visit_counters(&self, visit: &mut dyn FnMut(&'static str, FabricCounters)) {
        if let Some(fabric) = self {
            fabric.visit_counters(visit);
        }
    }

    fn disconnect(&self, peer: PeerId) {
        if let Some(fabric) = self {
            fabric.disconnect(peer);
        }
    }

    fn credentials(&self, peer: PeerId) -> Option<Credentials> {
        self.as_ref()?.credentials(peer)
    }

    fn message_bytes_max(&self) -> usize {
        self.as_ref().map_or(usize::MAX, F::message_bytes_max)
    }

    fn message_bytes_max_to(&self, peer: PeerId) -> usize {
        self.as_ref().map_or(0, |fabric| fabric.message_bytes_max_to(peer))
    }

    fn send(&self, peer: PeerId, parts: &[&[u8]]) -> Result<(), FabricError> {
        self.as_ref().ok_or(FabricError::PeerGone)?.send(peer, parts)
    }

    fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize {
        self.as_ref().map_or(0, |fabric| fabric.poll(limit, sink))
    }

    fn expose(
        &self,
        peer: PeerId,
        buffer: IoBuffer,
        access: Access,
    ) -> Result<F::Exposed, (IoBuffer, FabricError)> {
        match self {
            Some(fabric) => fabric.expose(peer, buffer, access),
            None => Err((buffer, FabricError::PeerGone)),
        }
    }

    fn remote(&self, exposed: &F::Exposed) -> RemoteBuffer {
        self.as_ref().map(|fabric| fabric.remote(exposed)).unwrap_or_default()
    }

    fn withdraw(&self, exposed: F::Exposed) -> IoBuffer {
        self.as_ref().expect("only this fabric makes exposures").withdraw(exposed)
    }

    fn withdraw_unanswered(&self, exposed: F::Exposed) -> IoBuffer {
        self.as_ref().expect("only this fabric makes exposures").withdraw_unanswered(exposed)
    }

    fn read(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        let transfer = match self {
            Some(fabric) => Ok(fabric.read(peer, remote, skip, buffer)),
            None => Err(buffer),
        };
        finish(transfer)
    }

    fn write(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        let transfer = match self {
            Some(fabric) => Ok(fabric.write(peer, remote, skip, buffer)),
            None => Err(buffer),
        };
        finish(transfer)
    }
}

async fn finish(
    transfer: Result<impl Future<Output = (IoBuffer, Result<(), FabricError>)>, IoBuffer>,
) -> (IoBuffer, Result<(), FabricError>) {
    match transfer {
        Ok(transfer) => transfer.await,
        Err(buffer) => (buffer, Err(FabricError::PeerGone)),
    }
}
