//! The client half: KV, array and document objects over the shards of many targets.
//!
//! # Invariants
//!
//! * A handle computes its layout from the newest map that its [`TargetObjects`] knows, and computes it again once that
//!   has a newer one; requests carry the version, so a target never serves a layout that is out of date.
//! * A call that touches several shards asks them at once, and reports an error only after all of them have answered:
//!   when it returns, nothing of it is under way any more.
//! * Writes of one epoch to the same place by the same container handle: the last to arrive wins.

mod array;
mod container;
mod document;
mod epochs;
mod error;
mod kv;
mod object;
mod targets;

pub use array::{Array, ReadOutcome};
pub use container::{Container, placement_of};
pub use document::Document;
pub use epochs::{Epochs, Ticket};
pub use error::DsrError;
pub use kv::Kv;
pub use object::{Anchor, Page, enumerate_objects};
pub use targets::{
    ARRAY_BYTES_MAX, ContainerEpochs, EnumeratePage, Enumeration, Extent, ExtentKind, Fetched, Listing,
    ObjectQuery, Punch, Record, TargetObjects, TargetRef,
};

/// Waits for all results, which come in the order of the futures. One future is awaited in place.
pub(crate) async fn all<T, F: Future<Output = T>>(mut futures: Vec<F>) -> Vec<T> {
    if futures.len() == 1 {
        let only = futures.pop().expect("one future");
        return vec![only.await];
    }
    daos_xstream::join_all(futures).await
}
