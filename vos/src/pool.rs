//! A vpool: one target's share of a pool.

use std::{
    cell::{Cell, RefCell},
    mem::offset_of,
    path::Path,
    rc::Rc,
};

use daos_types::Checksum;
use daos_umem::{
    Heap, Inspection, MediaKind, Off, Persisted, Sealed, Store, StoreOptions, Transaction,
    space::{SpaceMap, SpaceRoot},
};
use daos_xstream::{BLOCK_BYTES, Bug, Env, IoBuffer, Media, OpenOptions, Rng, Spawn, open_alone};
use uuid::Uuid;
use zerocopy::IntoBytes;

use crate::{
    BlockRef, Checksums, Container, Error, LogUsage, StoredExtent, Usage,
    blocks::{BlockTier, Pins},
    editor::Cache,
    error::{from_heap, from_media, from_store, not_persisted},
    extents, memory,
    records::{ContainerRecord, Containers, Counts, POOL_MAGIC, POOL_VERSION, POOL_VERSION_OLDEST, PoolRoot},
    slices::{Slices, Waiting},
    tree::{self, Bound, Probe},
};

/// How to make a pool.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Identifies it.
    pub uuid: Uuid,
    /// Where its heap lives.
    pub media: MediaKind,
    /// Bytes of the heap: metadata, small values.
    pub heap_bytes: u64,
    /// Bytes of the write-ahead log. `wal` media only.
    pub log_bytes: u64,
    /// Bytes of the block tier; 0: none.
    pub block_bytes: u64,
}

/// The part of the arena (and the least) that only punches, discards, aggregation and destruction may use: a pool that
/// updates have filled can still be emptied.
const RESERVE_PART: u64 = 64;
const RESERVE_BYTES_MIN: u64 = 128 << 10;

fn blocks_file(directory: &str) -> String {
    format!("{directory}/blocks")
}

/// A vpool. A handle: clones share it.
pub struct Pool<E: Env>(pub(crate) Rc<Inner<E>>);

pub(crate) struct Inner<E: Env> {
    pub env: E,
    pub store: Store<E>,
    pub uuid: Uuid,
    pub seed: u64,
    /// Offset of the [`PoolRoot`].
    pub root: u64,
    pub blocks: Option<BlockTier<E>>,
    pub pins: Rc<Pins>,
    /// Counts containers removed, so that handles of destroyed containers find out.
    pub generation: Cell<u64>,
    /// What changes of all containers remember, whoever's handle they come through.
    pub cache: RefCell<Cache>,
    pub slices: Slices,
}

impl<E: Env> Clone for Pool<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> Pool<E> {
    /// Makes a pool in `directory` of the world's media, and opens it. Durable on return.
    pub async fn create(env: &E, directory: &str, options: PoolOptions) -> Result<Self, Error> {
        let PoolOptions { uuid, media, heap_bytes, log_bytes, block_bytes } = options;
        let block_bytes = block_bytes.next_multiple_of(BLOCK_BYTES as u64);
        if block_bytes > 0 {
            let open = OpenOptions {
                create_new: true,
                size: block_bytes,
                preallocate: false,
                ..OpenOptions::default()
            };
            env.media().open(&blocks_file(directory), open).await.map_err(from_media)?;
        }
        let store = Store::create(env, directory, StoreOptions { uuid, media, heap_bytes, log_bytes })
            .await
            .map_err(from_store)?;
        let sealed = {
            let mut heap = store.heap_mut();
            let mut tx = heap.begin();
            let space = match block_bytes / BLOCK_BYTES as u64 {
                0 => Off::NULL,
                blocks => SpaceMap::create(&mut tx, blocks).map_err(from_heap)?,
            };
            let root = PoolRoot {
                magic: POOL_MAGIC,
                version: POOL_VERSION,
                uuid: *uuid.as_bytes(),
                seed: env.rng().next_u64(),
                containers: 0,
                container_count: 0,
                block_bytes,
                space: space.raw(),
            };
            let place = tx.allocate(&root).map_err(from_heap)?;
            tx.set_root(place).map_err(from_heap)?;
            tx.seal().map_err(from_heap)?
        };
        let _ = store.persisted(sealed).await.map_err(from_store)?;
        Self::from_store(env, directory, store).await
    }

    /// Opens the pool in `directory`, and finishes the discards and destructions that a crash interrupted.
    pub async fn open(env: &E, directory: &str) -> Result<Self, Error> {
        let store = Store::open(env, directory).await.map_err(from_store)?;
        Self::from_store(env, directory, store).await
    }

