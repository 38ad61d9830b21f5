//! Objects: key-value stores, byte arrays, documents.
//!
//! Writing calls take [`At`]: an epoch that the caller holds, or [`At::Auto`]. Reading calls take it too: an epoch whose
//! state is wanted, or the newest state.

use daos_dsr::client::{Anchor, Container as Objects, DsrError, Fetched, Page, ReadOutcome, Record};
use daos_types::{Epoch, ObjectId};
use daos_xstream::{Env, IoBuffer, rpc::Status};

use crate::{At, ClientEnv, Container, DaosError, container::read_epoch};

/// A key-value object: key → value.
pub struct Kv<E: Env = ClientEnv> {
    container: Container<E>,
    inner: daos_dsr::client::Kv<Objects<E>>,
}

/// A document: distribution key → attribute key → value. What is below one distribution key changes atomically.
pub struct Document<E: Env = ClientEnv> {
    container: Container<E>,
    inner: daos_dsr::client::Document<Objects<E>>,
}

/// A byte array with offsets of 63 bits.
pub struct Array<E: Env = ClientEnv> {
    container: Container<E>,
    inner: daos_dsr::client::Array<Objects<E>>,
}

/// Writes in the epoch that `at` says. A call that took its epoch by itself, and was overtaken by a commit of that epoch,
/// takes another.
async fn write<E: Env>(
    container: &Container<E>,
    at: At,
    work: impl AsyncFn(Epoch) -> Result<(), DsrError>,
) -> Result<(), DaosError> {
    loop {
        let turn = container.turn(at).await?;
        match work(turn.epoch()).await {
            Err(error) if at == At::Auto && is_overtaken(&error) => {}
            done => return Ok(done?),
        }
        drop(turn);
        container.overtaken().await?;
    }
}

fn is_overtaken(error: &DsrError) -> bool {
    matches!(error, DsrError::Target { status, .. } if Status(*status) == Status::BAD_EPOCH)
}

impl<E: Env> Kv<E> {
    pub(crate) fn open(container: &Container<E>, id: ObjectId) -> Result<Self, DaosError> {
        let inner = daos_dsr::client::Kv::open(&container.objects, id)?;
        Ok(Self { container: container.clone(), inner })
    }

    /// Its ID.
    pub fn id(&self) -> ObjectId {
        self.inner.id()
    }

    /// Writes one value.
    pub async fn put(&self, at: impl Into<At>, key: &[u8], value: &[u8]) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.put(epoch, key, value).await).await
    }

    /// Writes many values at once.
    pub async fn put_all(&self, at: impl Into<At>, records: &[Record<'_>]) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.put_all(epoch, records).await).await
    }

    /// Reads one value.
    pub async fn get(&self, at: impl Into<At>, key: &[u8]) -> Result<Fetched, DaosError> {
        Ok(self.inner.get(read_epoch(at.into()), key).await?)
    }

    /// Removes keys; those that are not there are no error.
    pub async fn remove(&self, at: impl Into<At>, keys: &[&[u8]]) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.remove(epoch, keys).await).await
    }

    /// Lists keys, at most `keys_max` at once.
    pub async fn list(
        &self,
        at: impl Into<At>,
        anchor: &Anchor,
        keys_max: u32,
    ) -> Result<Page<Vec<u8>>, DaosError> {
        Ok(self.inner.list(read_epoch(at.into()), anchor, keys_max).await?)
    }

    /// Removes everything. Earlier epochs keep it.
    pub async fn punch(&self, at: impl Into<At>) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.punch(epoch).await).await
    }
}

impl<E: Env> Document<E> {
    pub(crate) fn open(container: &Container<E>, id: ObjectId) -> Result<Self, DaosError> {
        let inner = daos_dsr::client::Document::open(&container.objects, id)?;
        Ok(Self { container: container.clone(), inner })
    }

    /// Its ID.
    pub fn id(&self) -> ObjectId {
        self.inner.id()
    }

