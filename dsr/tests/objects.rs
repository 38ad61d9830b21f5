//! Objects over the shards of targets in memory.
#![cfg(feature = "memory")]

use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use daos_dsr::{
    class::class_by_name,
    client::{Anchor, Array, Document, DsrError, ExtentKind, Fetched, Kv, enumerate_objects},
    memory::MemoryTargets,
    placement::{PlacedTarget, Placement, Standing},
};
use daos_types::{Epoch, KeyOrder, ObjectId, ObjectType};
use daos_xstream::IoBuffer;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("a future that never ends");
}

fn object(object_type: ObjectType, class: &str, number: u64) -> ObjectId {
    let class = class_by_name(class).expect("a class");
    ObjectId::new(object_type, KeyOrder::Lexical, KeyOrder::Lexical, class, (0, 0, number))
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = daos_dsr::placement::hash::mix(self.0.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.0 % bound
    }
}

#[test]
fn a_kv_holds_what_a_map_holds_at_every_epoch() {
    for (class, targets) in [("S1", 1), ("S2", 2), ("S4", 3), ("SX", 7)] {
        let pool = MemoryTargets::new(targets, 1);
        let kv = Kv::open(&pool, object(ObjectType::KeyValue, class, 5)).expect("a handle");
        let mut random = Random(u64::from(targets));
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut snapshots = Vec::new();
        for epoch in (1..60).map(Epoch) {
            for _ in 0..20 {
                let key = format!("key {}", random.below(100)).into_bytes();
                if random.below(3) > 0 {
                    let value = random.below(1000).to_le_bytes().to_vec();
                    block_on(kv.put_all(epoch, &[(&key, &value)])).expect("put");
                    model.insert(key, value);
                } else {
                    block_on(kv.remove(epoch, &[&key])).expect("remove");
                    model.remove(&key);
                }
            }
            snapshots.push((epoch, model.clone()));
        }
        for (epoch, model) in &snapshots {
            let mut listed = Vec::new();
            let mut anchor = Some(Anchor::default());
            while let Some(from) = anchor {
                let page = block_on(kv.list(*epoch, &from, 7)).expect("list");
                assert!(page.items.len() <= 7);
                listed.extend(page.items);
                anchor = page.next.map(|next| Anchor::from_bytes(next.to_bytes()));
            }
            listed.sort();
            assert_eq!(listed, model.keys().cloned().collect::<Vec<_>>(), "{class} at {epoch}");
            for (key, value) in model {
                assert_eq!(block_on(kv.get(*epoch, key)), Ok(Fetched::Value(value.clone())));
            }
        }
        block_on(kv.punch(Epoch(100))).expect("punch");
        assert!(block_on(kv.list(Epoch(100), &Anchor::default(), 7)).expect("list").items.is_empty());
        assert_eq!(block_on(kv.get(Epoch(100), b"never written")), Ok(Fetched::Punched));
        assert_eq!(block_on(kv.get(Epoch(99), b"never written")), Ok(Fetched::Miss));
    }
}

#[test]
fn an_array_holds_what_bytes_hold_however_it_is_striped() {
    const CELL: u64 = daos_dsr::class::CELL_BYTES;
    for (class, targets) in [("S1", 2), ("S2", 2), ("SX", 5)] {
        let pool = MemoryTargets::new(targets, 7);
        let array = Array::open(&pool, object(ObjectType::Array, class, 9)).expect("a handle");
        let mut random = Random(3);
        let length = 3 * CELL + 1000;
        // 0 is a miss, 1 a punch, everything else a byte of data.
        let mut model = vec![0u16; length as usize];
        for epoch in (1..25).map(Epoch) {
            let start = random.below(length - 1);
            let end = (start + 1 + random.below(CELL + CELL / 2)).min(length);
            if random.below(4) == 0 {
                block_on(array.punch_range(epoch, start, end)).expect("punch");
                model[start as usize..end as usize].fill(1);
            } else {
                let mut data = IoBuffer::zeroed((end - start) as usize);
                data.as_mut_slice().fill(epoch.0 as u8);
                block_on(array.write(epoch, start, data)).1.expect("write");
                model[start as usize..end as usize].fill(256 + epoch.0 as u16);
            }
            let size = model.iter().rposition(|byte| *byte > 1).map_or(0, |last| last as u64 + 1);
            assert_eq!(block_on(array.size(epoch)), Ok(size));
        }
        let (data, outcome) = block_on(array.read(Epoch::MAX, 0, IoBuffer::zeroed(length as usize)));
        let mut position = 0;
        let outcome = outcome.expect("read");
        for extent in &outcome.extents {
            assert_eq!(extent.range.start, position);
            let bytes = &model[extent.range.start as usize..extent.range.end as usize];
            assert!(bytes.iter().all(|byte| match extent.kind {
                ExtentKind::Miss => *byte == 0,
                ExtentKind::Punched => *byte == 1,
                ExtentKind::Data => *byte > 1,
            }));
            position = extent.range.end;
        }
        assert_eq!(position, length);
        assert!(outcome.extents.windows(2).all(|pair| pair[0].kind != pair[1].kind));
        let wanted = model.iter().map(|byte| if *byte > 1 { *byte as u8 } else { 0 });
        assert!(data.as_slice().iter().copied().eq(wanted));
    }
}

