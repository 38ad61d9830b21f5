//! The pmem media over a model of persistent memory: a crash keeps what was fenced, and any subset of the other cache
//! lines, with what they held at any time since.

mod support;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use daos_umem::{
    Arena, Heap, HeapError, MediaKind, Off, Store, StoreError, StoreOptions,
    pmem::{self, LINE_BYTES, Persistence},
};
use support::{
    Random, World,
    media::TestMedia,
    workload::{change, check, empty},
};

const ARENA_BYTES: usize = 1 << 20;
const LINE: usize = LINE_BYTES as usize;
/// What decides of the numbers of transactions. Real heaps have another one each time that they are opened.
const SECRET: u64 = 0x5eed_5eed_5eed_5eed;

struct Shadow {
    random: Random,
    durable: Vec<u8>,
    /// Lines whose flush has begun, with what they held then.
    flushed: BTreeMap<usize, Vec<u8>>,
    events: u64,
    crash_at: u64,
    /// What a crash at that event leaves.
    crashed: Option<Vec<u8>>,
    /// Given, at every event, its number and what a crash leaves then.
    watcher: Option<Watcher>,
}

type Watcher = Rc<dyn Fn(u64, Vec<u8>)>;

impl Shadow {
    fn event(&mut self, arena: &[u8]) {
        self.events += 1;
        let crash = self.events == self.crash_at;
        // Now and then the processor writes lines back without being asked.
        let early = self.random.below(40) == 0;
        if !crash && !early && self.watcher.is_none() {
            return;
        }
        let image = self.image(arena);
        if let Some(watcher) = &self.watcher {
            watcher(self.events, image.clone());
        }
        if crash {
            self.crashed = Some(image);
        } else if early {
            self.durable = image;
        }
    }

    /// What a crash leaves now.
    fn image(&mut self, arena: &[u8]) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (line, content) in &self.flushed {
            if self.random.below(2) == 0 {
                image[line * LINE..][..LINE].copy_from_slice(content);
            }
        }
        let mode = self.random.below(4);
        for line in 0..arena.len() / LINE {
            let range = line * LINE..(line + 1) * LINE;
            if arena[range.clone()] != image[range.clone()] && (mode == 0 || self.random.below(mode + 1) == 0)
            {
                image[range.clone()].copy_from_slice(&arena[range]);
            }
        }
        image
    }
}

#[derive(Clone)]
struct ShadowPmem(Rc<RefCell<Shadow>>);

impl Persistence for ShadowPmem {
    fn flush(&mut self, arena: &[u8], offset: u64, length: u64) {
        let mut shadow = self.0.borrow_mut();
        shadow.event(arena);
        let lines = offset as usize / LINE..(offset + length).div_ceil(LINE_BYTES) as usize;
        for line in lines {
            shadow.flushed.insert(line, arena[line * LINE..][..LINE].to_vec());
        }
    }

    fn fence(&mut self, arena: &[u8]) {
        let mut shadow = self.0.borrow_mut();
        shadow.event(arena);
        for (line, content) in std::mem::take(&mut shadow.flushed) {
            shadow.durable[line * LINE..][..LINE].copy_from_slice(&content);
        }
    }
}

impl ShadowPmem {
    fn new(seed: u64, image: Vec<u8>, crash_at: u64) -> Self {
        Self(Rc::new(RefCell::new(Shadow {
            random: Random::new(seed),
            durable: image,
            flushed: BTreeMap::new(),
            events: 0,
            crash_at,
            crashed: None,
            watcher: None,
        })))
    }
}

fn work(heap: &mut Heap, seed: u64, random: &Random, from: u64, to: u64, acknowledged: &Cell<u64>) {
    let mut ignored = empty();
    for number in from..to {
        if random.below(5) == 0 {
            change(seed ^ 1, number, &mut heap.begin(), &mut ignored).expect("room");
        }
        let mut transaction = heap.begin();
        change(seed, number, &mut transaction, &mut ignored).expect("room");
        let _ = transaction.seal().expect("sealed");
        acknowledged.set(number + 1);
    }
}

