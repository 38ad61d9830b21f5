//! The tree against `BTreeMap`, with its invariants checked as it grows and shrinks.

use std::{collections::BTreeMap, ops::ControlFlow};

use daos_types::KeyOrder;
use daos_umem::{Heap, Transaction};
use proptest::prelude::*;

use super::*;
use crate::records::{KEY_RECORD_BYTES, KeyRecord, Keys, Kind, key_of};

struct Fixture {
    heap: Heap,
    root: u64,
    class: Keys,
    model: BTreeMap<Vec<u8>, u64>,
}

impl Fixture {
    fn new(order: KeyOrder) -> Self {
        let mut heap = Heap::volatile(64 << 20).expect("a heap");
        let mut tx = heap.begin();
        let root = memory::allocate_with(&mut tx, &[&[0; 8]]).expect("room for a root");
        let _ = tx.seal().expect("a seal");
        Self { heap, root, class: Keys { order, seed: 7 }, model: BTreeMap::new() }
    }

    fn record(tx: &mut Transaction<'_>, key: &[u8]) -> u64 {
        let header = KeyRecord {
            parent: 0,
            root: 0,
            checksum: crc32c::crc32c(key),
            shape: KeyRecord::shape(key.len(), 0, false, Kind::Key),
        };
        let record = memory::allocate(tx, KEY_RECORD_BYTES + key.len() as u64).expect("room");
        memory::write(tx, record, &header).expect("a write");
        memory::write_slice(tx, record + KEY_RECORD_BYTES, key).expect("a write");
        record
    }

    fn root_word(&self) -> u64 {
        *memory::read(&self.heap, self.root).expect("the root")
    }

    fn insert(&mut self, key: &[u8]) {
        let class = self.class;
        let found = get(&self.heap, class, self.root_word(), &class.of(key)).expect("a search");
        assert_eq!(found, self.model.get(key).copied());
        if found.is_none() {
            let mut tx = self.heap.begin();
            let record = Self::record(&mut tx, key);
            insert(&mut tx, class, self.root, &class.of(key), record).expect("an insertion");
            let _ = tx.seal().expect("a seal");
            self.model.insert(key.to_vec(), record);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let mut tx = self.heap.begin();
        let removed = remove(&mut tx, self.class, self.root, &self.class.of(key)).expect("a removal");
        if let Some(record) = removed {
            memory::free(&mut tx, record).expect("a free");
        }
        let _ = tx.seal().expect("a seal");
        assert_eq!(removed, self.model.remove(key));
    }

    fn check(&self) {
        let mut found = Vec::new();
        check(&self.heap, self.class, self.root_word(), &mut |_, _| Ok(()), &mut |record| {
            found.push(key_of(&self.heap, record)?.to_vec());
            Ok(())
        })
        .expect("a sound tree");
        if self.class.order != KeyOrder::Lexical {
            found.sort();
        }
        assert!(found.iter().eq(self.model.keys()));
    }

    fn scan_from(&self, key: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let probe = self.class.of(key);
        let _ = scan(&self.heap, self.class, self.root_word(), Bound::After(&probe), &mut |record| {
            found.push(key_of(&self.heap, record)?.to_vec());
            Ok(if found.len() == 100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .expect("a scan");
        found
    }
}

/// Keys that collide in their prefixes and are prefixes of each other.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[ab]{0,4}".prop_map(String::into_bytes),
        "the same sixteen[ab]{0,9}".prop_map(String::into_bytes),
        "the same sixteen bytes again and again \\x00{0,3}[a-d]{0,3}".prop_map(String::into_bytes),
        any::<u16>().prop_map(|number| number.to_be_bytes().to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn it_is_a_map(
        order in prop_oneof![Just(KeyOrder::Hashed), Just(KeyOrder::Lexical)],
        steps in prop::collection::vec((prop::bool::weighted(0.6), key()), 0..1500),
    ) {
        let mut fixture = Fixture::new(order);
        for (index, (inserts, key)) in steps.iter().enumerate() {
            if *inserts { fixture.insert(key) } else { fixture.remove(key) }
            if index % 97 == 0 { fixture.check() }
            if order == KeyOrder::Lexical && index % 31 == 0 {
                let want: Vec<_> = fixture.model.keys().filter(|&other| other > key).take(100).cloned().collect();
                prop_assert_eq!(fixture.scan_from(key), want);
            }
        }
        fixture.check();
    }
}

/// Hashed keys whose hashes collide: in their high halves, which are all that a narrow tree keeps, or in whole. Since no
/// test finds two keys with one hash of 64 bits, all keys of one first byte get the same.
#[derive(Clone, Copy)]
struct Colliding(Keys);

impl KeyClass for Colliding {
    const TAILS: bool = true;
    const TAIL_IS_KEY: bool = true;

    fn narrow(self) -> bool {
        true
    }

    fn probe(self, heap: &Heap, record: u64) -> Result<Probe<'_>, Error> {
        Ok(self.of(key_of(heap, record)?))
    }

    fn tail(self, heap: &Heap, record: u64) -> Result<&[u8], Error> {
        key_of(heap, record)
    }
}

impl Colliding {
    fn of(self, key: &[u8]) -> Probe<'_> {
        let probe = self.0.of(key);
        let first = key.first().copied().map_or(0, u128::from);
        // The low half differs, and must not count.
        Probe { prefix: first << 64 | probe.prefix >> 64, ..probe }
    }
}

#[test]
fn a_narrow_tree_tells_keys_of_one_prefix_apart() {
    let class = Colliding(Keys { order: KeyOrder::Hashed, seed: 7 });
    let mut heap = Heap::volatile(64 << 20).expect("a heap");
    let mut tx = heap.begin();
    let root = memory::allocate_with(&mut tx, &[&[0; 8]]).expect("room for a root");
    let mut model = BTreeMap::new();
    let keys: Vec<Vec<u8>> = (0..4000u32)
        .map(|number| format!("{}{}", number * 7 % 5, number.wrapping_mul(0x9e37_79b9)).into_bytes())
        .collect();
    let sound = |tx: &Transaction<'_>, model: &BTreeMap<Vec<u8>, u64>| {
        let word = *memory::read(tx.heap(), root).expect("the root");
        let mut found = Vec::new();
        check(tx.heap(), class, word, &mut |_, _| Ok(()), &mut |record| {
            found.push(key_of(tx.heap(), record)?.to_vec());
            Ok(())
        })
        .expect("a sound tree");
        assert!(found.iter().eq(model.keys()), "in the order of (first byte, all bytes)");
        for (key, &record) in model {
            assert_eq!(get(tx.heap(), class, word, &class.of(key)), Ok(Some(record)));
        }
        for absent in ["", "0", "3 ", "4999999999999"] {
            assert_eq!(get(tx.heap(), class, word, &class.of(absent.as_bytes())), Ok(None));
        }
    };
    for (step, key) in keys.iter().enumerate() {
        let record = Fixture::record(&mut tx, key);
        insert(&mut tx, class, root, &class.of(key), record).expect("an insertion");
        model.insert(key.clone(), record);
        if step % 500 == 60 {
            sound(&tx, &model);
        }
    }
    sound(&tx, &model);
    for (step, key) in keys.iter().enumerate() {
        let gone = remove(&mut tx, class, root, &class.of(key)).expect("a removal");
        assert_eq!(gone, model.remove(key));
        if step % 500 == 60 {
            sound(&tx, &model);
        }
    }
    assert_eq!(memory::read::<u64>(tx.heap(), root), Ok(&0));
}

#[test]
fn everything_inserted_and_removed_gives_every_block_back() {
    for order in [KeyOrder::Hashed, KeyOrder::Integer, KeyOrder::Lexical] {
        let mut fixture = Fixture::new(order);
        let before = fixture.heap.used_and_free();
        for round in 0..2u64 {
            let scramble = |number: u64| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20).to_le_bytes();
            for number in 0..20_000u64 {
                let key = if round == 0 { number.to_le_bytes() } else { scramble(number) };
                fixture.insert(&key);
            }
            fixture.check();
            let keys: Vec<_> = fixture.model.keys().cloned().collect();
            for (index, key) in keys.iter().enumerate() {
                fixture.remove(key);
                if index % 4001 == 0 {
                    fixture.check();
                }
            }
            assert_eq!(fixture.root_word(), 0);
            assert_eq!(fixture.heap.used_and_free(), before, "{order:?}");
        }
    }
}

