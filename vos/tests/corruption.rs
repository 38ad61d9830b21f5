//! A flipped bit anywhere on media is found, with its place, or is harmless: never wrong data. Which of the two is known
//! before, for every byte of the files, from `docs/format.md` and from what the store says it has recorded.

mod support;

use std::{collections::BTreeMap, ops::ControlFlow};

use daos_vos::{Error, MediaInspection, Pool, Record, WalInspection, Where};
use daos_xstream::Env;
use daos_xstream_sim::{Config, Simulation};
use support::{Random, driver::verify, image, sample};

fn files() -> Vec<(String, Vec<u8>)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-2.image");
    image::unpack(&std::fs::read(path).expect("the image"))
}

/// What a pool with this damage does: whether anything was found. Without its newest frame it holds less.
async fn look<E: Env>(env: &E, what: &str, may_be_torn: bool) -> bool {
    let pool = match Pool::open(env, "pool").await {
        Ok(pool) => pool,
        Err(Error::Heap(message) | Error::Damaged(message)) => {
            assert!(
                message.contains("pool/") && message.contains("byte"),
                "{what}: {message} names no place"
            );
            return true;
        }
        Err(Error::Corrupt { .. } | Error::BadChecksum { .. }) => return true,
        Err(error) => panic!("{what}: {error}"),
    };
    if may_be_torn {
        verify(&pool).await.unwrap_or_else(|fault| panic!("{what}: {fault}"));
        return false;
    }
    // Wrong data panics in here.
    let read = sample::check(&pool).await;
    let verified = verify(&pool).await;
    match (&read, &verified) {
        (Ok(()), Ok(())) => false,
        (Err(Error::BadChecksum { .. }), Err(_)) => true,
        (Ok(()), Err(fault)) => {
            // What no read shows (hidden history) is found by verification.
            assert!(fault.contains("checksum"), "{what}: {fault}");
            true
        }
        _ => panic!("{what}: reads say {read:?}, verification {verified:?}"),
    }
}

/// What a byte of a file is to those who open the pool and read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// `heap`: one of two copies; the other one does if it is damaged, unless the log shows that it is too old.
    SuperBlock,
    /// `heap`: checksums of pages, zeros included: they say that a page was never written.
    PageTable,
    /// `heap`: a batch that is at home already, or room for one.
    DoubleWriteArea,
    /// `heap`: a page that a checkpoint has written.
    Page,
    /// `heap`: a page of which the table says that it was never written.
    UnwrittenPage,
    /// `log`: a frame that opening applies, with another after it, or which the super-block promises.
    Frame,
    /// `log`: the last one, if nothing promises it: damaged, it is what a torn write leaves (`docs/format.md`).
    NewestFrame,
    /// `log`: zeros after the payload of such a frame.
    FramePadding,
    /// `log`: what a checkpoint has made unnecessary, and what was never written.
    OldLog,
    /// `blocks`: bytes that a record names.
    Stored,
    /// `blocks`: blocks, and ends of blocks, that no record names.
    FreeBlock,
}

impl Part {
    /// Whether a flipped bit of it is noticed; `None` where that depends.
    fn is_checked(self) -> Option<bool> {
        match self {
            Part::PageTable | Part::Page | Part::Frame | Part::Stored => Some(true),
            Part::SuperBlock | Part::NewestFrame => None,
            Part::DoubleWriteArea | Part::UnwrittenPage | Part::FramePadding => Some(false),
            Part::OldLog | Part::FreeBlock => Some(false),
        }
    }
}

const BLOCK: usize = 4096;

fn heap_parts(heap: &[u8]) -> Vec<Part> {
    // docs/format.md, "`heap`: checkpoint of the arena".
    let blocks = heap.len() / BLOCK;
    let batch = (blocks / 32).clamp(16, 1000);
    let header = (64 + 16 * batch).div_ceil(BLOCK);
    let table = (blocks - 2 - header - batch).div_ceil(1023);
    let pages = 2 + table + header + batch;
    let was_written = |page: usize| {
        let entry = (2 + page / 1022) * BLOCK + 8 + page % 1022 * 4;
        heap[entry..entry + 4] != [0; 4]
    };
    let part_of = |block: usize| match block {
        0..2 => Part::SuperBlock,
        _ if block < 2 + table => Part::PageTable,
        _ if block < pages => Part::DoubleWriteArea,
        _ if was_written(block - pages) => Part::Page,
        _ => Part::UnwrittenPage,
    };
    (0..heap.len()).map(|at| part_of(at / BLOCK)).collect()
}

