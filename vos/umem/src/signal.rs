//! Waiting within one xstream: a flag with one waiter, and a queue of those who wait for a number to be reached.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    task::{Poll, Waker},
};

/// A flag that one task waits for. Raising it twice before it is seen counts once.
#[derive(Default)]
pub(crate) struct Signal {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Raises the flag and wakes the task that waits for it.
    pub fn raise(&self) {
        if !self.raised.replace(true)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Waits for the flag and lowers it.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits for the flag, and lowers it, or for `timeout`.
    pub async fn wait_or(&self, timeout: impl Future<Output = ()>) {
        let mut timeout = std::pin::pin!(timeout);
        let mut wait = std::pin::pin!(self.wait());
        poll_fn(|context| match wait.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => timeout.as_mut().poll(context),
        })
        .await;
    }
}

/// Those who wait until a number that only grows has reached theirs.
#[derive(Default)]
pub(crate) struct Waiters {
    waiting: RefCell<Vec<(u64, u64, Waker)>>,
    next_id: Cell<u64>,
}

impl Waiters {
    /// Waits until `done` says something, which is asked now and each time that [`Waiters::wake`] reaches `goal`.
    pub async fn wait<R>(&self, goal: u64, mut done: impl FnMut() -> Option<R>) -> R {
        let id = self.next_id.replace(self.next_id.get() + 1);
        poll_fn(|context| {
            if let Some(result) = done() {
                return Poll::Ready(result);
            }
            let mut waiting = self.waiting.borrow_mut();
            match waiting.iter_mut().find(|entry| entry.1 == id) {
                Some(entry) => entry.2.clone_from(context.waker()),
                None => waiting.push((goal, id, context.waker().clone())),
            }
            Poll::Pending
        })
        .await
    }

    /// Wakes those whose goal is at most `reached`.
    pub fn wake(&self, reached: u64) {
        let mut index = 0;
        loop {
            let waker = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.get(index) {
                    None => return,
                    Some(entry) if entry.0 > reached => {
                        index += 1;
                        continue;
                    }
                    Some(_) => waiting.swap_remove(index).2,
                }
            };
            waker.wake();
        }
    }
}

/// Runs all futures to their end, at most `depth` at a time; gives their results in no particular order.
pub(crate) async fn join_bounded<F: Future>(
    futures: impl IntoIterator<Item = F>,
    depth: usize,
) -> Vec<F::Output> {
    let mut rest = futures.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::with_capacity(depth);
    let mut results = Vec::new();
    poll_fn(move |context| {
        loop {
            while running.len() < depth
                && let Some(future) = rest.next()
            {
                running.push(Box::pin(future));
            }
            if running.is_empty() {
                return Poll::Ready(std::mem::take(&mut results));
            }
            let before = results.len();
            running.retain_mut(|future| match future.as_mut().poll(context) {
                Poll::Ready(result) => {
                    results.push(result);
                    false
                }
                Poll::Pending => true,
            });
            // One that ended made room for one that nobody has polled yet.
            if results.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await
}
