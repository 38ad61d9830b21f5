//! Making a heap, and opening one after whatever happened to it.
//!
//! Opening: choose the super-block; put the last batch of the double-write area home; load the pages; replay the log from
//! where the last checkpoint began; make durable what was read; write a super-block of a new generation.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use daos_xstream::{Env, IoBuffer, Media, MediaError, MediaFile, OpenOptions, Rng, open_alone};
use uuid::Uuid;

use crate::{
    Heap, PAGE_BYTES, Sealed,
    arena::Arena,
    heap::format,
    inspection::{FrameInfo, Inspection, MediaInspection, WalInspection},
    layout::{HEADER_OFFSET, Layout},
    ledger::Journal,
    signal::{Signal, Waiters},
    store::StoreError,
    wal::{
        BLOCK, File, LogBuffer, Wal,
        buffer::LogStart,
        dirty::DirtyPages,
        frame::{FrameHeader, HEADER_BYTES, LogIdentity, apply_payload},
        image::{Geometry, Image},
        log_file::LogFile,
        superblock::{FORMAT_VERSION, KIND_WAL, SuperBlock},
    },
};

const LOG_BYTES_MIN: u64 = 256 * 1024;
const READ_BYTES: usize = 1 << 20;
/// Beyond the end of the log, this far is looked for frames that should not be there.
const SCAN_BYTES_MIN: u64 = 64 << 20;

/// Makes the files of a heap in `directory`. The super-blocks are written last: until then there is no heap.
pub(crate) async fn create<E: Env>(
    env: &E,
    directory: &str,
    uuid: Uuid,
    heap_bytes: u64,
    log_bytes: u64,
) -> Result<(), StoreError> {
    let geometry = Geometry::new(heap_bytes)?;
    Layout::new(geometry.arena_bytes(), 0)?;
    if log_bytes < LOG_BYTES_MIN || !log_bytes.is_multiple_of(BLOCK) {
        return Err(StoreError::BadGeometry(format!(
            "a log has whole 4 KiB blocks and at least 256 KiB, not {log_bytes} bytes"
        )));
    }
    let new = OpenOptions { create_new: true, size: log_bytes, preallocate: true, ..OpenOptions::default() };
    env.media().open(&log_path(directory), new).await?;
    let new =
        OpenOptions { create_new: true, size: heap_bytes, preallocate: false, ..OpenOptions::default() };
    let file = env.media().open(&heap_path(directory), new).await?;
    let super_block = SuperBlock {
        magic: SuperBlock::magic(),
        format_version: FORMAT_VERSION,
        checksum: 0,
        uuid: uuid.into_bytes(),
        sequence: 0,
        media_kind: KIND_WAL,
        heap_bytes,
        arena_bytes: geometry.arena_bytes(),
        undo_bytes: 0,
        log_bytes,
        batch_blocks: geometry.batch_blocks,
        generation: 0,
        log_key: env.rng().next_u64(),
        replay_position: 0,
        replay_sequence: 1,
        valid_position: 0,
        batch_sequence: 0,
    };
    let mut image = Image::new(file, heap_path(directory), geometry, super_block);
    image.write_super_block().await?;
    image.write_super_block().await
}

/// What happens to a checkpoint batch that was on its way when the heap was last used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    /// It goes home, as recovery must before anything else is written.
    GoesHome,
    /// It is put over what is read, in memory; and frames are told of.
    IsOverlaid,
}

/// A heap as it is found on media: its image in the arena, its log applied.
struct Loaded<E: Env> {
    image: Image<File<E>>,
    log: LogFile<File<E>>,
    arena: Arena,
    layout: Layout,
    /// What the log has that the image has not.
    dirty: DirtyPages,
    /// Where the log ends, the number of the next frame, and the generation of the last one.
    position: u64,
    sequence: u64,
    generation: u64,
    /// Blocks of a batch that is overlaid.
    batch_blocks_pending: u64,
    frames: Vec<FrameInfo>,
}

