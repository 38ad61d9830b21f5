//! The space map against a set of blocks.

use std::collections::BTreeSet;

use daos_umem::{
    Heap, Off,
    space::{Extent, Reservation, SpaceMap, SpaceRoot},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    Cancel(usize),
    Publish { which: usize, seal: bool },
    Free { which: usize, seal: bool },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![4 => 1..20u64, 2 => 60..70u64, 1 => 200..6000u64];
    let which = any::<usize>();
    prop_oneof![
        6 => count.prop_map(Step::Reserve),
        1 => which.prop_map(Step::Cancel),
        5 => (which, prop::bool::weighted(0.8)).prop_map(|(which, seal)| Step::Publish { which, seal }),
        4 => (which, prop::bool::weighted(0.8)).prop_map(|(which, seal)| Step::Free { which, seal }),
        1 => Just(Step::Reopen),
    ]
}

fn blocks(extent: Extent) -> impl Iterator<Item = u64> {
    extent.start..extent.start + extent.count
}

/// The longest row of blocks that are not in `busy`.
fn longest_row(busy: &BTreeSet<u64>, count: u64) -> u64 {
    let (mut longest, mut next) = (0, 0);
    for &block in busy.iter().chain([&count]) {
        longest = longest.max(block - next);
        next = block + 1;
    }
    longest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_block_is_handed_out_twice(block_count in 1..20_000u64, steps in prop::collection::vec(step(), 1..80)) {
        let mut heap = Heap::volatile(1 << 20).expect("a heap");
        let mut transaction = heap.begin();
        let root: Off<SpaceRoot> = SpaceMap::create(&mut transaction, block_count).expect("room");
        let _ = transaction.seal().expect("sealed");
        let mut map = SpaceMap::open(&heap, root).expect("opens");
        let mut reserved: Vec<Reservation> = Vec::new();
        let mut used: Vec<Extent> = Vec::new();
        for step in steps {
            match step {
                Step::Reserve(count) => {
                    let busy: BTreeSet<u64> = reserved
                        .iter()
                        .map(Reservation::extent)
                        .chain(used.iter().copied())
                        .flat_map(blocks)
                        .collect();
                    match map.reserve(count) {
                        Some(reservation) => {
                            let extent = reservation.extent();
                            prop_assert_eq!(extent.count, count);
                            prop_assert!(extent.start + count <= block_count);
                            prop_assert!(blocks(extent).all(|block| !busy.contains(&block)));
                            reserved.push(reservation);
                        }
                        None => prop_assert!(longest_row(&busy, block_count) < count, "there was room for {}", count),
                    }
                }
                Step::Cancel(which) if !reserved.is_empty() => {
                    map.cancel(reserved.swap_remove(which % reserved.len()));
                }
                Step::Publish { which, seal } if !reserved.is_empty() => {
                    let index = which % reserved.len();
                    let mut transaction = heap.begin();
                    map.publish(&mut transaction, &reserved[index]).expect("published");
                    if seal {
                        let _ = transaction.seal().expect("sealed");
                        used.push(reserved.swap_remove(index).extent());
                    }
                }
                Step::Free { which, seal } if !used.is_empty() => {
                    let index = which % used.len();
                    let mut transaction = heap.begin();
                    let freed = map.free(&mut transaction, used[index]).expect("freed");
                    prop_assert!(map.free(&mut transaction, used[index]).is_err(), "freed twice");
                    if seal {
                        let sealed = transaction.seal().expect("sealed");
                        let free = map.free_blocks();
                        map.settle(freed, sealed);
                        prop_assert_eq!(map.free_blocks(), free, "not before it is durable");
                        let gone = used.swap_remove(index);
                        map.reclaim(sealed, persisted());
                        prop_assert_eq!(map.free_blocks(), free + gone.count);
                    }
                }
                Step::Reopen => {
                    reserved.clear();
                    map = SpaceMap::open(&heap, root).expect("opens");
                }
                _ => {}
            }
            let in_use: u64 = used.iter().map(|extent| extent.count).sum();
            let held: u64 = reserved.iter().map(|reservation| reservation.extent().count).sum();
            prop_assert_eq!(map.used_blocks(&heap).expect("a root"), in_use);
            prop_assert_eq!(map.free_blocks(), block_count - in_use - held);
        }
    }
}

/// The proof that a volatile store gives at once.
fn persisted() -> daos_umem::Persisted {
    daos_umem::Heap::volatile(1 << 20)
        .expect("a heap")
        .persisted()
        .expect("a volatile heap has nothing to wait for")
}