/// Runs on a new heap; every flush and fence is a crash point. Gives how many there were.
fn run(seed: u64, transactions: u64) -> u64 {
    let acknowledged = Rc::new(Cell::new(0));
    let shadow = ShadowPmem::new(seed, vec![0; ARENA_BYTES], u64::MAX);
    let arena = Arena::copy_of(&vec![0; ARENA_BYTES]).expect("memory");
    let mut heap =
        pmem::create(arena, Box::new(shadow.clone()), uuid::Uuid::from_u128(7), SECRET).expect("created");
    let known = acknowledged.clone();
    let points = Rc::new(Cell::new(0));
    let point = points.clone();
    shadow.0.borrow_mut().watcher = Some(Rc::new(move |event, image| {
        point.set(point.get() + 1);
        recover(image, seed, event, known.get(), transactions);
    }));
    work(&mut heap, seed, &Random::new(seed), 0, transactions, &acknowledged);
    shadow.0.borrow_mut().watcher = None;
    points.get()
}

fn open(image: &[u8], seed: u64, crash_at: u64) -> (Heap, ShadowPmem) {
    let shadow = ShadowPmem::new(seed, image.to_vec(), crash_at);
    let arena = Arena::copy_of(image).expect("memory");
    let (heap, uuid) = pmem::open(arena, Box::new(shadow.clone()), SECRET, "shadow").expect("opens");
    assert_eq!(uuid, uuid::Uuid::from_u128(7));
    (heap, shadow)
}

fn recover(mut image: Vec<u8>, seed: u64, event: u64, acknowledged: u64, transactions: u64) {
    let random = Random::new(seed ^ event << 20);
    if random.below(3) == 0 {
        // Power fails again while the heap is opened.
        let (_, shadow) = open(&image, random.next(), 1 + random.below(12));
        let crashed = shadow.0.borrow_mut().crashed.take();
        image = crashed.unwrap_or(image);
    }
    let (mut heap, shadow) = open(&image, random.next(), u64::MAX);
    let found = check(seed, &heap, acknowledged, transactions);
    if random.below(4) == 0 {
        work(&mut heap, seed, &random, found, found + 3, &Cell::new(0));
        drop(heap);
        let image = shadow.0.borrow().durable.clone();
        check(seed, &open(&image, 0, u64::MAX).0, found + 3, found + 3);
    }
}

