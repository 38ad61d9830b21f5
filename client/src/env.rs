//! The world of a client process: no threads, no executor; work progresses when the caller polls or blocks.
//!
//! # Invariants
//!
//! * Nothing runs but inside [`ClientEnv::progress`] and [`ClientEnv::block_on`], on the thread that made the world.
//! * Who blocks spins for a short while, then sleeps on the fabrics' descriptors, so that a waiting client takes no CPU.
//! * Before sleeping every source of work has been asked once more after the fabrics announced the sleep, so no message
//!   is missed.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use daos_xstream::{
    Class, Clock, CoreId, Env, Locals, NoMailbox, NoMedia, Pair, Park, Rng, Spawn, Time, WallTime,
};
use daos_xstream_local::{LocalFabric, wait_readable};
use daos_xstream_ofi::OfiFabric;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use rustix::{
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_gettime},
};

/// The fabrics of a client: shared memory for engines of the same node, the network for others.
pub type ClientFabric = Pair<LocalFabric, Option<OfiFabric>>;

/// How long a blocked client spins and keeps the CPU: longer than a request takes that waits for nothing.
const SPIN: Duration = Duration::from_micros(50);
/// How long it spins altogether, from then on giving way to whoever wants the CPU: longer than an engine takes to wake up,
/// or a disk to flush. A process that sleeps is woken about 100 µs late.
const SPIN_POLITELY: Duration = Duration::from_micros(300);
/// Rounds between two looks at the clock, which take as long as a round: timers and deadlines hold to a microsecond.
const ROUNDS_PER_CLOCK: u32 = 8;
/// The longest sleep. Nothing depends on it; it bounds what a missed wake-up could cost.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// The world of a client process. A cheap handle; it stays on its thread.
#[derive(Clone)]
pub struct ClientEnv(Rc<World>);

struct World {
    clock: ClientClock,
    rng: ClientRng,
    tasks: Tasks,
    mailbox: NoMailbox,
    media: NoMedia,
    locals: Locals,
    /// Last, so that everything that may use it is gone before.
    fabric: ClientFabric,
}

impl ClientEnv {
    pub(crate) fn new(clock: ClientClock, rng: ClientRng, fabric: ClientFabric) -> Self {
        Self(Rc::new(World {
            clock,
            rng,
            tasks: Tasks::default(),
            mailbox: NoMailbox,
            media: NoMedia,
            locals: Locals::default(),
            fabric,
        }))
    }

    /// Moves everything forward once without waiting; returns how many things happened.
    pub fn progress(&self) -> usize {
        let world = &*self.0;
        world.tasks.run_ready() + world.tasks.ask_sources() + world.clock.0.fire(|| world.clock.now())
    }

    /// Runs until `future` is done, and everything else that is under way meanwhile.
    ///
    /// # Panics
    ///
    /// If it is called from within a future that it runs: such a future awaits instead.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(flag.clone());
        let mut context = Context::from_waker(&waker);
        let mut result = None;
        self.run_until(
            || {
                if flag.0.swap(false, Ordering::Acquire)
                    && let Poll::Ready(value) = future.as_mut().poll(&mut context)
                {
                    result = Some(value);
                }
                result.is_some()
            },
            Time::NEVER,
        );
        result.expect("without a deadline it ends with a result")
    }

    /// Runs until `done` says so or `deadline` passes; `done` is asked after every round.
    pub(crate) fn run_until(&self, mut done: impl FnMut() -> bool, deadline: Time) {
        let entered = self.0.tasks.entered.replace(true);
        assert!(!entered, "a future must not block: it awaits");
        let _leave = Leave(&self.0.tasks.entered);
        let world = &*self.0;
        let (mut rounds, mut idle_since) = (0u32, None);
        loop {
            if done() {
                return;
            }
            if world.tasks.run_ready() + world.tasks.ask_sources() > 0 {
                idle_since = None;
            }
            rounds = rounds.wrapping_add(1);
            if !rounds.is_multiple_of(ROUNDS_PER_CLOCK) {
                continue;
            }
            let now = world.clock.now();
            if world.clock.0.fire(|| now) > 0 {
                idle_since = None;
                continue;
            }
            if now >= deadline {
                return;
            }
            match idle_since {
                None => idle_since = Some(now),
                Some(since) if now.since(since) < SPIN => std::hint::spin_loop(),
                Some(since) if now.since(since) < SPIN_POLITELY => rustix::thread::sched_yield(),
                Some(_) => {
                    self.sleep(deadline);
                    idle_since = None;
                }
            }
        }
    }

    fn sleep(&self, deadline: Time) {
        let fabric = &self.0.fabric;
        if fabric.prepare_to_park() && self.progress() == 0 {
            let now = self.0.clock.now();
            let wake = deadline.min(self.0.clock.0.next()).min(fabric.wake_at());
            let timeout = wake.since(now).min(SLEEP_MAX);
            wait_readable(&fabric.descriptors(), timeout);
        }
        fabric.unpark();
    }
}

