//! A heap's content that can be checked: blocks of one repeated byte, in a table that counts transactions.

use daos_umem::{Heap, HeapError, Off, Transaction, field};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Random;

const SLOTS: usize = 40;

/// The test's data: how many transactions happened, and blocks of one repeated byte.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Table {
    transactions: u64,
    slots: [Slot; SLOTS],
}

#[derive(Clone, Copy, Debug, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Slot {
    block: Off<u8>,
    length: u32,
    fill: u32,
}

pub type Model = Vec<Option<(u32, u32)>>;

/// Nothing yet.
pub fn empty() -> Model {
    vec![None; SLOTS]
}

/// One transaction that depends on (seed, number) alone, on the heap and on the model.
pub fn change(
    seed: u64,
    number: u64,
    transaction: &mut Transaction<'_>,
    model: &mut Model,
) -> Result<(), HeapError> {
    let random = Random::new(seed ^ number << 32);
    let mut table: Off<Table> = transaction.root();
    if table.is_null() {
        table = transaction.allocate(&Table { transactions: 0, slots: [Slot::default(); SLOTS] })?;
        transaction.set_root(table)?;
    }
    if number.is_multiple_of(3) {
        // Some of it changes, and some of it will not.
        let count = field!(table, Table, transactions).raw();
        transaction.announce(&[(count, 8), (table.raw() + 200, 100), (table.raw() + 8, 16)])?;
    }
    transaction.set(field!(table, Table, transactions), &(number + 1))?;
    for _ in 0..=random.below(4) {
        let index = random.below(SLOTS as u64);
        let slot_off = field!(table, Table, slots).cast::<Slot>().element(index);
        let slot = *transaction.get(slot_off)?;
        let fill = random.below(255) as u32 + 1;
        let length = [20, 100, 700, 2000, 5000][random.below(5) as usize] + random.below(50) as u32;
        let new = match (slot.block.is_null(), random.below(3)) {
            (false, 0) => {
                transaction.free(slot.block)?;
                Slot::default()
            }
            (false, 1) => {
                transaction
                    .update_bytes(slot.block, u64::from(slot.length), |bytes| bytes.fill(fill as u8))?;
                Slot { fill, ..slot }
            }
            (used, _) => {
                if !used {
                    transaction.free(slot.block)?;
                }
                let block = transaction.allocate_with(1, &[&vec![fill as u8; length as usize]])?;
                Slot { block, length, fill }
            }
        };
        transaction.set(slot_off, &new)?;
        model[index as usize] = (!new.block.is_null()).then_some((new.length, new.fill));
    }
    Ok(())
}

/// The model after `count` transactions. Models of one seed are made once.
pub fn model_after(seed: u64, count: u64) -> Model {
    struct Models {
        seed: u64,
        heap: Heap,
        models: Vec<Model>,
    }
    thread_local! {
        static MADE: std::cell::RefCell<Option<Models>> = const { std::cell::RefCell::new(None) };
    }
    MADE.with_borrow_mut(|made| {
        if made.as_ref().is_none_or(|made| made.seed != seed) {
            let heap = Heap::volatile(1 << 20).expect("a heap");
            *made = Some(Models { seed, heap, models: vec![empty()] });
        }
        let Models { heap, models, .. } = made.as_mut().expect("made above");
        while models.len() as u64 <= count {
            let mut model = models.last().expect("there is one").clone();
            let mut transaction = heap.begin();
            change(seed, models.len() as u64 - 1, &mut transaction, &mut model).expect("room");
            let _ = transaction.seal().expect("sealed");
            models.push(model);
        }
        models[count as usize].clone()
    })
}

/// Compares the heap with the model; gives how many transactions it has seen.
pub fn check(seed: u64, heap: &Heap, acknowledged: u64, begun: u64) -> u64 {
    let root = heap.root::<Table>();
    if root.is_null() {
        assert_eq!(acknowledged, 0, "everything is gone");
        assert_eq!(heap.usage().used_bytes, 0);
        return 0;
    }
    let table = heap.get(root).expect("the table");
    let count = table.transactions;
    assert!(
        (acknowledged..=begun).contains(&count),
        "{acknowledged} acknowledged, {count} found, {begun} begun"
    );
    let model = model_after(seed, count);
    let mut used = heap.block_bytes(root).expect("in use");
    for (slot, expected) in table.slots.iter().zip(&model) {
        match expected {
            None => assert_eq!(*slot, Slot::default()),
            Some((length, fill)) => {
                assert_eq!((slot.length, slot.fill), (*length, *fill));
                let bytes = heap.bytes(slot.block, u64::from(*length)).expect("a block");
                assert!(bytes.iter().all(|&byte| u32::from(byte) == *fill), "a block is not whole");
                used += heap.block_bytes(slot.block).expect("in use");
            }
        }
    }
    assert_eq!(heap.usage().used_bytes, used, "blocks leaked or lost");
    count
}
