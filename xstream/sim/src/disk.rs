//! What a disk holds: for every file the image that reads see, the image that is durable, and, sector by sector, the
//! writes between the two.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
};

use daos_xstream::BLOCK_BYTES;

use crate::{
    node::Loss,
    random::Random,
    world::{Happening, World},
};

/// What a disk writes in one piece.
pub(crate) const SECTOR_BYTES: usize = 512;
const SECTORS_PER_BLOCK: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

type Block = Box<[u8; BLOCK_BYTES]>;
type Image = BTreeMap<u64, Block>;

/// A write of one sector that is not durable.
struct Version {
    write: u64,
    /// Its place in the order of completion; `None` while it is under way.
    done: Option<u64>,
    /// All bytes of the write, and where this sector's begin.
    data: Rc<[u8]>,
    at: usize,
}

impl Version {
    fn bytes(&self) -> &[u8] {
        &self.data[self.at..self.at + SECTOR_BYTES]
    }
}

#[derive(Default)]
pub(crate) struct FileImage {
    pub size: u64,
    preallocated: bool,
    /// What reads see. Blocks never written are absent and read as zeros.
    live: Image,
    /// What is left of it if the power goes now and everything else is lost.
    durable: Image,
    /// By sector, oldest first; what is under way comes last.
    pending: BTreeMap<u64, Vec<Version>>,
    unreadable: BTreeSet<u64>,
}

fn put(image: &mut Image, sector: u64, bytes: &[u8]) {
    let block = image.entry(sector / SECTORS_PER_BLOCK).or_insert_with(|| Box::new([0; BLOCK_BYTES]));
    let at = (sector % SECTORS_PER_BLOCK) as usize * SECTOR_BYTES;
    block[at..at + SECTOR_BYTES].copy_from_slice(bytes);
}

fn sector_of(image: &Image, sector: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    if let Some(block) = image.get(&(sector / SECTORS_PER_BLOCK)) {
        let at = (sector % SECTORS_PER_BLOCK) as usize * SECTOR_BYTES;
        bytes.copy_from_slice(&block[at..at + SECTOR_BYTES]);
    }
    bytes
}

fn sectors(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let first = offset / SECTOR_BYTES as u64;
    (0..length / SECTOR_BYTES).map(move |index| (first + index as u64, index * SECTOR_BYTES))
}

impl FileImage {
    pub fn new(size: u64, preallocated: bool) -> Self {
        Self { size, preallocated, ..Self::default() }
    }

    /// Bytes of the disk that it takes.
    fn footprint(&self) -> u64 {
        if self.preallocated { self.size } else { (self.live.len() * BLOCK_BYTES) as u64 }
    }

    /// Bytes that a write would add to that.
    fn growth(&self, offset: u64, length: usize) -> u64 {
        if self.preallocated {
            return 0;
        }
        let blocks = offset / BLOCK_BYTES as u64..(offset + length as u64) / BLOCK_BYTES as u64;
        blocks.filter(|block| !self.live.contains_key(block)).count() as u64 * BLOCK_BYTES as u64
    }

