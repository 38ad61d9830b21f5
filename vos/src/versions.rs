//! The history of a single value: a tree of versions by epoch below a key.
//!
//! # Invariants
//!
//! * At most one version of a key per epoch.
//! * Inline bytes were equal to their checksum when they were stored, and are compared with it on every read.

use std::mem::offset_of;

use daos_types::{Checksum, Epoch, Writer};
use daos_umem::Heap;
use zerocopy::IntoBytes;

use crate::{
    Conflict, Error,
    editor::Editor,
    groups::Entry,
    memory,
    records::{
        AGED, DETACHED, DETACHED_BYTES_MIN, KeyRecord, PUNCHED, STORED, Stamp, VERSION_BYTES, Version,
        Versions, writer_flags,
    },
    tree::{self, Path, Probe},
};

/// Longest version (header and bytes) that is put into the nest of its key.
pub(crate) const NESTED_VERSION_BYTES_MAX: u64 = 512;

/// What a new version holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    Punched,
    Inline(&'a [u8], Checksum),
    /// Position, bytes, checksum.
    Stored(u64, u32, Checksum),
}

impl Content<'_> {
    /// Compares bytes that a caller gave with their checksum.
    fn check(&self) -> Result<(), Error> {
        match self {
            Content::Inline(bytes, checksum) if crc32c::crc32c(bytes) != checksum.0 => {
                Err(Error::BadChecksum { place: "data to be written", position: 0 })
            }
            _ => Ok(()),
        }
    }

    /// Bytes of a version with this content.
    pub fn version_bytes(&self) -> u64 {
        VERSION_BYTES
            + match self {
                Content::Punched => 0,
                Content::Inline(bytes, _) if bytes.len() < DETACHED_BYTES_MIN => bytes.len() as u64,
                Content::Inline(..) | Content::Stored(..) => 8,
            }
    }

    /// Room for a version with this content in a new key's nest.
    pub fn nest_bytes(&self) -> u64 {
        let bytes = self.version_bytes();
        if bytes <= NESTED_VERSION_BYTES_MAX { bytes } else { 0 }
    }

    fn header(&self, epoch: Epoch, writer: Writer) -> Version {
        let (flags, checksum, length) = match *self {
            Content::Punched => (PUNCHED, 0, 0),
            Content::Inline(bytes, checksum) => {
                let flags = if bytes.len() < DETACHED_BYTES_MIN { 0 } else { DETACHED };
                (flags, checksum.0, bytes.len() as u32)
            }
            Content::Stored(_, length, checksum) => (STORED, checksum.0, length),
        };
        Version {
            epoch: epoch.0,
            cookie: writer.cookie.0,
            map_version: writer.map_version,
            flags: flags | writer_flags(writer),
            checksum,
            length,
        }
    }

    /// Whether the version at `place` is known to hold the same. What is stored on the block tier is not read for that: equal
    /// checksums tell a repetition, but do not show that a change has nothing to change.
    fn is_that_of(&self, heap: &Heap, place: u64, conflict: Conflict) -> Result<bool, Error> {
        let repeats = conflict == Conflict::Refuse;
        let version: &Version = memory::read(heap, place)?;
        Ok(match *self {
            Content::Punched => version.flags & PUNCHED != 0,
            Content::Inline(bytes, checksum) => {
                version.flags & PUNCHED == 0
                    && (version.length as usize, version.checksum) == (bytes.len(), checksum.0)
                    && match version.flags & STORED {
                        0 => inline_bytes(heap, place)? == bytes,
                        _ => repeats,
                    }
            }
            Content::Stored(_, length, checksum) => {
                repeats
                    && version.flags & PUNCHED == 0
                    && (version.length, version.checksum) == (length, checksum.0)
            }
        })
    }
}

/// What to do with a change where one of the same epoch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: it is there, or something that counts more.
    Keep,
    /// Put it in place of the one that is there.
    Replace,
}

/// The rules for two changes of one record in one epoch.
pub(crate) fn judge(
    old: Stamp,
    writer: Writer,
    conflict: Conflict,
    same: impl FnOnce() -> Result<bool, Error>,
) -> Result<Verdict, Error> {
    let refused = Error::EpochConflict { epoch: old.epoch, holder: old.cookie };
    let rebuild = writer.kind == daos_types::WriterKind::Rebuild;
    if old.cookie != writer.cookie {
        return Err(refused);
    }
    match (old.rebuild, rebuild) {
        // The data fence: what an application wrote is newer than any copy of an older state.
        (false, true) => Ok(Verdict::Keep),
        (true, false) => Ok(Verdict::Replace),
        _ if same()? => Ok(Verdict::Keep),
        _ if conflict == Conflict::LastWins => Ok(Verdict::Replace),
        _ => Err(refused),
    }
}

/// Writes a version of `key`, unless its bytes differ from their checksum. Says whether the block tier's extent of `content`, if it has one, is used now.
pub(crate) fn put(
    editor: &mut Editor<'_, '_>,
    key: u64,
    epoch: Epoch,
    writer: Writer,
    conflict: Conflict,
    content: &Content<'_>,
) -> Result<bool, Error> {
    content.check()?;
    let root_place = key + offset_of!(KeyRecord, root) as u64;
    let probe = Probe::number(epoch.0.into());
    let root: u64 = *editor.read(root_place)?;
    let mut path = Path::new();
    path.lead_to::<Versions>(editor.heap(), root, &probe)?;
    if let Some(old) = tree::get_at(editor.heap(), Versions, root, &path, &probe)? {
        return replace(editor, key, (old, &probe), (epoch, writer, conflict), content);
    }
    let header = content.header(epoch, writer);
    let place = editor.place_below(Some(key), content.version_bytes())?;
    write(editor, place, &header, content)?;
    tree::insert_at(editor.tx, Versions, root_place, &path, &probe, place)?;
    Entry::Single(key).note(editor, epoch, writer.cookie)?;
    editor.count_record(1, i64::from(header.length));
    Ok(true)
}

