//! Verification of a pool: every checksum, and every invariant of `docs/format.md`, part II.
//!
//! A fault does not end the walk: what hangs on the damaged part is left out, everything else is looked at. So one fault in
//! a tree is followed by others that it explains (blocks that nothing refers to, counts that are wrong).

mod arrays;
mod groups;
mod reach;

use std::{fmt, mem::offset_of};

use daos_types::{Checksum, ObjectId, ObjectType};
use daos_umem::Heap;
use daos_xstream::Env;
use uuid::Uuid;

use crate::{
    BlockRef, Error, Pool,
    error::from_heap,
    memory,
    records::{
        AGED, Boundary, ContainerRecord, Containers, Counts, DETACHED, DkeyExtension, KEY_RECORD_BYTES,
        KeyRecord, Keys, Kind, ObjectRecord, Objects, PUNCHED, PendingDiscard, PoolRoot, PunchRecord,
        Punches, REBUILD, STORED, VERSION_BYTES, Version, Versions, key_of, object_id,
    },
    tree, versions,
};
use groups::{Entries, Named};
use reach::{Blocks, Tier};

/// Faults that a report names one by one.
const FAULTS_NAMED: usize = 100;

/// What a verification looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Containers, those that are being destroyed included.
    pub containers: u64,
    /// Objects.
    pub objects: u64,
    /// Keys of KVs, dkeys and akeys.
    pub keys: u64,
    /// Versions of single values.
    pub versions: u64,
    /// Extents.
    pub extents: u64,
    /// Punches of objects and dkeys.
    pub punches: u64,
    /// Groups of changes that were not aggregated, and the entries in them.
    pub groups: u64,
    /// Entries of groups.
    pub entries: u64,
    /// Blocks of the arena in use.
    pub arena_blocks: u64,
    /// Bytes in the arena that were compared with checksums.
    pub arena_bytes_verified: u64,
    /// Bytes of the block tier that were compared with checksums.
    pub tier_bytes_verified: u64,
    /// What is wrong, and where; the first hundred faults.
    pub faults: Vec<Fault>,
    /// Faults beyond those.
    pub more_faults: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    fn fault(&mut self, place: String, what: String) {
        if self.faults.len() < FAULTS_NAMED {
            self.faults.push(Fault { place, what });
        } else {
            self.more_faults += 1;
        }
    }
}

/// Something that is not as the format says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Container, object, keys, as far as the walk had come.
    pub place: String,
    /// What is wrong, with the offset in the arena or the position on the block tier.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Where the walk is, to be put into words when something is wrong there.
#[derive(Clone, Copy, Debug, Default)]
struct Here {
    container: Option<Uuid>,
    object: Option<ObjectId>,
    dkey: u64,
    akey: u64,
}

impl Here {
    fn words(&self, heap: &Heap) -> String {
        let mut words = String::from("pool");
        if let Some(container) = self.container {
            words = format!("container {container}");
        }
        if let Some(object) = self.object {
            words += &format!(" object {object}");
        }
        for (name, key) in [("key", self.dkey), ("akey", self.akey)] {
            if key != 0 {
                match key_of(heap, key) {
                    Ok(bytes) => words += &format!(" {name} \"{}\"", bytes.escape_ascii()),
                    Err(_) => words += &format!(" {name} at {key:#x}"),
                }
            }
        }
        words
    }
}

/// Bytes of the block tier that a record names.
struct Stored {
    here: Here,
    position: u64,
    chunks: Vec<(u32, Checksum)>,
}

/// The walk over a heap.
struct Checker<'h> {
    heap: &'h Heap,
    seed: u64,
    blocks: Blocks,
    tier: Option<Tier>,
    report: VerifyReport,
    here: Here,
    /// Everything that the groups of this container name.
    entries: Entries,
    counts: Counts,
    stored: Vec<Stored>,
    /// The container is being destroyed: its groups are gone or going.
    destroying: bool,
}

impl<'h> Checker<'h> {
    fn fault(&mut self, what: String) {
        let place = self.here.words(self.heap);
        self.report.fault(place, what);
    }

    fn corrupt(&mut self, what: &str, offset: u64) {
        self.fault(format!("{what} at {offset:#x}"));
    }