impl<E: Env> Loaded<E> {
    /// Reads the heap in `directory`. Damage of log or image is an error.
    async fn read(env: &E, directory: &str, pending: Pending) -> Result<Self, StoreError> {
        let (mut image, promise_may_be_lost) = open_image(env, directory, pending).await?;
        let SuperBlock { uuid, log_key, log_bytes, .. } = image.super_block;
        let path = log_path(directory);
        let log = LogFile::new(open_file(env, &path, pending).await?);
        check_log_size(&log, &path, log_bytes)?;
        let layout = Layout::new(image.geometry.arena_bytes(), 0)?;
        let mut arena = Arena::reserve(layout.arena_bytes)?;
        // The header page is not on media before its first change.
        format(&mut arena, &layout);
        let (batch_valid, batch_blocks_pending) = match pending {
            Pending::GoesHome => (image.recover_batch().await?, 0),
            Pending::IsOverlaid => image.overlay_batch().await?,
        };
        image
            .load(|page, bytes| {
                let home = arena.bytes_mut(0, page * PAGE_BYTES, PAGE_BYTES).expect("a page of the arena");
                home.copy_from_slice(bytes);
            })
            .await?;
        let start = image.super_block.replay_position;
        let mut replay = Replay {
            arena: &mut arena,
            dirty: DirtyPages::none(layout.arena_bytes),
            reader: LogReader { log: log.clone(), start, window: Vec::new() },
            identity: LogIdentity { uuid, key: log_key },
            path,
            position: start,
            sequence: image.super_block.replay_sequence,
            generation: 0,
            opened: (image.super_block.valid_position, image.super_block.generation),
            limit: start + log_bytes,
            frames: (pending == Pending::IsOverlaid).then(Vec::new),
        };
        replay.run().await?;
        if promise_may_be_lost {
            // First: the log is read forward only.
            replay.check_remnant().await?;
        }
        replay.check_end(batch_valid.max(image.super_block.valid_position)).await?;
        let Replay { dirty, position, sequence, generation, frames, .. } = replay;
        let frames = frames.unwrap_or_default();
        Ok(Self {
            image,
            log,
            arena,
            layout,
            dirty,
            position,
            sequence,
            generation,
            batch_blocks_pending,
            frames,
        })
    }
}

/// The heap in an arena that was loaded from `directory`, with everything up to `position` sealed.
fn heap_in(
    directory: &str,
    (arena, layout): (Arena, Layout),
    journal: Journal,
    position: u64,
) -> Result<Heap, StoreError> {
    Heap::open(arena, layout, journal, Sealed(position)).map_err(|error| StoreError::Damaged {
        file: heap_path(directory),
        offset: HEADER_OFFSET,
        what: error.to_string(),
    })
}

/// Opens the heap in `directory` and starts its tasks.
pub(crate) async fn open<E: Env>(env: &E, directory: &str) -> Result<Rc<Wal<E>>, StoreError> {
    let loaded = Loaded::read(env, directory, Pending::GoesHome).await?;
    let Loaded { mut image, log, arena, layout, dirty, position, sequence, generation, .. } = loaded;
    let SuperBlock { uuid, log_key, log_bytes, .. } = image.super_block;

    // A frame may have been whole and yet only in the device's cache. Nothing may build on it before it is durable.
    log.flush().await?;
    image.super_block.generation = image.super_block.generation.max(generation) + 1;
    image.super_block.valid_position = position;
    image.write_super_block().await?;

    let (flush, checkpoint) = (Rc::new(Signal::default()), Rc::new(Signal::default()));
    let start = LogStart {
        identity: LogIdentity { uuid, key: log_key },
        log_bytes,
        generation: image.super_block.generation,
        tail: image.super_block.replay_position,
        head: position,
        sequence,
    };
    let buffer = LogBuffer::new(start, dirty, flush.clone(), checkpoint.clone());
    let heap = heap_in(directory, (arena, layout), Journal::Wal(Box::new(buffer)), position)?;
    let wal = Rc::new(Wal {
        env: env.clone(),
        heap: Rc::new(RefCell::new(heap)),
        log,
        flush,
        checkpoint,
        uuid: Uuid::from_bytes(uuid),
        persisted: Cell::new(position),
        wanted: Cell::new(0),
        persisted_waiters: Waiters::default(),
        room_waiters: Waiters::default(),
        checkpoints: Cell::default(),
        checkpoint_waiters: Waiters::default(),
        failure: RefCell::default(),
        closing: Cell::new(false),
        counters: Cell::default(),
    });
    wal.start(image);
    Ok(wal)
}