#[test]
fn a_crash_at_any_flush_or_fence_keeps_what_was_sealed() {
    let seeds = std::env::var("UMEM_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(24u64);
    let points: u64 = (0..seeds).map(|seed| run(seed, 12)).sum();
    println!("{points} crash points");
    assert!(points > 100 * seeds, "only {points} crash points");
}

#[test]
fn a_transaction_too_large_for_the_undo_log_is_undone() {
    let shadow = ShadowPmem::new(1, vec![0; ARENA_BYTES], u64::MAX);
    let arena = Arena::copy_of(&vec![0; ARENA_BYTES]).expect("memory");
    let mut heap = pmem::create(arena, Box::new(shadow), uuid::Uuid::from_u128(7), SECRET).expect("created");
    let mut transaction = heap.begin();
    let block = transaction.allocate_with(64, &[&[1; 60_000]]).expect("room");
    let _ = transaction.seal().expect("sealed");
    let mut transaction = heap.begin();
    transaction.write(block, &[2; 20_000]).expect("fits");
    assert_eq!(transaction.write(block, &[3; 60_000]), Err(HeapError::TransactionTooLarge));
    drop(transaction);
    assert!(heap.bytes(block, 60_000).expect("a block").iter().all(|&byte| byte == 1));
}

/// Whether a client that stores bytes which look like entries of the undo log has them applied after a crash, if it takes the numbers
/// of transactions to begin at zero.
fn forged_entry_is_applied(secret: u64) -> bool {
    const FORGED: u8 = 0xee;
    let shadow = ShadowPmem::new(1, vec![0; ARENA_BYTES], u64::MAX);
    let arena = Arena::copy_of(&vec![0; ARENA_BYTES]).expect("memory");
    let mut heap =
        pmem::create(arena, Box::new(shadow.clone()), uuid::Uuid::from_u128(7), secret).expect("created");
    let mut transaction = heap.begin();
    let victim = transaction.allocate_with(32, &[&[7; 32]]).expect("room");
    let other = transaction.allocate_with(64, &[&[1; 64]]).expect("room");
    let block = transaction.allocate_with(4096, &[&[0; 4096]]).expect("room");
    let _ = transaction.seal().expect("sealed");
    // The transactions that follow: the entries' bytes, their removal, and the one that is cut off.
    let number = 5u64;
    let old = [FORGED; 32];
    let mut entry = [0; 32];
    entry[..8].copy_from_slice(&victim.raw().to_le_bytes());
    entry[8..12].copy_from_slice(&32u32.to_le_bytes());
    entry[16..24].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&entry), &old);
    entry[12..16].copy_from_slice(&checksum.to_le_bytes());
    // Old bytes begin 32 bytes behind the start of a line.
    let bytes: Vec<u8> = std::iter::repeat_n([old, entry].concat(), 64).flatten().collect();
    for content in [&bytes[..], &[0; 4096]] {
        let mut transaction = heap.begin();
        transaction.write(block, content).expect("fits");
        let _ = transaction.seal().expect("sealed");
    }
    let mut transaction = heap.begin();
    transaction.write(other, &[2; 32]).expect("fits");
    let image = shadow.0.borrow().durable.clone();
    drop(transaction);
    let (heap, _) = open(&image, 1, u64::MAX);
    match heap.bytes(victim, 32).expect("a block") {
        [FORGED, ..] => true,
        [7, ..] => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_that_look_like_entries_of_the_undo_log_are_not_taken_for_them() {
    assert!(forged_entry_is_applied(0), "where its numbers are known a heap could be changed at will");
    for seed in 0..20 {
        assert!(!forged_entry_is_applied(Random::new(seed).next()));
    }
}

/// Needs `PMEM_IS_PMEM_FORCE=1` in the environment, which libpmem reads when it is loaded: the test runs itself again.
#[test]
fn a_file_on_forced_pmem_keeps_its_content() {
    if std::env::var_os("PMEM_IS_PMEM_FORCE").is_none() {
        let status = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "a_file_on_forced_pmem_keeps_its_content"])
            .env("PMEM_IS_PMEM_FORCE", "1")
            .status()
            .expect("it runs");
        assert!(status.success(), "failed with forced pmem");
        return;
    }
    let folder =
        tempfile::tempdir_in(if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" });
    let file = folder.as_ref().expect("a folder").path().join("target/heap");
    let options = StoreOptions {
        uuid: uuid::Uuid::from_u128(9),
        media: MediaKind::Pmem { file: file.clone() },
        heap_bytes: 4 << 20,
        log_bytes: 0,
    };
    let world = World::new(1, TestMedia::default());
    let create = |options: StoreOptions| {
        let inner = world.clone();
        world.run(async move { Store::create(&inner, "", options).await }).expect("no crash")
    };
    let store = create(options.clone()).expect("created");
    assert!(matches!(Store::open_pmem(&world, &file), Err(StoreError::Media(_))), "two at once");
    assert!(create(options).is_err(), "it exists");
    let random = Random::new(3);
    work(&mut store.heap_mut(), 3, &random, 0, 50, &Cell::new(0));
    drop(store);
    let store = Store::open_pmem(&world, &file).expect("opens");
    assert_eq!(store.uuid(), Some(uuid::Uuid::from_u128(9)));
    check(3, &store.heap(), 50, 50);
    let sealed = store.heap_mut().begin().seal().expect("sealed");
    assert!(store.is_persisted(sealed).is_some());
    assert!(store.heap().get(Off::<u64>::NULL).is_err());
    assert!(Store::open_pmem(&world, std::path::Path::new("/dev/shm/is/not/there")).is_err());
}