    /// Notes the fault that `result` is, if it is one; gives the value otherwise.
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(error.to_string());
                None
            }
        }
    }

    /// A block of the arena with at least `bytes` bytes that only one record refers to. Says whether it is sound.
    fn reach(&mut self, offset: u64, bytes: u64) -> bool {
        match self.blocks.reach(self.heap, offset, bytes) {
            Ok(()) => true,
            Err(what) => {
                self.fault(what);
                false
            }
        }
    }

    /// Walks a tree; its records are given to `visit` if they can be read.
    fn tree<C: tree::KeyClass>(
        &mut self,
        class: C,
        root: u64,
        mut visit: impl FnMut(&mut Self, u64) -> Result<(), Error>,
    ) {
        let heap = self.heap;
        let mut nodes = Vec::new();
        let mut records = Vec::new();
        let checked = tree::check(
            heap,
            class,
            root,
            &mut |node, bytes| {
                nodes.push((node, bytes));
                Ok(())
            },
            &mut |record| {
                records.push(record);
                Ok(())
            },
        );
        self.note(checked);
        for (node, bytes) in nodes {
            self.reach(node, bytes);
        }
        for record in records {
            let visited = visit(self, record);
            self.note(visited);
        }
    }

    fn read<T: daos_umem::Durable>(&self, offset: u64) -> Result<&'h T, Error> {
        memory::read(self.heap, offset)
    }

    fn pool(&mut self, root_place: u64) -> Result<(), Error> {
        let root: &PoolRoot = self.read(root_place)?;
        self.reach(root_place, size_of::<PoolRoot>() as u64);
        let mut containers = 0;
        self.tree(Containers, root.containers, |checker, place| {
            containers += 1;
            checker.container(place)
        });
        if containers != root.container_count {
            self.here = Here::default();
            self.fault(format!("{containers} containers, the root says {}", root.container_count));
        }
        Ok(())
    }

    fn container(&mut self, place: u64) -> Result<(), Error> {
        let record: &ContainerRecord = self.read(place)?;
        self.report.containers += 1;
        self.here = Here { container: Some(Uuid::from_bytes(record.uuid)), ..Here::default() };
        self.reach(place, size_of::<ContainerRecord>() as u64);
        self.counts = Counts::default();
        self.destroying = record.destroying != 0;
        self.entries = Entries::default();
        self.groups(record.by_epoch, record.by_cookie);
        self.list(record.discards, size_of::<PendingDiscard>(), offset_of!(PendingDiscard, next));
        self.list(record.boundaries, size_of::<Boundary>(), offset_of!(Boundary, next));
        let here = self.here;
        self.tree(Objects, record.objects, |checker, object| {
            checker.here = here;
            checker.object(object)
        });
        self.here = here;
        self.settle_entries();
        if self.counts != record.counts && !self.destroying {
            let (found, recorded) = (self.counts, record.counts);
            self.fault(format!("holds {found:?}, its record says {recorded:?}"));
        }
        Ok(())
    }

    fn list(&mut self, mut at: u64, bytes: usize, next: usize) {
        while at != 0 && self.reach(at, bytes as u64) {
            match self.read::<u64>(at + next as u64) {
                Ok(&next) => at = next,
                Err(error) => return self.fault(error.to_string()),
            }
        }
    }

    fn object(&mut self, place: u64) -> Result<(), Error> {
        let record: &'h ObjectRecord = self.read(place)?;
        let id = object_id(record, place)?;
        self.here.object = Some(id);
        self.report.objects += 1;
        self.counts.objects += 1;
        self.reach(place, size_of::<ObjectRecord>() as u64);
        self.entries.records.push(place);
        if record.metadata != 0 {
            if record.metadata_bytes > 64 {
                self.corrupt("metadata of more than 64 bytes", record.metadata);
            }
            self.reach(record.metadata, record.metadata_bytes);
        }
        if record.root == 0 && record.punches == 0 && !self.destroying {
            self.corrupt("object without a record", place);
        }
        self.punches(record.punches, Named::Object(place), record.newest);
        if id.object_type() == ObjectType::Array {
            return self.array(place, record.root, Named::ObjectExtent(place, 0), record.newest);
        }
        let class = Keys { order: id.dkey_order(), seed: self.seed };
        self.tree(class, record.root, |checker, key| {
            checker.here.dkey = key;
            checker.here.akey = 0;
            checker.dkey(key, place, id, record.newest)
        });
        (self.here.dkey, self.here.akey) = (0, 0);
        Ok(())
    }

    fn punches(&mut self, root: u64, named: Named, newest: u64) {
        self.tree(Punches, root, |checker, place| {
            let punch: &PunchRecord = checker.read(place)?;
            checker.report.punches += 1;
            checker.counts.records += 1;
            checker.reach(place, size_of::<PunchRecord>() as u64);
            checker.stamp(place, (punch.epoch, newest), punch.flags, REBUILD | AGED);
            if punch.flags & AGED == 0 {
                checker.entries.expect(named, punch.epoch, punch.cookie);
            }
            Ok(())
        });
    }

    /// Checks what all records have: an epoch and flags.
    fn stamp(&mut self, place: u64, (epoch, newest): (u64, u64), flags: u32, known: u32) {
        if epoch == 0 || epoch == u64::MAX || epoch > newest {
            self.fault(format!("epoch {epoch} at {place:#x}, the newest is to be {newest}"));
        }
        if flags & !known != 0 {
            self.fault(format!("unknown flags {flags:#x} at {place:#x}"));
        }
    }

    /// A key of a KV, or a dkey.
    fn dkey(&mut self, place: u64, object: u64, id: ObjectId, newest: u64) -> Result<(), Error> {
        let record: &'h KeyRecord = self.read(place)?;
        let wanted = if id.object_type() == ObjectType::KeyValue { Kind::Key } else { Kind::Dkey };
        self.key(place, record, object, None, record.kind() == wanted);
        if wanted == Kind::Key {
            return self.versions(place, record, newest);
        }
        let mut akeys = record.root;
        if record.extended() {
            let extension: &DkeyExtension = self.read(record.root)?;
            self.reach(record.root, size_of::<DkeyExtension>() as u64);
            akeys = extension.akeys;
            self.punches(extension.punches, Named::Dkey(place), newest);
            if extension.akeys == 0 && extension.punches == 0 && !self.destroying {
                self.corrupt("dkey without a record", place);
            }
        }
        let class = Keys { order: id.akey_order(), seed: self.seed };
        self.tree(class, akeys, |checker, akey| {
            checker.here.akey = akey;
            let record: &'h KeyRecord = checker.read(akey)?;
            let kind = record.kind();
            checker.key(akey, record, place, Some(place), matches!(kind, Kind::Single | Kind::Array));
            match kind {
                Kind::Array => checker.array(akey, record.root, Named::AkeyExtent(akey, 0), newest),
                _ => checker.versions(akey, record, newest),
            }
        });
        self.here.akey = 0;
        Ok(())
    }

    /// Checks a key record; `owner` is the key in whose nest it may lie.
    fn key(&mut self, place: u64, record: &KeyRecord, parent: u64, owner: Option<u64>, right_kind: bool) {
        self.report.keys += 1;
        self.entries.records.push(place);
        let bytes = KEY_RECORD_BYTES + record.key_bytes().next_multiple_of(8) + record.nest_bytes();
        self.reach_below(place, bytes, owner);
        if record.parent != parent || !right_kind {
            self.corrupt("key that belongs elsewhere", place);
        }
        if record.root == 0 && !self.destroying {
            self.corrupt("key without a record", place);
        }
        if let Some(key) = self.note(key_of(self.heap, place)) {
            self.report.arena_bytes_verified += key.len() as u64;
            if crc32c::crc32c(key) != record.checksum {
                self.corrupt("checksum mismatch in key", place);
            }
        }
    }

    /// A record below a key: in its nest, or a block of its own.
    fn reach_below(&mut self, place: u64, bytes: u64, owner: Option<u64>) {
        if let Some(owner) = owner
            && let Some(key) = self.note(self.read::<KeyRecord>(owner))
            && key.nested()
            && key.nest(owner) == place
        {
            if bytes > key.nest_bytes() {
                self.corrupt("record larger than the nest it is in", place);
            }
            return;
        }
        self.reach(place, bytes);
    }

    fn versions(&mut self, key: u64, record: &KeyRecord, newest: u64) -> Result<(), Error> {
        if record.extended() {
            self.corrupt("key with versions and an extension", key);
            return Ok(());
        }
        self.tree(Versions, record.root, |checker, place| {
            let version: &'h Version = checker.read(place)?;
            checker.report.versions += 1;
            checker.counts.records += 1;
            checker.counts.data_bytes += u64::from(version.length);
            checker.reach_below(place, versions::bytes_of(version), Some(key));
            let known = PUNCHED | STORED | REBUILD | AGED | DETACHED;
            checker.stamp(place, (version.epoch, newest), version.flags, known);
            if version.flags & AGED == 0 {
                checker.entries.expect(Named::Single(key), version.epoch, version.cookie);
            }
            let length = u64::from(version.length);
            match version.flags & (PUNCHED | STORED | DETACHED) {
                PUNCHED if length == 0 => {}
                0 | DETACHED => {
                    if version.flags & DETACHED != 0 {
                        checker.reach(*checker.read(place + VERSION_BYTES)?, length);
                    }
                    let bytes = versions::inline_bytes(checker.heap, place)?;
                    checker.report.arena_bytes_verified += length;
                    if crc32c::crc32c(bytes) != version.checksum {
                        checker.corrupt("checksum mismatch in value", place);
                    }
                }
                STORED if length > 0 => {
                    let position = versions::stored_position(checker.heap, place)?;
                    checker.stored(position, vec![(version.length, Checksum(version.checksum))]);
                }
                _ => checker.corrupt("version that is of no kind", place),
            }
            Ok(())
        });
        Ok(())
    }

    /// Bytes of the block tier that a record names.
    fn stored(&mut self, position: u64, chunks: Vec<(u32, Checksum)>) {
        let length = chunks.iter().map(|&(length, _)| u64::from(length)).sum();
        let reached = match &mut self.tier {
            None => Err("a record names blocks, and there is no block tier".to_owned()),
            Some(tier) => tier.reach(position, length),
        };
        match reached {
            Ok(()) => self.stored.push(Stored { here: self.here, position, chunks }),
            Err(what) => self.fault(what),
        }
    }
}