struct Leave<'a>(&'a Cell<bool>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Source = Box<dyn FnMut() -> usize>;

/// The tasks of a client and its sources of work.
#[derive(Clone, Default)]
pub struct Tasks {
    tasks: Rc<RefCell<Slots>>,
    sources: Rc<RefCell<Vec<Source>>>,
    ready: Arc<Ready>,
    /// Memory of the tasks that are being run.
    running: Rc<RefCell<Vec<usize>>>,
    /// Somebody is running the world.
    entered: Rc<Cell<bool>>,
}

#[derive(Default)]
struct Slots {
    /// Wakers stay with their slot: a task that takes a used one costs no allocation for it.
    slots: Vec<(Option<Task>, Waker)>,
    free: Vec<usize>,
}

/// Tasks that want to run. Wakers must be allowed to travel, so this is behind a lock that nobody ever contends for.
#[derive(Default)]
struct Ready {
    some: AtomicBool,
    queue: Mutex<Vec<usize>>,
}

struct TaskWaker {
    ready: Arc<Ready>,
    slot: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self.slot);
    }
}

impl Ready {
    fn push(&self, slot: usize) {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(slot);
        self.some.store(true, Ordering::Release);
    }

    /// Exchanges the queue for `empty`; both keep their memory. `false`: nothing is ready.
    fn take(&self, empty: &mut Vec<usize>) -> bool {
        // A load first: an exchange of a flag that is hardly ever set would cost every idle round.
        if !self.some.load(Ordering::Relaxed) || !self.some.swap(false, Ordering::Acquire) {
            return false;
        }
        std::mem::swap(&mut *self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner), empty);
        true
    }
}

impl Tasks {
    fn run_ready(&self) -> usize {
        // Out of its place while tasks run; nothing else runs meanwhile (`entered`).
        let mut ready = self.running.take();
        if !self.ready.take(&mut ready) {
            self.running.replace(ready);
            return 0;
        }
        for slot in &ready {
            // The task is out of its slot while it runs, so that it may start others.
            let Some((task, waker)) = self.tasks.borrow_mut().take(*slot) else { continue };
            let mut task = task;
            match task.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => self.tasks.borrow_mut().slots[*slot].0 = Some(task),
                Poll::Ready(()) => {
                    drop(task);
                    self.tasks.borrow_mut().free.push(*slot);
                }
            }
        }
        let count = ready.len();
        ready.clear();
        self.running.replace(ready);
        count
    }

    fn ask_sources(&self) -> usize {
        // A source may add a source: they are out of the list while they are asked.
        let mut sources = std::mem::take(&mut *self.sources.borrow_mut());
        let done = sources.iter_mut().map(|source| source()).sum();
        let mut added = self.sources.borrow_mut();
        sources.append(&mut added);
        *added = sources;
        done
    }
}

impl Slots {
    fn take(&mut self, slot: usize) -> Option<(Task, Waker)> {
        let (task, waker) = self.slots.get_mut(slot)?;
        Some((task.take()?, waker.clone()))
    }
}

