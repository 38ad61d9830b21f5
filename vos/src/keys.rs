//! Objects and keys: found, made by the first record below them, removed with the last.

use std::mem::offset_of;

use daos_types::{Epoch, KeyOrder, ObjectId};
use daos_umem::Heap;
use zerocopy::IntoBytes;

use crate::{
    Error,
    editor::Editor,
    memory,
    records::{
        ContainerRecord, DkeyExtension, KEY_RECORD_BYTES, KeyRecord, Keys, Kind, NEST_BYTES_MAX,
        ObjectRecord, Objects, PunchRecord, Punches, object_id, object_tail,
    },
    tree::{self, Path, Probe},
};

/// The object with this ID in the tree of objects whose root word is `root`.
#[inline]
pub(crate) fn find_object(heap: &Heap, root: u64, id: ObjectId) -> Result<Option<u64>, Error> {
    tree::get(heap, Objects, root, &Objects::of(id, &object_tail(id)))
}

/// The object with this ID, about to be changed at `epoch`; made if it is not there.
pub(crate) fn object_for_change(
    editor: &mut Editor<'_, '_>,
    id: ObjectId,
    epoch: Epoch,
) -> Result<u64, Error> {
    let objects = editor.container_field(offset_of!(ContainerRecord, objects));
    let tail = object_tail(id);
    let (root, probe) = (*editor.read(objects)?, Objects::of(id, &tail));
    let mut path = Path::new();
    path.lead_to::<Objects>(editor.heap(), root, &probe)?;
    if let Some(object) = tree::get_at(editor.heap(), Objects, root, &path, &probe)? {
        if editor.read::<ObjectRecord>(object)?.newest < epoch.0 {
            editor.write(object + offset_of!(ObjectRecord, newest) as u64, &epoch.0)?;
        }
        return Ok(object);
    }
    let record =
        ObjectRecord { id: tail, root: 0, punches: 0, newest: epoch.0, metadata: 0, metadata_bytes: 0 };
    let object = memory::allocate_with(editor.tx, &[record.as_bytes()])?;
    tree::insert_at(editor.tx, Objects, objects, &path, &probe, object)?;
    editor.count_object(1);
    Ok(object)
}

/// Removes an object if nothing is below it.
pub(crate) fn prune_object(editor: &mut Editor<'_, '_>, object: u64) -> Result<(), Error> {
    let record: ObjectRecord = *editor.read(object)?;
    if record.root != 0 || record.punches != 0 {
        return Ok(());
    }
    let id = object_id(&record, object)?;
    let objects = editor.container_field(offset_of!(ContainerRecord, objects));
    tree::remove(editor.tx, Objects, objects, &Objects::of(id, &object_tail(id)))?;
    if record.metadata != 0 {
        memory::free(editor.tx, record.metadata)?;
    }
    editor.count_object(-1);
    memory::free(editor.tx, object)
}

/// Checks a key that a caller gave against the order of the tree it is for.
pub(crate) fn check_key(key: &[u8], order: KeyOrder) -> Result<(), Error> {
    if key.len() > daos_types::KEY_BYTES_MAX {
        return Err(Error::Invalid("a key is longer than 64 KiB"));
    }
    if order == KeyOrder::Integer && key.len() != 8 {
        return Err(Error::Invalid("an integer key is 8 bytes, little-endian"));
    }
    Ok(())
}

