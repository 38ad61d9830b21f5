//! What handles of all object types have in common: layout, and listing across shards.

use std::cell::{Ref, RefCell};

use daos_types::{Epoch, ObjectId, ObjectType};

use super::{DsrError, Enumeration, Listing, Punch, TargetObjects, TargetRef, all};
use crate::{
    class::Schema,
    placement::{Layout, Placement},
    striping::Striping,
};

/// Where a listing over all shards goes on. Opaque; it can be stored, and stays good for as long as the object's layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchor(Vec<u8>);

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What was listed.
    pub items: Vec<T>,
    /// Where to go on; `None` at the end.
    pub next: Option<Anchor>,
}

impl Anchor {
    /// The anchor with these bytes, which [`Anchor::to_bytes`] gave. Wrong bytes are refused by the listing.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Its bytes. An empty anchor is the start.
    pub fn to_bytes(&self) -> &[u8] {
        &self.0
    }

    fn new(shard: u32, rest: &[u8]) -> Self {
        Self([&shard.to_le_bytes()[..], rest].concat())
    }

    fn split(&self, shards: u32) -> Result<(u32, &[u8]), DsrError> {
        match self.0.split_first_chunk() {
            Some((shard, rest)) => {
                let shard = u32::from_le_bytes(*shard);
                if shard < shards { Ok((shard, rest)) } else { Err(DsrError::BadAnchor) }
            }
            None if self.0.is_empty() => Ok((0, &[])),
            None => Err(DsrError::BadAnchor),
        }
    }
}

/// An object of any type.
#[derive(Debug)]
pub(crate) struct Object<T> {
    targets: T,
    id: ObjectId,
    schema: Schema,
    layout: RefCell<Layout>,
}

impl<T: TargetObjects> Object<T> {
    /// A handle. No request is made: an object exists as soon as something is written to it.
    pub(crate) fn open(targets: &T, id: ObjectId, wanted: ObjectType) -> Result<Self, DsrError> {
        let found = id.object_type();
        if found != wanted {
            return Err(DsrError::WrongType { object: id, found, wanted });
        }
        let schema = Schema::served(id.class())?;
        let object = Self { targets: targets.clone(), id, schema, layout: RefCell::new(Layout::new()) };
        object.current_layout()?;
        Ok(object)
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn targets(&self) -> &T {
        &self.targets
    }

    fn current_layout(&self) -> Result<Ref<'_, Layout>, DsrError> {
        let placement = self.targets.placement();
        if self.layout.borrow().map_version() != placement.map_version() {
            placement.compute(self.id, &self.schema, &mut self.layout.borrow_mut())?;
        }
        Ok(self.layout.borrow())
    }

    /// How the object is striped at the moment.
    pub(crate) fn striping(&self) -> Result<Striping, DsrError> {
        let groups = self.current_layout()?.group_count();
        Ok(Striping::new(self.id, groups, self.schema.cell_bytes))
    }

    /// The shard that serves `group`.
    pub(crate) fn shard(&self, group: u32) -> Result<TargetRef, DsrError> {
        let layout = self.current_layout()?;
        let shard = layout.group(group)[0];
        if !shard.available {
            return Err(lost(&self.targets.placement(), self.id, shard.ordinal));
        }
        Ok(TargetRef { ordinal: shard.ordinal, map_version: layout.map_version(), object: self.id })
    }

    /// The shard that holds a distribution key.
    pub(crate) fn shard_of_key(&self, key: &[u8]) -> Result<TargetRef, DsrError> {
        let group = self.striping()?.group_of_key(key);
        self.shard(group)
    }

    /// Every shard.
    pub(crate) fn shards(&self) -> Result<Vec<TargetRef>, DsrError> {
        (0..self.striping()?.groups()).map(|group| self.shard(group)).collect()
    }

