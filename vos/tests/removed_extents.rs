//! Arrays of which very many extents are removed: where they end, and whether they are there, is found in slices.

mod support;

use daos_types::{Checksum, Epoch, ObjectId, ObjectType};
use daos_vos::{
    AkeyData, AkeyUpdate, Anchor, Checksums, Conflict, Container, ExtentData, ExtentUpdate, Punch, Update,
};
use daos_xstream_sim::SimEnv;
use support::{
    arrays::{object, writer},
    pool,
};

/// Each extent is written in the first and removed, for itself, in the second; in the third, some byte may be written again.
const WRITTEN: Epoch = Epoch(2);
const REMOVED: Epoch = Epoch(5);
const AGAIN: Epoch = Epoch(7);
const EXTENTS: u64 = 6000;
/// Extents that a call looks at, and how many more its last window may have.
const LOOKED_AT: u64 = 2048;
const WINDOW: u64 = 1024;

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

    fn remove(&self, offset: u64, bytes: u64) {
        let range = offset..offset + bytes;
        let punch = match self.keys() {
            None => Punch::Extent(range),
            Some((dkey, akey)) => Punch::AkeyExtent { dkey, akey, range },
        };
        let _ = self.container.punch(self.id, REMOVED, writer(1), Conflict::Refuse, &punch).expect("removed");
    }

    /// Where it ends, and the calls that it took.
    fn end(&self, epoch: Epoch) -> (u64, u64) {
        let (mut before, mut calls) = (u64::MAX, 1);
        loop {
            let last = before;
            if let Some(end) =
                self.container.array_end(self.id, self.keys(), epoch, &mut before).expect("looked for")
            {
                return (end, calls);
            }
            assert!(before < last, "it gets nowhere");
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
                (0..EXTENTS).for_each(|number| array.remove(number * stride, bytes));
                assert_eq!(array.end(WRITTEN), (whole, 1));
                let what = format!("{kind:?}, {bytes} bytes in {stride}");
                let (end, calls) = array.end(REMOVED);
                assert_eq!(end, 0, "{what}");
                let expected = 2 * EXTENTS / (LOOKED_AT + WINDOW)..=2 * EXTENTS / LOOKED_AT + 1;
                assert!(expected.contains(&calls), "{what}: {calls} calls");
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
