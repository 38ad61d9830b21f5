//! How many tasks of an xstream are ready to run: exactly, because a core that finds none may block its thread.
//!
//! The executor has no public way to ask. So every future that it runs for an xstream, but the idle task which asks, is
//! wrapped by [`Readiness::track`], whose waker counts.
//!
//! # Invariants
//!
//! * A task counts from its birth, and from a call of its waker, until its next poll begins or it is dropped.
//! * It counts before the executor is told. So whoever reads 0 on the xstream's own thread knows that only a call from
//!   another thread can make a task ready.
//! * Such a call counts first and looks at the core's announcement then; a core announces that it parks first and looks
//!   at the count then, with a fence in between. So a thread that blocks with a task ready has its doorbell rung.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    task::{Context, Wake, Waker},
};

use daos_xstream::CoreId;

use crate::mesh::Shared;

/// States of a task.
const WAITING: u8 = 0;
const READY: u8 = 1;
const ENDED: u8 = 2;

/// The tasks of one xstream that are ready.
pub(crate) struct Readiness {
    /// Wraps below 0 for the moment in which a task is polled between the two steps of a call from another thread: not 0,
    /// and that is all that is asked.
    ready: AtomicU32,
    shared: Arc<Shared>,
    core: CoreId,
}

impl Readiness {
    pub(crate) fn new(shared: Arc<Shared>, core: CoreId) -> Self {
        Self { ready: AtomicU32::new(0), shared, core }
    }

    /// Whether any task is ready.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.ready.load(Ordering::SeqCst) != 0
    }

    /// `task`, counted.
    pub(crate) fn track<F: Future>(self: &Arc<Self>, task: F) -> impl Future<Output = F::Output> + use<F> {
        self.ready.fetch_add(1, Ordering::SeqCst);
        let mut life = Life { readiness: self.clone(), called: None };
        async move {
            let mut task = pin!(task);
            poll_fn(|context| task.as_mut().poll(&mut Context::from_waker(life.begin_poll(context)))).await
        }
    }
}

/// What counts a task, and ends with it.
struct Life {
    readiness: Arc<Readiness>,
    /// Once it has been polled.
    called: Option<(Arc<Call>, Waker)>,
}

impl Life {
    /// A poll begins: the task is not ready any more, and becomes so by the waker that this gives.
    fn begin_poll(&mut self, context: &Context<'_>) -> &Waker {
        let (_, waker) = match &mut self.called {
            Some(called) => {
                called.0.leave(WAITING);
                called
            }
            none => {
                self.readiness.ready.fetch_sub(1, Ordering::SeqCst);
                let executor = context.waker().clone();
                let readiness = self.readiness.clone();
                let call = Arc::new(Call { state: AtomicU8::new(WAITING), executor, readiness });
                none.insert((call.clone(), Waker::from(call)))
            }
        };
        waker
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        match &self.called {
            Some((call, _)) => call.leave(ENDED),
            None => {
                self.readiness.ready.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

/// The waker of a task.
struct Call {
    state: AtomicU8,
    executor: Waker,
    readiness: Arc<Readiness>,
}

impl Call {
    fn leave(&self, state: u8) {
        if self.state.swap(state, Ordering::SeqCst) == READY {
            self.readiness.ready.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A task that is ready has been made known to the executor; one that has ended is of no interest to it.
        let was = self.state.compare_exchange(WAITING, READY, Ordering::SeqCst, Ordering::SeqCst);
        if was.is_ok() {
            self.readiness.ready.fetch_add(1, Ordering::SeqCst);
            self.executor.wake_by_ref();
            self.readiness.shared.cores[self.readiness.core.0 as usize].ring_after_count();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    fn readiness() -> Arc<Readiness> {
        let shared = Arc::new(Shared::new(1).expect("a doorbell"));
        Arc::new(Readiness::new(shared, CoreId(0)))
    }

    /// A future that hands out its waker, and is ready when it is polled the third time.
    fn third(out: Arc<std::sync::Mutex<Option<Waker>>>) -> impl Future<Output = ()> {
        let mut polls = 0;
        poll_fn(move |context| {
            *out.lock().unwrap() = Some(context.waker().clone());
            polls += 1;
            if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    #[test]
    fn a_task_counts_from_its_birth_and_from_each_call_until_it_is_polled() {
        let readiness = readiness();
        let out = Arc::default();
        let mut task = Box::pin(readiness.track(third(Arc::clone(&out))));
        let mut context = Context::from_waker(Waker::noop());
        assert!(readiness.any(), "it has not been polled yet");
        assert!(task.as_mut().poll(&mut context).is_pending());
        assert!(!readiness.any());
        let waker = out.lock().unwrap().clone().expect("a waker");
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert!(readiness.any());
        assert!(task.as_mut().poll(&mut context).is_pending());
        assert!(!readiness.any(), "two calls make it ready once");
        assert!(task.as_mut().poll(&mut context).is_ready());
        drop(task);
        waker.wake();
        assert!(!readiness.any(), "who has ended is not ready");
    }

    #[test]
    fn a_task_that_is_dropped_does_not_count() {
        let readiness = readiness();
        drop(readiness.track(async {}));
        assert!(!readiness.any(), "dropped before its first poll");
        let out = Arc::default();
        let mut task = Box::pin(readiness.track(third(Arc::clone(&out))));
        assert!(task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        out.lock().unwrap().take().expect("a waker").wake();
        assert!(readiness.any());
        drop(task);
        assert!(!readiness.any(), "dropped while it was ready");
    }

    #[test]
    fn a_call_from_another_thread_rings_the_doorbell_of_a_core_that_parks() {
        let readiness = readiness();
        let out = Arc::default();
        let mut task = Box::pin(readiness.track(third(Arc::clone(&out))));
        assert!(task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let own = &readiness.shared.cores[0];
        own.announce_parking();
        assert!(!readiness.any());
        let waker = out.lock().unwrap().take().expect("a waker");
        std::thread::scope(|scope| scope.spawn(|| waker.wake()).join().expect("woken"));
        assert!(own.hear(), "the doorbell was rung");
        assert!(readiness.any());
    }
}
