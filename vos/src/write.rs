//! Updates and punches of one object.
//!
//! # Order within an epoch
//!
//! A punch of an object or a dkey hides what lies below it in *older* epochs. Within its own epoch the order of arrival
//! counts, as for other records: a punch removes what its cookie wrote below it in that epoch before, and what is written
//! afterwards is visible. Where nobody orders the writes ([`Conflict::Refuse`]) either is refused.

use std::mem::offset_of;

use daos_types::{Epoch, ObjectId, ObjectType, Writer};
use zerocopy::IntoBytes;

use crate::{
    ARRAY_BYTES_MAX, AkeyData, AkeyUpdate, Conflict, Error, ExtentData, ExtentUpdate, INLINE_BYTES_MAX,
    KeyUpdate, Punch, Update, Value,
    editor::Editor,
    extents::{self, Holder, NewExtent, Source},
    groups::{self, Entry},
    keys::{self, check_key, prune_key, prune_object},
    memory,
    records::{
        AGED, ContainerRecord, Group, KeyRecord, Keys, Kind, ObjectRecord, PunchRecord, Punches, writer_flags,
    },
    tree::{self, Path, Probe},
    versions::{self, Content},
};

/// Stamp of a change, and what it does where one of the same epoch is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub epoch: Epoch,
    pub writer: Writer,
    pub conflict: Conflict,
}

impl Terms {
    pub fn check(&self) -> Result<(), Error> {
        if self.epoch == Epoch::ZERO || self.epoch == Epoch::MAX {
            return Err(Error::Invalid("this epoch cannot be written"));
        }
        Ok(())
    }
}

/// Applies an update.
pub(crate) fn update(
    editor: &mut Editor<'_, '_>,
    id: ObjectId,
    terms: Terms,
    update: &Update<'_>,
) -> Result<(), Error> {
    terms.check()?;
    match (id.object_type(), update) {
        (ObjectType::KeyValue, Update::KeyValue(records)) if !records.is_empty() => {
            let object = object_at(editor, id, terms)?;
            records.iter().try_for_each(|record| update_key(editor, id, object, terms, record))
        }
        (ObjectType::Document, Update::Document { dkey, akeys }) if !akeys.is_empty() => {
            let object = object_at(editor, id, terms)?;
            let dkey = dkey_at(editor, id, object, terms, dkey, akeys)?;
            akeys.iter().try_for_each(|akey| update_akey(editor, id, dkey, terms, akey))
        }
        (ObjectType::Array, Update::Array(extents)) if !extents.is_empty() => {
            let object = object_at(editor, id, terms)?;
            extents.iter().try_for_each(|extent| write_extent(editor, Holder::Object(object), terms, extent))
        }
        (ObjectType::KeyValue, Update::KeyValue(_))
        | (ObjectType::Document, Update::Document { .. })
        | (ObjectType::Array, Update::Array(_)) => Err(Error::Invalid("the update is empty")),
        _ => Err(Error::WrongType("the object is of another type than the update")),
    }
}

/// The object, made if need be; checks its punches of the same epoch.
fn object_at(editor: &mut Editor<'_, '_>, id: ObjectId, terms: Terms) -> Result<u64, Error> {
    let object = keys::object_for_change(editor, id, terms.epoch)?;
    let punches = editor.read::<ObjectRecord>(object)?.punches;
    check_punches(editor, punches, terms)?;
    Ok(object)
}

/// Refuses a write where a punch above it has its epoch and must not have come first.
fn check_punches(editor: &Editor<'_, '_>, punches: u64, terms: Terms) -> Result<(), Error> {
    if punches == 0 {
        return Ok(());
    }
    let probe = Probe::number(terms.epoch.0.into());
    let Some(punch) = tree::get(editor.heap(), Punches, punches, &probe)? else { return Ok(()) };
    let stamp = editor.read::<PunchRecord>(punch)?.stamp();
    if stamp.cookie != terms.writer.cookie || terms.conflict == Conflict::Refuse {
        return Err(Error::EpochConflict { epoch: terms.epoch, holder: stamp.cookie });
    }
    Ok(())
}

