//! Arrays of which very many extents are removed: where they end, and whether they are there, is found in slices.

mod support;

use std::ops::Range;

use daos_types::{Checksum, Epoch, ObjectId, ObjectType};
use daos_vos::{
    ARRAY_BYTES_MAX, AkeyData, AkeyUpdate, Anchor, Checksums, Conflict, Container, EndSearch, ExtentData,
    ExtentUpdate, Punch, Update,
};
use daos_xstream_sim::SimEnv;
use support::{
    Random,
    arrays::{object, writer},
    pool,
};

/// Each extent is written in the first and removed, for itself, in the second; in the third, some byte may be written again.
const WRITTEN: Epoch = Epoch(2);
const REMOVED: Epoch = Epoch(5);
const AGAIN: Epoch = Epoch(7);
const EXTENTS: u64 = 6000;

/// An array: an object, or what an akey of a document holds.
struct Array {
    container: Container<SimEnv>,
    id: ObjectId,
}

impl Array {
    fn keys(&self) -> Option<(&'static [u8], &'static [u8])> {
        (self.id.object_type() == ObjectType::Document).then_some((b"dkey", b"akey"))
    }

    fn write(&self, offset: u64, bytes: u64, epoch: Epoch) {
        let bytes = vec![7; bytes as usize];
        let chunks = [Checksum(crc32c::crc32c(&bytes))];
        let data = ExtentData::Inline(&bytes, Checksums { chunk_bytes: 1 << 20, chunks: &chunks });
        let extent = [ExtentUpdate { offset, data }];
        let akeys = [AkeyUpdate { akey: b"akey", data: AkeyData::Extents(&extent) }];
        let update = match self.keys() {
            None => Update::Array(&extent),
            Some((dkey, _)) => Update::Document { dkey, akeys: &akeys },
        };
        let _ = self.container.update(self.id, epoch, writer(1), Conflict::Refuse, &update).expect("written");
    }

    fn remove(&self, range: Range<u64>, epoch: Epoch) {
        let punch = match self.keys() {
            None => Punch::Extent(range),
            Some((dkey, akey)) => Punch::AkeyExtent { dkey, akey, range },
        };
        let _ = self.container.punch(self.id, epoch, writer(1), Conflict::Refuse, &punch).expect("removed");
    }

    /// Where it ends, and the calls that it took.
    fn end(&self, epoch: Epoch) -> (u64, u64) {
        let (mut search, mut calls) = (EndSearch::default(), 1);
        loop {
            let last = search;
            let end = self.container.array_end(self.id, self.keys(), epoch, &mut search);
            if let Some(end) = end.expect("looked for") {
                return (end, calls);
            }
            assert!(search != last, "it gets nowhere");
            calls += 1;
        }
    }

    /// The objects that are listed, and the calls that it took.
    fn listed(&self, epoch: Epoch) -> (Vec<ObjectId>, u64) {
        let (mut found, mut anchor, mut calls) = (Vec::new(), Anchor::default(), 0);
        while !anchor.at_end() {
            self.container.enumerate_objects(epoch, &mut anchor, 10, |id| found.push(id)).expect("listed");
            calls += 1;
            assert!(calls < 1000, "it gets nowhere");
        }
        (found, calls)
    }
}

fn run(kind: ObjectType, task: impl Fn(Array) + 'static) {
    pool::run(move |env| async move {
        let (_pool, container) = pool::create(&env, pool::wal(64 << 20, 32 << 20, 0)).await;
        task(Array { container, id: object(kind, 1) });
    });
}

