//! Random transactions against a model: a map of blocks with their content, and the free space.

use std::collections::BTreeMap;

use daos_umem::{Heap, HeapError, Off};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Allocate { bytes: u64, fill: u8 },
    Zeroed { bytes: u64, align: u32 },
    Write { block: usize, at: u64, bytes: u64, fill: u8 },
    Move { block: usize, from: u64, to: u64, bytes: u64 },
    Free { block: usize },
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1..300u64, 3 => 300..5000u64, 2 => 5000..40_000u64, 1 => 40_000..300_000u64]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (size(), any::<u8>()).prop_map(|(bytes, fill)| Step::Allocate { bytes, fill }),
        1 => (size(), 0..13u32).prop_map(|(bytes, align)| Step::Zeroed { bytes, align }),
        5 => (any::<usize>(), any::<u64>(), any::<u64>(), any::<u8>())
            .prop_map(|(block, at, bytes, fill)| Step::Write { block, at, bytes, fill }),
        2 => (any::<usize>(), any::<u64>(), any::<u64>(), any::<u64>())
            .prop_map(|(block, from, to, bytes)| Step::Move { block, from, to, bytes }),
        4 => any::<usize>().prop_map(|block| Step::Free { block }),
    ]
}

fn transactions() -> impl Strategy<Value = Vec<(Vec<Step>, bool)>> {
    prop::collection::vec((prop::collection::vec(step(), 0..12), prop::bool::weighted(0.7)), 1..60)
}

type Blocks = BTreeMap<u64, Vec<u8>>;

fn check(heap: &Heap, blocks: &Blocks) {
    let mut used = 0;
    let mut end_before = 0;
    for (&offset, content) in blocks {
        assert_eq!(
            heap.bytes(Off::new(offset), content.len() as u64).expect("a block"),
            content,
            "at {offset:#x}"
        );
        let bytes = heap.block_bytes(Off::<u8>::new(offset)).expect("a block in use");
        assert!(bytes >= content.len() as u64 && offset >= end_before, "blocks overlap at {offset:#x}");
        end_before = offset + bytes;
        used += bytes;
    }
    let usage = heap.usage();
    assert_eq!(usage.used_bytes, used);
    assert_eq!((usage.used_bytes, usage.free_bytes), heap.used_and_free());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn transactions_happen_whole_or_not_at_all(script in transactions()) {
        let mut heap = Heap::volatile(1 << 20).expect("a heap");
        let empty = heap.usage();
        let mut blocks = Blocks::new();
        for (steps, seal) in script {
            let mut after = blocks.clone();
            let mut freed = Vec::new();
            let mut transaction = heap.begin();
            for step in steps {
                let pick = |block: usize| after.keys().nth(block % after.len().max(1)).copied();
                match step {
                    Step::Allocate { bytes, fill } => {
                        let content = vec![fill; bytes as usize];
                        let middle = content.len() / 3;
                        match transaction.allocate_with(1, &[&content[..middle], &content[middle..]]) {
                            Ok(off) => prop_assert!(after.insert(off.raw(), content).is_none()),
                            Err(error) => prop_assert!(matches!(error, HeapError::NoSpace(_)), "{error}"),
                        }
                    }
                    Step::Zeroed { bytes, align } => match transaction.allocate_zeroed(bytes, 1 << align) {
                        Ok(off) => {
                            prop_assert_eq!(off.raw() % (1 << align), 0);
                            prop_assert!(after.insert(off.raw(), vec![0; bytes as usize]).is_none());
                        }
                        Err(error) => prop_assert!(matches!(error, HeapError::NoSpace(_)), "{error}"),
                    },
                    Step::Write { block, at, bytes, fill } => {
                        let Some(offset) = pick(block) else { continue };
                        let content = after.get_mut(&offset).expect("a block");
                        let at = at % content.len() as u64;
                        let bytes = bytes % (content.len() as u64 - at + 1);
                        transaction.write(Off::new(offset + at), &vec![fill; bytes as usize]).expect("in bounds");
                        content[at as usize..(at + bytes) as usize].fill(fill);
                    }
                    Step::Move { block, from, to, bytes } => {
                        let Some(offset) = pick(block) else { continue };
                        let content = after.get_mut(&offset).expect("a block");
                        let length = content.len() as u64;
                        let (from, to) = (from % length, to % length);
                        let bytes = bytes % (length - from.max(to) + 1);
                        transaction
                            .move_within(Off::new(offset + from), Off::new(offset + to), bytes)
                            .expect("in bounds");
                        content.copy_within(from as usize..(from + bytes) as usize, to as usize);
                    }
                    Step::Free { block } => {
                        let Some(offset) = pick(block) else { continue };
                        transaction.free(Off::<u8>::new(offset)).expect("a block in use");
                        after.remove(&offset);
                        freed.push(offset);
                    }
                }
                // What was freed must not be handed out again by the same transaction.
                prop_assert!(freed.iter().all(|offset| !after.contains_key(offset)));
            }
            if seal {
                let _ = transaction.seal().expect("sealed");
                blocks = after;
            } else {
                drop(transaction);
            }
            check(&heap, &blocks);
        }
        let mut transaction = heap.begin();
        for &offset in blocks.keys() {
            transaction.free(Off::<u8>::new(offset)).expect("a block in use");
        }
        let _ = transaction.seal().expect("sealed");
        prop_assert_eq!(heap.usage(), empty, "everything freed gives everything back");
    }
}

#[test]
fn wrong_frees_are_refused_and_change_nothing() {
    let mut heap = Heap::volatile(1 << 20).expect("a heap");
    let mut transaction = heap.begin();
    let block = transaction.allocate_bytes(100).expect("room");
    let other = transaction.allocate_bytes(100).expect("room");
    let _ = transaction.seal().expect("sealed");
    let before = heap.usage();

    let mut transaction = heap.begin();
    for wrong in [0, 8, block.raw() + 1, block.raw() + 112 * 5, u64::MAX, 1 << 19] {
        assert!(
            matches!(transaction.free(Off::<u8>::new(wrong)), Err(HeapError::NotAllocated(_))),
            "{wrong:#x}"
        );
    }
    transaction.free(other).expect("a block in use");
    transaction.free(block).expect("a block in use");
    transaction.free(block).expect("a double free is found at the seal");
    assert_eq!(transaction.seal(), Err(HeapError::NotAllocated(block.raw())));
    assert_eq!(heap.usage(), before);

    let mut transaction = heap.begin();
    transaction.free(block).expect("still in use");
    let _ = transaction.seal().expect("sealed");
    assert!(heap.begin().free(block).is_err());
}

#[test]
fn what_lies_outside_is_refused() {
    let mut heap = Heap::volatile(1 << 20).expect("a heap");
    for raw in [0, 8192, (1 << 20) - 4, 1 << 20, u64::MAX, u64::MAX - 7] {
        assert!(heap.get(Off::<u64>::new(raw)).is_err(), "{raw:#x}");
        assert!(heap.begin().set(Off::<u64>::new(raw), &1).is_err(), "{raw:#x}");
    }
    let inside = (1 << 20) - 64;
    assert_eq!(heap.get(Off::<u64>::new(inside + 1)), Err(HeapError::Misaligned(inside + 1)));
    assert!(heap.slice(Off::<u64>::new(inside), 8).is_ok());
    assert!(heap.slice(Off::<u64>::new(inside), 9).is_err());
    assert!(heap.slice(Off::<u64>::new(inside), u64::MAX).is_err());
}
