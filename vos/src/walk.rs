//! Everything that is recorded, history included, as tools show it.

use std::ops::{ControlFlow, Range};

use daos_types::{Checksum, Cookie, Epoch, ObjectId, ObjectType};
use daos_umem::Heap;
use daos_xstream::Env;
use uuid::Uuid;

use crate::{
    Error, Pool,
    extents::{self, Holder},
    keys::{self, dkey_punches},
    memory,
    records::{
        AGED, ArrayHead, ContainerRecord, Extent, Extents, KeyRecord, Keys, Kind, ObjectRecord, Objects,
        PUNCHED, PunchRecord, Punches, REBUILD, STORED, VIEW, Version, Versions, key_verified, object_id,
    },
    tree::{self, Bound},
    versions,
};

/// Who wrote a record, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The epoch.
    pub epoch: Epoch,
    /// Whose change it is.
    pub cookie: Cookie,
    /// Version of the pool map that the writer knew.
    pub map_version: u32,
    /// Whether a rebuild wrote it.
    pub rebuild: bool,
    /// Whether it was aggregated: no group of changes lists it.
    pub aggregated: bool,
}

impl Written {
    fn new(epoch: u64, cookie: u64, map_version: u32, flags: u32) -> Self {
        Self {
            epoch: Epoch(epoch),
            cookie: Cookie(cookie),
            map_version,
            rebuild: flags & REBUILD != 0,
            aggregated: flags & AGED != 0,
        }
    }
}

/// Where the bytes of a record are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// It is a punch.
    Punched,
    /// In the arena.
    Arena,
    /// In the arena or on the block tier, as a part of what another record was written with.
    Shared,
    /// At this position of the block tier.
    BlockTier(u64),
}

/// A version of a single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// By whom and when.
    pub written: Written,
    /// Bytes.
    pub length: u64,
    /// CRC32C of them.
    pub checksum: Checksum,
    /// Where they are.
    pub place: Where,
}

/// An extent of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentInfo {
    /// By whom and when.
    pub written: Written,
    /// Bytes of the array.
    pub range: Range<u64>,
    /// Where they are.
    pub place: Where,
}

/// A record met on a walk. A key belongs to the object before it, an akey to the dkey before it, and so on.
#[derive(Clone, Debug)]
pub enum Record<'a> {
    /// An object, with its upper layer's metadata.
    Object(ObjectId, &'a [u8]),
    /// A punch of the object.
    ObjectPunch(Written),
    /// A key of a KV, or a dkey of a document.
    Key(&'a [u8]),
    /// A punch of the dkey.
    KeyPunch(Written),
    /// An akey.
    Akey(&'a [u8]),
    /// A version of the key's (the akey's) value.
    Version(VersionInfo),
    /// An extent of the object's (the akey's) array.
    Extent(ExtentInfo),
}

impl<E: Env> Pool<E> {
    /// Visits everything that a container has recorded, until `visit` breaks. Keys are verified, data is not read.
    pub fn walk(
        &self,
        container: Uuid,
        visit: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let found = self.container_records()?.into_iter().find(|(uuid, _)| *uuid == container);
        let (_, place) = found.ok_or(Error::NotFound("container"))?;
        let heap = self.0.store.heap();
        let record: &ContainerRecord = memory::read(&heap, place)?;
        let mut walk = Walk { heap: &heap, seed: self.0.seed, visit };
        let _ = tree::scan(&heap, Objects, record.objects, Bound::First, &mut |object| walk.object(object))?;
        Ok(())
    }
}

struct Walk<'h, 'v> {
    heap: &'h Heap,
    seed: u64,
    visit: &'v mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
}

/// Ends a function that walks when the walk is to end.
macro_rules! go_on {
    ($flow:expr) => {
        if $flow.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    };
}

impl Walk<'_, '_> {
    fn object(&mut self, place: u64) -> Result<ControlFlow<()>, Error> {
        let heap = self.heap;
        let record: &ObjectRecord = memory::read(heap, place)?;
        let id = object_id(record, place)?;
        let metadata: &[u8] = match record.metadata {
            0 => &[],
            metadata => memory::read_slice(heap, metadata, record.metadata_bytes)?,
        };
        go_on!((self.visit)(Record::Object(id, metadata)));
        go_on!(self.punches(record.punches, Record::ObjectPunch)?);
        if id.object_type() == ObjectType::Array {
            return self.extents(Holder::Object(place));
        }
        let class = Keys { order: id.dkey_order(), seed: self.seed };
        tree::scan(heap, class, record.root, Bound::First, &mut |key| self.key(key, id))
    }

    fn key(&mut self, key: u64, id: ObjectId) -> Result<ControlFlow<()>, Error> {
        let heap = self.heap;
        go_on!((self.visit)(Record::Key(key_verified(heap, key)?)));
        let record: &KeyRecord = memory::read(heap, key)?;
        if record.kind() != Kind::Dkey {
            return self.versions(record.root);
        }
        go_on!(self.punches(dkey_punches(heap, key)?, Record::KeyPunch)?);
        let class = Keys { order: id.akey_order(), seed: self.seed };
        let akeys: u64 = *memory::read(heap, keys::akeys_place(heap, key)?)?;
        tree::scan(heap, class, akeys, Bound::First, &mut |akey| {
            go_on!((self.visit)(Record::Akey(key_verified(heap, akey)?)));
            let record: &KeyRecord = memory::read(heap, akey)?;
            match record.kind() {
                Kind::Array => self.extents(Holder::Akey(akey)),
                _ => self.versions(record.root),
            }
        })
    }

    fn punches(&mut self, root: u64, of: fn(Written) -> Record<'static>) -> Result<ControlFlow<()>, Error> {
        tree::scan(self.heap, Punches, root, Bound::First, &mut |place| {
            let punch: &PunchRecord = memory::read(self.heap, place)?;
            Ok((self.visit)(of(Written::new(punch.epoch, punch.cookie, punch.map_version, punch.flags))))
        })
    }

    fn versions(&mut self, root: u64) -> Result<ControlFlow<()>, Error> {
        tree::scan(self.heap, Versions, root, Bound::First, &mut |place| {
            let version: &Version = memory::read(self.heap, place)?;
            let at = match version.flags & (PUNCHED | STORED) {
                0 => Where::Arena,
                STORED => Where::BlockTier(versions::stored_position(self.heap, place)?),
                _ => Where::Punched,
            };
            Ok((self.visit)(Record::Version(VersionInfo {
                written: Written::new(version.epoch, version.cookie, version.map_version, version.flags),
                length: u64::from(version.length),
                checksum: Checksum(version.checksum),
                place: at,
            })))
        })
    }

    fn extents(&mut self, holder: Holder) -> Result<ControlFlow<()>, Error> {
        let head: u64 = *memory::read(self.heap, holder.head_place())?;
        if head == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let root = memory::read::<ArrayHead>(self.heap, head)?.extents;
        tree::scan(self.heap, Extents, root, Bound::First, &mut |place| {
            let extent: &Extent = memory::read(self.heap, place)?;
            let at = if extent.flags & PUNCHED != 0 {
                Where::Punched
            } else if extent.flags & VIEW != 0 {
                Where::Shared
            } else if extent.flags & STORED != 0 {
                Where::BlockTier(extents::stored_position(self.heap, place)?)
            } else {
                Where::Arena
            };
            Ok((self.visit)(Record::Extent(ExtentInfo {
                written: Written::new(extent.epoch, extent.cookie, extent.map_version, extent.flags),
                range: extent.start..extent.end,
                place: at,
            })))
        })
    }
}