/// All of it was looked at in one piece: a question about one array held the core of its target for as long as the array had extents.
#[test]
fn an_end_below_removed_extents_is_found_in_slices() {
    for kind in [ObjectType::Array, ObjectType::Document] {
        // Extents side by side, single bytes, and extents that are far from each other.
        for (bytes, stride) in [(64, 64), (1, 1), (16, 1 << 30)] {
            run(kind, move |array| {
                for number in 0..EXTENTS {
                    array.write(number * stride, bytes, WRITTEN);
                }
                let whole = (EXTENTS - 1) * stride + bytes;
                let extents = (0..EXTENTS).map(|number| number * stride);
                extents.for_each(|offset| array.remove(offset..offset + bytes, REMOVED));
                assert_eq!(array.end(WRITTEN).0, whole);
                let what = format!("{kind:?}, {bytes} bytes in {stride}");
                let (end, calls) = array.end(REMOVED);
                assert_eq!(end, 0, "{what}");
                assert!((2..=12).contains(&calls), "{what}: {calls} calls");
                let (listed, calls) = array.listed(REMOVED);
                assert!(listed.is_empty(), "{what}: {listed:?}");
                assert!(calls > 1, "{what}: {calls} calls of a listing");
                for at in [0, 17, 3000, EXTENTS - 1] {
                    let epoch = Epoch(AGAIN.0 + EXTENTS - at);
                    array.write(at * stride, 1, epoch);
                    assert_eq!(array.end(epoch).0, at * stride + 1, "{what}: written again at {at}");
                    assert_eq!(array.listed(epoch).0, [array.id], "{what}: written again at {at}");
                    assert_eq!(array.end(REMOVED).0, 0, "{what}");
                }
            });
        }
    }
}

/// The last byte lies right before, right after, or at the edge of the first window (4096 bytes).
#[test]
fn an_end_at_the_edge_of_a_window_is_found() {
    run(ObjectType::Array, |array| {
        array.write(20_000, 1, WRITTEN);
        array.remove(20_000..20_001, REMOVED);
        for (number, at) in (20_001 - 4096 - 3..20_001 - 4096 + 3).enumerate() {
            let epoch = Epoch(AGAIN.0 + number as u64);
            array.write(at, 1, epoch);
            assert_eq!(array.end(epoch), (at + 1, 1));
        }
    });
}

/// Extents that came after the epoch that is asked for are looked at too, one for each place.
#[test]
fn an_end_below_later_extents_is_found_in_slices() {
    run(ObjectType::Array, |array| {
        array.write(0, 3, WRITTEN);
        (1..EXTENTS).for_each(|number| array.write(number * 64, 64, AGAIN));
        let (end, calls) = array.end(REMOVED);
        assert_eq!(end, 3);
        assert!(calls > 1, "{calls} calls");
        assert_eq!(array.end(AGAIN), (EXTENTS * 64, 1));
    });
}

/// A file that was cut: all above its end is one punch, below which a window went down by powers of 16 from 2^60 bytes.
#[test]
fn what_is_above_the_end_of_a_cut_array_is_passed_by_at_once() {
    run(ObjectType::Array, |array| {
        for number in 0..9000 {
            array.write(number * 64, 64, WRITTEN);
        }
        let end = 8000 * 64;
        array.remove(end..ARRAY_BYTES_MAX, REMOVED);
        assert_eq!(array.end(REMOVED), (end, 1));
        // It grows again, is cut in the midst of that, and little of it is written a third time.
        (9000..9100).for_each(|number| array.write(number * 64, 64, AGAIN));
        array.remove(9010 * 64..ARRAY_BYTES_MAX, AGAIN.next());
        assert_eq!(array.end(AGAIN), (9100 * 64, 1));
        assert_eq!(array.end(AGAIN.next()), (9010 * 64, 1));
        assert_eq!(array.end(REMOVED), (end, 1));
        array.write(1 << 40, 5, Epoch(20));
        array.remove(1 << 40..(1 << 40) + 5, Epoch(21));
        assert_eq!(array.end(Epoch(20)), ((1 << 40) + 5, 1));
        assert_eq!(array.end(Epoch(21)), (9010 * 64, 1));
    });
}

/// More than can be passed by at once is newer than the punch that covers it: it is looked at window by window.
#[test]
fn much_that_is_newer_than_a_punch_is_looked_at_in_slices() {
    run(ObjectType::Array, |array| {
        array.write(7, 5, WRITTEN);
        array.remove(100..ARRAY_BYTES_MAX, REMOVED);
        let at = |number: u64| 10_000 + number * 64;
        (0..EXTENTS).for_each(|number| array.write(at(number), 64, AGAIN));
        (0..EXTENTS).for_each(|number| array.remove(at(number)..at(number) + 64, AGAIN.next()));
        let (end, calls) = array.end(AGAIN.next());
        assert_eq!(end, 12);
        assert!((2..=40).contains(&calls), "{calls} calls");
        let (end, calls) = array.end(REMOVED);
        assert_eq!(end, 12, "there are later extents in what was removed");
        assert!(calls <= 60, "{calls} calls");
        array.write(at(17) + 3, 1, Epoch(20));
        assert_eq!(array.end(Epoch(20)).0, at(17) + 4);
    });
}

