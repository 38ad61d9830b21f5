//! Bodies of control procedures: what is asked, and what comes back when the status says success.
//!
//! Every list is bounded by what fits into a message; listings that may be longer go on from the last name of the
//! answer before.

use daos_types::{Epoch, EpochRange};
use daos_xstream::Address;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::Malformed;
use crate::{
    access::{Acl, Capabilities, Identity},
    epochs::EpochState,
    pool_map::PoolMapChanges,
};

/// Longest label of a pool or container, in bytes.
pub const LABEL_BYTES_MAX: usize = 127;
/// Longest name of an attribute, in bytes.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 511;
/// Longest value of an attribute, in bytes: with its name it fits into a message of every fabric.
pub const ATTRIBUTE_VALUE_BYTES_MAX: usize = 3 << 10;
/// Most handles that one commit may name.
pub const COMMIT_HANDLES_MAX: usize = 64;

/// The bytes of a body.
pub fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    postcard::to_stdvec(body).expect("bodies are made of plain data")
}

/// The body that these bytes are.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((body, [])) => Ok(body),
        Ok(_) => Err(Malformed("longer than its parts")),
        Err(_) => Err(Malformed("not what this procedure takes")),
    }
}

/// The first of `items` that fit into a body of `bytes_max` next to the few fields that a list has besides, and whether
/// there are more. At least one is taken, so that whoever asks gets on.
pub fn page<T: Serialize>(items: impl IntoIterator<Item = T>, bytes_max: usize) -> (Vec<T>, bool) {
    /// The length of the list, a flag, and some to spare.
    const FRAME_BYTES: usize = 32;
    let (mut taken, mut room) = (Vec::new(), bytes_max.saturating_sub(FRAME_BYTES));
    for item in items {
        let bytes = encode(&item).len();
        if bytes > room && !taken.is_empty() {
            return (taken, true);
        }
        room = room.saturating_sub(bytes);
        taken.push(item);
    }
    (taken, false)
}

/// A name that people gave a pool or container: 1 to 127 of letters, digits, `_`, `-`, `.` and `:`, and not of the form
/// of a UUID, so that the two are never mixed up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Label {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        let fits = !text.is_empty() && text.len() <= LABEL_BYTES_MAX;
        if fits && text.bytes().all(good) && Uuid::parse_str(&text).is_err() {
            Ok(Self(text))
        } else {
            Err(LabelError(text))
        }
    }
}

impl std::str::FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        text.to_owned().try_into()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.0
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A text is no label. A retry cannot help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no label: 1 to 127 of letters, digits, '_', '-', '.', ':', and not a UUID")]
pub struct LabelError(String);

/// How a pool or container is called in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Name {
    /// By its UUID.
    Uuid(Uuid),
    /// By its label.
    Label(Label),
}

impl std::str::FromStr for Name {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        match Uuid::parse_str(text) {
            Ok(uuid) => Ok(Self::Uuid(uuid)),
            Err(_) => text.parse().map(Self::Label),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Label(label) => label.fmt(f),
        }
    }
}

/// MANAGEMENT / POOL_CREATE. The reply is a [`PoolEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCreate {
    /// The new pool, named by the client so that the request can be repeated.
    pub uuid: Uuid,
    /// Its label.
    pub label: Option<Label>,
    /// Who asks, as far as nothing better vouches for it; becomes the owner unless `owner` says otherwise.
    pub identity: Identity,
    /// Whom it shall belong to.
    pub owner: Option<Identity>,
    /// Who may do what; `None` for [`Acl::initial`].
    pub acl: Option<Acl>,
    /// Bytes of all targets together.
    pub bytes: u64,
    /// Of these, bytes for small data and metadata; `None` for a share that suits most uses.
    pub scm_bytes: Option<u64>,
}

/// MANAGEMENT / POOL_LOOKUP. The reply is the pool's UUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLookup {
    /// Which.
    pub pool: Name,
    /// Who asks.
    pub identity: Identity,
}

/// MANAGEMENT / POOL_DESTROY. The reply is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDestroy {
    /// Which. Not by label: a request that is repeated after it was done must not meet another pool of that label, and
    /// has succeeded if there is none.
    pub pool: Uuid,
    /// Who asks.
    pub identity: Identity,
    /// Also if somebody is connected.
    pub force: bool,
}

/// MANAGEMENT / STORAGE_QUERY. The reply is a [`StorageReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagementQuery {
    /// Who asks.
    pub identity: Identity,
}