    /// Writes values of one distribution key in one atomic step.
    pub async fn update(
        &self,
        at: impl Into<At>,
        dkey: &[u8],
        records: &[Record<'_>],
    ) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.update(epoch, dkey, records).await).await
    }

    /// Reads attribute keys of one distribution key; one answer per key, in order.
    pub async fn fetch(
        &self,
        at: impl Into<At>,
        dkey: &[u8],
        akeys: &[&[u8]],
    ) -> Result<Vec<Fetched>, DaosError> {
        Ok(self.inner.fetch(read_epoch(at.into()), dkey, akeys).await?)
    }

    /// Removes attribute keys of one distribution key.
    pub async fn remove(&self, at: impl Into<At>, dkey: &[u8], akeys: &[&[u8]]) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.remove(epoch, dkey, akeys).await).await
    }

    /// Removes a distribution key with all below it.
    pub async fn remove_dkey(&self, at: impl Into<At>, dkey: &[u8]) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.remove_dkey(epoch, dkey).await).await
    }

    /// Lists distribution keys, at most `keys_max` at once.
    pub async fn list_dkeys(
        &self,
        at: impl Into<At>,
        anchor: &Anchor,
        keys_max: u32,
    ) -> Result<Page<Vec<u8>>, DaosError> {
        Ok(self.inner.list_dkeys(read_epoch(at.into()), anchor, keys_max).await?)
    }

    /// Lists attribute keys below one distribution key.
    pub async fn list_akeys(
        &self,
        at: impl Into<At>,
        dkey: &[u8],
        anchor: &Anchor,
        keys_max: u32,
    ) -> Result<Page<Vec<u8>>, DaosError> {
        Ok(self.inner.list_akeys(read_epoch(at.into()), dkey, anchor, keys_max).await?)
    }

    /// Removes everything. Earlier epochs keep it.
    pub async fn punch(&self, at: impl Into<At>) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.punch(epoch).await).await
    }
}

impl<E: Env> Array<E> {
    pub(crate) fn open(container: &Container<E>, id: ObjectId) -> Result<Self, DaosError> {
        let inner = daos_dsr::client::Array::open(&container.objects, id)?;
        Ok(Self { container: container.clone(), inner })
    }

    /// Its ID.
    pub fn id(&self) -> ObjectId {
        self.inner.id()
    }

    /// Writes the buffer's bytes in use at `offset` and gives the buffer back. Large data is not copied on its way.
    pub async fn write(
        &self,
        at: impl Into<At>,
        offset: u64,
        data: IoBuffer,
    ) -> (IoBuffer, Result<(), DaosError>) {
        let at = at.into();
        let mut data = data;
        loop {
            let turn = match self.container.turn(at).await {
                Ok(turn) => turn,
                Err(error) => return (data, Err(error)),
            };
            let (back, result) = self.inner.write(turn.epoch(), offset, data).await;
            data = back;
            match result {
                Err(error) if at == At::Auto && is_overtaken(&error) => {}
                done => return (data, done.map_err(DaosError::from)),
            }
            drop(turn);
            if let Err(error) = self.container.overtaken().await {
                return (data, Err(error));
            }
        }
    }

    /// Writes bytes at `offset`.
    pub async fn write_at(&self, at: impl Into<At>, offset: u64, data: &[u8]) -> Result<(), DaosError> {
        self.write(at, offset, IoBuffer::copy_of(data)).await.1
    }

    /// Fills the buffer's bytes in use from `offset`; what holds no data becomes zero, and the outcome says which.
    pub async fn read(
        &self,
        at: impl Into<At>,
        offset: u64,
        room: IoBuffer,
    ) -> (IoBuffer, Result<ReadOutcome, DaosError>) {
        let (room, result) = self.inner.read(read_epoch(at.into()), offset, room).await;
        (room, result.map_err(DaosError::from))
    }

    /// Reads `length` bytes at `offset`.
    pub async fn read_at(&self, at: impl Into<At>, offset: u64, length: usize) -> Result<Vec<u8>, DaosError> {
        let (room, result) = self.read(at, offset, IoBuffer::zeroed(length)).await;
        result?;
        Ok(room.as_slice().to_vec())
    }

    /// One more than the highest offset that holds data.
    pub async fn size(&self, at: impl Into<At>) -> Result<u64, DaosError> {
        Ok(self.inner.size(read_epoch(at.into())).await?)
    }

    /// Removes bytes; they read as zeros from then on.
    pub async fn punch_range(&self, at: impl Into<At>, start: u64, end: u64) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.punch_range(epoch, start, end).await).await
    }

    /// Removes everything. Earlier epochs keep it.
    pub async fn punch(&self, at: impl Into<At>) -> Result<(), DaosError> {
        write(&self.container, at.into(), async |epoch| self.inner.punch(epoch).await).await
    }
}
