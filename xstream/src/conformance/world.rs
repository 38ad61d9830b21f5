//! The least world in which an endpoint runs, so that a fabric can be put through the suite without a runtime. The clock comes
//! from outside, like all time.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::{Failure, drive, register};
use crate::{
    Address, Class, Clock, CoreId, Env, Fabric, Locals, NoMailbox, NoMedia, Rng, Spawn, Time, WallTime,
    rpc::{Endpoint, EndpointConfig},
};

/// Serves the suite on `fabric`, whose addresses are handed to `tell`, until a driver says stop.
pub fn serve(fabric: impl Fabric, now: impl Fn() -> Time + 'static, tell: impl FnOnce(Vec<Address>)) {
    let env = World::new(fabric, now, 1);
    tell(env.fabric().addresses());
    let endpoint = Endpoint::new(&env, EndpointConfig::default());
    let service = register(&endpoint);
    env.block_on(service.stopped());
}

/// Drives the suite from `fabric` against the serving half at `address`.
pub fn call(fabric: impl Fabric, now: impl Fn() -> Time + 'static, address: &Address) -> Result<(), Failure> {
    let env = World::new(fabric, now, 2);
    let endpoint = Endpoint::new(&env, EndpointConfig::default());
    env.block_on(drive(&endpoint, address))
}

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Source = Box<dyn FnMut() -> usize>;

/// A world without a scheduler worth the name: everything is asked in every round.
struct World<F>(Rc<Inner<F>>);

struct Inner<F> {
    fabric: F,
    now: Box<dyn Fn() -> Time>,
    random: Cell<u64>,
    tasks: RefCell<Vec<Task>>,
    sources: RefCell<Vec<Source>>,
    locals: Locals,
}

impl<F> Clone for World<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: Fabric> World<F> {
    fn new(fabric: F, now: impl Fn() -> Time + 'static, seed: u64) -> Self {
        Self(Rc::new(Inner {
            fabric,
            now: Box::new(now),
            random: Cell::new(seed),
            tasks: RefCell::default(),
            sources: RefCell::default(),
            locals: Locals::default(),
        }))
    }

    /// Runs the world until `future` is done.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            // What is added meanwhile has its turn in the next round.
            let mut sources = self.0.sources.take();
            sources.iter_mut().for_each(|source| {
                source();
            });
            self.0.sources.borrow_mut().append(&mut sources);
            let mut tasks = self.0.tasks.take();
            tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            self.0.tasks.borrow_mut().append(&mut tasks);
        }
    }
}

impl<F: Fabric> Clock for World<F> {
    fn now(&self) -> Time {
        (self.0.now)()
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static {
        let env = self.clone();
        poll_fn(move |_| if env.now() >= deadline { Poll::Ready(()) } else { Poll::Pending })
    }
}

impl<F: Fabric> Rng for World<F> {
    fn next_u64(&self) -> u64 {
        // A linear congruential generator with Knuth's multiplier: nobody guesses here.
        let next = self.0.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.0.random.set(next);
        next.rotate_left(29)
    }
}

impl<F: Fabric> Spawn for World<F> {
    fn spawn(&self, _class: Class, _name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.0.tasks.borrow_mut().push(Box::pin(task));
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let mut yielded = false;
        poll_fn(move |_| if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending })
    }

    fn should_yield(&self) -> bool {
        false
    }

    fn add_progress(&self, _name: &'static str, poll: impl FnMut() -> usize + 'static) {
        self.0.sources.borrow_mut().push(Box::new(poll));
    }
}

impl<F: Fabric> Env for World<F> {
    type Clock = Self;
    type Rng = Self;
    type Spawn = Self;
    type Mailbox = NoMailbox;
    type Fabric = F;
    type Media = NoMedia;

    fn clock(&self) -> &Self {
        self
    }

    fn rng(&self) -> &Self {
        self
    }

    fn scheduler(&self) -> &Self {
        self
    }

    fn mailbox(&self) -> &NoMailbox {
        &NoMailbox
    }

    fn fabric(&self) -> &F {
        &self.0.fabric
    }

    fn media(&self) -> &NoMedia {
        &NoMedia
    }

    fn locals(&self) -> &Locals {
        &self.0.locals
    }

    fn core(&self) -> CoreId {
        CoreId(0)
    }
}