/// A hostile history, found by review: on each of 22 levels one block with a leaf of its own, of which the oldest extent covers all
/// that is further down, and the others must be passed by. Windows became narrow because of them, and never wide again: 2^41 bytes
/// were looked at two by two.
#[test]
fn what_each_window_must_pass_by_does_not_keep_it_narrow() {
    run(ObjectType::Array, |array| {
        let mut epoch = WRITTEN;
        array.write(5, 1, epoch);
        for level in (42..=63).rev() {
            let middle = 1 << (level - 1);
            for number in 0..48 {
                epoch = epoch.next();
                let start = if number == 0 { 0 } else { middle - 1 };
                array.remove(start..middle + 1, epoch);
            }
        }
        let (end, calls) = array.end(epoch);
        assert_eq!(end, 0);
        assert!(calls < 40, "{calls} calls");
        assert!(array.listed(epoch).0.is_empty());
        assert_eq!(array.end(WRITTEN).0, 6);
        array.write(8, 1, epoch.next());
        assert_eq!(array.end(epoch.next()).0, 9);
    });
}

/// The end of what is visible at an epoch, computed from all that was done: (range, epoch, is it data).
fn naive_end(done: &[(Range<u64>, u64, bool)], epoch: Epoch) -> u64 {
    let seen: Vec<_> = done.iter().filter(|(_, at, _)| *at <= epoch.0).collect();
    let mut edges: Vec<u64> = seen.iter().flat_map(|(range, ..)| [range.start, range.end]).collect();
    edges.sort_unstable();
    edges.dedup();
    let newest =
        |byte: u64| seen.iter().filter(|(range, ..)| range.contains(&byte)).max_by_key(|(_, at, _)| at);
    let mut between = edges.windows(2).rev();
    between.find(|edge| newest(edge[0]).is_some_and(|(.., is_data)| *is_data)).map_or(0, |edge| edge[1])
}

/// Histories of clusters in emptiness, written and removed piece by piece and in long punches, in any order of epochs.
#[test]
fn ends_of_random_arrays_are_those_of_a_naive_reference() {
    for seed in 0..12 {
        run(ObjectType::Array, move |array| {
            let mut random = Random(seed);
            let clusters: Vec<u64> = (0..4).map(|_| random.next() >> (2 + random.below(60))).collect();
            // Epochs are unique, and come in any order.
            let operations = 1500 + 1500 * (seed % 2);
            let mut done = Vec::new();
            for number in 0..operations {
                let epoch = 2
                    + (number * 1_009 + seed) % operations * if seed % 3 == 0 { 0 } else { 1 }
                    + if seed % 3 == 0 { number } else { 0 };
                let cluster = clusters[random.below(4) as usize];
                let start = cluster + random.below(1 << (10 + seed % 8));
                let is_data = random.one_in(2);
                let range = match random.below(if is_data { 8 } else { 10 }) {
                    8 if random.one_in(20) => start..ARRAY_BYTES_MAX,
                    9 => start..start + (1 << random.below(50)),
                    _ => start..start + 1 + random.below(48),
                };
                if is_data {
                    array.write(range.start, range.end - range.start, Epoch(epoch));
                } else {
                    array.remove(range.clone(), Epoch(epoch));
                }
                done.push((range, epoch, is_data));
            }
            // Then almost everything goes.
            let last = operations + 2;
            let low = clusters.iter().min().expect("a cluster") + random.below(1000);
            array.remove(low..low + (1 << 61), Epoch(last));
            done.push((low..low + (1 << 61), last, false));
            for epoch in (0..12).map(|_| 1 + random.below(last)).chain([last]) {
                assert_eq!(
                    array.end(Epoch(epoch)).0,
                    naive_end(&done, Epoch(epoch)),
                    "seed {seed}, epoch {epoch}"
                );
            }
        });
    }
}