    /// Does something, and again with a new layout for as long as the pool map changes under it.
    pub(crate) async fn repeat<R>(&self, work: impl AsyncFn() -> Result<R, DsrError>) -> Result<R, DsrError> {
        let mut repeated = false;
        loop {
            match work().await {
                Err(DsrError::StaleMap { .. }) => repeated = true,
                // What the targets of the old map did is not known.
                Err(DsrError::Target { status, message, in_doubt }) => {
                    return Err(DsrError::Target { status, message, in_doubt: in_doubt || repeated });
                }
                done => return done,
            }
        }
    }

    /// Removes the whole object.
    pub(crate) async fn punch(&self, epoch: Epoch) -> Result<(), DsrError> {
        self.repeat(async || {
            let shards = self.shards()?;
            let punches =
                shards.into_iter().map(|shard| self.targets.punch(shard, epoch, Punch::Object)).collect();
            all(punches).await.into_iter().collect()
        })
        .await
    }

    /// Lists keys, shard after shard; one page comes from one shard.
    pub(crate) async fn list(
        &self,
        epoch: Epoch,
        listing: Listing<'_>,
        anchor: &Anchor,
        keys_max: u32,
    ) -> Result<Page<Vec<u8>>, DsrError> {
        let groups = self.striping()?.groups();
        let (mut group, mut rest) = anchor.split(groups)?;
        loop {
            let shard = self.shard(group)?;
            let enumeration = Enumeration { listing, anchor: rest, keys_max };
            let page = self.targets.enumerate(shard, epoch, enumeration).await?;
            let next = match &page.next {
                Some(next) => Some(Anchor::new(group, next)),
                None if group + 1 < groups => Some(Anchor::new(group + 1, &[])),
                None => None,
            };
            // An empty page of a shard that is through says nothing to the caller: go on with the next shard.
            if !page.keys.is_empty() || page.next.is_some() || next.is_none() {
                return Ok(Page { items: page.keys, next });
            }
            group += 1;
            rest = &[];
        }
    }
}

fn lost(placement: &Placement, object: ObjectId, ordinal: u32) -> DsrError {
    let target = placement.targets()[ordinal as usize];
    DsrError::ShardLost { object, rank: target.rank, target: target.target }
}

/// Lists the objects of the container, target after target. An object with several shards is listed once: by the first
/// target of its layout that holds something of it.
pub async fn enumerate_objects<T: TargetObjects>(
    targets: &T,
    epoch: Epoch,
    anchor: &Anchor,
    objects_max: u32,
) -> Result<Page<ObjectId>, DsrError> {
    let placement = targets.placement();
    let count = placement.targets().len() as u32;
    let (ordinal, rest) = anchor.split(count)?;
    let (found, next) = targets.enumerate_objects(ordinal, epoch, rest, objects_max).await?;
    let mut items = Vec::with_capacity(found.len());
    for object in found {
        if is_first_holder(targets, &placement, epoch, ordinal, object).await? {
            items.push(object);
        }
    }
    let next = match next {
        Some(next) => Some(Anchor::new(ordinal, &next)),
        None => (ordinal + 1..count)
            .find(|ordinal| {
                placement.targets()[*ordinal as usize].standing == crate::placement::Standing::Serving
            })
            .map(|ordinal| Anchor::new(ordinal, &[])),
    };
    Ok(Page { items, next })
}

async fn is_first_holder<T: TargetObjects>(
    targets: &T,
    placement: &Placement,
    epoch: Epoch,
    ordinal: u32,
    object: ObjectId,
) -> Result<bool, DsrError> {
    let mut layout = Layout::new();
    placement.compute(object, &Schema::of(object.class())?, &mut layout)?;
    for shard in layout.shards() {
        if shard.ordinal == ordinal {
            return Ok(true);
        }
        let at = TargetRef { ordinal: shard.ordinal, map_version: layout.map_version(), object };
        if shard.available && targets.query(at, epoch).await?.exists {
            return Ok(false);
        }
    }
    // Not a place where the object belongs by this map: whoever holds it there is being rebuilt or left over.
    Ok(false)
}
