//! Groups: what one cookie changed in one epoch. They are the epoch index (drives aggregation and "what changed between
//! two epochs") and the cookie index (drives discard) in one: two trees over the same groups, so that a change costs one
//! entry in one list.
//!
//! ```text
//!  Group  epoch | cookie | head chunk | tail chunk
//!  chunk  next u64 | first u16 | used u16 | capacity u16 | 0 u16 | words: capacity × 8
//!  entry  one word: record | tag        0 single value of a key · 3 punch of a dkey · 4 punch of an object
//!         two words: record | tag, block   1 extent of an akey's array · 2 extent of an array object
//!         a word 0: consumed or void
//! ```
//!
//! # Invariants
//!
//! * A change that a group lists is a live record with the group's epoch and cookie, found in what the entry names; or the
//!   entry is **stale**, because a later change of the same group replaced it.
//! * Whatever an entry names is alive when the entry is read. For single values and punches, because a stale entry is never
//!   the last of its group that names its record, and entries are consumed oldest first; for arrays, because the head
//!   counts the entries that name it and stays as long as there are any.
//! * A record that no group lists carries the flag `AGED` (aggregation took its entry).
//! * A group without entries does not exist.

use daos_types::{Cookie, Epoch, EpochRange};
use daos_umem::Heap;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Error,
    editor::Editor,
    memory,
    records::{ByCookie, ByEpoch, ContainerRecord, Counts, Group},
    tree::{self, KeyClass, Probe},
};

/// Most words of a chunk. The first is small: there may be many groups of one change.
const CHUNK_WORDS: [u16; 4] = [4, 16, 64, 504];
const CHUNK_HEADER_BYTES: u64 = size_of::<Chunk>() as u64;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Chunk {
    next: u64,
    first: u16,
    used: u16,
    capacity: u16,
    reserved: u16,
}

/// What an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The version of this key.
    Single(u64),
    /// The extent at this block of this akey's array.
    AkeyExtent(u64, u64),
    /// The extent at this block of this array object.
    ObjectExtent(u64, u64),
    /// The punch of this dkey.
    Dkey(u64),
    /// The punch of this object.
    Object(u64),
}

impl Entry {
    /// Notes the entry in its group.
    pub fn note(self, editor: &mut Editor<'_, '_>, epoch: Epoch, cookie: Cookie) -> Result<(), Error> {
        match self {
            Entry::Single(key) => editor.note(epoch, cookie, &[key]),
            Entry::AkeyExtent(key, block) => editor.note(epoch, cookie, &[key | 1, block]),
            Entry::ObjectExtent(object, block) => editor.note(epoch, cookie, &[object | 2, block]),
            Entry::Dkey(key) => editor.note(epoch, cookie, &[key | 3]),
            Entry::Object(object) => editor.note(epoch, cookie, &[object | 4]),
        }
    }

    fn decode(words: &[u64], position: u64) -> Result<(Self, u16), Error> {
        let corrupt = Error::Corrupt { place: "group entry", position };
        let (word, next) = (words[0], words.get(1).copied());
        let record = word & !7;
        Ok(match word & 7 {
            0 => (Entry::Single(record), 1),
            1 => (Entry::AkeyExtent(record, next.ok_or(corrupt)?), 2),
            2 => (Entry::ObjectExtent(record, next.ok_or(corrupt)?), 2),
            3 => (Entry::Dkey(record), 1),
            4 => (Entry::Object(record), 1),
            _ => return Err(corrupt),
        })
    }
}