#[test]
fn a_document_fetches_akeys_of_a_dkey_in_one_request() {
    let pool = MemoryTargets::new(3, 1);
    let document = Document::open(&pool, object(ObjectType::Document, "SX", 1)).expect("a handle");
    for name in ["a", "b", "c", "d", "e"] {
        let records: [(&[u8], &[u8]); 2] = [(b"mode", b"644"), (b"size", name.as_bytes())];
        block_on(document.update(Epoch(1), name.as_bytes(), &records)).expect("update");
    }
    let before = pool.requests();
    let fetched = block_on(document.fetch(Epoch(1), b"d", &[b"size", b"absent", b"mode"])).expect("fetch");
    assert_eq!(pool.requests(), before + 1);
    assert_eq!(fetched, [Fetched::Value(b"d".to_vec()), Fetched::Miss, Fetched::Value(b"644".to_vec())]);
    block_on(document.remove(Epoch(2), b"d", &[b"size"])).expect("remove");
    assert_eq!(block_on(document.fetch(Epoch(2), b"d", &[b"size"])), Ok(vec![Fetched::Punched]));
    block_on(document.remove_dkey(Epoch(3), b"d")).expect("remove");
    assert_eq!(block_on(document.fetch(Epoch(3), b"d", &[b"mode"])), Ok(vec![Fetched::Punched]));
    let akeys = block_on(document.list_akeys(Epoch(2), b"d", &Anchor::default(), 10)).expect("list");
    assert_eq!(akeys.items, [b"mode"]);
    let dkeys = block_on(document.list_dkeys(Epoch(3), &Anchor::default(), 10)).expect("list");
    assert!(dkeys.items.len() <= 4);
}

#[test]
fn a_handle_follows_the_map_and_says_what_is_lost() {
    let pool = MemoryTargets::new(2, 1);
    let id = object(ObjectType::KeyValue, "SX", 1);
    let kv = Kv::open(&pool, id).expect("a handle");
    for key in 0..50u8 {
        block_on(kv.put(Epoch(1), &[key], &[key])).expect("put");
    }
    let place = |target, standing| PlacedTarget { rank: 0, target, domain: 0, standing };
    let failed = Standing::Failed { version: 2 };
    pool.set_placement(Placement::new(2, vec![place(0, Standing::Serving), place(1, failed)]));
    let mut lost = 0;
    for key in 0..50u8 {
        match block_on(kv.get(Epoch(1), &[key])) {
            Ok(fetched) => assert_eq!(fetched, Fetched::Value(vec![key])),
            Err(error) => {
                assert_eq!(error, DsrError::ShardLost { object: id, rank: 0, target: 1 });
                lost += 1;
            }
        }
    }
    assert!((10..40).contains(&lost), "{lost} of 50 keys lost with one of two targets");
}

#[test]
fn every_object_is_listed_once() {
    let pool = MemoryTargets::new(3, 1);
    let mut wanted = Vec::new();
    for number in 0..20 {
        for (object_type, class) in [(ObjectType::KeyValue, "SX"), (ObjectType::Array, "S1")] {
            let id = object(object_type, class, number);
            wanted.push(id);
            match object_type {
                ObjectType::Array => {
                    let array = Array::open(&pool, id).expect("a handle");
                    block_on(array.write(Epoch(1), 5, IoBuffer::copy_of(b"x"))).1.expect("write");
                }
                _ => {
                    let kv = Kv::open(&pool, id).expect("a handle");
                    for key in 0..10u8 {
                        block_on(kv.put(Epoch(1), &[key], b"")).expect("put");
                    }
                }
            }
        }
    }
    let mut listed = Vec::new();
    let mut anchor = Some(Anchor::default());
    while let Some(from) = anchor {
        let page = block_on(enumerate_objects(&pool, Epoch(1), &from, 7)).expect("list");
        listed.extend(page.items);
        anchor = page.next;
    }
    listed.sort();
    wanted.sort();
    assert_eq!(listed, wanted);
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let pool = MemoryTargets::new(2, 1);
    let array = object(ObjectType::Array, "S1", 1);
    assert!(matches!(Kv::open(&pool, array), Err(DsrError::WrongType { .. })));
    let replicated = object(ObjectType::Array, "RP_2G1", 1);
    let error = Array::open(&pool, replicated).expect_err("not served");
    assert_eq!(error.to_string(), "object class RP_2G1 is not served yet; use S1, S2, S4 … SX");
    let array = Array::open(&pool, array).expect("a handle");
    let (_, result) = block_on(array.write(Epoch(1), u64::MAX, IoBuffer::copy_of(b"ab")));
    assert_eq!(result, Err(DsrError::BadRange { offset: u64::MAX, length: 2 }));
    let kv = Kv::open(&pool, object(ObjectType::KeyValue, "S2", 1)).expect("a handle");
    for bytes in [&b"\x01"[..], b"\x02\0\0\0", b"\xff\xff\xff\xff rest"] {
        let listed = block_on(kv.list(Epoch(1), &Anchor::from_bytes(bytes), 1));
        assert_eq!(listed, Err(DsrError::BadAnchor));
    }
}
