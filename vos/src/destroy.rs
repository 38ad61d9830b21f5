//! Removing everything a container holds, one slice at a time.

use std::{mem::offset_of, ops::ControlFlow};

use daos_types::{Cookie, Epoch, EpochRange, KeyOrder, ObjectType};

use crate::{
    Error,
    editor::Editor,
    epochs::SliceSize,
    extents::{self, Holder},
    groups, keys,
    keys::{prune_key, prune_object},
    memory,
    records::{
        ArrayHead, Boundary, ContainerRecord, Extent, Extents, KeyRecord, Keys, Kind, ObjectRecord, Objects,
        PendingDiscard, PunchRecord, Punches, Version, Versions, object_id,
    },
    tree::{self, Bound, KeyClass, Probe},
    versions,
};

/// Removes some of what is left. Says whether there is more.
pub(crate) fn slice(editor: &mut Editor<'_, '_>, size: SliceSize) -> Result<bool, Error> {
    // Groups first: their entries name records, and nothing may read them once these go.
    let by_epoch = editor.container_field(offset_of!(ContainerRecord, by_epoch));
    for _ in 0..size.entries {
        let root: u64 = *editor.read(by_epoch)?;
        let from = (Epoch::ZERO, Cookie(0));
        let Some(group) = groups::next_by_epoch(editor.heap(), root, from, EpochRange::ALL)? else { break };
        groups::remove(editor, group)?;
    }
    if *editor.read::<u64>(by_epoch)? != 0 {
        return Ok(true);
    }
    free_list(editor, offset_of!(ContainerRecord, discards), |editor, note| {
        Ok(editor.read::<PendingDiscard>(note)?.next)
    })?;
    free_list(editor, offset_of!(ContainerRecord, boundaries), |editor, note| {
        Ok(editor.read::<Boundary>(note)?.next)
    })?;
    let objects = editor.container_field(offset_of!(ContainerRecord, objects));
    for _ in 0..size.entries {
        match first(editor, Objects, *editor.read(objects)?)? {
            None => return Ok(false),
            Some(object) => remove_from_object(editor, object)?,
        }
    }
    Ok(true)
}

fn free_list(
    editor: &mut Editor<'_, '_>,
    field: usize,
    next: impl Fn(&Editor<'_, '_>, u64) -> Result<u64, Error>,
) -> Result<(), Error> {
    let place = editor.container_field(field);
    loop {
        let at: u64 = *editor.read(place)?;
        if at == 0 {
            return Ok(());
        }
        let following = next(editor, at)?;
        memory::free(editor.tx, at)?;
        editor.write(place, &following)?;
    }
}

fn first<C: KeyClass>(editor: &Editor<'_, '_>, class: C, root: u64) -> Result<Option<u64>, Error> {
    let mut found = None;
    let _ = tree::scan(editor.heap(), class, root, Bound::First, &mut |record| {
        found = Some(record);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Removes one record below an object, and with the last the object.
fn remove_from_object(editor: &mut Editor<'_, '_>, object: u64) -> Result<(), Error> {
    let record: ObjectRecord = *editor.read(object)?;
    let id = object_id(&record, object)?;
    if record.punches != 0 {
        remove_punch(editor, object + offset_of!(ObjectRecord, punches) as u64)?;
        return prune_object(editor, object);
    }
    if id.object_type() == ObjectType::Array {
        remove_extent(editor, Holder::Object(object))?;
        return prune_object(editor, object);
    }
    let class = Keys { order: KeyOrder::Hashed, seed: editor.seed };
    match first(editor, class, record.root)? {
        Some(key) => remove_from_key(editor, key),
        None => prune_object(editor, object),
    }
}

fn remove_from_key(editor: &mut Editor<'_, '_>, key: u64) -> Result<(), Error> {
    let record: KeyRecord = *editor.read(key)?;
    match record.kind() {
        Kind::Dkey => {
            if keys::dkey_punches(editor.heap(), key)? != 0 {
                let place = keys::dkey_punches_place(editor, key)?;
                remove_punch(editor, place)?;
                return prune_key(editor, key);
            }
            let akeys: u64 = *editor.read(keys::akeys_place(editor.heap(), key)?)?;
            let class = Keys { order: KeyOrder::Hashed, seed: editor.seed };
            match first(editor, class, akeys)? {
                Some(akey) => remove_from_key(editor, akey),
                None => prune_key(editor, key),
            }
        }
        Kind::Key | Kind::Single => {
            if let Some(place) = first(editor, Versions, record.root)? {
                let epoch = Epoch(editor.read::<Version>(place)?.epoch);
                versions::remove_if(editor, key, epoch, |_| true)?;
            }
            prune_key(editor, key)
        }
        Kind::Array => {
            remove_extent(editor, Holder::Akey(key))?;
            prune_key(editor, key)
        }
    }
}

fn remove_punch(editor: &mut Editor<'_, '_>, place: u64) -> Result<(), Error> {
    let root: u64 = *editor.read(place)?;
    if let Some(punch) = first(editor, Punches, root)? {
        let epoch = editor.read::<PunchRecord>(punch)?.epoch;
        tree::remove(editor.tx, Punches, place, &Probe::number(epoch.into()))?;
        editor.count_record(-1, 0);
        memory::free(editor.tx, punch)?;
    }
    Ok(())
}

fn remove_extent(editor: &mut Editor<'_, '_>, holder: Holder) -> Result<(), Error> {
    let head: u64 = *editor.read(holder.head_place())?;
    if head == 0 {
        return Ok(());
    }
    let root = editor.read::<ArrayHead>(head)?.extents;
    if let Some(place) = first(editor, Extents, root)? {
        let extent: Extent = *editor.read(place)?;
        let block = extents::block_of(extent.start, extent.end);
        extents::remove(editor, holder, block, Epoch(extent.epoch), |_| true)?;
    }
    extents::abandon_head(editor, holder)
}
