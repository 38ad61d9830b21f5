//! Locks between the operations of one client: shared or exclusive, by key.
//!
//! # Invariants
//!
//! * Operations take keys in ascending order, and each key once, so that no two wait for each other.
//! * A key nobody holds or waits for takes no memory.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use daos_dsr::client::Ticket;
use daos_types::{Epoch, ObjectId};
use daos_xstream::sync::Notify;

/// What is locked: a directory as a whole (no name), or one of its names.
pub(crate) type LockKey = (ObjectId, Option<Vec<u8>>);

#[derive(Default)]
struct State {
    readers: usize,
    writer: bool,
    users: usize,
    changed: Rc<Notify>,
}

/// The locks of one mount.
#[derive(Clone, Default)]
pub(crate) struct Locks(Rc<RefCell<BTreeMap<LockKey, State>>>);

/// What an operation holds while it changes something: its locks, and the epoch that was current once it had them.
pub(crate) struct Turn {
    ticket: Ticket,
    _guards: Vec<Guard>,
}

impl Turn {
    pub(crate) fn new(ticket: Ticket, guards: Vec<Guard>) -> Self {
        Self { ticket, _guards: guards }
    }

    /// The epoch to write into.
    pub(crate) fn epoch(&self) -> Epoch {
        self.ticket.epoch()
    }

    /// Begins a change of several steps. If it does not [end](Steps::end), whether a step fails or nobody awaits it any more,
    /// the epoch is never committed.
    pub(crate) fn begin_steps(&self, what: String) -> Steps<'_> {
        Steps { ticket: &self.ticket, what: Some(what) }
    }
}

/// A change of several steps.
pub(crate) struct Steps<'a> {
    ticket: &'a Ticket,
    what: Option<String>,
}

impl Steps<'_> {
    /// All steps are made, or none.
    pub(crate) fn end(mut self) {
        self.what = None;
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        if let Some(what) = self.what.take() {
            self.ticket.note_half_done(what);
        }
    }
}

/// A lock that is held until this is dropped.
pub(crate) struct Guard {
    locks: Locks,
    key: LockKey,
    exclusive: bool,
    held: bool,
}

impl Locks {
    /// Takes several locks, in ascending order of their keys; a key that is asked for twice is taken once, exclusively
    /// if either asks for that.
    pub(crate) async fn take_all(&self, mut keys: Vec<(LockKey, bool)>) -> Vec<Guard> {
        // Exclusive requests of a key come first and are the ones that stay.
        keys.sort_by(|(a, a_exclusive), (b, b_exclusive)| a.cmp(b).then(b_exclusive.cmp(a_exclusive)));
        keys.dedup_by(|(later, _), (earlier, _)| later == earlier);
        let mut guards = Vec::with_capacity(keys.len());
        for (key, exclusive) in keys {
            guards.push(self.take(key, exclusive).await);
        }
        guards
    }

    async fn take(&self, key: LockKey, exclusive: bool) -> Guard {
        self.0.borrow_mut().entry(key.clone()).or_default().users += 1;
        // The guard exists before the lock is held: a future that is dropped while it waits leaves nothing behind.
        let mut guard = Guard { locks: self.clone(), key, exclusive, held: false };
        loop {
            let changed = {
                let mut states = self.0.borrow_mut();
                let state = states.get_mut(&guard.key).expect("a lock with users");
                if !state.writer && (!exclusive || state.readers == 0) {
                    if exclusive {
                        state.writer = true
                    } else {
                        state.readers += 1
                    }
                    guard.held = true;
                    return guard;
                }
                state.changed.clone()
            };
            changed.notified().await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut states = self.locks.0.borrow_mut();
        let state = states.get_mut(&self.key).expect("a lock with users");
        if self.held {
            if self.exclusive { state.writer = false } else { state.readers -= 1 }
        }
        state.users -= 1;
        let changed = state.changed.clone();
        if state.users == 0 {
            states.remove(&self.key);
        }
        drop(states);
        changed.notify_all();
    }
}
