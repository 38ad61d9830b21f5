//! Document objects.

use daos_types::{Epoch, ObjectId, ObjectType};

use super::{
    Anchor, DsrError, Fetched, Listing, Page, Punch, Record, TargetObjects, TargetRef, object::Object,
};

/// A document: distribution key → attribute key → value. A dkey and all that it holds is on one shard.
#[derive(Debug)]
pub struct Document<T>(Object<T>);

impl<T: TargetObjects> Document<T> {
    /// A handle of the document `id`. No request is made.
    pub fn open(targets: &T, id: ObjectId) -> Result<Self, DsrError> {
        Object::open(targets, id, ObjectType::Document).map(Self)
    }

    /// Its ID.
    pub fn id(&self) -> ObjectId {
        self.0.id()
    }

    /// Writes values of one dkey in one atomic step. Its other akeys stay.
    pub async fn update(&self, epoch: Epoch, dkey: &[u8], records: &[Record<'_>]) -> Result<(), DsrError> {
        self.0
            .repeat(async || self.0.targets().update(self.shard(dkey)?, epoch, Some(dkey), records).await)
            .await
    }

    /// Reads akeys of one dkey; one answer per akey, in order.
    pub async fn fetch(&self, epoch: Epoch, dkey: &[u8], akeys: &[&[u8]]) -> Result<Vec<Fetched>, DsrError> {
        self.0
            .repeat(async || self.0.targets().fetch(self.shard(dkey)?, epoch, Some(dkey), akeys).await)
            .await
    }

    /// Removes akeys of one dkey.
    pub async fn remove(&self, epoch: Epoch, dkey: &[u8], akeys: &[&[u8]]) -> Result<(), DsrError> {
        self.0
            .repeat(async || {
                self.0.targets().punch(self.shard(dkey)?, epoch, Punch::Akeys(dkey, akeys)).await
            })
            .await
    }

    /// Removes a dkey with all that it holds.
    pub async fn remove_dkey(&self, epoch: Epoch, dkey: &[u8]) -> Result<(), DsrError> {
        self.0
            .repeat(async || self.0.targets().punch(self.shard(dkey)?, epoch, Punch::Dkey(dkey)).await)
            .await
    }

    /// Lists dkeys, at most `keys_max` at once: shard after shard, within a shard in the object's dkey order.
    pub async fn list_dkeys(
        &self,
        epoch: Epoch,
        anchor: &Anchor,
        keys_max: u32,
    ) -> Result<Page<Vec<u8>>, DsrError> {
        self.0.repeat(async || self.0.list(epoch, Listing::Dkeys, anchor, keys_max).await).await
    }

    /// Lists the akeys of one dkey, in the object's akey order.
    pub async fn list_akeys(
        &self,
        epoch: Epoch,
        dkey: &[u8],
        anchor: &Anchor,
        keys_max: u32,
    ) -> Result<Page<Vec<u8>>, DsrError> {
        self.0
            .repeat(async || {
                let enumeration =
                    super::Enumeration { listing: Listing::Akeys(dkey), anchor: anchor.to_bytes(), keys_max };
                let page = self.0.targets().enumerate(self.shard(dkey)?, epoch, enumeration).await?;
                Ok(Page { items: page.keys, next: page.next.map(|next| Anchor::from_bytes(&next)) })
            })
            .await
    }

    /// Removes everything. Earlier epochs keep it.
    pub async fn punch(&self, epoch: Epoch) -> Result<(), DsrError> {
        self.0.punch(epoch).await
    }

    fn shard(&self, dkey: &[u8]) -> Result<TargetRef, DsrError> {
        self.0.shard_of_key(dkey)
    }
}