    /// Reads the pool in `directory` as opening it would find it, and writes nothing to media; for tools. What a crash
    /// interrupted (discards, destructions) is left as it is.
    pub async fn inspect(env: &E, directory: &str) -> Result<(Self, Inspection), Error> {
        let (store, inspection) = Store::inspect(env, directory).await.map_err(from_store)?;
        Ok((Self::attach(env, directory, store, false).await?, inspection))
    }

    /// As [`open`](Self::open), with the heap in `file` on persistent memory. The block tier, if there is one, is in
    /// `directory`.
    pub async fn open_pmem(env: &E, directory: &str, file: &Path) -> Result<Self, Error> {
        let store = Store::open_pmem(env, file).map_err(from_store)?;
        Self::from_store(env, directory, store).await
    }

    /// As [`inspect`](Self::inspect), with the heap in `file` on persistent memory.
    pub async fn inspect_pmem(env: &E, directory: &str, file: &Path) -> Result<(Self, Inspection), Error> {
        let (store, inspection) = Store::inspect_pmem(file).map_err(from_store)?;
        Ok((Self::attach(env, directory, store, false).await?, inspection))
    }

    /// Brings the pool in `directory`, which nobody uses, to the format of this software. Says which version it had before.
    /// Durable on return; a crash before leaves it as it was.
    pub async fn upgrade(env: &E, directory: &str) -> Result<u64, Error> {
        let store = Store::open(env, directory).await.map_err(from_store)?;
        Self::upgrade_in(env, directory, store).await
    }

    /// As [`upgrade`](Self::upgrade), with the heap in `file` on persistent memory.
    pub async fn upgrade_pmem(env: &E, directory: &str, file: &Path) -> Result<u64, Error> {
        let store = Store::open_pmem(env, file).map_err(from_store)?;
        Self::upgrade_in(env, directory, store).await
    }

    async fn upgrade_in(env: &E, directory: &str, store: Store<E>) -> Result<u64, Error> {
        let pool = Self::attach(env, directory, store, true).await?;
        let found = pool.format_version()?;
        if found < POOL_VERSION {
            // What version 1 allows is allowed still, so nothing else is rewritten. Trees stay as wide as they are.
            let place = pool.0.root + offset_of!(PoolRoot, version) as u64;
            // Closing makes it durable.
            let _ = pool.transaction(|tx| memory::write(tx, place, &POOL_VERSION))?;
        }
        pool.close().await?;
        Ok(found)
    }

    /// The version of the format in which the pool is written (that of part II of `docs/format.md`).
    pub fn format_version(&self) -> Result<u64, Error> {
        Ok(memory::read::<PoolRoot>(&self.0.store.heap(), self.0.root)?.version)
    }

    /// The pool in an open store, with what was interrupted finished.
    async fn from_store(env: &E, directory: &str, store: Store<E>) -> Result<Self, Error> {
        let pool = Self::attach(env, directory, store, true).await?;
        let found = pool.format_version()?;
        if found != POOL_VERSION {
            return Err(Error::OldFormat { found, known: POOL_VERSION });
        }
        for (uuid, record) in pool.container_records()? {
            let (discards, destroying) = {
                let heap = pool.0.store.heap();
                let record: &ContainerRecord = memory::read(&heap, record)?;
                (record.discards, record.destroying)
            };
            if destroying != 0 {
                let _ = pool.container_destroy(uuid).await?;
            } else if discards != 0 {
                let _ = pool.container_open(uuid)?.finish_discards().await?;
            }
        }
        Ok(pool)
    }

