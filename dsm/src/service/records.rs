//! Records of the metadata store.
//!
//! ```text
//! Main        pool                       PoolRecord
//!             map                        PoolMapChanges since version 0
//!             p HANDLE                   PoolHandleRecord
//!             c CONTAINER                ContainerRecord
//!             e CONTAINER                ContainerHce
//!             h CONTAINER HANDLE         HandleRecord
//!             s CONTAINER EPOCH          (empty)
//!             d CONTAINER                (empty): it is being destroyed
//! Attributes  NAME                       value
//! ```
//!
//! UUIDs are 16 bytes, epochs 8 bytes big-endian, so that records of one container are neighbours.

use daos_types::Epoch;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::refusal::Refusal;
use crate::{
    access::{Capabilities, Identity, Ownership},
    epochs::HandleEpochs,
    rpc::control::{ContainerProperties, Label},
};
use daos_xstream::rpc::Status;

/// Key of the [`PoolRecord`].
pub const POOL: &[u8] = b"pool";
/// Key of the pool map.
pub const MAP: &[u8] = b"map";

/// What a pool is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Its label.
    pub label: Option<Label>,
    /// Owner and list.
    pub ownership: Ownership,
    /// Bytes of all targets together.
    pub bytes: u64,
}

/// An open pool handle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolHandleRecord {
    /// Whose it is.
    pub identity: Identity,
    /// What it permits.
    pub capabilities: Capabilities,
}

/// What a container is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its label.
    pub label: Option<Label>,
    /// Owner and list.
    pub ownership: Ownership,
    /// What it is for.
    pub properties: ContainerProperties,
}

/// An open container handle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandleRecord {
    /// The pool handle that it was opened with.
    pub pool_handle: Uuid,
    /// What it permits.
    pub capabilities: Capabilities,
    /// It outlives the connection that opened it.
    pub shared: bool,
    /// Its epochs.
    pub epochs: HandleEpochs,
}

/// Kinds of records with a key that begins with a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`PoolHandleRecord`].
    PoolHandle,
    /// [`ContainerRecord`].
    Container,
    /// [`crate::epochs::ContainerHce`].
    Hce,
    /// [`HandleRecord`].
    Handle,
    /// A snapshot.
    Snapshot,
    /// The mark of a container that is being destroyed.
    Destroying,
}

/// Key of a record of a kind, below one or two names.
pub fn key(kind: Kind, parts: &[&[u8]]) -> Vec<u8> {
    let letter = match kind {
        Kind::PoolHandle => b'p',
        Kind::Container => b'c',
        Kind::Hce => b'e',
        Kind::Handle => b'h',
        Kind::Snapshot => b's',
        Kind::Destroying => b'd',
    };
    [&[letter, b' '], parts.concat().as_slice()].concat()
}

/// Key of a snapshot.
pub fn snapshot_key(container: Uuid, epoch: Epoch) -> Vec<u8> {
    key(Kind::Snapshot, &[container.as_bytes(), &epoch.0.to_be_bytes()])
}

/// The UUID that `key` holds at `place` (0: the first) after its letter.
pub fn uuid_at(key: &[u8], place: usize) -> Result<Uuid, Refusal> {
    let start = 2 + place * 16;
    key.get(start..start + 16).and_then(|bytes| Uuid::from_slice(bytes).ok()).ok_or_else(corrupt)
}

/// The epoch of a snapshot's key.
pub fn epoch_of(key: &[u8]) -> Result<Epoch, Refusal> {
    let bytes = key.get(18..26).and_then(|bytes| bytes.try_into().ok()).ok_or_else(corrupt)?;
    Ok(Epoch(u64::from_be_bytes(bytes)))
}

/// The bytes of a record.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    postcard::to_stdvec(record).expect("records are made of plain data")
}

/// The record that these bytes are.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    postcard::from_bytes(bytes).map_err(|_| corrupt())
}

fn corrupt() -> Refusal {
    Refusal::new(Status::CORRUPT, "a record of the pool's metadata cannot be understood")
}
