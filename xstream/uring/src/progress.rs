//! The progress of one xstream: rounds while anything happens, parking when nothing does.
//!
//! # How a core divides its time
//!
//! The **spinner** is the idle task: it lives in a queue of its own with the smallest share, so that it runs when nothing
//! else is ready (and now and then when something is). Every round asks the mailbox, the media ring, the timers and the
//! sources of [`Spawn::add_progress`](daos_xstream::Spawn::add_progress). While tasks keep the core busy, the scheduler
//! asks the **pacer**, a task of the foreground class, for a round whenever the last one is older than 20 µs.
//!
//! # Parking
//!
//! After an idle budget the spinner parks: it announces so to the other cores and the fabric, has completions and
//! descriptors signal the doorbell, makes one more round, and then *awaits* a read of the doorbell through glommio. It
//! never blocks the thread itself: whether the thread may sleep is decided by glommio, which sleeps only when no task is
//! ready and no timer due. So parking cannot starve anything, by construction. What wakes it:
//!
//! | Source | Way |
//! |---|---|
//! | another core's mailbox, shutdown | writes the doorbell |
//! | media completion | the ring signals the doorbell |
//! | fabric descriptor | one-shot poll in the ring, whose completion signals the doorbell |
//! | next timer, of ours or of the fabric | a glommio timer, made for this park |
//! | a task that ran (woken from elsewhere) | calls [`Core::unpark`] |

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    os::fd::{FromRawFd, IntoRawFd},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use daos_xstream::{Env, Fabric, Time};
use glommio::{io::BufferedFile, timer::Timer};

use crate::{
    Park, UringEnv,
    clock::now,
    core_state::{Core, FailStop, yield_queue},
    notify::Notify,
};

/// Empty rounds between two yields: a round that found nothing has made nobody ready.
const EMPTY_ROUNDS: usize = 4;

pub(crate) struct Progress<F: Park + Fabric> {
    env: UringEnv<F>,
    core: Rc<Core>,
    idle_budget: Duration,
    stopped: Cell<bool>,
    receiving: Cell<bool>,
    /// Notified by rounds once the main futures of all xstreams have ended.
    pub(crate) ended: Notify,
}

impl<F: Park + Fabric> Progress<F> {
    pub(crate) fn new(env: UringEnv<F>, idle_budget: Duration) -> Self {
        let core = env.core_state().clone();
        Self {
            env,
            core,
            idle_budget,
            stopped: Cell::new(false),
            receiving: Cell::new(false),
            ended: Notify::default(),
        }
    }

    /// From now on work of other cores is taken.
    pub(crate) fn main_has_begun(&self) {
        self.receiving.set(true);
    }

    /// Lets the spinner and the pacer end.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.core.unpark.notify();
        self.core.round_due.notify();
    }

    /// Asks everything once. Returns how many things happened.
    fn round(&self) -> usize {
        let fail_stop = FailStop("progress");
        let core = &self.core;
        let mut happened = core.ring.reap();
        if self.receiving.get() {
            happened += self.env.uring_mailbox().receive(&self.env);
        }
        happened += core.poll_sources();
        happened += core.timers.fire(core.last_round.get());
        happened += self.env.uring_mailbox().refill();
        core.ring.submit();
        if core.shared.stopping() {
            happened += core.wake_stop_waiters();
        }
        if core.shared.all_ended() {
            self.ended.notify();
        }
        core.count(|counters| counters.rounds += 1);
        std::mem::forget(fail_stop);
        happened
    }

    /// The idle task.
    pub(crate) async fn spin(self: Rc<Self>) {
        let mut doorbell = Doorbell::new(&self.core);
        let mut idle_since = now();
        let mut task_polls = self.core.task_polls();
        while !self.stopped.get() {
            let happened = (0..EMPTY_ROUNDS).any(|_| self.round() > 0);
            let time = self.core.last_round.get();
            let ran = std::mem::replace(&mut task_polls, self.core.task_polls()) != task_polls;
            if happened || ran {
                idle_since = time;
            } else if time.since(idle_since) >= self.idle_budget {
                self.park(&mut doorbell).await;
                idle_since = now();
            }
            yield_queue().await;
        }
        doorbell.close().await;
    }

    /// Makes rounds while tasks keep the core from being idle.
    pub(crate) async fn pace(self: Rc<Self>) {
        loop {
            self.core.round_due.notified().await;
            if self.stopped.get() {
                return;
            }
            self.round();
        }
    }

    async fn park(&self, doorbell: &mut Doorbell) {
        let core = &self.core;
        let own = &core.shared.cores[core.id.0 as usize];
        let task_polls = core.task_polls();
        own.announce_parking();
        let quiet = self.env.fabric().prepare_to_park() && !self.env.uring_mailbox().is_waiting() && {
            core.ring.prepare_to_park();
            self.round() == 0 && !self.stopped.get() && task_polls == core.task_polls()
        };
        if quiet {
            core.count(|counters| counters.parks += 1);
            core.parked.set(true);
            let next = core.timers.next().min(self.env.fabric().wake_at());
            let mut timer = pin!(timer_until(next));
            poll_fn(|context| {
                let woken = doorbell.poll(context).is_ready()
                    | timer.as_mut().poll(context).is_ready()
                    | core.unpark.poll(context).is_ready();
                if woken { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            core.parked.set(false);
        }
        core.ring.unpark();
        self.env.fabric().unpark();
        own.announce_awake();
    }
}

async fn timer_until(deadline: Time) {
    if deadline == Time::NEVER {
        std::future::pending::<()>().await;
    }
    Timer::new(deadline.since(now())).await;
}

type Read = Pin<Box<dyn Future<Output = ()>>>;

/// A read of the doorbell through glommio. One is outstanding at most, and stays so over parks that ended otherwise.
struct Doorbell {
    file: Rc<BufferedFile>,
    read: Option<Read>,
}

impl Doorbell {
    fn new(core: &Core) -> Self {
        let own = &core.shared.cores[core.id.0 as usize];
        let descriptor = own.try_clone_doorbell().expect("a descriptor for the doorbell");
        // SAFETY: the descriptor was made for this and is handed over: the file closes it.
        let file = unsafe { BufferedFile::from_raw_fd(descriptor.into_raw_fd()) };
        Self { file: Rc::new(file), read: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let read = self.read.get_or_insert_with(|| {
            let file = self.file.clone();
            Box::pin(async move {
                // A wake-up call has no content, and one too many does no harm.
                if let Err(error) = file.read_at(0, 8).await {
                    panic!("the doorbell cannot be read: {error}");
                }
            })
        });
        let result = read.as_mut().poll(context);
        if result.is_ready() {
            self.read = None;
        }
        result
    }

    async fn close(self) {
        drop(self.read);
        if let Ok(file) = Rc::try_unwrap(self.file) {
            let _ = file.close().await;
        }
    }
}
