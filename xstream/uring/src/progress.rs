//! The progress of one xstream: rounds while anything happens, parking when nothing does.
//!
//! # How a core divides its time
//!
//! The **spinner** is the idle task: it lives in a queue of its own with the smallest share, so that it runs when nothing
//! else is ready (and now and then when something is). Every round asks the mailbox, the media ring, the timers and the
//! sources of [`Spawn::add_progress`](daos_xstream::Spawn::add_progress). While tasks keep the core busy, the scheduler
//! asks the **pacer**, a task of the foreground class, for a round whenever the last one is older than 20 µs.
//!
//! Giving way costs as much as two rounds, so rounds follow each other ([`Progress::rounds`]) while nothing says that a task
//! is ready. What says so at once: a task was spawned, or one was called back by the media ring, the mailbox or a timer.
//! Wakers called otherwise, within a source, are not seen; for their tasks the number and time of such rounds are bounded.
//!
//! # Parking
//!
//! After an idle budget, which is longer while media is at work (sleeping and waking takes longer than a flush; what the
//! kernel needs the CPU for in the meantime it gets by `sched_yield`), the spinner parks: it announces so to the other cores and the fabric, has completions and
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

/// Empty rounds between two yields when tasks have run lately, and when none has for a while: about a microsecond.
const EMPTY_ROUNDS_MIN: u32 = 2;
const EMPTY_ROUNDS_MAX: u32 = 16;
/// How long rounds that find something follow each other.
const ROUNDS_MAX: Duration = Duration::from_micros(5);
/// The idle budget while media is at work: longer than a flush of a fast disk takes, short against a slow one's.
const MEDIA_BUDGET: Duration = Duration::from_millis(1);

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

    /// Asks everything once, at a time that was read just before.
    fn round(&self, time: Time) -> Found {
        let fail_stop = FailStop("progress");
        let core = &self.core;
        let mut called = core.ring.reap();
        if self.receiving.get() {
            called += self.env.uring_mailbox().receive(&self.env);
        }
        let happened = core.poll_sources(time);
        called += core.timers.fire(core.timers.recent());
        called += self.env.uring_mailbox().refill();
        core.ring.submit();
        if core.shared.stopping() {
            called += core.wake_stop_waiters();
        }
        if core.shared.all_ended() {
            self.ended.notify();
        }
        core.count(|counters| counters.rounds += 1);
        std::mem::forget(fail_stop);
        if called > 0 || core.spawned.get() {
            Found::Tasks
        } else if happened > 0 {
            Found::Something
        } else {
            Found::Nothing
        }
    }

    /// Makes rounds until tasks are ready, until so many in a row were empty, or for [`ROUNDS_MAX`]. Returns whether anything
    /// was found.
    fn rounds(&self, empty_max: u32) -> bool {
        let timers = &self.core.timers;
        self.core.spawned.set(false);
        let begun = timers.now();
        let (mut empty, mut found) = (0, false);
        loop {
            // Whatever finds something reads the clock afterwards; what does not takes no time.
            match self.round(timers.recent()) {
                Found::Nothing => empty += 1,
                Found::Something => (empty, found) = (0, true),
                Found::Tasks => return true,
            }
            if empty >= empty_max || timers.recent().since(begun) >= ROUNDS_MAX {
                return found;
            }
        }
    }

    /// The idle task.
    pub(crate) async fn spin(self: Rc<Self>) {
        let mut doorbell = Doorbell::new(&self.core);
        let mut idle_since = now();
        let mut task_polls = self.core.task_polls();
        let mut empty_max = EMPTY_ROUNDS_MIN;
        while !self.stopped.get() {
            let happened = self.rounds(empty_max);
            let time = self.core.timers.recent();
            let ran = std::mem::replace(&mut task_polls, self.core.task_polls()) != task_polls;
            empty_max = if ran { EMPTY_ROUNDS_MIN } else { (empty_max * 2).min(EMPTY_ROUNDS_MAX) };
            if happened || ran {
                idle_since = time;
            } else if time.since(idle_since) >= self.budget() {
                self.park(&mut doorbell).await;
                idle_since = now();
            } else if !self.core.ring.is_idle() {
                // The kernel's thread that flushes may be queued behind this one, on this CPU.
                rustix::thread::sched_yield();
            }
            yield_queue().await;
        }
        doorbell.close().await;
    }

    /// How long a core that finds nothing polls on before it parks.
    fn budget(&self) -> Duration {
        // A core that shares its CPU must not spin, whatever it waits for.
        if self.idle_budget.is_zero() || self.core.ring.is_idle() {
            self.idle_budget
        } else {
            self.idle_budget.max(MEDIA_BUDGET)
        }
    }

    /// Makes rounds while tasks keep the core from being idle.
    pub(crate) async fn pace(self: Rc<Self>) {
        loop {
            self.core.round_due.notified().await;
            if self.stopped.get() {
                return;
            }
            self.round(self.core.timers.now());
        }
    }

    async fn park(&self, doorbell: &mut Doorbell) {
        let core = &self.core;
        let own = &core.shared.cores[core.id.0 as usize];
        let task_polls = core.task_polls();
        own.announce_parking();
        let quiet = self.env.fabric().prepare_to_park() && !self.env.uring_mailbox().is_waiting() && {
            core.ring.prepare_to_park();
            matches!(self.round(core.timers.now()), Found::Nothing)
                && !self.stopped.get()
                && task_polls == core.task_polls()
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

/// What a round has found.
enum Found {
    Nothing,
    /// Work of a progress source.
    Something,
    /// Tasks are ready, or may be.
    Tasks,
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