/// Reads the heap in `directory` as opening it would find it, and writes nothing: a checkpoint batch that was on its way
/// and the log are applied in memory only.
pub(crate) async fn inspect<E: Env>(env: &E, directory: &str) -> Result<(Heap, Inspection), StoreError> {
    let loaded = Loaded::read(env, directory, Pending::IsOverlaid).await?;
    let Loaded { image, arena, layout, position, batch_blocks_pending, frames, .. } = loaded;
    let heap = heap_in(directory, (arena, layout), Journal::Volatile, position)?;
    let media = MediaInspection::Wal(WalInspection {
        log_bytes: image.super_block.log_bytes,
        batch_blocks: image.super_block.batch_blocks,
        batch_sequence: image.super_block.batch_sequence,
        batch_blocks_pending,
        pages_written: image.pages_written(),
        replay_position: image.super_block.replay_position,
        replay_sequence: image.super_block.replay_sequence,
        valid_position: image.super_block.valid_position,
        log_end: position,
        frames,
    });
    Ok((heap, Inspection::of(&image.super_block, media)))
}

fn check_log_size<F: MediaFile>(log: &LogFile<F>, path: &str, wanted: u64) -> Result<(), StoreError> {
    if log.bytes() == wanted {
        return Ok(());
    }
    let what = format!("the file has {} bytes, the super-block says {wanted}", log.bytes());
    Err(StoreError::Damaged { file: path.to_owned(), offset: 0, what })
}

/// Opens a file, as the only one to do so if it will be written.
async fn open_file<E: Env>(env: &E, path: &str, pending: Pending) -> Result<File<E>, MediaError> {
    match pending {
        Pending::GoesHome => open_alone(env, path).await,
        Pending::IsOverlaid => env.media().open(path, OpenOptions::default()).await,
    }
}

/// Opens the heap file, and chooses and checks its super-block.
///
/// Says too whether the other copy is damaged.
async fn open_image<E: Env>(
    env: &E,
    directory: &str,
    pending: Pending,
) -> Result<(Image<File<E>>, bool), StoreError> {
    let path = heap_path(directory);
    let file = open_file(env, &path, pending).await?;
    if file.size() < 2 * BLOCK {
        return Err(StoreError::NotFormatted(path));
    }
    let (copies, result) = file.read(0, IoBuffer::zeroed(2 * BLOCK as usize)).await;
    result?;
    let (first, second) = copies.as_slice().split_at(BLOCK as usize);
    let (super_block, other_is_damaged) = SuperBlock::choose(&path, [first, second])?;
    let geometry = Geometry::new(super_block.heap_bytes)?;
    let agrees = super_block.media_kind == KIND_WAL
        && super_block.heap_bytes == file.size()
        && super_block.arena_bytes == geometry.arena_bytes()
        && super_block.batch_blocks == geometry.batch_blocks
        && super_block.log_bytes >= LOG_BYTES_MIN;
    if !agrees {
        let what = "the super-block's sizes are not those of the file, or not of a wal heap".to_owned();
        return Err(StoreError::Damaged { file: path, offset: 0, what });
    }
    Ok((Image::new(file, path, geometry, super_block), other_is_damaged))
}

fn heap_path(directory: &str) -> String {
    format!("{directory}/heap")
}

fn log_path(directory: &str) -> String {
    format!("{directory}/log")
}

/// Reads the log forward.
struct LogReader<F> {
    log: LogFile<F>,
    /// The position of the window's first byte.
    start: u64,
    window: Vec<u8>,
}

impl<F: MediaFile> LogReader<F> {
    /// `length` bytes at `position`, which does not go back. Both are in whole blocks.
    async fn get(&mut self, position: u64, length: u64) -> Result<&[u8], StoreError> {
        let end = position + length;
        while self.start + (self.window.len() as u64) < end {
            if position - self.start >= READ_BYTES as u64 {
                self.window.drain(..(position - self.start) as usize);
                self.start = position;
            }
            let next = self.start + self.window.len() as u64;
            let buffer = self.log.read(next, IoBuffer::for_overwrite(READ_BYTES)).await?;
            self.window.extend_from_slice(buffer.as_slice());
        }
        Ok(&self.window[(position - self.start) as usize..][..length as usize])
    }
}