#[test]
fn numbers_are_found_by_floor_and_backwards() {
    use crate::records::{PunchRecord, Punches};
    let mut heap = Heap::volatile(16 << 20).expect("a heap");
    let mut tx = heap.begin();
    let root = memory::allocate_with(&mut tx, &[&[0; 8]]).expect("room for a root");
    let mut model = BTreeMap::new();
    for step in 0..3000u64 {
        let epoch = step.wrapping_mul(7919) % 30_011;
        if model.contains_key(&epoch) {
            continue;
        }
        let record = PunchRecord { epoch, cookie: 0, map_version: 0, flags: 0 };
        let place = memory::allocate(&mut tx, size_of::<PunchRecord>() as u64).expect("room");
        memory::write(&mut tx, place, &record).expect("a write");
        insert(&mut tx, Punches, root, &Probe::number(epoch.into()), place).expect("an insertion");
        model.insert(epoch, place);
        if step % 3 == 0 {
            let victim = *model.keys().nth(model.len() / 2).expect("an epoch");
            let gone = remove(&mut tx, Punches, root, &Probe::number(victim.into())).expect("a removal");
            assert_eq!(gone, model.remove(&victim));
        }
    }
    let word = *memory::read(tx.heap(), root).expect("the root");
    check(tx.heap(), Punches, word, &mut |_, _| Ok(()), &mut |_| Ok(())).expect("a sound tree");
    for asked in (0..30_100u64).step_by(13) {
        let want = model.range(..=asked).next_back().map(|(_, &place)| place);
        assert_eq!(floor(tx.heap(), Punches, word, asked.into()), Ok(want));
        let mut back = Vec::new();
        let low = asked.saturating_sub(900);
        let range = (u128::from(low), u128::from(asked));
        let _ = scan_back(tx.heap(), Punches, word, range, &|_| true, &mut |place| {
            back.push(place);
            Ok(ControlFlow::Continue(()))
        })
        .expect("a scan");
        assert!(back.iter().eq(model.range(low..=asked).rev().map(|(_, place)| place)));
    }
}
