//! What one xstream shares between its tasks: scheduling, timers, progress sources, counters.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use daos_xstream::{Class, CoreId, Spawn, Time};
use glommio::TaskQueueHandle;
use slab::Slab;

use crate::{
    clock::{Timers, now},
    mesh::Shared,
    notify::Notify,
    readiness::Readiness,
    ring::{Ring, RingCounters},
};

/// A poll of a task that takes longer is a stall: everything else on the core waited for it.
const STALL: Duration = Duration::from_millis(2);

/// How long a task may run before [`Spawn::should_yield`] says so.
const SLICE: Duration = Duration::from_micros(500);

/// How old the last progress round may get while tasks run one after another.
const ROUND_AGE: Duration = Duration::from_micros(20);

/// What an xstream has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Polls of tasks.
    pub task_polls: u64,
    /// Polls of a task, or of a progress source, that took longer than 2 ms.
    pub stalls: u64,
    /// The longest of them, in nanoseconds.
    pub stall_ns_max: u64,
    /// Progress rounds.
    pub rounds: u64,
    /// Times the core parked.
    pub parks: u64,
    /// Tasks alive.
    pub tasks: u64,
    /// Media operations and submissions.
    pub ring: RingCounters,
}

struct Source {
    name: &'static str,
    poll: Box<dyn FnMut() -> usize>,
}

pub(crate) struct Core {
    pub(crate) id: CoreId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) ring: Rc<Ring>,
    pub(crate) timers: Rc<Timers>,
    queues: [TaskQueueHandle; Class::ALL.len()],
    /// A waker of every task that is alive, so that shutdown can end them all.
    tasks: RefCell<Slab<Option<Waker>>>,
    pub(crate) closing: Cell<bool>,
    /// When the running poll of a task, or progress round, began.
    slice_start: Cell<Time>,
    pub(crate) last_round: Cell<Time>,
    /// Which tasks are ready.
    pub(crate) readiness: Arc<Readiness>,
    /// Asks for a round while tasks keep the core busy.
    pub(crate) round_due: Notify,
    sources: RefCell<Vec<Source>>,
    counters: Cell<Counters>,
    stop_waiters: RefCell<Vec<Waker>>,
}

impl Core {
    pub(crate) fn new(
        id: CoreId,
        shared: Arc<Shared>,
        ring: Rc<Ring>,
        queues: [TaskQueueHandle; Class::ALL.len()],
    ) -> Self {
        Self {
            id,
            ring,
            timers: Rc::new(Timers::new()),
            queues,
            tasks: RefCell::default(),
            closing: Cell::new(false),
            slice_start: Cell::new(now()),
            last_round: Cell::new(now()),
            readiness: Arc::new(Readiness::new(shared.clone(), id)),
            round_due: Notify::default(),
            sources: RefCell::default(),
            counters: Cell::default(),
            shared,
            stop_waiters: RefCell::default(),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            tasks: self.tasks.borrow().len() as u64,
            ring: self.ring.counters(),
            ..self.counters.get()
        }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(crate) fn spawn(
        self: &Rc<Self>,
        class: Class,
        name: &'static str,
        task: impl Future<Output = ()> + 'static,
    ) {
        if self.closing.get() {
            return;
        }
        let key = self.tasks.borrow_mut().insert(None);
        let core = self.clone();
        let tracked = async move {
            {
                let mut task = pin!(task);
                poll_fn(|context| core.poll_task(key, class, name, task.as_mut(), context)).await;
            }
            drop(core.tasks.borrow_mut().remove(key));
        };
        glommio::spawn_local_into(self.readiness.track(tracked), self.queues[class as usize])
            .expect("the queues of a running xstream exist")
            .detach();
    }

    fn poll_task(
        &self,
        key: usize,
        class: Class,
        name: &'static str,
        task: Pin<&mut impl Future<Output = ()>>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        if self.closing.get() {
            return Poll::Ready(());
        }
        if let slot @ None = &mut self.tasks.borrow_mut()[key] {
            *slot = Some(context.waker().clone());
        }
        let start = self.timers.now();
        self.slice_start.set(start);
        let fail_stop = FailStop(name);
        let result = task.poll(context);
        std::mem::forget(fail_stop);
        self.after_poll(class, name, start);
        result
    }

    fn after_poll(&self, class: Class, name: &'static str, start: Time) {
        let end = self.timers.now();
        self.count(|counters| counters.task_polls += 1);
        self.note_stall("task", name, Some(class), end.since(start));
        if end.since(self.last_round.get()) > ROUND_AGE {
            self.round_due.notify();
            // The round runs in the foreground queue: let go of this one, even if it has more that is ready.
            if class != Class::Foreground {
                yield_queue_after_this_poll();
            }
        }
    }

    fn note_stall(&self, what: &'static str, name: &'static str, class: Option<Class>, took: Duration) {
        if took > STALL {
            self.count(|counters| {
                counters.stalls += 1;
                counters.stall_ns_max = counters.stall_ns_max.max(took.as_nanos() as u64);
            });
            let (core, took_us) = (self.id.0, took.as_micros() as u64);
            match class {
                Some(class) => {
                    tracing::warn!(core, ?class, name, took_us, "a {what} held the core without yielding")
                }
                None => tracing::warn!(core, name, took_us, "a {what} held the core without yielding"),
            }
        }
    }

    /// Asks every source once, at a time that was read just before. Returns how many things they did.
    pub(crate) fn poll_sources(&self, time: Time) -> usize {
        // A source may add another: the list is not borrowed while they run.
        let mut sources = std::mem::take(&mut *self.sources.borrow_mut());
        let mut happened = 0;
        let mut before = time;
        self.slice_start.set(before);
        self.last_round.set(before);
        for source in &mut sources {
            let did = (source.poll)();
            happened += did;
            // What found nothing to do has not stalled either: the clock is read only after work.
            if did > 0 {
                let after = self.timers.now();
                self.note_stall("progress source", source.name, None, after.since(before));
                before = after;
                self.slice_start.set(after);
            }
        }
        let mut list = self.sources.borrow_mut();
        sources.append(&mut list);
        *list = sources;
        happened
    }

    pub(crate) fn drop_sources(&self) {
        let sources = std::mem::take(&mut *self.sources.borrow_mut());
        drop(sources);
    }

    /// Ends every task: each drops its future when it is polled next.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.wake_tasks();
    }

