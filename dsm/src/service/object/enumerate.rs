//! Lists, and questions about objects as a whole.

use daos_types::{Epoch, EpochRange, ObjectType};
use daos_vos::{ARRAY_BYTES_MAX, Anchor, Container, EndSearch, Error};
use daos_xstream::{Env, rpc::Status};
use zerocopy::IntoBytes;

use crate::{
    rpc::object::{
        Enumerate, EnumerateKind, EnumerateReply, Enumerated, ObjectRequest, QueryReply, RecordRef,
    },
    service::refusal::Refusal,
};

/// Most entries of one reply, so that no request keeps the core for long.
const ENTRIES_MAX: usize = 1024;
/// Bytes that an entry takes at least.
const ENTRY_BYTES_MIN: usize = 32;

/// Where the list of a request begins.
pub(super) fn start(request: &Enumerate<'_>) -> Result<Anchor, Refusal> {
    Anchor::from_bytes(request.anchor)
        .ok_or_else(|| Refusal::new(Status::INVALID, "the anchor is none of ours"))
}

/// One page: as many entries as were asked for, fit into `room` bytes, and can be listed in a slice of time. `None`: it has found
/// none, and has stopped in the midst of an entry: go on from `anchor`.
pub(super) fn enumerate<E: Env>(
    container: &Container<E>,
    request: &Enumerate<'_>,
    start: &mut Anchor,
    room: usize,
) -> Result<Option<Vec<u8>>, Refusal> {
    let room = room.saturating_sub(size_of::<EnumerateReply>());
    let mut limit = (request.entries_max as usize).min(room / ENTRY_BYTES_MIN).clamp(1, ENTRIES_MAX);
    loop {
        let mut anchor = start.clone();
        let (mut entries, mut count, mut fitting) = (Vec::new(), 0u32, 0);
        list(container, request, &mut anchor, limit, |entry| {
            entry.encode(&mut entries);
            count += 1;
            // The anchor holds the last key, and what the store adds to it.
            if entries.len() + entry.encoded_bytes() + 32 <= room {
                fitting = count as usize;
            }
        })?;
        if count == 0 && anchor.is_within() {
            *start = anchor;
            return Ok(None);
        }
        let anchor_bytes = if anchor.at_end() { Vec::new() } else { anchor.to_bytes() };
        if entries.len() + anchor_bytes.len() <= room {
            let header = EnumerateReply::new(count, anchor_bytes.len() as u32, anchor.at_end());
            return Ok(Some([header.as_bytes(), &anchor_bytes, &entries].concat()));
        }
        if limit == 1 {
            return Err(Refusal::new(Status::TOO_LONG, "a key is longer than a reply"));
        }
        // Keys are long: list only those that fit.
        limit = fitting.min(limit - 1).max(1);
    }
}

fn list<E: Env>(
    container: &Container<E>,
    request: &Enumerate<'_>,
    anchor: &mut Anchor,
    limit: usize,
    mut visit: impl FnMut(Enumerated<'_>),
) -> Result<(), Error> {
    let (epoch, dkey) = (request.epoch, request.dkey);
    let Some(object) = request.object else {
        return container.enumerate_objects(epoch, anchor, limit, |object| visit(Enumerated::Object(object)));
    };
    match request.kind {
        EnumerateKind::Objects | EnumerateKind::Keys | EnumerateKind::Dkeys => {
            container.enumerate_keys(object, epoch, anchor, limit, |key| visit(Enumerated::Key(key)))
        }
        EnumerateKind::Akeys => container.enumerate_akeys(object, dkey, epoch, anchor, limit, |key| {
            visit(Enumerated::Key(key));
        }),
        EnumerateKind::Extents => {
            let document = object.object_type() == ObjectType::Document;
            let keys = document.then_some((dkey, request.akey));
            let epochs = EpochRange { low: Epoch::ZERO, high: epoch };
            container.enumerate_extents(object, keys, 0..ARRAY_BYTES_MAX, epochs, anchor, limit, |extent| {
                visit(Enumerated::Extent {
                    low: extent.range.start,
                    high: extent.range.end,
                    epoch: extent.epoch,
                    punched: extent.punched,
                });
            })
        }
    }
}

/// How far a question about an object has come.
#[derive(Default)]
pub(super) struct Course {
    /// The end of its array is looked for.
    end: EndSearch,
    /// Something visible is looked for from here on.
    anchor: Anchor,
}

/// Whether the object has anything visible, and where its array ends. `None`: what was looked at so far does not tell, go on.
pub(super) fn query<E: Env>(
    container: &Container<E>,
    request: &ObjectRequest<'_>,
    course: &mut Course,
) -> Result<Option<QueryReply>, Error> {
    let Course { end: search, anchor } = course;
    let (object, epoch) = (request.object(), request.epoch());
    let akey = request.records().next().map(|record: RecordRef<'_>| record.key);
    let end = match (object.object_type(), akey) {
        (ObjectType::Array, _) => container.array_end(object, None, epoch, search)?,
        (ObjectType::Document, Some(akey)) => {
            container.array_end(object, Some((request.dkey(), akey)), epoch, search)?
        }
        _ => Some(0),
    };
    let Some(end) = end else { return Ok(None) };
    let mut exists = end > 0;
    if !exists && object.object_type() != ObjectType::Array {
        container.enumerate_keys(object, epoch, anchor, 1, |_| exists = true)?;
        if !exists && !anchor.at_end() {
            return Ok(None);
        }
    }
    Ok(Some(QueryReply::new(exists, end)))
}