impl<E: Env> Pool<E> {
    /// Verifies everything: checksums of keys, values and extents in the arena and on the block tier, and the invariants of
    /// all structures. The arena is walked in one piece, while nothing else can run on this thread; the block tier is read
    /// afterwards. Changes nothing. An error means that the walk could not even begin, or that media failed.
    pub async fn verify(&self) -> Result<VerifyReport, Error> {
        let (mut report, stored, places) = {
            let heap = self.0.store.heap();
            let space = self.0.blocks.as_ref().map(|blocks| blocks.space.borrow());
            let mut checker = Checker {
                heap: &heap,
                seed: self.0.seed,
                blocks: Blocks::new(&heap),
                tier: space.as_ref().map(|space| Tier::new(space.block_count())),
                report: VerifyReport::default(),
                here: Here::default(),
                entries: Entries::default(),
                counts: Counts::default(),
                stored: Vec::new(),
                destroying: false,
            };
            let walked = checker.pool(self.0.root);
            checker.here = Here::default();
            checker.note(walked);
            if let Some(space) = &space {
                for (offset, bytes) in space.parts(&heap).map_err(from_heap)? {
                    checker.reach(offset, bytes);
                }
                let differs = checker.tier.take().map(|tier| tier.compare(&heap, space));
                for what in differs.unwrap_or(Ok(Vec::new()))? {
                    checker.fault(what);
                }
            }
            let (blocks, unreached) = checker.blocks.compare(&heap);
            checker.report.arena_blocks = blocks;
            if let Some(what) = unreached {
                checker.fault(what);
            }
            let words: Vec<String> = checker.stored.iter().map(|stored| stored.here.words(&heap)).collect();
            // The references pin the blocks: what is freed from now on is not handed out before they have been read.
            let refs = checker.stored.drain(..).map(|stored| {
                let length = stored.chunks.iter().map(|&(length, _)| u64::from(length)).sum();
                BlockRef::new((&self.0.pins, heap.sealed()), (stored.position, 0, length), stored.chunks)
            });
            let refs: Vec<BlockRef> = refs.collect();
            (checker.report, refs, words)
        };
        for (place, words) in stored.into_iter().zip(places) {
            match self.load(&place).await {
                Ok(_) => report.tier_bytes_verified += place.len(),
                Err(error @ (Error::BadChecksum { .. } | Error::Corrupt { .. })) => {
                    report.fault(words, error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }
}