    pub(crate) fn wake_tasks(&self) {
        let wakers: Vec<Waker> = self.tasks.borrow().iter().filter_map(|(_, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn has_tasks(&self) -> bool {
        !self.tasks.borrow().is_empty()
    }

    /// Completes when a shutdown has been asked for.
    pub(crate) async fn stop_requested(self: Rc<Self>) {
        poll_fn(|context| {
            if self.shared.stopping() {
                return Poll::Ready(());
            }
            self.stop_waiters.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn wake_stop_waiters(&self) -> usize {
        if self.stop_waiters.borrow().is_empty() {
            return 0;
        }
        let waiters = std::mem::take(&mut *self.stop_waiters.borrow_mut());
        let count = waiters.len();
        waiters.into_iter().for_each(Waker::wake);
        count
    }
}

/// A panic while this lives takes the process down: an engine that broke an invariant must not go on, and half an engine
/// is worse than none.
pub(crate) struct FailStop(pub(crate) &'static str);

impl Drop for FailStop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(name = self.0, "panic in an xstream: the process stops");
            std::process::abort();
        }
    }
}

/// Marks the running task queue as yielded, which takes effect when the poll under way returns.
fn yield_queue_after_this_poll() {
    let executor = glommio::executor();
    let mark = pin!(executor.yield_task_queue_now());
    // Polled once, it marks the queue and wakes the (here: no) task.
    let _ = mark.poll(&mut Context::from_waker(Waker::noop()));
}

/// The scheduler of the real world.
pub struct UringSpawn {
    core: Rc<Core>,
}

impl UringSpawn {
    pub(crate) fn new(core: Rc<Core>) -> Self {
        Self { core }
    }
}

impl Spawn for UringSpawn {
    fn spawn(&self, class: Class, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.core.spawn(class, name, task);
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        yield_queue()
    }

    fn should_yield(&self) -> bool {
        self.core.timers.now().since(self.core.slice_start.get()) >= SLICE
    }

    fn add_progress(&self, name: &'static str, poll: impl FnMut() -> usize + 'static) {
        self.core.sources.borrow_mut().push(Source { name, poll: Box::new(poll) });
    }
}

/// Goes to the back of the own queue, and lets other queues have their turn.
pub(crate) fn yield_queue() -> impl Future<Output = ()> + 'static {
    let mut yielded = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        yield_queue_after_this_poll();
        context.waker().wake_by_ref();
        Poll::Pending
    })
}