/// MANAGEMENT / POOL_LIST. The reply is a [`PoolList`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolListRequest {
    /// Who asks.
    pub identity: Identity,
    /// The last pool of the answer before.
    pub after: Option<Uuid>,
}

/// A pool in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolEntry {
    /// The pool.
    pub uuid: Uuid,
    /// Its label.
    pub label: Option<Label>,
    /// Bytes of all targets together.
    pub bytes: u64,
    /// Targets.
    pub targets: u32,
}

/// Pools, by UUID.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolList {
    /// The pools.
    pub pools: Vec<PoolEntry>,
    /// Whether there are more.
    pub more: bool,
}

/// Storage of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StorageReply {
    /// Bytes that pools may take; 0 if nobody has set a limit.
    pub bytes: u64,
    /// Of these, taken by pools.
    pub bytes_in_pools: u64,
    /// Every target, by index.
    pub targets: Vec<TargetSpace>,
}

/// Space of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TargetSpace {
    /// Rank of its engine.
    pub rank: u32,
    /// Its index.
    pub index: u32,
    /// Bytes for small data and metadata.
    pub scm_bytes: u64,
    /// Of these, free.
    pub scm_bytes_free: u64,
    /// Bytes for large data.
    pub block_bytes: u64,
    /// Of these, free.
    pub block_bytes_free: u64,
}

/// POOL / CONNECT, with the pool handle in the header. The reply is a [`PoolConnected`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolConnect {
    /// Which pool.
    pub pool: Name,
    /// Who asks, as far as nothing better vouches for it.
    pub identity: Identity,
    /// What the handle shall permit; refused if the list does not grant all of it.
    pub capabilities: Capabilities,
}

/// Reply to [`PoolConnect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolConnected {
    /// The pool.
    pub uuid: Uuid,
    /// The pool map.
    pub map: PoolMapChanges,
    /// All that the list grants to who asked.
    pub granted: Capabilities,
}

/// POOL / QUERY, with the pool handle in the header. The reply is a [`PoolQueryReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolQuery {
    /// The version of the pool map that the caller has; 0 for none.
    pub map_version: u32,
    /// Whether space is wanted: it has to be asked of every target.
    pub space: bool,
}

/// Reply to [`PoolQuery`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolQueryReply {
    /// The pool.
    pub uuid: Uuid,
    /// Its label.
    pub label: Option<Label>,
    /// Its owner.
    pub owner: Identity,
    /// Who may do what.
    pub acl: Acl,
    /// What is new in the pool map.
    pub map: PoolMapChanges,
    /// Containers.
    pub containers: u64,
    /// Open pool handles.
    pub handles: u64,
    /// Space of each target, if asked for.
    pub space: Vec<TargetSpace>,
}

/// POOL / LIST_CONTAINERS, with the pool handle in the header. The reply is a [`ContainerList`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerListRequest {
    /// The last container of the answer before.
    pub after: Option<Uuid>,
}

/// Containers, by UUID.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerList {
    /// The containers.
    pub containers: Vec<ContainerEntry>,
    /// Whether there are more.
    pub more: bool,
}

/// A container in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEntry {
    /// The container.
    pub uuid: Uuid,
    /// Its label.
    pub label: Option<Label>,
}

/// POOL / EVICT. The reply is the number of handles that were closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolEvict {
    /// Which pool.
    pub pool: Name,
    /// Who asks.
    pub identity: Identity,
    /// One handle, or all.
    pub handle: Option<Uuid>,
}

/// POOL / SET_ACL, with the pool handle in the header. The reply is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAcl {
    /// The new list.
    pub acl: Acl,
}

/// What a container is for, and how its objects are made.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerProperties {
    /// Layout of the upper layer, such as `POSIX`; empty if unknown.
    pub layout: String,
    /// Class of objects whose maker does not choose one; 0 lets the client choose.
    pub object_class: u16,
}

/// CONTAINER / CREATE, with the pool handle in the header. The reply is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCreate {
    /// The new container, named by the client so that the request can be repeated.
    pub uuid: Uuid,
    /// Its label.
    pub label: Option<Label>,
    /// What it is for.
    pub properties: ContainerProperties,
    /// Who may do what; `None` for [`Acl::initial`].
    pub acl: Option<Acl>,
}

/// CONTAINER / LOOKUP, with the pool handle in the header. The reply is the container's UUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLookup {
    /// Which.
    pub container: Name,
}

/// CONTAINER / DESTROY, with the pool handle in the header. The reply is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDestroy {
    /// Which; by UUID for the reason that [`PoolDestroy`] has.
    pub container: Uuid,
    /// Also if somebody has it open.
    pub force: bool,
}