/// The replay of a log into an arena.
struct Replay<'a, F> {
    arena: &'a mut Arena,
    dirty: DirtyPages,
    reader: LogReader<F>,
    identity: LogIdentity,
    path: String,
    /// Where the next frame is expected, and its number.
    position: u64,
    sequence: u64,
    generation: u64,
    /// Where the log ended when it was opened last, or later, and the generation that has written from there on.
    opened: (u64, u64),
    /// One round of the log.
    limit: u64,
    /// Where applied frames are told of, if anybody asks.
    frames: Option<Vec<FrameInfo>>,
}

impl<F: MediaFile> Replay<'_, F> {
    /// Applies frames until there is none where the next one belongs.
    async fn run(&mut self) -> Result<(), StoreError> {
        while self.position + BLOCK <= self.limit {
            let block = self.reader.get(self.position, BLOCK).await?;
            let Some(header) = FrameHeader::parse(&self.identity, block) else { return Ok(()) };
            let follows = header.position == self.position
                && header.sequence == self.sequence
                && header.generation >= self.generation_at(self.position)
                && header.frame_bytes() <= self.limit - self.position;
            if !follows {
                return Ok(());
            }
            let frame = self.reader.get(self.position, header.frame_bytes()).await?;
            let payload = &frame[HEADER_BYTES..][..header.payload_bytes as usize];
            if !header.matches(&self.identity, payload) {
                return Ok(());
            }
            let (arena, dirty) = (&mut *self.arena, &mut self.dirty);
            let applied = apply_payload(header.transactions, payload, |offset, bytes| {
                arena.bytes_mut(HEADER_OFFSET, offset, bytes.len() as u64).ok()?.copy_from_slice(bytes);
                dirty.mark(offset, bytes.len() as u64);
                Some(())
            });
            if applied.is_none() {
                return Err(self.damaged("a frame with a right checksum makes no sense"));
            }
            if let Some(frames) = &mut self.frames {
                frames.push(FrameInfo {
                    position: header.position,
                    sequence: header.sequence,
                    generation: header.generation,
                    transactions: header.transactions,
                    payload_bytes: header.payload_bytes,
                });
            }
            self.position += header.frame_bytes();
            self.sequence += 1;
            self.generation = header.generation;
        }
        Ok(())
    }

    /// The least generation of a frame at `position`. Where the log ended when it was opened, a frame may lie that a crash had
    /// torn: what is written there later could make it whole.
    fn generation_at(&self, position: u64) -> u64 {
        let (end, generation) = self.opened;
        if position >= end { self.generation.max(generation) } else { self.generation }
    }

    /// That no frame begins here that is not whole. A crash leaves one; but where a super-block is damaged that may have vouched for
    /// it, that cannot be told from the loss of what was durable.
    async fn check_remnant(&mut self) -> Result<(), StoreError> {
        if self.position + BLOCK > self.limit {
            return Ok(());
        }
        let generation = self.generation_at(self.position);
        let block = self.reader.get(self.position, BLOCK).await?;
        // One that was whole and left out is none that a super-block vouches for.
        let left_out =
            FrameHeader::parse(&self.identity, block).is_some_and(|header| header.generation < generation);
        if !left_out && FrameHeader::is_remnant(&self.identity, block, self.position, self.sequence) {
            return Err(self
                .damaged("the last frame is not whole, and a super-block is damaged that may vouch for it"));
        }
        Ok(())
    }

    /// Whether the log may end here. A crash damages the newest frame only, because it is the only one on its way; so a
    /// frame beyond, or a promise that the log reaches further, means that media lost something.
    async fn check_end(&mut self, valid_position: u64) -> Result<(), StoreError> {
        if self.position < valid_position {
            return Err(
                self.damaged(&format!("a frame is damaged, and the log was durable up to {valid_position}"))
            );
        }
        let scan = SCAN_BYTES_MIN.max((self.limit - self.position) / 4);
        let end = self.limit.min(self.position + scan);
        let mut position = self.position;
        while position + BLOCK <= end {
            let place = self.reader.log.place(position);
            let block = self.reader.get(position, BLOCK).await?;
            if let Some(header) = FrameHeader::parse(&self.identity, block)
                && self.reader.log.place(header.position) == place
                && header.position > self.position
            {
                let beyond = header.position;
                return Err(self.damaged(&format!("a frame is damaged, and a later one exists at {beyond}")));
            }
            position += BLOCK;
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> StoreError {
        let offset = self.reader.log.place(self.position);
        StoreError::Damaged { file: self.path.clone(), offset, what: what.to_owned() }
    }
}
