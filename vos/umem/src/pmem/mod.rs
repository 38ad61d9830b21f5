//! The `pmem` media: the arena is a file on persistent memory, and a transaction is durable when it is sealed.
//!
//! # Invariants
//!
//! * Before the first store of a transaction into bytes that were in use, their old content is durable in the undo log. (A
//!   store may become durable at any time after it, in any order with others.)
//! * The transaction commits by one store of eight bytes: its number, in the undo log's header. By then all its stores
//!   are durable; from then on its undo entries, which carry that number, mean nothing.
//! * An aborted transaction commits too, after everything was put back, so that a number is never used twice.
//! * No client knows the numbers, so none can write bytes that are taken for an entry of the undo log.
//!
//! So a transaction costs one fence for each set of ranges that it changes for the first time, and two at its end. Changes of
//! the allocator's tables wait for the next of those, and cost none of their own.

mod file;
mod undo;

use daos_xstream::BLOCK_BYTES;
use uuid::Uuid;

use crate::{
    Heap, HeapError, Inspection, MediaInspection, PAGE_BYTES, Sealed,
    arena::Arena,
    heap,
    layout::{HEADER_OFFSET, Layout},
    ledger::Journal,
    store::StoreError,
    wal::{FORMAT_VERSION, KIND_PMEM, SuperBlock},
};
pub(crate) use file::{create_file, open_file, read_file};
pub(crate) use undo::{UndoHeader, UndoLog};

/// Bytes of a cache line: the unit in which stores become durable.
pub const LINE_BYTES: u64 = 64;

/// What a transaction changes goes to the undo log in multiples of this: with its header a small change fills one cache line there.
pub(crate) const UNDO_UNIT_BYTES: u64 = 32;

const UNDO_BYTES_MAX: u64 = 4 << 20;

/// How stores to an arena become durable. The offsets lie in the arena whose bytes are passed along.
pub trait Persistence {
    /// Begins to write the cache lines of `length` bytes from `offset` back to the media.
    fn flush(&mut self, arena: &[u8], offset: u64, length: u64);

    /// Returns when everything whose flush had begun is durable.
    fn fence(&mut self, arena: &[u8]);
}

/// Makes a heap in an arena of zeros, durable by `persistence`. `secret` as for [`open`].
pub fn create(
    mut arena: Arena,
    mut persistence: Box<dyn Persistence>,
    uuid: Uuid,
    secret: u64,
) -> Result<Heap, StoreError> {
    let arena_bytes = arena.len();
    let undo_bytes = (arena_bytes / 16).next_multiple_of(PAGE_BYTES).min(UNDO_BYTES_MAX);
    let layout = Layout::new(arena_bytes, undo_bytes)?;
    heap::format(&mut arena, &layout);
    let undo = UndoHeader::new();
    undo.store(&mut arena, &layout);
    persistence.flush(arena.as_slice(), HEADER_OFFSET, PAGE_BYTES);
    persistence.flush(arena.as_slice(), layout.undo_log, LINE_BYTES);
    persistence.fence(arena.as_slice());
    // The super-blocks come last: until then there is no heap.
    let mut super_block = SuperBlock {
        magic: SuperBlock::magic(),
        format_version: FORMAT_VERSION,
        checksum: 0,
        uuid: uuid.into_bytes(),
        sequence: 0,
        media_kind: KIND_PMEM,
        heap_bytes: arena_bytes,
        arena_bytes,
        undo_bytes,
        log_bytes: 0,
        batch_blocks: 0,
        generation: 0,
        log_key: 0,
        replay_position: 0,
        replay_sequence: 0,
        valid_position: 0,
        batch_sequence: 0,
    };
    for _ in 0..2 {
        write_super_block(&mut arena, &mut *persistence, &mut super_block)?;
    }
    open(arena, persistence, secret, "").map(|(heap, _)| heap)
}

/// A heap as it is found in an arena.
struct Recovered {
    super_block: SuperBlock,
    layout: Layout,
    log: UndoLog,
    /// Entries of the undo log that were applied.
    undone: u64,
}

