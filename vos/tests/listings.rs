//! Listings of entries with very much below them that is not visible.

mod support;

use daos_types::{Checksum, Cookie, Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType};
use daos_vos::{AkeyData, AkeyUpdate, Anchor, Conflict, Container, KeyUpdate, Punch, Update, Value};
use daos_xstream_sim::SimEnv;
use support::{arrays::writer, pool};

/// The epoch of all values, and that of what removes them.
const WRITTEN: Epoch = Epoch(2);
const REMOVED: Epoch = Epoch(5);
/// Entries and keys that one call may look at.
const WALKED_MAX: usize = 2048;
const ORDERS: [KeyOrder; 3] = [KeyOrder::Hashed, KeyOrder::Integer, KeyOrder::Lexical];

fn object(object_type: ObjectType, order: KeyOrder, number: u64) -> ObjectId {
    ObjectId::new(object_type, order, order, ObjectClass(1), (0, 0, number))
}

/// A key that has the first sixteen bytes in common with others where it may be of any length.
fn key(order: KeyOrder, number: u64) -> Vec<u8> {
    match order {
        KeyOrder::Integer => number.to_le_bytes().to_vec(),
        _ => format!("a prefix of many bytes, and a number: {number}").into_bytes(),
    }
}

struct Store {
    container: Container<SimEnv>,
    order: KeyOrder,
}

impl Store {
    /// Writes one value; of a document if there is an akey.
    fn put(&self, object: ObjectId, keys: (u64, Option<u64>), epoch: Epoch, cookie: u64) {
        let value = || Some(Value::Inline(b"v", Checksum(crc32c::crc32c(b"v"))));
        let (dkey, akey) = (key(self.order, keys.0), keys.1.map(|akey| key(self.order, akey)));
        let update = |update: &Update<'_>| {
            self.container.update(object, epoch, writer(cookie), Conflict::Refuse, update).expect("written")
        };
        let _ = match &akey {
            None => update(&Update::KeyValue(&[KeyUpdate { key: &dkey, value: value() }])),
            Some(akey) => {
                let akeys = [AkeyUpdate { akey, data: AkeyData::Single(value()) }];
                update(&Update::Document { dkey: &dkey, akeys: &akeys })
            }
        };
    }

    fn remove(&self, object: ObjectId) {
        let punch = self.container.punch(object, REMOVED, writer(1), Conflict::Refuse, &Punch::Object);
        let _ = punch.expect("removed");
    }

    /// All objects at an epoch, and how many calls that took; `meanwhile` runs after each.
    fn objects(
        &self,
        epoch: Epoch,
        limit: usize,
        meanwhile: impl Fn(usize, &Anchor),
    ) -> (Vec<ObjectId>, usize) {
        let (mut found, mut anchor, mut calls) = (Vec::new(), Anchor::default(), 0);
        while !anchor.at_end() {
            self.container.enumerate_objects(epoch, &mut anchor, limit, |id| found.push(id)).expect("listed");
            calls += 1;
            assert!(calls < 1000, "it gets nowhere");
            meanwhile(calls, &anchor);
        }
        (found, calls)
    }

    fn dkeys(&self, object: ObjectId, epoch: Epoch) -> (usize, usize) {
        let (mut found, mut anchor, mut calls) = (0, Anchor::default(), 0);
        while !anchor.at_end() {
            self.container.enumerate_keys(object, epoch, &mut anchor, 10, |_| found += 1).expect("listed");
            calls += 1;
        }
        (found, calls)
    }
}

fn run<F: Future<Output = ()> + 'static>(order: KeyOrder, task: impl FnOnce(Store) -> F + 'static) {
    pool::run(move |env| async move {
        let (_pool, container) = pool::create(&env, pool::wal(64 << 20, 32 << 20, 0)).await;
        task(Store { container, order }).await;
    });
}