fn update_key(
    editor: &mut Editor<'_, '_>,
    id: ObjectId,
    object: u64,
    terms: Terms,
    update: &KeyUpdate<'_>,
) -> Result<(), Error> {
    check_key(update.key, id.dkey_order())?;
    let class = Keys { order: id.dkey_order(), seed: editor.seed };
    let probe = class.of(update.key);
    let root_place = object + offset_of!(ObjectRecord, root) as u64;
    let content = content_of(update.value.as_ref())?;
    let root: u64 = *editor.read(root_place)?;
    let mut path = Path::new();
    path.lead_to::<Keys>(editor.heap(), root, &probe)?;
    let key = match tree::get_at(editor.heap(), class, root, &path, &probe)? {
        Some(key) => key,
        None => {
            let places = (object, None, root_place);
            keys::create_key(editor, class, places, (&probe, &path), Kind::Key, content.nest_bytes())?
        }
    };
    put_version(editor, key, terms, &content, update.value.as_ref())
}

fn put_version(
    editor: &mut Editor<'_, '_>,
    key: u64,
    terms: Terms,
    content: &Content<'_>,
    value: Option<&Value<'_>>,
) -> Result<(), Error> {
    let Terms { epoch, writer, conflict } = terms;
    let used = versions::put(editor, key, epoch, writer, conflict, content)?;
    if let (true, Some(Value::Stored(stored))) = (used, value) {
        editor.publish(stored)?;
    }
    Ok(())
}

/// What a value that a caller gave is as a version. Its checksum is compared when it is put there.
fn content_of<'a>(value: Option<&Value<'a>>) -> Result<Content<'a>, Error> {
    Ok(match value {
        None => Content::Punched,
        Some(Value::Inline(bytes, checksum)) => {
            if bytes.len() > INLINE_BYTES_MAX {
                return Err(Error::Invalid("an inline value is longer than 1 MiB"));
            }
            Content::Inline(bytes, *checksum)
        }
        Some(Value::Stored(stored)) => {
            let length = u32::try_from(stored.length)
                .map_err(|_| Error::Invalid("a single value is longer than 4 GiB"))?;
            let [checksum] = stored.checksums[..] else {
                return Err(Error::Invalid("a single value on the block tier has one checksum"));
            };
            Content::Stored(stored.position, length, checksum)
        }
    })
}