/// CONTAINER / OPEN, with the container handle in the header. The reply is a [`ContainerOpened`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOpen {
    /// The pool handle.
    pub pool_handle: Uuid,
    /// Which container.
    pub container: Name,
    /// What the handle shall permit; refused if the list does not grant all of it.
    pub capabilities: Capabilities,
    /// Hold the first epoch that can be held in the same step: for writers that do not choose epochs.
    pub hold: bool,
    /// The handle is used by other processes too, and outlives the connection that opened it.
    pub shared: bool,
}

/// Reply to [`ContainerOpen`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOpened {
    /// The container.
    pub uuid: Uuid,
    /// Its properties.
    pub properties: ContainerProperties,
    /// The handle's epochs.
    pub epochs: EpochState,
    /// What the handle permits.
    pub capabilities: Capabilities,
}

/// CONTAINER / QUERY, with the container handle in the header. The reply is a [`ContainerQueryReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerQuery {}

/// Reply to [`ContainerQuery`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerQueryReply {
    /// The container.
    pub uuid: Uuid,
    /// Its label.
    pub label: Option<Label>,
    /// Its owner.
    pub owner: Identity,
    /// Its properties.
    pub properties: ContainerProperties,
    /// The handle's epochs.
    pub epochs: EpochState,
    /// Open handles.
    pub handles: u64,
    /// Snapshots.
    pub snapshots: u64,
}

/// CONTAINER / EPOCH_HOLD, EPOCH_SLIP, EPOCH_FLUSH, EPOCH_WAIT, SNAPSHOT_CREATE, SNAPSHOT_DESTROY, with the container
/// handle in the header. The reply is an [`EpochState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRequest {
    /// The epoch.
    pub epoch: Epoch,
}

/// CONTAINER / EPOCH_DISCARD, with the container handle in the header. The reply is an [`EpochState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochDiscard {
    /// Which epochs.
    pub range: EpochRange,
}

/// CONTAINER / EPOCH_COMMIT. The reply is an [`EpochState`] for each handle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochCommit {
    /// Handles of containers of one pool, and the epoch up to which each is committed: all or none.
    pub commits: Vec<(Uuid, Epoch)>,
}

/// CONTAINER / SNAPSHOT_LIST, with the container handle in the header. The reply is a [`SnapshotList`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotListRequest {
    /// The last snapshot of the answer before.
    pub after: Option<Epoch>,
}

/// Reply to [`SnapshotListRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SnapshotList {
    /// The snapshots, oldest first.
    pub snapshots: Vec<Epoch>,
    /// Whether there are more.
    pub more: bool,
}

/// CONTAINER / ATTRIBUTES_SET, with the container handle in the header. The reply is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributesSet {
    /// Names and values; `None` removes.
    pub attributes: Vec<(String, Option<Vec<u8>>)>,
}

/// CONTAINER / ATTRIBUTES_GET, with the container handle in the header. The reply is an [`AttributesReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributesGet {
    /// Names, in ascending order; empty for all.
    pub names: Vec<String>,
    /// The last name of the answer before: only what comes after it is wanted.
    pub after: Option<String>,
}

/// Attributes that are there, by name. If there are more, there is at least one here to go on from.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttributesReply {
    /// Names and values.
    pub attributes: Vec<(String, Vec<u8>)>,
    /// Whether there are more.
    pub more: bool,
}

/// Where an engine's targets can be reached: what a client has before it knows a pool map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineAddresses {
    /// Rank.
    pub rank: u32,
    /// Addresses of each target's xstream, by index; those of index 0 reach the services.
    pub targets: Vec<Vec<Address>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_never_taken_for_uuids() {
        assert!("tank".parse::<Label>().is_ok());
        assert!("a:b.c_d-9".parse::<Label>().is_ok());
        for text in ["", "a b", "é", "550e8400-e29b-41d4-a716-446655440000", &"x".repeat(128)] {
            assert!(text.parse::<Label>().is_err(), "{text:?} was taken");
        }
        let bytes = postcard::to_stdvec("a b").expect("serialises");
        assert!(decode::<Label>(&bytes).is_err());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&EpochRequest { epoch: Epoch(300) });
        assert_eq!(decode::<EpochRequest>(&bytes).expect("decodes").epoch, Epoch(300));
        bytes.push(0);
        assert!(decode::<EpochRequest>(&bytes).is_err());
    }
}