/// Makes a key below `parent` and puts it into the tree at `root_place`, at the end of `path`. `owner` is the key in whose nest it may lie, and
/// `nest` the room for what will be below it.
pub(crate) fn create_key(
    editor: &mut Editor<'_, '_>,
    class: Keys,
    (parent, owner, root_place): (u64, Option<u64>, u64),
    (probe, path): (&Probe<'_>, &Path),
    kind: Kind,
    nest: u64,
) -> Result<u64, Error> {
    let key = probe.tail;
    let nest = if nest <= NEST_BYTES_MAX { nest.next_multiple_of(8) } else { 0 };
    let header = KeyRecord {
        parent,
        root: 0,
        checksum: crc32c::crc32c(key),
        shape: KeyRecord::shape(key.len(), nest, false, kind),
    };
    let padded = KEY_RECORD_BYTES as usize + key.len().next_multiple_of(8);
    let place = editor.place_below(owner, padded as u64 + nest)?;
    let mut scratch = std::mem::take(&mut editor.cache.scratch);
    scratch.clear();
    scratch.extend_from_slice(header.as_bytes());
    scratch.extend_from_slice(key);
    scratch.resize(padded, 0);
    let written = memory::write_slice(editor.tx, place, &scratch);
    editor.cache.scratch = scratch;
    written?;
    tree::insert_at(editor.tx, class, root_place, path, probe, place)?;
    Ok(place)
}

/// The place of the root word of a dkey's akeys.
#[inline]
pub(crate) fn akeys_place(heap: &Heap, dkey: u64) -> Result<u64, Error> {
    let record: &KeyRecord = memory::read(heap, dkey)?;
    Ok(if record.extended() {
        record.root + offset_of!(DkeyExtension, akeys) as u64
    } else {
        dkey + offset_of!(KeyRecord, root) as u64
    })
}

/// The root word of a dkey's punches.
#[inline]
pub(crate) fn dkey_punches(heap: &Heap, dkey: u64) -> Result<u64, Error> {
    let record: &KeyRecord = memory::read(heap, dkey)?;
    if !record.extended() {
        return Ok(0);
    }
    Ok(memory::read::<DkeyExtension>(heap, record.root)?.punches)
}

/// The place of the root word of a dkey's punches, made if need be.
pub(crate) fn dkey_punches_place(editor: &mut Editor<'_, '_>, dkey: u64) -> Result<u64, Error> {
    let mut record: KeyRecord = *editor.read(dkey)?;
    if !record.extended() {
        let extension = DkeyExtension { akeys: record.root, punches: 0 };
        record.root = memory::allocate_with(editor.tx, &[extension.as_bytes()])?;
        record.set_extended();
        editor.write(dkey, &record)?;
    }
    Ok(record.root + offset_of!(DkeyExtension, punches) as u64)
}

/// The object that a key is in.
pub(crate) fn object_of_key(heap: &Heap, key: u64) -> Result<u64, Error> {
    let record: &KeyRecord = memory::read(heap, key)?;
    Ok(match record.kind() {
        Kind::Key | Kind::Dkey => record.parent,
        Kind::Single | Kind::Array => memory::read::<KeyRecord>(heap, record.parent)?.parent,
    })
}

/// Removes a key if nothing is below it, and what is above likewise.
pub(crate) fn prune_key(editor: &mut Editor<'_, '_>, key: u64) -> Result<(), Error> {
    let mut record: KeyRecord = *editor.read(key)?;
    if record.extended() {
        let extension: DkeyExtension = *editor.read(record.root)?;
        if extension.punches != 0 {
            return Ok(());
        }
        memory::free(editor.tx, record.root)?;
        record.root = extension.akeys;
        record.shape &= !(1 << 30);
        editor.write(key, &record)?;
    }
    if record.root != 0 {
        return Ok(());
    }
    let object = object_of_key(editor.heap(), key)?;
    let id = object_id(editor.read(object)?, object)?;
    let (order, root_place, owner) = match record.kind() {
        Kind::Key | Kind::Dkey => (id.dkey_order(), object + offset_of!(ObjectRecord, root) as u64, None),
        Kind::Single | Kind::Array => {
            (id.akey_order(), akeys_place(editor.heap(), record.parent)?, Some(record.parent))
        }
    };
    let class = Keys { order, seed: editor.seed };
    // The probe borrows the key from the heap, which is about to change.
    let bytes = crate::records::key_of(editor.heap(), key)?.to_vec();
    tree::remove(editor.tx, class, root_place, &class.of(&bytes))?;
    editor.release_below(owner, key)?;
    match owner {
        Some(dkey) => prune_key(editor, dkey),
        None => prune_object(editor, object),
    }
}

/// The newest punch at or before `epoch` in a tree of punches; 0 if there is none.
#[inline]
pub(crate) fn punched_at(heap: &Heap, punches: u64, epoch: Epoch) -> Result<u64, Error> {
    if punches == 0 {
        return Ok(0);
    }
    match tree::floor(heap, Punches, punches, epoch.0.into())? {
        Some(punch) => Ok(memory::read::<PunchRecord>(heap, punch)?.epoch),
        None => Ok(0),
    }
}
