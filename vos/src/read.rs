//! Reading at an epoch: single values, and arrays.
//!
//! # Cost of a single value
//!
//! With 10^6 dkeys of one akey each (hashed, 64-byte values): inner nodes come from the second-level cache; then the leaf's
//! lines, asked for together (a miss), and the block with dkey, akey, version and value (2.5 lines, asked for together: a
//! miss): two misses that wait for each other. A batch asks for the leaf's first line, then for one slot, then for the block, and
//! takes each of these steps for all of its requests before the next, so that the misses of one step overlap.

use std::{mem::offset_of, ops::Range, rc::Rc};

use daos_types::{Checksum, Epoch, ObjectId, ObjectType};
use daos_umem::Heap;

use crate::{
    ARRAY_BYTES_MAX, BlockRef, Data, Error, Fetched, Piece, PieceData, ValueRef,
    blocks::Pins,
    extents::{self, EndSearch, ExtentSource, Holder, Scratch},
    keys::{self, dkey_punches, punched_at},
    memory,
    records::{
        ArrayHead, Extent, KeyRecord, Keys, Kind, ObjectRecord, PUNCHED, STORED, Version, Versions, key_of,
    },
    tree::{self, Probe},
    versions,
};

/// A container as a reader sees it.
#[derive(Clone, Copy)]
pub(crate) struct View<'h> {
    pub heap: &'h Heap,
    /// Root word of the tree of objects.
    pub objects: u64,
    pub seed: u64,
    pub pins: &'h Rc<Pins>,
}

/// Which single value to fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchRequest<'a> {
    /// The object.
    pub object: ObjectId,
    /// Distribution key, or the key of a KV.
    pub dkey: &'a [u8],
    /// Attribute key; `None` for a KV.
    pub akey: Option<&'a [u8]>,
}

impl<'h> View<'h> {
    fn object(&self, id: ObjectId, wanted: ObjectType) -> Result<Option<u64>, Error> {
        if id.object_type() != wanted {
            return Err(Error::WrongType("the object is of another type than the request"));
        }
        keys::find_object(self.heap, self.objects, id)
    }

    fn class(&self, order: daos_types::KeyOrder) -> Keys {
        Keys { order, seed: self.seed }
    }

    /// The single value that `request` names.
    #[inline]
    pub fn fetch(&self, request: &FetchRequest<'_>, epoch: Epoch) -> Result<Fetched<ValueRef<'h>>, Error> {
        let wanted = if request.akey.is_some() { ObjectType::Document } else { ObjectType::KeyValue };
        let Some(object) = self.object(request.object, wanted)? else { return Ok(Fetched::Miss) };
        let probe = self.class(request.object.dkey_order()).of(request.dkey);
        self.fetch_in(object, None, request, &probe, epoch)
    }

    /// As [`fetch`](Self::fetch), of an object that was found. `candidate` is a record of its tree of keys that probably is the one.
    fn fetch_in(
        &self,
        object: u64,
        candidate: Option<u64>,
        request: &FetchRequest<'_>,
        probe: &Probe<'_>,
        epoch: Epoch,
    ) -> Result<Fetched<ValueRef<'h>>, Error> {
        let record: &ObjectRecord = memory::read(self.heap, object)?;
        let mut hidden = punched_at(self.heap, record.punches, epoch)?;
        let class = self.class(request.object.dkey_order());
        let mut key = match candidate {
            Some(candidate) if key_of(self.heap, candidate)? == request.dkey => Some(candidate),
            _ => tree::get(self.heap, class, record.root, probe)?,
        };
        if let (Some(akey), Some(dkey)) = (request.akey, key) {
            hidden = hidden.max(punched_at(self.heap, dkey_punches(self.heap, dkey)?, epoch)?);
            let class = self.class(request.object.akey_order());
            let akeys: u64 = *memory::read(self.heap, keys::akeys_place(self.heap, dkey)?)?;
            key = find_akey(self.heap, class, akeys, akey)?;
        }
        let version = match key {
            None => None,
            Some(key) => {
                let key: &KeyRecord = memory::read(self.heap, key)?;
                if key.kind() == Kind::Array {
                    return Err(Error::WrongType("the akey holds an array"));
                }
                tree::floor(self.heap, Versions, key.root, epoch.0.into())?
            }
        };
        let Some(place) = version else { return Ok(punched_or_miss(hidden)) };
        let version: &Version = memory::read(self.heap, place)?;
        if version.epoch < hidden {
            return Ok(Fetched::Punched(Epoch(hidden)));
        }
        if version.flags & PUNCHED != 0 {
            return Ok(Fetched::Punched(Epoch(version.epoch)));
        }
        self.value(place, version).map(Fetched::Value)
    }