/// An entry of a listing was looked at as a whole: where all below it was removed, for as long as there was anything. One request held
/// the core of its target for all keys of the largest object. A call now stops below an entry too, and the next goes on there.
#[test]
fn what_is_below_an_entry_is_looked_at_in_slices() {
    for order in ORDERS {
        run(order, move |store| async move {
            let document = |number| object(ObjectType::Document, order, number);
            let kv = |number| object(ObjectType::KeyValue, order, number);
            // Many akeys of one dkey, and one akey of many dkeys; the last three stay.
            for number in 0..6000 {
                store.put(document(1), (0, Some(number)), WRITTEN, 1);
                store.put(document(2), (number, Some(0)), WRITTEN, 1);
                store.put(kv(3), (number, None), WRITTEN, 1);
            }
            let stay = [document(4), document(5), kv(6)];
            store.put(stay[0], (0, Some(0)), WRITTEN, 1);
            store.put(stay[1], (0, Some(0)), WRITTEN, 1);
            store.put(stay[2], (0, None), WRITTEN, 1);
            [document(1), document(2), kv(3)].into_iter().for_each(|id| store.remove(id));
            let walked = 6000 + 2 * 6000 + 6000 + 6;
            for limit in [1, 10] {
                let (mut found, calls) = store.objects(REMOVED, limit, |_, _| {});
                assert!(calls >= walked / WALKED_MAX, "{calls} calls for {walked} entries");
                assert!(calls <= walked / WALKED_MAX + 6, "{calls} calls for {walked} entries");
                found.sort();
                let mut stay = stay;
                stay.sort();
                assert_eq!(found, stay, "{order:?}");
                assert_eq!(store.objects(WRITTEN, limit, |_, _| {}).0.len(), 6);
            }
            for id in [document(1), document(2), kv(3)] {
                let (found, calls) = store.dkeys(id, REMOVED);
                assert_eq!(found, 0);
                assert!(calls >= 6000 / WALKED_MAX, "{calls}");
            }
            // One akey that was written since, wherever it is.
            store.put(document(1), (0, Some(7_000)), REMOVED.next(), 1);
            assert_eq!(store.dkeys(document(1), REMOVED.next()).0, 1);
            assert_eq!(store.objects(REMOVED.next(), 10, |_, _| {}).0.len(), 4);
        });
    }
}

/// While a listing stands below an entry, the entry changes, or goes, or the place that it stands at does.
#[test]
fn a_listing_that_stands_below_an_entry_takes_what_has_become_of_it() {
    for order in ORDERS {
        for change in 0..3 {
            run(order, move |store| async move {
                let document = |number| object(ObjectType::Document, order, number);
                for number in 0..6000 {
                    store.put(document(1), (number / 3000, Some(number)), WRITTEN, 9);
                }
                store.remove(document(1));
                store.put(document(2), (0, Some(0)), WRITTEN, 1);
                let stopped = std::cell::Cell::new(0);
                let (mut found, mut anchor) = (Vec::new(), Anchor::default());
                while !anchor.at_end() {
                    let listed =
                        store.container.enumerate_objects(REMOVED, &mut anchor, 10, |id| found.push(id));
                    listed.expect("listed");
                    if !anchor.is_within() {
                        continue;
                    }
                    stopped.set(stopped.get() + 1);
                    if stopped.get() > 1 {
                        continue;
                    }
                    let all = EpochRange { low: WRITTEN, high: WRITTEN };
                    match change {
                        // It is gone, and one of its neighbours too.
                        0 => drop(store.container.discard(Cookie(9), all).await.expect("discarded")),
                        // It comes again, with little.
                        1 => {
                            let _ = store.container.discard(Cookie(9), all).await.expect("discarded");
                            store.put(document(1), (9, Some(9)), REMOVED.next(), 9);
                        }
                        // From its bytes the anchor begins with the entry again.
                        _ => {
                            let again = Anchor::from_bytes(&anchor.to_bytes()).expect("an anchor");
                            assert_eq!(again, Anchor::from_bytes(&again.to_bytes()).expect("an anchor"));
                            assert!(!again.is_within());
                        }
                    }
                }
                assert!(stopped.get() > 0);
                assert_eq!(found, [document(2)], "{order:?}, change {change}");
            });
        }
    }
}
