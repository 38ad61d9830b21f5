//! A small world for tests: a seeded scheduler, virtual time, and media with a live and a durable image.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod media;
pub mod workload;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
};

use daos_xstream::{Class, Clock, CoreId, Env, Locals, NoFabric, NoMailbox, Rng, Spawn, Time, WallTime};

use media::TestMedia;

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Between = Rc<dyn Fn() -> Task>;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(Cell<u64>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5851_f42d_4c95_7f2d))
    }

    pub fn next(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut bits = self.0.get();
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

impl Rng for Random {
    fn next_u64(&self) -> u64 {
        self.next()
    }
}

#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    random: Random,
    media: TestMedia,
    tasks: RefCell<BTreeMap<u64, Option<Task>>>,
    ready: Arc<Mutex<Vec<u64>>>,
    next_task: Cell<u64>,
    now: Cell<u64>,
    timers: RefCell<BTreeMap<u64, Vec<Waker>>>,
    locals: Locals,
    scheduler: Scheduler,
    clock: TestClock,
    /// What happens between two slices of a future whose slices are cut, while it is being polled.
    between: RefCell<Option<Between>>,
}

struct TaskWaker(u64, Arc<Mutex<Vec<u64>>>);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.1.lock().expect("not poisoned");
        if !ready.contains(&self.0) {
            ready.push(self.0);
        }
    }
}

impl World {
    pub fn new(seed: u64, media: TestMedia) -> Self {
        Self(Rc::new_cyclic(|inner: &std::rc::Weak<Inner>| Inner {
            random: Random::new(seed),
            media,
            tasks: RefCell::default(),
            ready: Arc::default(),
            next_task: Cell::new(0),
            now: Cell::new(1),
            timers: RefCell::default(),
            locals: Locals::default(),
            scheduler: Scheduler(inner.clone()),
            clock: TestClock(inner.clone()),
            between: RefCell::default(),
        }))
    }

    pub fn random(&self) -> &Random {
        &self.0.random
    }

    fn add(&self, task: Task) -> u64 {
        let id = self.0.next_task.replace(self.0.next_task.get() + 1);
        self.0.tasks.borrow_mut().insert(id, Some(task));
        self.0.ready.lock().expect("not poisoned").push(id);
        id
    }

    /// Runs until `future` ends; `None` if media crashed before.
    pub fn run<R: 'static>(&self, future: impl Future<Output = R> + 'static) -> Option<R> {
        let result = Rc::new(RefCell::new(None));
        let out = result.clone();
        self.add(Box::pin(async move {
            *out.borrow_mut() = Some(future.await);
        }));
        while result.borrow().is_none() && !self.0.media.crashed() {
            if !self.step() {
                panic!("nothing can go on");
            }
        }
        let result = result.borrow_mut().take();
        if self.0.media.crashed() { None } else { result }
    }

    /// Cuts `future` wherever it asks whether it should yield, and does what `between` gives there before it goes on. Other
    /// tasks are not cut.
    pub fn sliced<R>(
        &self,
        future: impl Future<Output = R>,
        between: impl Fn() -> Task + 'static,
    ) -> impl Future<Output = R> {
        let (inner, between): (_, Between) = (Rc::downgrade(&self.0), Rc::new(between));
        let mut future = Box::pin(future);
        poll_fn(move |context| {
            let inner = inner.upgrade().expect("a living world");
            *inner.between.borrow_mut() = Some(between.clone());
            let result = future.as_mut().poll(context);
            *inner.between.borrow_mut() = None;
            result
        })
    }

    /// Ends everything, as a process that dies.
    pub fn kill(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
    }

    fn step(&self) -> bool {
        let next = {
            let mut ready = self.0.ready.lock().expect("not poisoned");
            let (count, device) = (ready.len() as u64, self.0.media.in_flight() as u64);
            if count + device == 0 {
                None
            } else {
                let pick = self.0.random.below(count + device);
                if pick < count { Some(Some(ready.swap_remove(pick as usize))) } else { Some(None) }
            }
        };
        match next {
            Some(Some(id)) => self.poll(id),
            Some(None) => self.0.media.complete_one(&self.0.random),
            None => {
                let Some((time, wakers)) = self.0.timers.borrow_mut().pop_first() else { return false };
                self.0.now.set(time);
                wakers.into_iter().for_each(Waker::wake);
            }
        }
        true
    }

    fn poll(&self, id: u64) {
        let Some(mut task) = self.0.tasks.borrow_mut().get_mut(&id).and_then(Option::take) else { return };
        let waker = Waker::from(Arc::new(TaskWaker(id, self.0.ready.clone())));
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => {
                self.0.tasks.borrow_mut().remove(&id);
            }
            Poll::Pending => {
                self.0.tasks.borrow_mut().insert(id, Some(task));
            }
        }
    }
}

pub struct Scheduler(std::rc::Weak<Inner>);

impl Spawn for Scheduler {
    fn spawn(&self, _: Class, _: &'static str, task: impl Future<Output = ()> + 'static) {
        World(self.0.upgrade().expect("a living world")).add(Box::pin(task));
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let mut between =
            self.0.upgrade().and_then(|inner| inner.between.borrow().as_ref().map(|task| task()));
        let mut yielded = false;
        poll_fn(move |context| {
            if let Some(task) = &mut between {
                std::task::ready!(task.as_mut().poll(context));
                between = None;
            }
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn should_yield(&self) -> bool {
        let inner = self.0.upgrade().expect("a living world");
        inner.between.borrow().is_some() || inner.random.below(2) == 0
    }

    fn add_progress(&self, _: &'static str, _: impl FnMut() -> usize + 'static) {
        unreachable!("nothing here is polled");
    }
}

pub struct TestClock(std::rc::Weak<Inner>);

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time(self.0.upgrade().expect("a living world").now.get())
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static {
        let inner = self.0.clone();
        poll_fn(move |context| {
            let inner = inner.upgrade().expect("a living world");
            if inner.now.get() >= deadline.0 {
                return Poll::Ready(());
            }
            inner.timers.borrow_mut().entry(deadline.0).or_default().push(context.waker().clone());
            Poll::Pending
        })
    }
}

static NO_FABRIC: NoFabric = NoFabric::new();

impl Env for World {
    type Clock = TestClock;
    type Rng = Random;
    type Spawn = Scheduler;
    type Mailbox = NoMailbox;
    type Fabric = NoFabric;
    type Media = TestMedia;

    fn clock(&self) -> &TestClock {
        &self.0.clock
    }
    fn rng(&self) -> &Random {
        &self.0.random
    }
    fn scheduler(&self) -> &Scheduler {
        &self.0.scheduler
    }
    fn mailbox(&self) -> &NoMailbox {
        &NoMailbox
    }
    fn fabric(&self) -> &NoFabric {
        &NO_FABRIC
    }
    fn media(&self) -> &TestMedia {
        &self.0.media
    }
    fn locals(&self) -> &Locals {
        &self.0.locals
    }
    fn core(&self) -> CoreId {
        CoreId(0)
    }
}