/// Appends an entry to the group of (epoch, cookie).
pub(crate) fn append(
    editor: &mut Editor<'_, '_>,
    epoch: Epoch,
    cookie: Cookie,
    words: &[u64],
) -> Result<(), Error> {
    let group = match editor.cache.group {
        Some((container, at, of, group)) if (container, at, of) == (editor.container, epoch, cookie) => group,
        _ => find_or_make(editor, epoch, cookie)?,
    };
    editor.cache.group = Some((editor.container, epoch, cookie, group));
    let tail = editor.read::<Group>(group)?.tail;
    let chunk = if tail == 0 { None } else { Some(*editor.read::<Chunk>(tail)?) };
    if let Some(chunk) = chunk
        && usize::from(chunk.used) + words.len() <= usize::from(chunk.capacity)
    {
        let place = tail + CHUNK_HEADER_BYTES + u64::from(chunk.used) * 8;
        let used_place = tail + std::mem::offset_of!(Chunk, used) as u64;
        // Whatever is noted is counted, too.
        let counts = editor.container_field(std::mem::offset_of!(ContainerRecord, counts));
        let counts = (counts, size_of::<Counts>() as u64);
        memory::announce(editor.tx, &[(place, words.len() as u64 * 8), (used_place, 2), counts])?;
        memory::write_slice(editor.tx, place, words)?;
        return editor.write(used_place, &(chunk.used + words.len() as u16));
    }
    let old_capacity = chunk.map_or(0, |chunk| chunk.capacity);
    let capacity = CHUNK_WORDS.into_iter().find(|&words| words > old_capacity).unwrap_or(CHUNK_WORDS[3]);
    let new = memory::allocate(editor.tx, CHUNK_HEADER_BYTES + u64::from(capacity) * 8)?;
    let header = Chunk { next: 0, first: 0, used: words.len() as u16, capacity, reserved: 0 };
    editor.write(new, &header)?;
    memory::write_slice(editor.tx, new + CHUNK_HEADER_BYTES, words)?;
    if tail == 0 {
        editor.write(group + std::mem::offset_of!(Group, head) as u64, &new)?;
    } else {
        editor.write(tail + std::mem::offset_of!(Chunk, next) as u64, &new)?;
    }
    editor.write(group + std::mem::offset_of!(Group, tail) as u64, &new)
}

fn find_or_make(editor: &mut Editor<'_, '_>, epoch: Epoch, cookie: Cookie) -> Result<u64, Error> {
    let by_epoch = editor.container_field(std::mem::offset_of!(ContainerRecord, by_epoch));
    let by_cookie = editor.container_field(std::mem::offset_of!(ContainerRecord, by_cookie));
    let probe = Probe::number(u128::from(epoch.0) << 64 | u128::from(cookie.0));
    if let Some(group) = tree::get(editor.heap(), ByEpoch, *editor.read(by_epoch)?, &probe)? {
        return Ok(group);
    }
    let group = memory::allocate(editor.tx, size_of::<Group>() as u64)?;
    editor.write(group, &Group { epoch: epoch.0, cookie: cookie.0, head: 0, tail: 0 })?;
    tree::insert(editor.tx, ByEpoch, by_epoch, &probe, group)?;
    let probe = Probe::number(u128::from(cookie.0) << 64 | u128::from(epoch.0));
    tree::insert(editor.tx, ByCookie, by_cookie, &probe, group)?;
    Ok(group)
}

/// The oldest entry of a group that was not consumed.
pub(crate) fn first(heap: &Heap, group: u64) -> Result<Option<Entry>, Error> {
    let mut found = None;
    visit(heap, group, &mut |_, entry| {
        found = Some(entry);
        Ok(false)
    })?;
    Ok(found)
}

/// Calls `each` with place and content of the entries of a group, oldest first, until it answers false.
pub(crate) fn visit(
    heap: &Heap,
    group: u64,
    each: &mut dyn FnMut(u64, Entry) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut place = memory::read::<Group>(heap, group)?.head;
    while place != 0 {
        let chunk: Chunk = *memory::read(heap, place)?;
        let words: &[u64] = memory::read_slice(heap, place + CHUNK_HEADER_BYTES, u64::from(chunk.used))?;
        let mut index = chunk.first;
        while index < chunk.used {
            let rest = &words[usize::from(index)..];
            if rest[0] == 0 {
                index += 1;
                continue;
            }
            let at = place + CHUNK_HEADER_BYTES + u64::from(index) * 8;
            let (entry, length) = Entry::decode(rest, at)?;
            if !each(at, entry)? {
                return Ok(());
            }
            index += length;
        }
        place = chunk.next;
    }
    Ok(())
}