impl Spawn for Tasks {
    fn spawn(&self, _class: Class, _name: &'static str, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        let slot = match tasks.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = tasks.slots.len();
                let waker = Waker::from(Arc::new(TaskWaker { ready: self.ready.clone(), slot }));
                tasks.slots.push((None, waker));
                slot
            }
        };
        tasks.slots[slot].0 = Some(Box::pin(task));
        self.ready.push(slot);
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let mut yielded = false;
        std::future::poll_fn(move |context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn should_yield(&self) -> bool {
        // A client serves nobody who would have to wait.
        false
    }

    fn add_progress(&self, _name: &'static str, poll: impl FnMut() -> usize + 'static) {
        self.sources.borrow_mut().push(Box::new(poll));
    }
}

/// The system's clocks, and timers that the caller fires.
#[derive(Clone, Default)]
pub struct ClientClock(Rc<Timers>);

#[derive(Default)]
struct Timers {
    armed: RefCell<BTreeMap<(Time, u64), Waker>>,
    next_number: Cell<u64>,
}

fn nanoseconds(clock: ClockId) -> u64 {
    let reading = clock_gettime(clock);
    (reading.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(reading.tv_nsec as u64)
}

impl Timers {
    fn next(&self) -> Time {
        self.armed.borrow().first_key_value().map_or(Time::NEVER, |((deadline, _), _)| *deadline)
    }

    /// Wakes whoever waits for a time that has come; looks at the clock only if somebody waits.
    fn fire(&self, now: impl FnOnce() -> Time) -> usize {
        if self.armed.borrow().is_empty() {
            return 0;
        }
        let now = now();
        let mut fired = 0;
        while self.next() <= now {
            let waker = self.armed.borrow_mut().pop_first();
            if let Some((_, waker)) = waker {
                waker.wake();
                fired += 1;
            }
        }
        fired
    }
}

impl Clock for ClientClock {
    fn now(&self) -> Time {
        Time(nanoseconds(ClockId::Monotonic))
    }

    fn wall(&self) -> WallTime {
        WallTime(nanoseconds(ClockId::Realtime))
    }

    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static {
        Sleep { timers: self.0.clone(), deadline, number: None }
    }
}

struct Sleep {
    timers: Rc<Timers>,
    deadline: Time,
    number: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if nanoseconds(ClockId::Monotonic) >= self.deadline.0 {
            return Poll::Ready(());
        }
        let number = *match self.number {
            Some(ref number) => number,
            None => {
                let number = self.timers.next_number.get();
                self.timers.next_number.set(number + 1);
                self.number.insert(number)
            }
        };
        self.timers.armed.borrow_mut().insert((self.deadline, number), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let waker = self.timers.armed.borrow_mut().remove(&(self.deadline, number));
            drop(waker);
        }
    }
}

/// Randomness seeded by the operating system.
#[derive(Clone)]
pub struct ClientRng(Rc<RefCell<ChaCha12Rng>>);

impl ClientRng {
    pub(crate) fn from_system() -> Result<Self, rustix::io::Errno> {
        let mut seed = [0; 32];
        let mut filled = 0;
        while filled < seed.len() {
            match getrandom(&mut seed[filled..], GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(Rc::new(RefCell::new(ChaCha12Rng::from_seed(seed)))))
    }
}

impl Rng for ClientRng {
    fn next_u64(&self) -> u64 {
        self.0.borrow_mut().next_u64()
    }
}

impl Env for ClientEnv {
    type Clock = ClientClock;
    type Rng = ClientRng;
    type Spawn = Tasks;
    type Mailbox = NoMailbox;
    type Fabric = ClientFabric;
    type Media = NoMedia;

    fn clock(&self) -> &ClientClock {
        &self.0.clock
    }

    fn rng(&self) -> &ClientRng {
        &self.0.rng
    }

    fn scheduler(&self) -> &Tasks {
        &self.0.tasks
    }

    fn mailbox(&self) -> &NoMailbox {
        &self.0.mailbox
    }

    fn fabric(&self) -> &ClientFabric {
        &self.0.fabric
    }

    fn media(&self) -> &NoMedia {
        &self.0.media
    }

    fn locals(&self) -> &Locals {
        &self.0.locals
    }

    fn core(&self) -> CoreId {
        CoreId(0)
    }
}
