//! A wake-up call within one thread.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Context, Poll, Waker},
};

/// Remembers one call until the one task that waits has heard it.
#[derive(Default)]
pub(crate) struct Notify {
    called: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Notify {
    pub(crate) fn notify(&self) {
        if !self.called.replace(true) {
            let waiter = self.waiter.borrow_mut().take();
            if let Some(waiter) = waiter {
                waiter.wake();
            }
        }
    }

    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.called.replace(false) {
            self.waiter.borrow_mut().take();
            return Poll::Ready(());
        }
        *self.waiter.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    pub(crate) async fn notified(&self) {
        poll_fn(|context| self.poll(context)).await;
    }
}