    fn value(&self, place: u64, version: &Version) -> Result<ValueRef<'h>, Error> {
        let checksum = Checksum(version.checksum);
        let data = if version.flags & STORED != 0 {
            let position = versions::stored_position(self.heap, place)?;
            let chunks = vec![(version.length, checksum)];
            let place = (position, 0, u64::from(version.length));
            Data::Stored(BlockRef::new((self.pins, self.heap.sealed()), place, chunks))
        } else {
            let bytes = versions::inline_bytes(self.heap, place)?;
            if crc32c::crc32c(bytes) != version.checksum {
                return Err(Error::BadChecksum { place: "value", position: place });
            }
            Data::Inline(bytes)
        };
        Ok(ValueRef { epoch: Epoch(version.epoch), length: u64::from(version.length), checksum, data })
    }

    /// The single values that `requests` name, in any order; cache misses of different requests overlap.
    pub fn fetch_batch(
        &self,
        requests: &[FetchRequest<'_>],
        epoch: Epoch,
        visit: &mut dyn FnMut(usize, Result<Fetched<ValueRef<'h>>, Error>),
    ) {
        const WIDTH: usize = 16;
        let heap = self.heap;
        let mut objects = [None; WIDTH];
        let mut probes = [Probe::number(0); WIDTH];
        let mut leaves = [0; WIDTH];
        let mut slots = [None; WIDTH];
        let mut records = [None; WIDTH];
        for (batch, requests) in requests.chunks(WIDTH).enumerate() {
            // Errors are left to the last step, which meets them again and says whose they are.
            for (index, request) in requests.iter().enumerate() {
                objects[index] = keys::find_object(heap, self.objects, request.object).ok().flatten();
                probes[index] = self.class(request.object.dkey_order()).of(request.dkey);
                leaves[index] = objects[index]
                    .and_then(|object| memory::read::<ObjectRecord>(heap, object).ok())
                    .and_then(|object| tree::prefetch_leaf::<Keys>(heap, object.root, &probes[index]).ok())
                    .unwrap_or(0);
            }
            for index in 0..requests.len() {
                slots[index] = match leaves[index] {
                    0 => None,
                    leaf => tree::prefetch_slot(heap, leaf, &probes[index]).ok().flatten(),
                };
            }
            for index in 0..requests.len() {
                records[index] =
                    slots[index].and_then(|slot| tree::prefetch_record(heap, leaves[index], slot, 3).ok());
            }
            for (index, request) in requests.iter().enumerate() {
                let wanted = if request.akey.is_some() { ObjectType::Document } else { ObjectType::KeyValue };
                let answer = match objects[index] {
                    Some(object) if request.object.object_type() == wanted => {
                        self.fetch_in(object, records[index], request, &probes[index], epoch)
                    }
                    _ => self.fetch(request, epoch),
                };
                visit(batch * WIDTH + index, answer);
            }
        }
    }

    /// Visits what is visible in `range` of an array object, or of an akey's array.
    pub fn fetch_array(
        &self,
        id: ObjectId,
        keys: Option<(&[u8], &[u8])>,
        range: Range<u64>,
        epoch: Epoch,
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(Piece<'h>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if range.end > ARRAY_BYTES_MAX || range.start > range.end {
            return Err(Error::Invalid("the range reaches beyond 2^63"));
        }
        let (head, hidden) = self.array(id, keys, epoch)?;
        extents::resolve(self.heap, head, range, (hidden, epoch.0), scratch)?;
        for segment in &scratch.segments {
            let range = segment.start..segment.end;
            let content = if segment.extent == 0 {
                punched_or_miss(hidden)
            } else {
                let at = Epoch(memory::read::<Extent>(self.heap, segment.extent)?.epoch);
                match extents::locate(self.heap, segment.extent, range.clone())? {
                    ExtentSource::Punched => Fetched::Punched(at),
                    source => Fetched::Value(PieceData { epoch: at, data: self.data_of(source, &range) }),
                }
            };
            visit(Piece { range, content })?;
        }
        Ok(())
    }

    fn data_of(&self, source: ExtentSource<'h>, range: &Range<u64>) -> Data<'h> {
        match source {
            ExtentSource::Inline(bytes) => Data::Inline(bytes),
            ExtentSource::Punched => Data::Inline(&[]),
            ExtentSource::Stored { position, skip, covering, checksums: (chunk_bytes, checksums) } => {
                let chunk = u64::from(chunk_bytes);
                let mut start = covering.0;
                let chunks = checksums
                    .iter()
                    .map(|&checksum| {
                        let end = ((start / chunk + 1) * chunk).min(covering.1);
                        let length = (end - start) as u32;
                        start = end;
                        (length, Checksum(checksum))
                    })
                    .collect();
                let place = (position, skip, range.end - range.start);
                Data::Stored(BlockRef::new((self.pins, self.heap.sealed()), place, chunks))
            }
        }
    }

    /// The end of the last byte of data of an array; 0 if there is none. `None`: go on with the same search.
    pub fn array_end(
        &self,
        id: ObjectId,
        keys: Option<(&[u8], &[u8])>,
        epoch: Epoch,
        search: &mut EndSearch,
        scratch: &mut Scratch,
    ) -> Result<Option<u64>, Error> {
        let (head, hidden) = self.array(id, keys, epoch)?;
        let Some(head) = head else { return Ok(Some(0)) };
        extents::highest_end(self.heap, head, (hidden, epoch.0), search, scratch, &mut 0)
    }

    /// The head of an array, if there is one, and the epoch of the newest punch above it (0: none).
    pub fn array(
        &self,
        id: ObjectId,
        keys: Option<(&[u8], &[u8])>,
        epoch: Epoch,
    ) -> Result<(Option<&'h ArrayHead>, u64), Error> {
        let wanted = if keys.is_some() { ObjectType::Document } else { ObjectType::Array };
        let Some(object) = self.object(id, wanted)? else { return Ok((None, 0)) };
        let record: &ObjectRecord = memory::read(self.heap, object)?;
        let mut hidden = punched_at(self.heap, record.punches, epoch)?;
        let Some((dkey, akey)) = keys else {
            return Ok((self.head(Holder::Object(object))?, hidden));
        };
        let class = self.class(id.dkey_order());
        let Some(dkey) = tree::get(self.heap, class, record.root, &class.of(dkey))? else {
            return Ok((None, hidden));
        };
        hidden = hidden.max(punched_at(self.heap, dkey_punches(self.heap, dkey)?, epoch)?);
        let akeys: u64 = *memory::read(self.heap, keys::akeys_place(self.heap, dkey)?)?;
        let Some(key) = find_akey(self.heap, self.class(id.akey_order()), akeys, akey)? else {
            return Ok((None, hidden));
        };
        if memory::read::<KeyRecord>(self.heap, key)?.kind() != Kind::Array {
            return Err(Error::WrongType("the akey holds single values"));
        }
        Ok((self.head(Holder::Akey(key))?, hidden))
    }

    fn head(&self, holder: Holder) -> Result<Option<&'h ArrayHead>, Error> {
        let place: u64 = *memory::read(self.heap, holder.head_place())?;
        if place == 0 { Ok(None) } else { memory::read(self.heap, place).map(Some) }
    }

    /// The upper layer's metadata of an object; empty if it has none.
    pub fn metadata(&self, id: ObjectId) -> Result<&'h [u8], Error> {
        let object = keys::find_object(self.heap, self.objects, id)?.ok_or(Error::NotFound("object"))?;
        let record: &ObjectRecord = memory::read(self.heap, object)?;
        if record.metadata == 0 {
            return Ok(&[]);
        }
        memory::read_slice(self.heap, record.metadata, record.metadata_bytes)
    }
}

/// Finds an akey; where a dkey has only one, its hash is not needed.
#[inline]
fn find_akey(heap: &Heap, class: Keys, root: u64, akey: &[u8]) -> Result<Option<u64>, Error> {
    if let tree::Root::Record(record) = tree::Root::decode(root)? {
        return Ok((key_of(heap, record)? == akey).then_some(record));
    }
    tree::get(heap, class, root, &class.of(akey))
}

fn punched_or_miss<T>(hidden: u64) -> Fetched<T> {
    if hidden == 0 { Fetched::Miss } else { Fetched::Punched(Epoch(hidden)) }
}

/// Place of the root word of the tree of objects in a container record.
pub(crate) fn objects_place(container: u64) -> u64 {
    container + offset_of!(crate::records::ContainerRecord, objects) as u64
}