/// Chooses and checks the super-block of the heap in `arena`, and undoes what was not committed.
fn recover(
    arena: &mut Arena,
    persistence: &mut dyn Persistence,
    name: &str,
) -> Result<Recovered, StoreError> {
    if arena.len() < 2 * PAGE_BYTES {
        return Err(StoreError::NotFormatted(name.to_owned()));
    }
    let (first, rest) = arena.as_slice().split_at(BLOCK_BYTES);
    let (super_block, _) = SuperBlock::choose(name, [first, &rest[..BLOCK_BYTES]])?;
    let damaged = |offset: u64, what: String| damaged(name, offset, what);
    let layout = Layout::new(super_block.arena_bytes, super_block.undo_bytes)
        .map_err(|error| damaged(0, error.to_string()))?;
    if super_block.media_kind != KIND_PMEM
        || layout.arena_bytes != arena.len()
        || layout.undo_bytes < PAGE_BYTES
    {
        return Err(damaged(
            0,
            "the super-block's sizes are not those of the file, or not of a pmem heap".to_owned(),
        ));
    }
    let undo = UndoHeader::load(arena, &layout)
        .ok_or_else(|| damaged(layout.undo_log, "the undo log's header is damaged".to_owned()))?;
    let (log, undone) = UndoLog::recover(undo, arena, &layout, persistence).map_err(|offset| {
        damaged(offset, "an undo entry refers to what lies outside the arena".to_owned())
    })?;
    Ok(Recovered { super_block, layout, log, undone })
}

fn damaged(name: &str, offset: u64, what: String) -> StoreError {
    StoreError::Damaged { file: name.to_owned(), offset, what }
}

fn heap_in(
    arena: Arena,
    layout: Layout,
    journal: Journal,
    sealed: u64,
    name: &str,
) -> Result<Heap, StoreError> {
    Heap::open(arena, layout, journal, Sealed(sealed)).map_err(|error| match error {
        HeapError::DamagedTable(offset) => damaged(name, offset, error.to_string()),
        other => other.into(),
    })
}

/// Opens the heap in an arena; a transaction that was not committed is undone. `secret` is a random number that nobody else
/// knows, a new one each time; `name` is for messages.
pub fn open(
    mut arena: Arena,
    mut persistence: Box<dyn Persistence>,
    secret: u64,
    name: &str,
) -> Result<(Heap, Uuid), StoreError> {
    let Recovered { mut super_block, layout, mut log, .. } = recover(&mut arena, &mut *persistence, name)?;
    log.skip(secret, &mut arena, &mut *persistence);
    super_block.generation += 1;
    write_super_block(&mut arena, &mut *persistence, &mut super_block)?;
    let sealed = log.sequence();
    let journal = Journal::Pmem(Box::new(PmemJournal { log, persistence }));
    let heap = heap_in(arena, layout, journal, sealed, name)?;
    Ok((heap, Uuid::from_bytes(super_block.uuid)))
}

/// The heap in a copy of an arena, as opening it would find it. What it is a copy of is not written.
pub(crate) fn inspect(mut arena: Arena, name: &str) -> Result<(Heap, Inspection), StoreError> {
    let Recovered { super_block, layout, log, undone } = recover(&mut arena, &mut CopyOnly, name)?;
    let media = MediaInspection::Pmem {
        undo_bytes: super_block.undo_bytes,
        // Recovery has taken a number for itself.
        committed: log.sequence() - 1,
        entries_to_undo: undone,
    };
    let heap = heap_in(arena, layout, Journal::Volatile, log.sequence(), name)?;
    Ok((heap, Inspection::of(&super_block, media)))
}

/// Nothing of a copy has to become durable.
struct CopyOnly;

impl Persistence for CopyOnly {
    fn flush(&mut self, _: &[u8], _: u64, _: u64) {}
    fn fence(&mut self, _: &[u8]) {}
}

/// The undo log together with the means to make it durable.
pub(crate) struct PmemJournal {
    pub log: UndoLog,
    pub persistence: Box<dyn Persistence>,
}

fn write_super_block(
    arena: &mut Arena,
    persistence: &mut dyn Persistence,
    super_block: &mut SuperBlock,
) -> Result<(), StoreError> {
    super_block.sequence += 1;
    let place = super_block.sequence % 2 * PAGE_BYTES;
    arena.bytes_mut(0, place, PAGE_BYTES)?.copy_from_slice(&super_block.to_block());
    persistence.flush(arena.as_slice(), place, PAGE_BYTES);
    persistence.fence(arena.as_slice());
    Ok(())
}
