//! The `wal` media: the arena in memory, its changes in a log, and now and then its pages in a file.
//!
//! # Invariants
//!
//! * A page reaches the heap file only after every log record of its changes is durable.
//! * The log keeps everything from the beginning of the last complete checkpoint on.
//! * At most one frame is on its way to the log. So a crash damages the newest frame only, and a whole frame beyond a
//!   damaged one means that media lost what it had promised to keep.
//!
//! `docs/format.md` has the format and the argument why recovery is right.

mod buffer;
mod checkpoint;
mod dirty;
mod flusher;
mod frame;
mod image;
mod log_file;
mod recovery;
mod superblock;

pub(crate) use buffer::LogBuffer;
pub(crate) use recovery::{create, inspect, open};
pub use superblock::FORMAT_VERSION;
pub(crate) use superblock::{KIND_PMEM, SuperBlock};

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use daos_xstream::{Class, Env, Media, Spawn};

use crate::{
    Heap,
    signal::{Signal, Waiters},
    store::StoreError,
};
use image::Image;
use log_file::LogFile;

/// The unit of media, in bytes.
pub(crate) const BLOCK: u64 = daos_xstream::BLOCK_BYTES as u64;

/// Writes of a checkpoint and reads of an open that overlap.
pub(crate) const IO_DEPTH: usize = 16;

pub(crate) type File<E> = <<E as Env>::Media as Media>::File;

/// What the tasks behind a `wal` heap share with its users.
pub(crate) struct Wal<E: Env> {
    pub env: E,
    pub heap: Rc<RefCell<Heap>>,
    log: LogFile<File<E>>,
    pub uuid: uuid::Uuid,
    /// Raised when there is something to write.
    pub flush: Rc<Signal>,
    pub checkpoint: Rc<Signal>,
    /// Everything before this position is durable.
    pub persisted: Cell<u64>,
    /// Somebody waits for this position.
    pub wanted: Cell<u64>,
    pub persisted_waiters: Waiters,
    /// Wakes with every trim and every written frame.
    pub room_waiters: Waiters,
    /// Checkpoints asked for, begun and completed.
    pub checkpoints: Cell<Checkpoints>,
    pub checkpoint_waiters: Waiters,
    /// Why the heap is read-only, if it is.
    pub failure: RefCell<Option<String>>,
    /// The store was dropped or closed: the tasks end.
    pub closing: Cell<bool>,
    pub counters: Cell<crate::Counters>,
}

/// Numbers of checkpoints.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checkpoints {
    pub asked: u64,
    pub begun: u64,
    pub completed: u64,
}

impl<E: Env> Wal<E> {
    /// Starts the tasks that write the log and the checkpoints.
    fn start(self: &Rc<Self>, image: Image<File<E>>) {
        let scheduler = self.env.scheduler();
        scheduler.spawn(Class::Foreground, "umem-log", flusher::run(self.clone()));
        scheduler.spawn(Class::Background, "umem-checkpoint", checkpoint::run(self.clone(), image));
    }

    /// Makes the heap read-only, because `error` left media in an unknown state.
    pub fn fail(&self, error: &impl std::fmt::Display) {
        self.failure.borrow_mut().get_or_insert_with(|| error.to_string());
        if let Some(log) = self.heap.borrow_mut().ledger.log() {
            log.fail();
        }
        self.wake_everybody();
    }

    /// Ends the tasks, and tells those who wait that nothing more becomes durable.
    pub fn end(&self) {
        self.closing.set(true);
        self.wake_everybody();
    }

    fn wake_everybody(&self) {
        for waiters in [&self.persisted_waiters, &self.room_waiters, &self.checkpoint_waiters] {
            waiters.wake(u64::MAX);
        }
        self.flush.raise();
        self.checkpoint.raise();
    }

    /// The error that everybody gets once the device has failed or the store is closed.
    pub fn check(&self) -> Result<(), StoreError> {
        match &*self.failure.borrow() {
            Some(reason) => Err(StoreError::ReadOnly(reason.clone())),
            None if self.closing.get() => Err(StoreError::Closed),
            None => Ok(()),
        }
    }

    pub fn count(&self, change: impl FnOnce(&mut crate::Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Runs `with` on the log in memory.
    pub fn with_log<R>(&self, with: impl FnOnce(&mut LogBuffer) -> R) -> R {
        with(self.heap.borrow_mut().ledger.log().expect("a wal heap has a log"))
    }

    /// Waits until everything before `position` is durable.
    pub async fn persisted(&self, position: u64) -> Result<(), StoreError> {
        if self.persisted.get() < position {
            self.wanted.set(self.wanted.get().max(position));
            self.flush.raise();
        }
        self.persisted_waiters
            .wait(position, || {
                if self.persisted.get() >= position { Some(Ok(())) } else { self.check().err().map(Err) }
            })
            .await
    }

    /// Waits until the log has room for any transaction.
    pub async fn log_space(&self) -> Result<(), StoreError> {
        self.room_waiters
            .wait(0, || {
                if let Err(error) = self.check() {
                    return Some(Err(error));
                }
                let (room, empty) = self.with_log(|log| (log.has_room(), log.is_empty()));
                if room {
                    return Some(Ok(()));
                }
                if !empty {
                    self.wanted.set(self.heap.borrow().sealed().0);
                    self.flush.raise();
                }
                self.checkpoint.raise();
                None
            })
            .await
    }

    /// Runs a checkpoint that begins from now on, and waits for it.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let mut numbers = self.checkpoints.get();
        let goal = numbers.begun + 1;
        numbers.asked = numbers.asked.max(goal);
        self.checkpoints.set(numbers);
        self.checkpoint.raise();
        self.checkpoint_waiters
            .wait(goal, || {
                if self.checkpoints.get().completed >= goal {
                    Some(Ok(()))
                } else {
                    self.check().err().map(Err)
                }
            })
            .await
    }
}