fn log_parts(bytes: usize, wal: &WalInspection) -> Vec<Part> {
    let mut parts = vec![Part::OldLog; bytes];
    assert_eq!(wal.batch_blocks_pending, 0, "every batch is at home");
    for (frame, left) in wal.frames.iter().zip((0..wal.frames.len()).rev()) {
        let newest = left == 0 && wal.valid_position < wal.log_end;
        let whole = if newest { Part::NewestFrame } else { Part::Frame };
        let used = 64 + frame.payload_bytes as usize;
        for at in 0..used.next_multiple_of(BLOCK) {
            let part = if at < used { whole } else { Part::FramePadding };
            parts[(frame.position as usize + at) % bytes] = part;
        }
    }
    parts
}

fn block_parts<E: Env>(bytes: usize, pool: &Pool<E>) -> Vec<Part> {
    let mut parts = vec![Part::FreeBlock; bytes];
    let mut mark = |place: Where, length: u64| {
        if let Where::BlockTier(start) = place {
            parts[start as usize..(start + length) as usize].fill(Part::Stored);
        }
    };
    for container in pool.containers().expect("containers") {
        let walked = pool.walk(container, &mut |record| {
            match record {
                Record::Version(version) => mark(version.place, version.length),
                Record::Extent(extent) => mark(extent.place, extent.range.end - extent.range.start),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        walked.expect("a walk");
    }
    parts
}

/// What each byte of `blocks`, `heap` and `log` is.
fn parts(files: &[(String, Vec<u8>)]) -> [Vec<Part>; 3] {
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["blocks", "heap", "log"]);
    let files = files.to_vec();
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let parts = simulation.block_on(&node, move |env| async move {
        image::write_files(&env, "pool", &files).await;
        let (pool, inspection) = Pool::inspect(&env, "pool").await.expect("an inspection");
        let MediaInspection::Wal(wal) = inspection.media else { panic!("it is on `wal` media") };
        let [blocks, heap, log] = [0, 1, 2].map(|index: usize| &files[index].1);
        [block_parts(blocks.len(), &pool), heap_parts(heap), log_parts(log.len(), &wal)]
    });
    parts.expect("the run ends")
}

/// A bit flips, at a place of every kind in turn; now and then a second one. That a part of all flips was found said little:
/// it was a quarter or an eighth by what a file happened to hold (of the log's bytes two thirds had been checkpointed, so
/// that nobody reads them again), and one that should have been found and was not could hide behind the others.
#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let rounds: u64 = std::env::var("VOS_FLIPS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(450);
    let files = files();
    let mut places: BTreeMap<Part, Vec<(usize, usize)>> = BTreeMap::new();
    for (file, parts) in parts(&files).into_iter().enumerate() {
        for (at, part) in parts.into_iter().enumerate() {
            places.entry(part).or_default().push((file, at));
        }
    }
    let kinds: Vec<Part> = places.keys().copied().collect();
    assert!(kinds.len() >= 10, "there is something of every kind: {kinds:?}");
    let mut found_of: BTreeMap<Part, (u64, u64)> = BTreeMap::new();
    for round in 0..rounds {
        let mut random = Random(round);
        let mut damaged = files.clone();
        let mut flips = Vec::new();
        for _ in 0..1 + random.below(5) / 4 {
            let part = kinds[(round as usize + flips.len() * 7) % kinds.len()];
            let (file, at) = places[&part][random.below(places[&part].len() as u64) as usize];
            damaged[file].1[at] ^= 1 << random.below(8);
            flips.push((part, &files[file].0, at));
        }
        let what = format!("round {round}, {flips:?}");
        let may_be_torn = flips.iter().any(|(part, ..)| *part == Part::NewestFrame);
        let simulation = Simulation::new(round, Config::default());
        let node = simulation.add_node(1);
        let story = what.clone();
        let looked = simulation.block_on(&node, move |env| async move {
            image::write_files(&env, "pool", &damaged).await;
            look(&env, &story, may_be_torn).await
        });
        let found = looked.expect("the run ends");
        let checked: Vec<Option<bool>> = flips.iter().map(|(part, ..)| part.is_checked()).collect();
        if checked.contains(&Some(true)) {
            assert!(found, "{what}: nobody has noticed");
        } else if !checked.contains(&None) {
            assert!(!found, "{what}: an error, where nothing is read that was changed");
        }
        if let [(part, ..)] = flips[..] {
            let (all, noticed) = found_of.entry(part).or_default();
            (*all, *noticed) = (*all + 1, *noticed + u64::from(found));
        }
    }
    for (part, (all, noticed)) in found_of {
        println!("{part:?}: {noticed} of {all} were noticed; {} bytes", places[&part].len());
    }
}