/// Calls `each` with place and bytes of the chunks of a group, which may be damaged: at most `limit` of them.
pub(crate) fn visit_chunks(
    heap: &Heap,
    group: u64,
    limit: u64,
    each: &mut dyn FnMut(u64, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let Group { head, tail, .. } = *memory::read(heap, group)?;
    let (mut place, mut last) = (head, 0);
    for _ in 0..limit {
        if place == 0 {
            break;
        }
        let chunk: Chunk = *memory::read(heap, place)?;
        if chunk.first > chunk.used || chunk.used > chunk.capacity || !CHUNK_WORDS.contains(&chunk.capacity) {
            return Err(Error::Corrupt { place: "chunk of a group", position: place });
        }
        each(place, CHUNK_HEADER_BYTES + u64::from(chunk.capacity) * 8)?;
        (last, place) = (place, chunk.next);
    }
    if place != 0 || last != tail {
        return Err(Error::Corrupt { place: "list of a group's chunks", position: group });
    }
    Ok(())
}

/// Makes the entry at `place` void.
pub(crate) fn make_void(editor: &mut Editor<'_, '_>, place: u64, entry: Entry) -> Result<(), Error> {
    match entry {
        Entry::AkeyExtent(..) | Entry::ObjectExtent(..) => editor.write(place, &[0u64; 2]),
        _ => editor.write(place, &0u64),
    }
}

/// Consumes the oldest entry of a group: the one that [`first`] gave.
pub(crate) fn consume(editor: &mut Editor<'_, '_>, group: u64) -> Result<(), Error> {
    loop {
        let head = editor.read::<Group>(group)?.head;
        if head == 0 {
            return Ok(());
        }
        let chunk: Chunk = *editor.read(head)?;
        let words: &[u64] =
            memory::read_slice(editor.heap(), head + CHUNK_HEADER_BYTES, u64::from(chunk.used))?;
        let mut index = chunk.first;
        while index < chunk.used && words[usize::from(index)] == 0 {
            index += 1;
        }
        if index < chunk.used {
            let (_, length) = Entry::decode(&words[usize::from(index)..], head)?;
            return editor.write(head + std::mem::offset_of!(Chunk, first) as u64, &(index + length));
        }
        drop_head(editor, group, head, chunk.next)?;
    }
}

fn drop_head(editor: &mut Editor<'_, '_>, group: u64, head: u64, next: u64) -> Result<(), Error> {
    memory::free(editor.tx, head)?;
    editor.write(group + std::mem::offset_of!(Group, head) as u64, &next)?;
    if next == 0 {
        editor.write(group + std::mem::offset_of!(Group, tail) as u64, &0u64)?;
    }
    Ok(())
}

/// Removes a group that has no entries left.
pub(crate) fn remove(editor: &mut Editor<'_, '_>, group: u64) -> Result<(), Error> {
    let Group { epoch, cookie, .. } = *editor.read(group)?;
    while let Some(head) = Some(editor.read::<Group>(group)?.head).filter(|&head| head != 0) {
        let next = editor.read::<Chunk>(head)?.next;
        drop_head(editor, group, head, next)?;
    }
    let by_epoch = editor.container_field(std::mem::offset_of!(ContainerRecord, by_epoch));
    let by_cookie = editor.container_field(std::mem::offset_of!(ContainerRecord, by_cookie));
    tree::remove(editor.tx, ByEpoch, by_epoch, &Probe::number(u128::from(epoch) << 64 | u128::from(cookie)))?;
    tree::remove(
        editor.tx,
        ByCookie,
        by_cookie,
        &Probe::number(u128::from(cookie) << 64 | u128::from(epoch)),
    )?;
    editor.cache.group = None;
    memory::free(editor.tx, group)
}

/// The first group at or after (epoch, cookie) whose epoch lies in `range`.
pub(crate) fn next_by_epoch(
    heap: &Heap,
    root: u64,
    from: (Epoch, Cookie),
    range: EpochRange,
) -> Result<Option<u64>, Error> {
    let (epoch, cookie) = from.max((range.low, Cookie(0)));
    let found = next(heap, ByEpoch, root, u128::from(epoch.0) << 64 | u128::from(cookie.0))?;
    in_range(heap, found, range)
}

/// The first group of `cookie` whose epoch lies in `range`.
pub(crate) fn next_by_cookie(
    heap: &Heap,
    root: u64,
    cookie: Cookie,
    range: EpochRange,
) -> Result<Option<u64>, Error> {
    let found = next(heap, ByCookie, root, u128::from(cookie.0) << 64 | u128::from(range.low.0))?;
    let Some(group) = in_range(heap, found, range)? else { return Ok(None) };
    Ok((memory::read::<Group>(heap, group)?.cookie == cookie.0).then_some(group))
}

fn next<C: KeyClass>(heap: &Heap, class: C, root: u64, from: u128) -> Result<Option<u64>, Error> {
    let mut found = None;
    let _ = tree::scan(heap, class, root, tree::Bound::From(&Probe::number(from)), &mut |group| {
        found = Some(group);
        Ok(std::ops::ControlFlow::Break(()))
    })?;
    Ok(found)
}

fn in_range(heap: &Heap, group: Option<u64>, range: EpochRange) -> Result<Option<u64>, Error> {
    let Some(group) = group else { return Ok(None) };
    let epoch = Epoch(memory::read::<Group>(heap, group)?.epoch);
    Ok(range.contains(epoch).then_some(group))
}