/// What [`put`] does where `key` has a version of the same epoch, at `old`.
fn replace(
    editor: &mut Editor<'_, '_>,
    key: u64,
    (old, probe): (u64, &Probe<'_>),
    (epoch, writer, conflict): (Epoch, Writer, Conflict),
    content: &Content<'_>,
) -> Result<bool, Error> {
    let record: Version = *editor.read(old)?;
    let heap = editor.heap();
    let verdict = judge(record.stamp(), writer, conflict, || content.is_that_of(heap, old, conflict))?;
    if verdict == Verdict::Keep {
        return Ok(false);
    }
    let header = content.header(epoch, writer);
    if record.flags & AGED != 0 {
        // What was there had been aggregated; what replaces it is a change that nobody has dealt with.
        Entry::Single(key).note(editor, epoch, writer.cookie)?;
    }
    give_back_data(editor, old)?;
    editor.count_record(0, i64::from(header.length) - i64::from(record.length));
    if content.version_bytes() == bytes_of(&record) {
        write(editor, old, &header, content)?;
    } else {
        let root_place = key + offset_of!(KeyRecord, root) as u64;
        tree::remove(editor.tx, Versions, root_place, probe)?;
        editor.release_below(Some(key), old)?;
        let place = editor.place_below(Some(key), content.version_bytes())?;
        write(editor, place, &header, content)?;
        tree::insert(editor.tx, Versions, root_place, probe, place)?;
    }
    Ok(true)
}

/// Bytes of a version as it lies in the arena.
pub(crate) fn bytes_of(version: &Version) -> u64 {
    VERSION_BYTES
        + if version.flags & PUNCHED != 0 {
            0
        } else if version.flags & (STORED | DETACHED) != 0 {
            8
        } else {
            u64::from(version.length)
        }
}

fn write(
    editor: &mut Editor<'_, '_>,
    place: u64,
    header: &Version,
    content: &Content<'_>,
) -> Result<(), Error> {
    let mut scratch = std::mem::take(&mut editor.cache.scratch);
    scratch.clear();
    scratch.extend_from_slice(header.as_bytes());
    let written = match content {
        Content::Punched => memory::write_slice(editor.tx, place, &scratch),
        Content::Inline(bytes, _) if bytes.len() < DETACHED_BYTES_MIN => {
            scratch.extend_from_slice(bytes);
            memory::write_slice(editor.tx, place, &scratch)
        }
        Content::Inline(bytes, _) => memory::allocate_with(editor.tx, &[bytes]).and_then(|block| {
            scratch.extend_from_slice(&block.to_le_bytes());
            memory::write_slice(editor.tx, place, &scratch)
        }),
        Content::Stored(position, ..) => {
            scratch.extend_from_slice(&position.to_le_bytes());
            memory::write_slice(editor.tx, place, &scratch)
        }
    };
    editor.cache.scratch = scratch;
    written
}

/// The inline bytes of the version at `place`.
#[inline]
pub(crate) fn inline_bytes(heap: &Heap, place: u64) -> Result<&[u8], Error> {
    let version: &Version = memory::read(heap, place)?;
    let mut data = place + VERSION_BYTES;
    if version.flags & DETACHED != 0 {
        data = *memory::read(heap, data)?;
    }
    memory::read_slice(heap, data, u64::from(version.length))
}

/// The position on the block tier of the version at `place`.
pub(crate) fn stored_position(heap: &Heap, place: u64) -> Result<u64, Error> {
    Ok(*memory::read(heap, place + VERSION_BYTES)?)
}

/// Gives back what a version has outside of its own bytes.
fn give_back_data(editor: &mut Editor<'_, '_>, place: u64) -> Result<(), Error> {
    let version: Version = *editor.read(place)?;
    if version.flags & STORED != 0 {
        let position = stored_position(editor.heap(), place)?;
        editor.freed_blocks.push((position, u64::from(version.length)));
    }
    if version.flags & DETACHED != 0 {
        let block: u64 = *editor.read(place + VERSION_BYTES)?;
        memory::free(editor.tx, block)?;
    }
    Ok(())
}

/// Removes the version of `key` at `epoch`, if it is there and `wanted`; the key stays, even if it is empty then.
pub(crate) fn remove_if(
    editor: &mut Editor<'_, '_>,
    key: u64,
    epoch: Epoch,
    wanted: impl FnOnce(&Version) -> bool,
) -> Result<bool, Error> {
    let root_place = key + offset_of!(KeyRecord, root) as u64;
    let probe = Probe::number(epoch.0.into());
    let Some(place) = tree::get(editor.heap(), Versions, *editor.read(root_place)?, &probe)? else {
        return Ok(false);
    };
    let version: Version = *editor.read(place)?;
    if !wanted(&version) {
        return Ok(false);
    }
    tree::remove(editor.tx, Versions, root_place, &probe)?;
    give_back_data(editor, place)?;
    editor.count_record(-1, -i64::from(version.length));
    editor.release_below(Some(key), place)?;
    Ok(true)
}
