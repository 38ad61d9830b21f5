//! Parts of a world that are not there: a client has neither other xstreams nor media, a tool for local media no fabric.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    os::fd::RawFd,
};

use crate::{
    Access, Address, CoreId, Credentials, Durability, Env, Fabric, FabricError, IoBuffer, Mailbox,
    MailboxError, Media, MediaError, MediaFile, OpenOptions, Park, PeerId, RemoteBuffer, Sink, Time, Work,
};

/// The mailbox of a process that has one xstream and sends nothing to itself: every send is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMailbox;

impl<E: Env> Mailbox<E> for NoMailbox {
    fn cores(&self) -> u32 {
        1
    }

    fn send(&self, core: CoreId, _work: Work<E>) -> impl Future<Output = Result<(), MailboxError>> {
        ready(Err(MailboxError::NoSuchCore(core)))
    }
}

/// The media of a process without any: every file is missing, and none can be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMedia;

/// A file of [`NoMedia`]; there is none.
#[derive(Clone, Debug)]
pub struct NoFile(Infallible);

impl Media for NoMedia {
    type File = NoFile;

    fn open(&self, path: &str, options: OpenOptions) -> impl Future<Output = Result<NoFile, MediaError>> {
        ready(Err(match options.create_new {
            true => MediaError::Failed(format!("{path}: this process has no media")),
            false => MediaError::NotFound(path.to_owned()),
        }))
    }

    fn remove(&self, _path: &str) -> impl Future<Output = Result<(), MediaError>> {
        ready(Ok(()))
    }

    fn rename(&self, from: &str, _to: &str) -> impl Future<Output = Result<(), MediaError>> {
        ready(Err(MediaError::NotFound(from.to_owned())))
    }

    fn list(&self, _path: &str) -> impl Future<Output = Result<Vec<String>, MediaError>> {
        ready(Ok(Vec::new()))
    }
}

impl MediaFile for NoFile {
    fn size(&self) -> u64 {
        match self.0 {}
    }

    fn read(
        &self,
        _offset: u64,
        _buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        self.never()
    }

    fn write(
        &self,
        _offset: u64,
        _buffer: IoBuffer,
        _durability: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        self.never()
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static {
        self.never()
    }

    fn discard(&self, _offset: u64, _length: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        self.never()
    }
}

impl NoFile {
    fn never<T: 'static>(&self) -> Ready<T> {
        match self.0 {}
    }
}

/// A fabric that reaches nobody, for programs and tests that need only the local half of a world. `P` is what it does while its
/// core parks: by default nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFabric<P = ()>(P);

impl NoFabric {
    /// A fabric that reaches nobody, and for which nobody has to wake.
    pub const fn new() -> Self {
        Self(())
    }
}

impl<P> NoFabric<P> {
    /// A fabric that reaches nobody and parks like `park`.
    pub const fn parking(park: P) -> Self {
        Self(park)
    }
}

/// Nothing ever wakes.
impl Park for () {
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

impl<P: Park> Park for NoFabric<P> {
    fn descriptors(&self) -> Vec<RawFd> {
        self.0.descriptors()
    }

    fn prepare_to_park(&self) -> bool {
        self.0.prepare_to_park()
    }

    fn wake_at(&self) -> Time {
        self.0.wake_at()
    }

    fn unpark(&self) {
        self.0.unpark();
    }
}

impl<P: 'static> Fabric for NoFabric<P> {
    type Exposed = Infallible;

    fn addresses(&self) -> Vec<Address> {
        Vec::new()
    }

    fn connect(&self, address: &Address) -> impl Future<Output = Result<PeerId, FabricError>> {
        ready(Err(FabricError::Unreachable(address.to_string())))
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
    ) -> Result<Infallible, (IoBuffer, FabricError)> {
        Err((buffer, FabricError::PeerGone))
    }

    fn remote(&self, exposed: &Infallible) -> RemoteBuffer {
        match *exposed {}
    }

    fn withdraw(&self, exposed: Infallible) -> IoBuffer {
        match exposed {}
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
