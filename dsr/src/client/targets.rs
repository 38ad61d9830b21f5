//! What DSR needs of the layer below: objects of single targets, reached by (map ordinal, object ID).

use std::{future::Future, ops::Range, rc::Rc};

use daos_types::{Epoch, ObjectId};
use daos_xstream::IoBuffer;

use super::DsrError;
use crate::placement::Placement;

/// A shard: an object on one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetRef {
    /// Ordinal of the target in the pool map.
    pub ordinal: u32,
    /// Version of the pool map by which the target was chosen.
    pub map_version: u32,
    /// The object.
    pub object: ObjectId,
}

/// A key and its value.
pub type Record<'a> = (&'a [u8], &'a [u8]);

/// What a key held at an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// This value.
    Value(Vec<u8>),
    /// Nothing: it was removed.
    Punched,
    /// Nothing: it was never written.
    Miss,
}

impl Fetched {
    /// The value, if there is one.
    pub fn value(self) -> Option<Vec<u8>> {
        match self {
            Self::Value(value) => Some(value),
            Self::Punched | Self::Miss => None,
        }
    }
}

/// What a range of an array held at an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes.
    Data,
    /// Nothing: it was removed.
    Punched,
    /// Nothing: it was never written.
    Miss,
}

/// A range of an array of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The array's bytes.
    pub range: Range<u64>,
    /// What they are.
    pub kind: ExtentKind,
}

/// What to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Punch<'a> {
    /// The whole object.
    Object,
    /// Keys of a KV.
    Keys(&'a [&'a [u8]]),
    /// A document's dkey with all it holds.
    Dkey(&'a [u8]),
    /// Akeys of one dkey.
    Akeys(&'a [u8], &'a [&'a [u8]]),
    /// Bytes of an array, from and up to; at most up to [`ARRAY_BYTES_MAX`].
    Range(u64, u64),
}

/// What to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing<'a> {
    /// Keys of a KV.
    Keys,
    /// Dkeys of a document.
    Dkeys,
    /// Akeys of one dkey.
    Akeys(&'a [u8]),
}

/// How to list: where to go on, and how much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enumeration<'a> {
    /// What.
    pub listing: Listing<'a>,
    /// Where the last page ended, as the target said; empty at first.
    pub anchor: &'a [u8],
    /// At most so many keys.
    pub keys_max: u32,
}

/// A page of a listing of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnumeratePage {
    /// The keys.
    pub keys: Vec<Vec<u8>>,
    /// Where to go on; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// What a target knows of an object as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectQuery {
    /// Whether the target holds anything of it that can be seen.
    pub exists: bool,
    /// Of an array: one more than the highest offset that holds data.
    pub size: u64,
}

/// First offset that no array reaches.
pub const ARRAY_BYTES_MAX: u64 = 1 << 63;

/// Epochs of the container handle through which objects are reached.
pub trait ContainerEpochs: Clone + 'static {
    /// Holds epochs from `epoch` on, or from the first that can still be written, whichever is later, and returns that:
    /// the lowest held epoch.
    fn hold(&self, epoch: Epoch) -> impl Future<Output = Result<Epoch, DsrError>>;

    /// Returns once every acknowledged write up to `epoch` survives any crash.
    fn flush(&self, epoch: Epoch) -> impl Future<Output = Result<(), DsrError>>;

    /// Commits everything up to `epoch`, which was flushed. The next epoch is held from then on.
    fn commit(&self, epoch: Epoch) -> impl Future<Output = Result<(), DsrError>>;
}

/// Objects of single targets, as DSM's client half serves them through an open container handle.
///
/// Every call repeats its request until the target answers or the pool map drops it.
pub trait TargetObjects: Clone + 'static {
    /// The newest pool map that this client knows.
    fn placement(&self) -> Rc<Placement>;

    /// Writes values in one atomic step: records of a KV, or (with `dkey`) akeys of one dkey of a document.
    fn update(
        &self,
        at: TargetRef,
        epoch: Epoch,
        dkey: Option<&[u8]>,
        records: &[Record<'_>],
    ) -> impl Future<Output = Result<(), DsrError>>;

    /// Reads values: keys of a KV, or (with `dkey`) akeys of one dkey. One answer per key, in order.
    fn fetch(
        &self,
        at: TargetRef,
        epoch: Epoch,
        dkey: Option<&[u8]>,
        keys: &[&[u8]],
    ) -> impl Future<Output = Result<Vec<Fetched>, DsrError>>;

    /// Writes the buffer's bytes in use to an array, and gives the buffer back.
    fn write(
        &self,
        at: TargetRef,
        epoch: Epoch,
        offset: u64,
        data: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), DsrError>)>;

    /// Fills the buffer's bytes in use from an array; what holds no data becomes zero. The extents cover the range
    /// exactly, in order.
    fn read(
        &self,
        at: TargetRef,
        epoch: Epoch,
        offset: u64,
        room: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<Vec<Extent>, DsrError>)>;

    /// Removes something; what is not there is no error.
    fn punch(
        &self,
        at: TargetRef,
        epoch: Epoch,
        punch: Punch<'_>,
    ) -> impl Future<Output = Result<(), DsrError>>;

    /// Lists keys.
    fn enumerate(
        &self,
        at: TargetRef,
        epoch: Epoch,
        enumeration: Enumeration<'_>,
    ) -> impl Future<Output = Result<EnumeratePage, DsrError>>;

    /// Asks for an object as a whole.
    fn query(&self, at: TargetRef, epoch: Epoch) -> impl Future<Output = Result<ObjectQuery, DsrError>>;

    /// Lists the objects of which the target at `ordinal` holds a shard.
    fn enumerate_objects(
        &self,
        ordinal: u32,
        epoch: Epoch,
        anchor: &[u8],
        objects_max: u32,
    ) -> impl Future<Output = Result<(Vec<ObjectId>, Option<Vec<u8>>), DsrError>>;
}
