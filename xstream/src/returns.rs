//! Where results of work sent to other xstreams come back: a number crosses the rings, never a pointer.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use crate::{
    Env,
    sync::{Receiver, Sender, oneshot},
};

/// A result on its way. It is made on this xstream again, so it need not be `Send`.
pub(crate) type Parcel = Box<dyn Any>;

/// Results that this xstream waits for, by number.
#[derive(Default)]
pub(crate) struct Returns {
    next: Cell<u64>,
    expected: RefCell<BTreeMap<u64, Sender<Parcel>>>,
}

impl Returns {
    /// This xstream's table.
    pub(crate) fn of<E: Env>(env: &E) -> Rc<Self> {
        env.locals().get::<Self>().unwrap_or_else(|| {
            let table = Rc::new(Self::default());
            env.locals().insert(table.clone());
            table
        })
    }

    /// A number that is not in use, and the place where its result will be.
    pub(crate) fn expect(&self) -> (u64, Receiver<Parcel>) {
        let number = self.next.get();
        self.next.set(number + 1);
        let (sender, receiver) = oneshot();
        self.expected.borrow_mut().insert(number, sender);
        (number, receiver)
    }

    /// Gives up a number whose work was never sent.
    pub(crate) fn forget(&self, number: u64) {
        let sender = self.expected.borrow_mut().remove(&number);
        drop(sender);
    }

    /// Brings a result. One that nobody waits for any more is dropped.
    pub(crate) fn deliver(&self, number: u64, result: Parcel) {
        let sender = self.expected.borrow_mut().remove(&number);
        if let Some(sender) = sender {
            sender.send(result);
        }
    }
}
