//! The fuzzy checkpoint: copies dirty pages to the heap file while transactions go on, then lets the log go.
//!
//! # Invariants
//!
//! * Every page dirty when a pass begins is copied in that pass, after it began. So once the pass is durable, recovery
//!   needs the log from the pass's beginning only.
//! * A store that was dropped or closed writes nothing to the heap file but the batch that it is at: whoever opens it again must find
//!   nobody writing.
//! * No slice of work between two yields copies more than a few pages.

use std::rc::Rc;

use daos_xstream::{Env, Spawn};

use crate::{
    PAGE_BYTES,
    store::StoreError,
    wal::{
        File, Wal,
        image::{Batch, Image},
    },
};

/// Pages copied before it is asked whether to yield: about 30 µs.
const PAGES_PER_SLICE: usize = 16;

/// Runs checkpoints when asked to, until the store closes or the device fails.
pub(crate) async fn run<E: Env>(wal: Rc<Wal<E>>, mut image: Image<File<E>>) {
    loop {
        wal.checkpoint.wait().await;
        if wal.check().is_err() {
            return;
        }
        loop {
            let mut numbers = wal.checkpoints.get();
            numbers.begun += 1;
            wal.checkpoints.set(numbers);
            match pass(&wal, &mut image).await {
                Ok(()) => {}
                Err(StoreError::ReadOnly(_) | StoreError::Closed) => return,
                Err(error) => {
                    wal.fail(&format_args!("writing a checkpoint: {error}"));
                    return;
                }
            }
            let mut numbers = wal.checkpoints.get();
            numbers.completed += 1;
            wal.checkpoints.set(numbers);
            wal.checkpoint_waiters.wake(numbers.completed);
            wal.room_waiters.wake(u64::MAX);
            if numbers.asked <= numbers.completed {
                break;
            }
        }
    }
}

async fn pass<E: Env>(wal: &Wal<E>, image: &mut Image<File<E>>) -> Result<(), StoreError> {
    let (replay_position, replay_sequence) = wal.with_log(|log| log.close());
    let mut next_page = 0;
    loop {
        let batch = fill(wal, image, &mut next_page).await;
        // Nobody waits for the rest of a pass, its super-block included, when the store is gone; and it may be open again.
        wal.check()?;
        if batch.is_empty() {
            // The next pass would begin with a fresh one.
            image.give_back(batch);
            break;
        }
        // Whatever the copies contain was sealed by now.
        let newest = wal.heap.borrow().sealed();
        wal.persisted(newest.0).await?;
        let blocks = image.write_batch(batch, newest.0).await?;
        wal.count(|counters| counters.checkpoint_blocks += blocks);
    }
    // Replay must find its first frame, or the end of the log, exactly there.
    wal.persisted(replay_position).await?;
    image.super_block.replay_position = replay_position;
    image.super_block.replay_sequence = replay_sequence;
    image.super_block.valid_position = wal.persisted.get();
    image.write_super_block().await?;
    wal.with_log(|log| log.trim(replay_position));
    wal.count(|counters| counters.checkpoints += 1);
    Ok(())
}

/// Copies dirty pages from `next_page` on until the batch is full or none is left.
async fn fill<E: Env>(wal: &Wal<E>, image: &mut Image<File<E>>, next_page: &mut u64) -> Batch {
    let mut batch = image.batch();
    let mut in_slice = 0;
    while image.has_room(&batch) {
        {
            let mut heap = wal.heap.borrow_mut();
            let log = heap.ledger.log().expect("a wal heap has a log");
            let Some(page) = log.dirty.take_from(*next_page) else { break };
            let bytes =
                heap.ledger.arena.values(0, page * PAGE_BYTES, PAGE_BYTES).expect("a page of the arena");
            image.add_page(&mut batch, page, bytes);
            *next_page = page + 1;
        }
        in_slice += 1;
        if in_slice >= PAGES_PER_SLICE {
            in_slice = 0;
            if wal.env.scheduler().should_yield() {
                wal.env.scheduler().yield_now().await;
            }
        }
    }
    batch
}
