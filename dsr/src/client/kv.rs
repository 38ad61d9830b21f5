//! Key-value objects.

use daos_types::{Epoch, ObjectId, ObjectType};

use super::{Anchor, DsrError, Fetched, Listing, Page, Punch, Record, TargetObjects, all, object::Object};

/// A key-value object: key → value. Keys are striped over the shards.
#[derive(Debug)]
pub struct Kv<T>(Object<T>);

impl<T: TargetObjects> Kv<T> {
    /// A handle of the KV `id`. No request is made.
    pub fn open(targets: &T, id: ObjectId) -> Result<Self, DsrError> {
        Object::open(targets, id, ObjectType::KeyValue).map(Self)
    }

    /// Its ID.
    pub fn id(&self) -> ObjectId {
        self.0.id()
    }

    /// Writes one value.
    pub async fn put(&self, epoch: Epoch, key: &[u8], value: &[u8]) -> Result<(), DsrError> {
        self.0
            .repeat(async || {
                let shard = self.0.shard_of_key(key)?;
                self.0.targets().update(shard, epoch, None, &[(key, value)]).await
            })
            .await
    }

    /// Writes many values. Those of one shard are written in one atomic step.
    pub async fn put_all(&self, epoch: Epoch, records: &[Record<'_>]) -> Result<(), DsrError> {
        self.0
            .repeat(async || {
                let by_group = self.by_group(records, |record| record.0)?;
                let mut updates = Vec::with_capacity(by_group.len());
                for (group, records) in &by_group {
                    let shard = self.0.shard(*group)?;
                    updates.push(self.0.targets().update(shard, epoch, None, records));
                }
                all(updates).await.into_iter().collect()
            })
            .await
    }

    /// Reads one value.
    pub async fn get(&self, epoch: Epoch, key: &[u8]) -> Result<Fetched, DsrError> {
        self.0
            .repeat(async || {
                let shard = self.0.shard_of_key(key)?;
                let fetched = self.0.targets().fetch(shard, epoch, None, &[key]).await?;
                Ok(fetched.into_iter().next().unwrap_or(Fetched::Miss))
            })
            .await
    }

    /// Removes keys. Those that are not there are no error.
    pub async fn remove(&self, epoch: Epoch, keys: &[&[u8]]) -> Result<(), DsrError> {
        self.0
            .repeat(async || {
                let by_group = self.by_group(keys, |key| key)?;
                let mut punches = Vec::with_capacity(by_group.len());
                for (group, keys) in &by_group {
                    let shard = self.0.shard(*group)?;
                    punches.push(self.0.targets().punch(shard, epoch, Punch::Keys(keys)));
                }
                all(punches).await.into_iter().collect()
            })
            .await
    }

    /// Lists keys, at most `keys_max` at once: shard after shard, within a shard in the object's key order.
    pub async fn list(
        &self,
        epoch: Epoch,
        anchor: &Anchor,
        keys_max: u32,
    ) -> Result<Page<Vec<u8>>, DsrError> {
        self.0.repeat(async || self.0.list(epoch, Listing::Keys, anchor, keys_max).await).await
    }

    /// Removes all keys. Earlier epochs keep them.
    pub async fn punch(&self, epoch: Epoch) -> Result<(), DsrError> {
        self.0.punch(epoch).await
    }

    fn by_group<R: Copy>(
        &self,
        items: &[R],
        key: impl for<'r> Fn(&'r R) -> &'r [u8],
    ) -> Result<std::collections::BTreeMap<u32, Vec<R>>, DsrError> {
        let striping = self.0.striping()?;
        let mut groups = std::collections::BTreeMap::<u32, Vec<R>>::new();
        for item in items {
            groups.entry(striping.group_of_key(key(item))).or_default().push(*item);
        }
        Ok(groups)
    }
}