    /// Fills `bytes`; false if a sector cannot be read.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8], decay: &Random, loss_ppm: u32) -> bool {
        for (index, chunk) in bytes.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            match self.live.get(&(offset / BLOCK_BYTES as u64 + index as u64)) {
                Some(block) => chunk.copy_from_slice(&block[..]),
                None => chunk.fill(0),
            }
        }
        if loss_ppm > 0 {
            let lost = sectors(offset, bytes.len()).filter(|_| decay.chance(loss_ppm));
            self.unreadable.extend(lost.map(|(sector, _)| sector));
        }
        let first = offset / SECTOR_BYTES as u64;
        self.unreadable.range(first..first + (bytes.len() / SECTOR_BYTES) as u64).next().is_none()
    }

    pub fn begin_write(&mut self, write: u64, offset: u64, data: &Rc<[u8]>) {
        for (sector, at) in sectors(offset, data.len()) {
            let version = Version { write, done: None, data: data.clone(), at };
            self.pending.entry(sector).or_default().push(version);
        }
    }

    /// A write completes: reads see it, and if it is durable, it survives.
    pub fn finish_write(&mut self, write: u64, order: u64, offset: u64, data: &[u8], durable: bool) {
        for (sector, at) in sectors(offset, data.len()) {
            let bytes = &data[at..at + SECTOR_BYTES];
            put(&mut self.live, sector, bytes);
            self.unreadable.remove(&sector);
            let Some(versions) = self.pending.get_mut(&sector) else { continue };
            let Some(place) = versions.iter().position(|version| version.write == write) else { continue };
            let mut version = versions.remove(place);
            if durable {
                put(&mut self.durable, sector, bytes);
                // What completed earlier is below this one now, and can never come back.
                versions.retain(|version| version.done.is_none());
            } else {
                version.done = Some(order);
                let under_way = versions.iter().position(|version| version.done.is_none());
                versions.insert(under_way.unwrap_or(versions.len()), version);
            }
            if versions.is_empty() {
                self.pending.remove(&sector);
            }
        }
    }

    /// Makes everything durable that had completed by `order`.
    pub fn flush(&mut self, order: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|sector, versions| {
            let covered = |version: &Version| version.done.is_some_and(|done| done <= order);
            if let Some(newest) = versions.iter().rev().find(|version| covered(version)) {
                put(durable, *sector, newest.bytes());
            }
            versions.retain(|version| !covered(version));
            !versions.is_empty()
        });
    }

    pub fn discard(&mut self, offset: u64, length: u64, fill: u8) {
        let content = vec![fill; SECTOR_BYTES];
        for (sector, _) in sectors(offset, length as usize) {
            self.pending.remove(&sector);
            put(&mut self.live, sector, &content);
            put(&mut self.durable, sector, &content);
        }
    }

    /// The power goes: every sector becomes one of the things that it may be.
    fn lose_power(&mut self, decay: &Random) {
        let mood = decay.below(4);
        for (sector, versions) in std::mem::take(&mut self.pending) {
            let chosen = match mood {
                0 => None,
                1 => versions.last(),
                _ => versions.get(decay.below(versions.len() as u64 + 1) as usize),
            };
            if let Some(version) = chosen {
                put(&mut self.durable, sector, version.bytes());
            }
            let settled = sector_of(&self.durable, sector);
            put(&mut self.live, sector, &settled);
        }
    }

    /// The process dies: what is under way is done or not, sector by sector; the rest is as it was.
    fn lose_process(&mut self, decay: &Random, order: u64) {
        let live = &mut self.live;
        self.pending.retain(|sector, versions| {
            versions.retain_mut(|version| {
                if version.done.is_none() {
                    if decay.below(2) == 0 {
                        return false;
                    }
                    version.done = Some(order);
                    put(live, *sector, version.bytes());
                }
                true
            });
            !versions.is_empty()
        });
    }

    /// Changes what is stored in one sector, whatever it was.
    fn damage(&mut self, sector: u64, change: impl FnOnce(&mut [u8])) {
        let mut bytes = sector_of(&self.live, sector);
        change(&mut bytes);
        // What is under way will be written all the same.
        if let Some(versions) = self.pending.get_mut(&sector) {
            versions.retain(|version| version.done.is_none());
        }
        self.pending.retain(|_, versions| !versions.is_empty());
        put(&mut self.live, sector, &bytes);
        put(&mut self.durable, sector, &bytes);
    }
}

/// A disk and its name space.
pub(crate) struct DiskState {
    pub files: RefCell<BTreeMap<u64, FileImage>>,
    pub names: RefCell<BTreeMap<String, u64>>,
    pub capacity: Cell<u64>,
    pub failed: Cell<bool>,
    /// How many of a million accesses fail.
    pub failure_ppm: Cell<u32>,
    /// Flushes and durable writes are acknowledged and not made durable.
    pub lies: Cell<bool>,
    /// Counts the lives of the node, so that what an earlier life has begun does not end in this one.
    pub life: Cell<u64>,
    /// Files that are open alone: since which life, and what lives for as long.
    pub claims: RefCell<BTreeMap<u64, (u64, Weak<()>)>>,
    /// Counts writes completed.
    pub order: Cell<u64>,
}