    /// The pool in an open store; its block file is opened as by the only writer if `alone`.
    async fn attach(env: &E, directory: &str, store: Store<E>, alone: bool) -> Result<Self, Error> {
        let (uuid, seed, root, space) = {
            let heap = store.heap();
            let off: Off<PoolRoot> = heap.root();
            let root: &PoolRoot = memory::read(&heap, off.raw())?;
            if root.magic != POOL_MAGIC {
                return Err(Error::Corrupt { place: "root of the pool", position: off.raw() });
            }
            if !(POOL_VERSION_OLDEST..=POOL_VERSION).contains(&root.version) {
                return Err(Error::UnknownFormat { found: root.version, known: POOL_VERSION });
            }
            let space: Off<SpaceRoot> = Off::new(root.space);
            let space = match root.block_bytes {
                0 => None,
                bytes => Some((bytes, SpaceMap::open(&heap, space).map_err(from_heap)?)),
            };
            (Uuid::from_bytes(root.uuid), root.seed, off.raw(), space)
        };
        let arena_bytes = store.heap().arena_bytes();
        store.heap_mut().set_reserve((arena_bytes / RESERVE_PART).max(RESERVE_BYTES_MIN));
        let blocks = match space {
            None => None,
            Some((bytes, space)) => {
                let path = blocks_file(directory);
                let file = match alone {
                    true => open_alone(env, &path).await,
                    false => env.media().open(&path, OpenOptions::default()).await,
                };
                let file = file.map_err(from_media)?;
                if daos_xstream::MediaFile::size(&file) < bytes {
                    return Err(Error::Corrupt { place: "size of the block file", position: bytes });
                }
                Some(BlockTier::new(file, space))
            }
        };
        Ok(Self(Rc::new(Inner {
            env: env.clone(),
            store,
            uuid,
            seed,
            root,
            blocks,
            pins: Rc::default(),
            generation: Cell::new(0),
            cache: RefCell::default(),
            slices: Slices::new(),
        })))
    }