/// The dkey, made if need be, with room for the first of `akeys`; checks its punches of the same epoch.
fn dkey_at(
    editor: &mut Editor<'_, '_>,
    id: ObjectId,
    object: u64,
    terms: Terms,
    dkey: &[u8],
    akeys: &[AkeyUpdate<'_>],
) -> Result<u64, Error> {
    check_key(dkey, id.dkey_order())?;
    let class = Keys { order: id.dkey_order(), seed: editor.seed };
    let probe = class.of(dkey);
    let root_place = object + offset_of!(ObjectRecord, root) as u64;
    let root: u64 = *editor.read(root_place)?;
    let mut path = Path::new();
    path.lead_to::<Keys>(editor.heap(), root, &probe)?;
    if let Some(dkey) = tree::get_at(editor.heap(), class, root, &path, &probe)? {
        let punches = keys::dkey_punches(editor.heap(), dkey)?;
        check_punches(editor, punches, terms)?;
        return Ok(dkey);
    }
    let nest = match akeys.first() {
        None => 0,
        Some(akey) => {
            let below = match &akey.data {
                AkeyData::Single(value) => content_of(value.as_ref())?.nest_bytes().next_multiple_of(8),
                AkeyData::Extents(_) => 0,
            };
            crate::records::KEY_RECORD_BYTES + (akey.akey.len() as u64).next_multiple_of(8) + below
        }
    };
    let places = (object, None, root_place);
    keys::create_key(editor, class, places, (&probe, &path), Kind::Dkey, nest)
}

fn update_akey(
    editor: &mut Editor<'_, '_>,
    id: ObjectId,
    dkey: u64,
    terms: Terms,
    update: &AkeyUpdate<'_>,
) -> Result<(), Error> {
    match &update.data {
        AkeyData::Single(value) => {
            let content = content_of(value.as_ref())?;
            // A punch of an akey that holds an array punches all of it.
            let kind = if value.is_none() { None } else { Some(Kind::Single) };
            let key = akey_at(editor, id, dkey, update.akey, kind, content.nest_bytes())?;
            if editor.read::<KeyRecord>(key)?.kind() == Kind::Array {
                return punch_extent(editor, Holder::Akey(key), terms, 0..ARRAY_BYTES_MAX);
            }
            put_version(editor, key, terms, &content, value.as_ref())
        }
        AkeyData::Extents([]) => Err(Error::Invalid("the update is empty")),
        AkeyData::Extents(extents) => {
            let key = akey_at(editor, id, dkey, update.akey, Some(Kind::Array), 0)?;
            extents.iter().try_for_each(|extent| write_extent(editor, Holder::Akey(key), terms, extent))
        }
    }
}

/// The akey, made if need be. `kind` says what it must hold; `None` leaves that open, and makes one of single values.
fn akey_at(
    editor: &mut Editor<'_, '_>,
    id: ObjectId,
    dkey: u64,
    akey: &[u8],
    kind: Option<Kind>,
    nest: u64,
) -> Result<u64, Error> {
    check_key(akey, id.akey_order())?;
    let class = Keys { order: id.akey_order(), seed: editor.seed };
    let probe = class.of(akey);
    let root_place = keys::akeys_place(editor.heap(), dkey)?;
    let root: u64 = *editor.read(root_place)?;
    let mut path = Path::new();
    path.lead_to::<Keys>(editor.heap(), root, &probe)?;
    if let Some(key) = tree::get_at(editor.heap(), class, root, &path, &probe)? {
        let found = editor.read::<KeyRecord>(key)?.kind();
        if kind.is_some_and(|kind| kind != found) {
            return Err(Error::WrongType("the akey holds another kind of data"));
        }
        return Ok(key);
    }
    let (places, kind) = ((dkey, Some(dkey), root_place), kind.unwrap_or(Kind::Single));
    keys::create_key(editor, class, places, (&probe, &path), kind, nest)
}

fn write_extent(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    terms: Terms,
    update: &ExtentUpdate<'_>,
) -> Result<(), Error> {
    let stored_chunks;
    let (length, source, stored) = match update.data {
        ExtentData::Inline(bytes, checksums) => {
            if bytes.len() > INLINE_BYTES_MAX {
                return Err(Error::Invalid("an inline extent is longer than 1 MiB"));
            }
            (bytes.len() as u64, Source::Inline(bytes, checksums), None)
        }
        ExtentData::Stored(stored) => {
            stored_chunks = stored.checksums();
            (stored.length, Source::Stored(stored.position, stored_chunks), Some(stored))
        }
    };
    let range = extent_range(update.offset, length)?;
    if stored.is_some_and(|stored| !stored_for(stored, update.offset)) {
        return Err(Error::Invalid("the bytes were stored for another offset"));
    }
    let new = NewExtent { range, epoch: terms.epoch, writer: terms.writer, source };
    let used = extents::insert(editor, holder, &new, terms.conflict)?;
    if let (true, Some(stored)) = (used, stored) {
        editor.publish(stored)?;
    }
    Ok(())
}

/// Whether bytes were stored with the chunks of an extent at `offset`.
fn stored_for(stored: &crate::StoredExtent, offset: u64) -> bool {
    let chunk = u64::from(stored.chunk_bytes);
    chunk != 0 && offset % chunk == stored.chunk_offset
}

fn extent_range(offset: u64, length: u64) -> Result<std::ops::Range<u64>, Error> {
    let end = offset.checked_add(length).filter(|&end| end <= ARRAY_BYTES_MAX);
    match end {
        Some(end) if end > offset => Ok(offset..end),
        _ => Err(Error::Invalid("an extent is empty or reaches beyond 2^63")),
    }
}

fn punch_extent(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    terms: Terms,
    range: std::ops::Range<u64>,
) -> Result<(), Error> {
    let new = NewExtent { range, epoch: terms.epoch, writer: terms.writer, source: Source::Punched };
    extents::insert(editor, holder, &new, terms.conflict).map(|_| ())
}

/// Applies a punch.
pub(crate) fn punch(
    editor: &mut Editor<'_, '_>,
    id: ObjectId,
    terms: Terms,
    punch: &Punch<'_>,
) -> Result<(), Error> {
    terms.check()?;
    match (id.object_type(), punch) {
        (_, Punch::Object) => {
            let object = keys::object_for_change(editor, id, terms.epoch)?;
            let place = object + offset_of!(ObjectRecord, punches) as u64;
            put_punch(editor, Entry::Object(object), place, terms)?;
            remove_below(editor, object, None, terms)
        }
        (ObjectType::Document, Punch::Dkey(dkey)) => {
            let object = object_at(editor, id, terms)?;
            let dkey = dkey_for_punch(editor, id, object, dkey)?;
            let place = keys::dkey_punches_place(editor, dkey)?;
            put_punch(editor, Entry::Dkey(dkey), place, terms)?;
            remove_below(editor, object, Some(dkey), terms)
        }
        (ObjectType::KeyValue, Punch::Key(key)) => {
            let object = object_at(editor, id, terms)?;
            update_key(editor, id, object, terms, &KeyUpdate { key, value: None })
        }
        (ObjectType::Document, Punch::Akey { dkey, akey }) => {
            let object = object_at(editor, id, terms)?;
            let akeys = [AkeyUpdate { akey, data: AkeyData::Single(None) }];
            let dkey = dkey_at(editor, id, object, terms, dkey, &akeys)?;
            update_akey(editor, id, dkey, terms, &akeys[0])
        }
        (ObjectType::Document, Punch::AkeyExtent { dkey, akey, range }) => {
            let range = extent_range(range.start, range.end.saturating_sub(range.start))?;
            let object = object_at(editor, id, terms)?;
            let dkey = dkey_at(editor, id, object, terms, dkey, &[])?;
            let key = akey_at(editor, id, dkey, akey, Some(Kind::Array), 0)?;
            punch_extent(editor, Holder::Akey(key), terms, range)
        }
        (ObjectType::Array, Punch::Extent(range)) => {
            let range = extent_range(range.start, range.end.saturating_sub(range.start))?;
            let object = object_at(editor, id, terms)?;
            punch_extent(editor, Holder::Object(object), terms, range)
        }
        _ => Err(Error::WrongType("an object of this type has no such part to punch")),
    }
}

fn dkey_for_punch(editor: &mut Editor<'_, '_>, id: ObjectId, object: u64, dkey: &[u8]) -> Result<u64, Error> {
    check_key(dkey, id.dkey_order())?;
    let class = Keys { order: id.dkey_order(), seed: editor.seed };
    let probe = class.of(dkey);
    let root_place = object + offset_of!(ObjectRecord, root) as u64;
    let root: u64 = *editor.read(root_place)?;
    let mut path = Path::new();
    path.lead_to::<Keys>(editor.heap(), root, &probe)?;
    match tree::get_at(editor.heap(), class, root, &path, &probe)? {
        Some(dkey) => Ok(dkey),
        None => {
            let places = (object, None, root_place);
            keys::create_key(editor, class, places, (&probe, &path), Kind::Dkey, 0)
        }
    }
}

/// Puts a negative entry into a tree of punches.
fn put_punch(editor: &mut Editor<'_, '_>, entry: Entry, place: u64, terms: Terms) -> Result<(), Error> {
    let probe = Probe::number(terms.epoch.0.into());
    let old = tree::get(editor.heap(), Punches, *editor.read(place)?, &probe)?;
    if let Some(old) = old {
        let stamp = editor.read::<PunchRecord>(old)?.stamp();
        versions::judge(stamp, terms.writer, terms.conflict, || Ok(true))?;
        return Ok(());
    }
    let record = PunchRecord {
        epoch: terms.epoch.0,
        cookie: terms.writer.cookie.0,
        map_version: terms.writer.map_version,
        flags: writer_flags(terms.writer),
    };
    let punch = memory::allocate_with(editor.tx, &[record.as_bytes()])?;
    tree::insert(editor.tx, Punches, place, &probe, punch)?;
    editor.count_record(1, 0);
    entry.note(editor, terms.epoch, terms.writer.cookie)
}

/// Removes what was written in the epoch of a punch below it (below `dkey`, or all of `object`); the punch itself, and
/// that of the object when a dkey is punched, stay.
fn remove_below(
    editor: &mut Editor<'_, '_>,
    object: u64,
    dkey: Option<u64>,
    terms: Terms,
) -> Result<(), Error> {
    if terms.writer.kind == daos_types::WriterKind::Rebuild
        || editor.read::<ObjectRecord>(object)?.newest < terms.epoch.0
    {
        // A rebuild copies a state in which this is settled.
        return Ok(());
    }
    let by_epoch: u64 = *editor.read(editor.container_field(offset_of!(ContainerRecord, by_epoch)))?;
    let mut below = Vec::new();
    let range = daos_types::EpochRange { low: terms.epoch, high: terms.epoch };
    let mut from = (terms.epoch, daos_types::Cookie(0));
    while let Some(group) = groups::next_by_epoch(editor.heap(), by_epoch, from, range)? {
        let heap = editor.heap();
        let cookie = editor.read::<Group>(group)?.cookie;
        groups::visit(heap, group, &mut |place, entry| {
            let key = match entry {
                Entry::Object(_) => return Ok(true),
                Entry::ObjectExtent(of, _) => {
                    if of == object && dkey.is_none() {
                        below.push((place, entry, cookie));
                    }
                    return Ok(true);
                }
                Entry::Dkey(key) if dkey == Some(key) => return Ok(true),
                Entry::Dkey(key) | Entry::Single(key) | Entry::AkeyExtent(key, _) => key,
            };
            let is_below = match dkey {
                None => keys::object_of_key(heap, key)? == object,
                Some(dkey) => memory::read::<KeyRecord>(heap, key)?.parent == dkey,
            };
            if is_below {
                below.push((place, entry, cookie));
            }
            Ok(true)
        })?;
        let Some(next) = cookie.checked_add(1) else { break };
        from = (terms.epoch, daos_types::Cookie(next));
    }
    for (place, entry, cookie) in below {
        if cookie != terms.writer.cookie.0 || terms.conflict == Conflict::Refuse {
            return Err(Error::EpochConflict { epoch: terms.epoch, holder: daos_types::Cookie(cookie) });
        }
        remove_change(editor, entry, terms.epoch)?;
        groups::make_void(editor, place, entry)?;
    }
    Ok(())
}

/// Removes the change that an entry names, if it is still there, and what is empty then. (An extent that was aggregated is
/// not what any entry names, even if it lies where a stale one points.)
pub(crate) fn remove_change(editor: &mut Editor<'_, '_>, entry: Entry, epoch: Epoch) -> Result<(), Error> {
    match entry {
        Entry::Single(key) => {
            versions::remove_if(editor, key, epoch, |_| true)?;
            prune_key(editor, key)
        }
        Entry::AkeyExtent(key, block) => {
            extents::remove(editor, Holder::Akey(key), block, epoch, |extent| extent.flags & AGED == 0)?;
            extents::forget_note(editor, Holder::Akey(key))?;
            prune_key(editor, key)
        }
        Entry::ObjectExtent(object, block) => {
            extents::remove(editor, Holder::Object(object), block, epoch, |extent| extent.flags & AGED == 0)?;
            extents::forget_note(editor, Holder::Object(object))?;
            prune_object(editor, object)
        }
        Entry::Dkey(dkey) => {
            let place = keys::dkey_punches_place(editor, dkey)?;
            remove_punch(editor, place, epoch)?;
            prune_key(editor, dkey)
        }
        Entry::Object(object) => {
            remove_punch(editor, object + offset_of!(ObjectRecord, punches) as u64, epoch)?;
            prune_object(editor, object)
        }
    }
}

fn remove_punch(editor: &mut Editor<'_, '_>, place: u64, epoch: Epoch) -> Result<(), Error> {
    if let Some(punch) = tree::remove(editor.tx, Punches, place, &Probe::number(epoch.0.into()))? {
        editor.count_record(-1, 0);
        memory::free(editor.tx, punch)?;
    }
    Ok(())
}

/// Sets the upper layer's metadata of an object; at most 64 bytes. Not versioned; goes with the object.
pub(crate) fn set_metadata(editor: &mut Editor<'_, '_>, id: ObjectId, bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > 64 {
        return Err(Error::Invalid("metadata of an object is at most 64 bytes"));
    }
    let objects: u64 = *editor.read(editor.container_field(offset_of!(ContainerRecord, objects)))?;
    let object = keys::find_object(editor.heap(), objects, id)?.ok_or(Error::NotFound("object"))?;
    let mut record: ObjectRecord = *editor.read(object)?;
    if record.metadata != 0 {
        memory::free(editor.tx, record.metadata)?;
    }
    record.metadata = if bytes.is_empty() { 0 } else { memory::allocate_with(editor.tx, &[bytes])? };
    record.metadata_bytes = bytes.len() as u64;
    editor.write(object, &record)
}
