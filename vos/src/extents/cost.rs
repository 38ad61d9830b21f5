//! What hostile histories of an array cost: counted in nodes of the tree that are looked at, which no noise of a machine
//! changes.

use daos_types::{Checksum, Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_xstream_sim::{Config, SimEnv, Simulation};
use uuid::Uuid;

use crate::{
    Checksums, Conflict, Container, ExtentData, ExtentUpdate, Fetched, MediaKind, Pool, PoolOptions, Update,
    tree::node::visits,
};

type World = SimEnv;

const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };
const MIDDLE: u64 = 1 << 30;

/// A history: which bytes are written when. Most write in the order of epochs, but none has to.
struct History {
    name: &'static str,
    /// Range and epoch of write `number` of `count`.
    write: fn(number: u64, count: u64) -> (std::ops::Range<u64>, u64),
    /// What is read in between: range and epoch.
    read: fn(number: u64, count: u64) -> (std::ops::Range<u64>, u64),
}

fn scattered(number: u64, count: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count
}

const LATEST: u64 = 1 << 40;

/// Long extents would be mostly data: ranges are kept short where that changes nothing.
const HISTORIES: [History; 10] = [
    History {
        name: "nested, the newest innermost",
        write: |number, count| {
            (MIDDLE - (count - number) / 64 - 1..MIDDLE + (count - number) / 64 + 1, number + 1)
        },
        read: |number, count| {
            (MIDDLE - scattered(number, count) / 64 - 1..MIDDLE - scattered(number, count) / 64, LATEST)
        },
    },
    History {
        name: "nested, the newest outermost, read as it was",
        write: |number, _| (MIDDLE - number / 64 - 1..MIDDLE + number / 64 + 1, number + 1),
        read: |number, count| (MIDDLE - 1..MIDDLE + 1, scattered(number, count) + 1),
    },
    History {
        name: "nested, the oldest outermost on the side that nobody reads",
        write: |number, count| (MIDDLE - 20 - (count - number) / 64..MIDDLE + 5, number + 1),
        read: |_, _| (MIDDLE - 10..MIDDLE + 60, LATEST),
    },
    History {
        name: "one block over and over",
        write: |number, _| (MIDDLE..MIDDLE + 16, number + 1),
        read: |number, count| (MIDDLE + 3..MIDDLE + 9, scattered(number, count) + 1),
    },
    History {
        name: "one block over and over, the oldest last",
        write: |number, count| (MIDDLE..MIDDLE + 16, count - number),
        read: |number, count| (MIDDLE + 3..MIDDLE + 9, scattered(number, count) + 1),
    },
    History {
        name: "staggered",
        write: |number, _| (number * 8..number * 8 + 60, number + 1),
        read: |number, count| (scattered(number, count) * 8..scattered(number, count) * 8 + 100, LATEST),
    },
    History {
        name: "staggered, from the end, the oldest last",
        write: |number, count| ((count - number) * 8..(count - number) * 8 + 60, count - number),
        read: |number, count| (scattered(number, count) * 8..scattered(number, count) * 8 + 100, LATEST),
    },
    History {
        name: "single bytes, interleaved",
        write: |number, count| {
            let at = scattered(number, count);
            (at..at + 1, number + 1)
        },
        read: |number, count| (scattered(number, count)..scattered(number, count) + 8, LATEST),
    },
    History {
        name: "even bytes, then odd ones in older epochs",
        write: |number, count| match number.checked_sub(count / 2) {
            None => (number * 2..number * 2 + 1, count + number),
            Some(odd) => (odd * 2 + 1..odd * 2 + 2, odd + 1),
        },
        read: |number, count| (scattered(number, count)..scattered(number, count) + 8, LATEST),
    },
    History {
        name: "ranges of all sizes around one byte, in no order of epochs",
        write: |number, count| {
            let (left, right) = (scattered(number, 700), scattered(number + 1, 700));
            (MIDDLE - left..MIDDLE + right + 1, scattered(number, count) * 64 + number % 64 + 1)
        },
        read: |number, count| {
            let at = MIDDLE + 700 - scattered(number, 1400);
            (at..at + 4, scattered(number, count) * 64)
        },
    },
];

/// Nodes looked at, per write and per read, in the last part of a history of `count` writes.
fn cost(history: &History, count: u64) -> (f64, f64) {
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let (write, read) = (history.write, history.read);
    let ended = simulation.block_on(&node, move |env: World| async move {
        let options = PoolOptions {
            uuid: Uuid::from_u128(1),
            media: MediaKind::Heap,
            heap_bytes: (64 << 20) + count * 8192,
            log_bytes: 0,
            block_bytes: 0,
        };
        let pool = Pool::create(&env, "pool", options).await.expect("a pool");
        let uuid = Uuid::from_u128(2);
        let _ = pool.container_create(uuid).expect("a container");
        let container = pool.container_open(uuid).expect("the container");
        let sample = count / 10;
        let mut writes = 0;
        for number in 0..count {
            let (range, epoch) = write(number, count);
            let before = visits::count();
            put(&container, range, epoch);
            if number >= count - sample {
                writes += visits::count() - before;
            }
        }
        let mut reads = 0;
        for number in 0..sample {
            let (range, epoch) = read(number, count);
            let before = visits::count();
            let mut visible = 0;
            let visit =
                |piece: crate::Piece<'_>| visible += u64::from(matches!(piece.content, Fetched::Value(_)));
            container.fetch_array(array(), None, range, Epoch(epoch), visit).expect("a read");
            // A descent for each piece of the answer is what it may cost; what remains is the search.
            reads += (visits::count() - before) / (visible + 1);
        }
        (writes as f64 / sample as f64, reads as f64 / sample as f64)
    });
    ended.expect("the run ends")
}

fn array() -> ObjectId {
    ObjectId::new(ObjectType::Array, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, 1))
}

fn put(container: &Container<World>, range: std::ops::Range<u64>, epoch: u64) {
    let bytes = vec![epoch as u8; (range.end - range.start) as usize];
    let chunk = 1u64 << 20;
    let mut sums = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = ((at / chunk + 1) * chunk).min(range.end);
        let part = &bytes[(at - range.start) as usize..(end - range.start) as usize];
        sums.push(Checksum(crc32c::crc32c(part)));
        at = end;
    }
    let data = ExtentData::Inline(&bytes, Checksums { chunk_bytes: 1 << 20, chunks: &sums });
    let update = Update::Array(&[ExtentUpdate { offset: range.start, data }]);
    let _ = container.update(array(), Epoch(epoch), WRITER, Conflict::LastWins, &update).expect("an update");
}

/// Two histories once cost as much as they were long, for every step: a write in an old epoch looked at all newer extents
/// of its range, and a read at all older extents that stuck out where it did not read. `VOS_EXTENTS` takes other numbers of
/// writes than 100,000.
#[test]
fn the_cost_of_a_step_grows_with_the_logarithm_of_the_history() {
    let count = std::env::var("VOS_EXTENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let mut failed = Vec::new();
    for history in &HISTORIES {
        let (small, large) = (cost(history, count / 16), cost(history, count));
        println!("{:<60} {small:.1?} {large:.1?}", history.name);
        // The tree has a level more, or two; and an array may use a few levels of blocks more.
        for (step, small, large) in [("write", small.0, large.0), ("read", small.1, large.1)] {
            if large > small * 2.0 + 4.0 || large > 160.0 {
                failed.push(format!("{}: a {step} looks at {small:.1} nodes, then {large:.1}", history.name));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
