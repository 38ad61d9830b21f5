//! Objects of single targets through DSM's client half: the [`TargetObjects`] of the real system and of the simulator.

use std::{cell::RefCell, rc::Rc};

use daos_dsm::{
    client::{ContainerHandle, DsmError, ObjectAddress, ObjectIo},
    pool_map::{PoolMap, TargetState},
    rpc::object::{EnumerateKind, Enumerated, Outcome, PieceKind, ReadRecord, UpdateRecord, flags},
};
use daos_types::{Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType};
use daos_xstream::{Env, IoBuffer};

use super::{
    ContainerEpochs, DsrError, EnumeratePage, Enumeration, Extent, ExtentKind, Fetched, Listing, ObjectQuery,
    Punch, Record, TargetObjects, TargetRef,
};
use crate::placement::{PlacedTarget, Placement, Standing};

/// An open container, as DSR sees it. Clones share the handle.
pub struct Container<E: Env> {
    objects: ObjectIo<E>,
    placement: Rc<RefCell<Rc<Placement>>>,
    /// Of every change.
    flags: u16,
}

impl<E: Env> Clone for Container<E> {
    fn clone(&self) -> Self {
        Self { objects: self.objects.clone(), placement: self.placement.clone(), flags: self.flags }
    }
}

impl<E: Env> Container<E> {
    /// Spreads objects over the targets of an open container.
    pub fn new(handle: &ContainerHandle<E>) -> Self {
        let placement = Rc::new(placement_of(&handle.pool().map()));
        let placement = Rc::new(RefCell::new(placement));
        Self { objects: handle.objects(), placement, flags: flags::LAST_WINS }
    }

    /// The same, with changes that are acknowledged only once they survive any crash.
    pub fn durable(&self) -> Self {
        Self { flags: self.flags | flags::DURABLE, ..self.clone() }
    }

    /// The container handle.
    pub fn handle(&self) -> &ContainerHandle<E> {
        self.objects.container()
    }
}

/// A pool map, as placement needs it. The fault domain of a target is the one that holds its engine.
pub fn placement_of(map: &PoolMap) -> Placement {
    let place = |target: &daos_dsm::pool_map::Target| PlacedTarget {
        rank: target.id.rank,
        target: target.id.index,
        domain: target.domain,
        standing: match target.state {
            TargetState::UpIn | TargetState::Drain => Standing::Serving,
            TargetState::New | TargetState::Up => Standing::Joining,
            TargetState::Down | TargetState::DownOut => Standing::Failed { version: target.failed },
        },
    };
    Placement::new(map.version(), map.targets().iter().map(place).collect())
}

impl From<DsmError> for DsrError {
    fn from(error: DsmError) -> Self {
        match error {
            DsmError::StaleMap { version } => Self::StaleMap { version },
            other => Self::Target {
                status: other.status().0,
                message: other.to_string(),
                in_doubt: !other.nothing_changed(),
            },
        }
    }
}

fn address(at: TargetRef) -> ObjectAddress {
    ObjectAddress { ordinal: at.ordinal, map_version: at.map_version, object: at.object }
}

impl<E: Env> ContainerEpochs for Container<E> {
    async fn hold(&self, epoch: Epoch) -> Result<Epoch, DsrError> {
        Ok(self.handle().hold(epoch).await?.lhe)
    }

    async fn flush(&self, epoch: Epoch) -> Result<(), DsrError> {
        self.handle().flush(epoch).await?;
        Ok(())
    }

    async fn commit(&self, epoch: Epoch) -> Result<(), DsrError> {
        self.handle().commit(epoch).await?;
        Ok(())
    }
}

impl<E: Env> TargetObjects for Container<E> {
    fn placement(&self) -> Rc<Placement> {
        let map = self.handle().pool().map();
        let known = self.placement.borrow().clone();
        if known.map_version() == map.version() {
            return known;
        }
        let newer = Rc::new(placement_of(&map));
        *self.placement.borrow_mut() = newer.clone();
        newer
    }

    async fn update(
        &self,
        at: TargetRef,
        epoch: Epoch,
        dkey: Option<&[u8]>,
        records: &[Record<'_>],
    ) -> Result<(), DsrError> {
        let records: Vec<UpdateRecord<'_>> =
            records.iter().map(|(key, value)| UpdateRecord::Value { key, value }).collect();
        let dkey = dkey.unwrap_or_default();
        Ok(self.objects.update(address(at), epoch, self.flags, dkey, &records).await?)
    }

    async fn fetch(
        &self,
        at: TargetRef,
        epoch: Epoch,
        dkey: Option<&[u8]>,
        keys: &[&[u8]],
    ) -> Result<Vec<Fetched>, DsrError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let records: Vec<ReadRecord<'_>> =
            keys.iter().map(|key| ReadRecord::Value { key, room: 0 }).collect();
        let fetched = self.objects.fetch(address(at), epoch, dkey.unwrap_or_default(), &records).await?;
        Ok(fetched
            .records()
            .map(|record| match record.outcome {
                Outcome::Value { .. } => Fetched::Value(record.value.to_vec()),
                Outcome::Punched(_) => Fetched::Punched,
                // The others do not come for single values: the fetch has seen to it.
                Outcome::Miss | Outcome::TooLong { .. } | Outcome::Extent { .. } => Fetched::Miss,
            })
            .collect())
    }