impl Default for DiskState {
    fn default() -> Self {
        Self {
            files: RefCell::default(),
            names: RefCell::default(),
            capacity: Cell::new(u64::MAX),
            failed: Cell::new(false),
            failure_ppm: Cell::new(0),
            lies: Cell::new(false),
            life: Cell::new(0),
            claims: RefCell::default(),
            order: Cell::new(0),
        }
    }
}

impl DiskState {
    /// Bytes that all files take.
    pub fn used(&self) -> u64 {
        self.files.borrow().values().map(FileImage::footprint).sum()
    }

    /// Whether `more` bytes fit.
    pub fn has_room(&self, more: u64) -> bool {
        self.used().saturating_add(more) <= self.capacity.get()
    }

    /// Whether a write finds room, or needs none.
    pub fn has_room_for_write(&self, file: u64, offset: u64, length: usize) -> bool {
        let growth = self.files.borrow().get(&file).map_or(0, |file| file.growth(offset, length));
        growth == 0 || self.has_room(growth)
    }

    pub fn crash(&self, world: &World, loss: Loss) {
        self.life.set(self.life.get() + 1);
        let order = self.order.get() + 1;
        self.order.set(order);
        let names = self.names.borrow();
        let named: BTreeSet<u64> = names.values().copied().collect();
        let mut files = self.files.borrow_mut();
        // A removed file lives on while it is open, and no longer.
        files.retain(|file, _| named.contains(file));
        for (number, file) in files.iter_mut() {
            world.record(Happening::Fault, 100, *number);
            match loss {
                Loss::Power => file.lose_power(&world.decay),
                Loss::Process => file.lose_process(&world.decay, order),
            }
        }
    }

    pub fn break_sector(&self, path: &str, offset: u64) -> bool {
        self.with(path, |file| {
            let exists = offset < file.size;
            if exists {
                file.unreadable.insert(offset / SECTOR_BYTES as u64);
            }
            exists
        })
    }

    pub fn flip_bit(&self, path: &str, bit: u64) -> bool {
        self.with(path, |file| {
            let byte = bit / 8;
            let exists = byte < file.size;
            if exists {
                let at = (byte % SECTOR_BYTES as u64) as usize;
                file.damage(byte / SECTOR_BYTES as u64, |bytes| bytes[at] ^= 1 << (bit % 8));
            }
            exists
        })
    }

    /// A byte of the first 1/`part` of the blocks of a file that were ever written.
    pub fn written_byte(&self, path: &str, part: u64, choose: impl Fn(u64) -> u64) -> Option<u64> {
        let number = self.names.borrow().get(path).copied()?;
        let files = self.files.borrow();
        let blocks = &files.get(&number)?.live;
        let count = blocks.len() as u64 / part;
        if count == 0 {
            return None;
        }
        let block = *blocks.keys().nth(choose(count) as usize)?;
        Some(block * BLOCK_BYTES as u64 + choose(BLOCK_BYTES as u64))
    }

    /// A digest of what reads of a file see.
    pub fn digest(&self, path: &str) -> Option<u32> {
        let number = self.names.borrow().get(path).copied()?;
        let files = self.files.borrow();
        let live = &files.get(&number)?.live;
        Some(live.iter().fold(0, |digest, (block, bytes)| {
            crc32c::crc32c_append(crc32c::crc32c_append(digest, &block.to_le_bytes()), &bytes[..])
        }))
    }

    pub fn list_files(&self) -> Vec<(String, u64)> {
        let files = self.files.borrow();
        self.names.borrow().iter().map(|(name, number)| (name.clone(), files[number].size)).collect()
    }

    fn with(&self, path: &str, work: impl FnOnce(&mut FileImage) -> bool) -> bool {
        let number = self.names.borrow().get(path).copied();
        number.is_some_and(|number| self.files.borrow_mut().get_mut(&number).is_some_and(work))
    }
}
