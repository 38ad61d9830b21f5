//! Client API of DAOS: pools, containers, objects and files.
//!
//! ```no_run
//! use daos::{At, Client, ObjectType, OpenOptions};
//!
//! # fn main() -> Result<(), daos::DaosError> {
//! let client = Client::connect("/tmp/daos")?;
//! client.block_on(async {
//!     let pool = client.pool_connect("tank").await?;
//!     let container = pool.container_open("things", OpenOptions::WRITE).await?;
//!     let kv = container.kv(container.new_object_id(ObjectType::KeyValue, None)?)?;
//!
//!     // One transaction: hold an epoch, write in it, flush, commit.
//!     let epoch = container.hold(daos::Epoch::ZERO).await?;
//!     kv.put(epoch, b"answer", b"42").await?;
//!     container.flush(epoch).await?;
//!     container.commit(epoch).await?;
//!
//!     assert_eq!(kv.get(At::Auto, b"answer").await?.value(), Some(b"42".to_vec()));
//!     container.close().await
//! })
//! # }
//! ```
//!
//! Every call is a future. There are no threads: futures move forward while the caller is in [`Client::block_on`] or polls
//! an [`EventQueue`]. The types are generic over the world; programs leave that to its default.
//!
//! Runnable examples are in the crate's `examples/`: `kv`, `array` and `files`.

#![forbid(unsafe_code)]

mod client;
mod container;
pub mod copy;

mod env;
mod error;
mod event;
mod objects;
mod system;

pub use client::{Client, FabricChoice, Pool, random_uuid};
pub use container::{At, Container};
pub use env::{ClientClock, ClientEnv, ClientFabric, ClientRng, Tasks};
pub use error::DaosError;
pub use event::{Event, EventQueue};
pub use objects::{Array, Document, Kv};
pub use system::{PROTOCOL, Rank, RankTarget, System};

pub use daos_dsm::{
    access::{Acl, Capabilities, Identity},
    client::{ClientConfig, OpenOptions, PoolSpec},
    epochs::EpochState,
    rpc::control::{
        ContainerEntry, ContainerProperties, Label, PoolEntry, PoolQueryReply, StorageReply, TargetSpace,
    },
};
/// Files: the name space of a mounted container.
pub use daos_dsp as fs;
pub use daos_dsp::{File, FormatOptions, Fs, FsError};
/// Object classes by name and number.
pub use daos_dsr::class;
pub use daos_dsr::client::{
    Anchor, Container as Objects, DsrError, Extent, ExtentKind, Fetched, Page, ReadOutcome,
};
pub use daos_types::{Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, ParseError};
pub use daos_xstream::IoBuffer;