    async fn write(
        &self,
        at: TargetRef,
        epoch: Epoch,
        offset: u64,
        data: IoBuffer,
    ) -> (IoBuffer, Result<(), DsrError>) {
        let (data, result) = self.objects.write(address(at), epoch, self.flags, None, offset, data).await;
        (data, result.map_err(DsrError::from))
    }

    async fn read(
        &self,
        at: TargetRef,
        epoch: Epoch,
        offset: u64,
        room: IoBuffer,
    ) -> (IoBuffer, Result<Vec<Extent>, DsrError>) {
        let (room, result) = self.objects.read(address(at), epoch, None, offset, room).await;
        let extents = result.map(|pieces| {
            let extent = |piece: daos_dsm::client::ReadPiece| Extent {
                range: piece.range,
                kind: match piece.kind {
                    PieceKind::Data(_) => ExtentKind::Data,
                    PieceKind::Punched => ExtentKind::Punched,
                    PieceKind::Miss => ExtentKind::Miss,
                },
            };
            pieces.into_iter().map(extent).collect()
        });
        (room, extents.map_err(DsrError::from))
    }

    async fn punch(&self, at: TargetRef, epoch: Epoch, punch: Punch<'_>) -> Result<(), DsrError> {
        let at = address(at);
        let last_wins = self.flags;
        let keys = |keys: &[&[u8]]| -> Vec<Vec<u8>> { keys.iter().map(|key| key.to_vec()).collect() };
        let (dkey, keys) = match punch {
            Punch::Object => {
                return Ok(self.objects.punch(at, epoch, flags::OBJECT | last_wins, b"", &[]).await?);
            }
            Punch::Dkey(dkey) => {
                return Ok(self.objects.punch(at, epoch, flags::DKEY | last_wins, dkey, &[]).await?);
            }
            Punch::Range(start, end) => {
                let record =
                    UpdateRecord::PunchExtent { key: b"", offset: start, length: end.saturating_sub(start) };
                return Ok(self.objects.punch(at, epoch, last_wins, b"", &[record]).await?);
            }
            Punch::Keys(list) => (&b""[..], keys(list)),
            Punch::Akeys(dkey, list) => (dkey, keys(list)),
        };
        if keys.is_empty() {
            return Ok(());
        }
        let records: Vec<UpdateRecord<'_>> = keys.iter().map(|key| UpdateRecord::Punch { key }).collect();
        Ok(self.objects.punch(at, epoch, last_wins, dkey, &records).await?)
    }

    async fn enumerate(
        &self,
        at: TargetRef,
        epoch: Epoch,
        enumeration: Enumeration<'_>,
    ) -> Result<EnumeratePage, DsrError> {
        let (kind, dkey) = match enumeration.listing {
            Listing::Keys => (EnumerateKind::Keys, &b""[..]),
            Listing::Dkeys => (EnumerateKind::Dkeys, &b""[..]),
            Listing::Akeys(dkey) => (EnumerateKind::Akeys, dkey),
        };
        let mut keys = Vec::new();
        let visit = |entry: Enumerated<'_>| {
            if let Enumerated::Key(key) = entry {
                keys.push(key.to_vec());
            }
        };
        let Enumeration { anchor, keys_max, .. } = enumeration;
        let next =
            self.objects.enumerate(address(at), epoch, kind, (dkey, b""), anchor, keys_max, visit).await?;
        Ok(EnumeratePage { keys, next })
    }

    async fn query(&self, at: TargetRef, epoch: Epoch) -> Result<ObjectQuery, DsrError> {
        let reply = self.objects.query(address(at), epoch, None).await?;
        Ok(ObjectQuery { exists: reply.exists(), size: reply.end() })
    }

    async fn enumerate_objects(
        &self,
        ordinal: u32,
        epoch: Epoch,
        anchor: &[u8],
        objects_max: u32,
    ) -> Result<(Vec<ObjectId>, Option<Vec<u8>>), DsrError> {
        // The object of such a request means nothing; an address needs one.
        let any = ObjectId::new(
            ObjectType::KeyValue,
            KeyOrder::Hashed,
            KeyOrder::Hashed,
            ObjectClass(0),
            (0, 0, 0),
        );
        let map_version = self.placement().map_version();
        let at = ObjectAddress { ordinal, map_version, object: any };
        let mut objects = Vec::new();
        let visit = |entry: Enumerated<'_>| {
            if let Enumerated::Object(object) = entry {
                objects.push(object);
            }
        };
        let kind = EnumerateKind::Objects;
        let next = self.objects.enumerate(at, epoch, kind, (b"", b""), anchor, objects_max, visit).await?;
        Ok((objects, next))
    }
}