    /// Writes over bytes of the arena, wherever they are; for fuzzers. False if they are not in it.
    #[cfg(feature = "fuzzing")]
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) -> bool {
        self.transaction(|tx| memory::write_slice(tx, offset, bytes)).is_ok()
    }

    /// The blocks of the arena in use: offset and bytes; for fuzzers.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn arena_blocks(&self) -> Vec<(u64, u64)> {
        let mut blocks = Vec::new();
        self.0.store.heap().for_each_block(&mut |offset, bytes| blocks.push((offset, bytes)));
        blocks
    }

    /// Makes everything durable and ends the pool's tasks.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.store.close().await.map_err(from_store)
    }

    /// Identifies the pool.
    pub fn uuid(&self) -> Uuid {
        self.0.uuid
    }

    /// The world.
    pub fn env(&self) -> &E {
        &self.0.env
    }

    /// Waits until `sealed`, and every change before it, survives any crash.
    pub async fn persisted(&self, sealed: Sealed) -> Result<Persisted, Error> {
        self.0.store.persisted(sealed).await.map_err(not_persisted)
    }

    /// Waits until every change made so far survives any crash.
    pub async fn flush(&self) -> Result<Persisted, Error> {
        let sealed = self.0.store.heap().sealed();
        self.persisted(sealed).await
    }

    /// Waits until the log has room for a change. Await it after [`Error::LogFull`].
    pub async fn log_space(&self) -> Result<(), Error> {
        self.0.store.log_space().await.map_err(from_store)
    }

    /// Writes a single value to the block tier; its checksum is verified first. The bytes are durable on return, and free
    /// again if no update names them. The buffer comes back.
    pub async fn store_value(
        &self,
        buffer: IoBuffer,
        checksum: Checksum,
    ) -> (IoBuffer, Result<StoredExtent, Error>) {
        if buffer.is_empty() || crc32c::crc32c(buffer.as_slice()) != checksum.0 {
            let error = Error::BadChecksum { place: "data to be written", position: 0 };
            return (buffer, Err(error));
        }
        self.store_checked(buffer, (0, 0), Box::new([checksum])).await
    }

    /// Writes an extent that belongs at `offset` of an array to the block tier; its checksums are verified first. Otherwise
    /// as [`store_value`](Self::store_value).
    pub async fn store(
        &self,
        buffer: IoBuffer,
        offset: u64,
        checksums: Checksums<'_>,
    ) -> (IoBuffer, Result<StoredExtent, Error>) {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= crate::ARRAY_BYTES_MAX);
        let Some(end) = end.filter(|&end| end > offset) else {
            return (buffer, Err(Error::Invalid("an extent is empty or reaches beyond 2^63")));
        };
        if let Err(error) = extents::check_inline(&(offset..end), &checksums, Some(buffer.as_slice())) {
            return (buffer, Err(error));
        }
        let chunk = (checksums.chunk_bytes, offset % u64::from(checksums.chunk_bytes));
        self.store_checked(buffer, chunk, checksums.chunks.into()).await
    }

    async fn store_checked(
        &self,
        buffer: IoBuffer,
        chunk: (u32, u64),
        checksums: Box<[Checksum]>,
    ) -> (IoBuffer, Result<StoredExtent, Error>) {
        let Some(blocks) = &self.0.blocks else {
            return (buffer, Err(Error::Invalid("the pool has no block tier")));
        };
        let bytes = buffer.len() as u64;
        blocks.reclaim(&self.0.store, &self.0.pins);
        let mut reservation = blocks.reserve(bytes);
        if reservation.is_none() && blocks.space.borrow().settling_blocks() > 0 {
            if let Err(error) = self.flush().await {
                return (buffer, Err(error));
            }
            blocks.reclaim(&self.0.store, &self.0.pins);
            reservation = blocks.reserve(bytes);
        }
        match reservation {
            Some(reservation) => {
                let (buffer, stored) = blocks.write(reservation, buffer, chunk, checksums).await;
                if blocks.has_failed() {
                    // A flush may have covered data of others whose own flush then reports success.
                    self.0.store.fail("the block tier failed");
                }
                (buffer, stored)
            }
            None => (buffer, Err(Error::NoSpace("block tier"))),
        }
    }

    /// Loads bytes from the block tier and verifies their checksums.
    pub async fn load(&self, place: &BlockRef) -> Result<IoBuffer, Error> {
        match &self.0.blocks {
            Some(blocks) => place.load(blocks, !self.0.env.planted(Bug::SkippedChecksum)).await,
            None => Err(Error::Invalid("the pool has no block tier")),
        }
    }

    /// Compares bytes on the block tier with their checksums, some at a time.
    pub(crate) async fn verify_stored(&self, place: &BlockRef) -> Result<(), Error> {
        match &self.0.blocks {
            Some(blocks) => place.verify(blocks).await,
            None => Err(Error::Invalid("the pool has no block tier")),
        }
    }

    /// Makes a container. [`Error::Exists`] if there is one with this UUID.
    pub fn container_create(&self, uuid: Uuid) -> Result<Sealed, Error> {
        let probe = Probe::number(uuid.as_u128());
        let root_place = self.containers_place();
        self.transaction(|tx| {
            if tree::get(tx.heap(), Containers, *memory::read(tx.heap(), root_place)?, &probe)?.is_some() {
                return Err(Error::Exists("container"));
            }
            let record = ContainerRecord {
                uuid: *uuid.as_bytes(),
                objects: 0,
                by_epoch: 0,
                by_cookie: 0,
                discards: 0,
                counts: Counts::default(),
                destroying: 0,
                boundaries: 0,
            };
            let place = memory::allocate_with(tx, &[record.as_bytes()])?;
            tree::insert(tx, Containers, root_place, &probe, place)?;
            self.count_containers(tx, 1)
        })
        .map(|((), sealed)| sealed)
    }

    /// Opens a container.
    pub fn container_open(&self, uuid: Uuid) -> Result<Container<E>, Error> {
        let heap = self.0.store.heap();
        let record = self.find_container(&heap, uuid)?.ok_or(Error::NotFound("container"))?;
        if memory::read::<ContainerRecord>(&heap, record)?.destroying != 0 {
            return Err(Error::NotFound("container"));
        }
        drop(heap);
        Ok(Container::new(self.clone(), uuid, record))
    }

    /// Destroys a container with all it holds, in slices. What is not there is no error. Once this has begun (its first
    /// slice is durable) the container is gone; a crash does not bring it back.
    pub async fn container_destroy(&self, uuid: Uuid) -> Result<Sealed, Error> {
        let Some(record) = self.find_container(&self.0.store.heap(), uuid)? else {
            return Ok(self.0.store.heap().sealed());
        };
        let ((), sealed) = self.transaction(|tx| {
            memory::write(tx, record + offset_of!(ContainerRecord, destroying) as u64, &1u64)
        })?;
        self.0.generation.set(self.0.generation.get() + 1);
        let _ = self.persisted(sealed).await?;
        // Somebody else may destroy it too, and be done at any moment; its record is another's then.
        let is_there = || self.is_being_destroyed(uuid, record);
        Container::new(self.clone(), uuid, record).empty(is_there).await?;
        if !is_there()? {
            return Ok(self.0.store.heap().sealed());
        }
        self.0.cache.borrow_mut().group = None;
        let root_place = self.containers_place();
        let ((), sealed) = self.transaction(|tx| {
            let _ = tree::remove(tx, Containers, root_place, &Probe::number(uuid.as_u128()))?;
            memory::free(tx, record)?;
            self.count_containers(tx, -1)
        })?;
        Ok(sealed)
    }

    /// Whether `record` still is the container's, and marked to be destroyed.
    fn is_being_destroyed(&self, uuid: Uuid, record: u64) -> Result<bool, Error> {
        let heap = self.0.store.heap();
        if self.find_container(&heap, uuid)? != Some(record) {
            return Ok(false);
        }
        Ok(memory::read::<ContainerRecord>(&heap, record)?.destroying != 0)
    }

    /// The UUIDs of all containers, in order.
    pub fn containers(&self) -> Result<Vec<Uuid>, Error> {
        let heap = self.0.store.heap();
        let mut found = Vec::new();
        for (uuid, record) in self.container_records()? {
            if memory::read::<ContainerRecord>(&heap, record)?.destroying == 0 {
                found.push(uuid);
            }
        }
        Ok(found)
    }

    /// How the pool's space is used.
    pub fn usage(&self) -> Result<Usage, Error> {
        let heap = self.0.store.heap();
        let (used, free) = heap.used_and_free();
        let root: &PoolRoot = memory::read(&heap, self.0.root)?;
        Ok(Usage {
            arena_bytes: used + free,
            arena_bytes_free: free,
            block_bytes: root.block_bytes,
            block_bytes_free: match &self.0.blocks {
                None => 0,
                Some(blocks) => {
                    let used = blocks.space.borrow().used_blocks(&heap).map_err(from_heap)?;
                    root.block_bytes.saturating_sub(used.saturating_mul(BLOCK_BYTES as u64))
                }
            },
            containers: root.container_count,
        })
    }

    /// How the pool's log is used, and what it has done since the pool was opened.
    pub fn log_usage(&self) -> LogUsage {
        let (bytes_used, bytes, _) = self.0.store.log_usage();
        let counters = self.0.store.counters();
        LogUsage {
            bytes,
            bytes_used,
            commits: counters.log_writes,
            bytes_written: counters.log_bytes,
            checkpoints: counters.checkpoints,
        }
    }

    /// Makes slices of long work (discards, aggregations, destructions) deal with at most so many changes: at least one, and
    /// no more than they do by themselves. For simulators, whose histories are short.
    pub fn set_slice_changes(&self, changes: usize) {
        self.0.slices.set_changes(changes);
    }

    /// Long work that waits between two slices now, and how often any has so far.
    pub fn slices_waiting(&self) -> (u64, u64) {
        self.0.slices.waiting()
    }

    pub(crate) fn containers_place(&self) -> u64 {
        self.0.root + offset_of!(PoolRoot, containers) as u64
    }

    pub(crate) fn find_container(&self, heap: &Heap, uuid: Uuid) -> Result<Option<u64>, Error> {
        let root: u64 = *memory::read(heap, self.containers_place())?;
        tree::get(heap, Containers, root, &Probe::number(uuid.as_u128()))
    }

    pub(crate) fn container_records(&self) -> Result<Vec<(Uuid, u64)>, Error> {
        let heap = self.0.store.heap();
        let root: u64 = *memory::read(&heap, self.containers_place())?;
        let mut found = Vec::new();
        let _ = tree::scan(&heap, Containers, root, Bound::First, &mut |record| {
            let uuid = memory::read::<ContainerRecord>(&heap, record)?.uuid;
            found.push((Uuid::from_bytes(uuid), record));
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn count_containers(&self, tx: &mut Transaction<'_>, change: i64) -> Result<(), Error> {
        let place = self.0.root + offset_of!(PoolRoot, container_count) as u64;
        let count: u64 = *memory::read(tx.heap(), place)?;
        memory::write(tx, place, &count.wrapping_add_signed(change))
    }

    /// One transaction of the heap: undone if `change` fails.
    pub(crate) fn transaction<R>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<R, Error>,
    ) -> Result<(R, Sealed), Error> {
        let mut heap = self.0.store.heap_mut();
        let mut tx = heap.begin();
        tx.use_reserve();
        let result = change(&mut tx)?;
        Ok((result, tx.seal().map_err(from_heap)?))
    }

    /// Lets others run if this task has had its slice, and waits for room in the log. Between two slices of long work.
    pub(crate) async fn between_slices(&self) -> Result<(), Error> {
        let _waiting = Waiting::begin(&self.0.slices);
        if self.0.env.scheduler().should_yield() {
            self.0.env.scheduler().yield_now().await;
        }
        self.log_space().await
    }
}
