//! The suite that every fabric has to pass, over two endpoints on two threads, alone and as half of a [`Pair`].

#![allow(clippy::disallowed_methods, reason = "a world of its own, in real time")]

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    path::Path,
    pin::Pin,
    rc::Rc,
    sync::mpsc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use daos_xstream::{
    Address, Class, Clock, CoreId, Env, Fabric, Locals, NoMailbox, NoMedia, Pair, Rng, Spawn, Time, WallTime,
    conformance,
    rpc::{Endpoint, EndpointConfig},
};
use daos_xstream_local::{LocalFabric, LocalOptions, LocalServer};

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Source = Box<dyn FnMut() -> usize>;

/// A world without a scheduler worth the name: everything is asked in every round.
struct World<F> {
    fabric: F,
    start: Instant,
    random: Cell<u64>,
    tasks: RefCell<Vec<Task>>,
    sources: RefCell<Vec<Source>>,
    locals: Locals,
}

struct TestEnv<F>(Rc<World<F>>);

impl<F> Clone for TestEnv<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: Fabric> TestEnv<F> {
    fn new(fabric: F, seed: u64) -> Self {
        Self(Rc::new(World {
            fabric,
            start: Instant::now(),
            random: Cell::new(seed),
            tasks: RefCell::default(),
            sources: RefCell::default(),
            locals: Locals::default(),
        }))
    }

    /// Runs the world until `future` is done.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = Box::pin(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
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

impl<F: Fabric> Clock for TestEnv<F> {
    fn now(&self) -> Time {
        Time(self.0.start.elapsed().as_nanos() as u64)
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static {
        let env = self.clone();
        poll_fn(move |_| if env.now() >= deadline { Poll::Ready(()) } else { Poll::Pending })
    }
}

impl<F: Fabric> Rng for TestEnv<F> {
    fn next_u64(&self) -> u64 {
        let next = self.0.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.0.random.set(next);
        next.rotate_left(29)
    }
}

impl<F: Fabric> Spawn for TestEnv<F> {
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

impl<F: Fabric> Env for TestEnv<F> {
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

/// Runs the suite between the fabrics that `serve` and `call` make; `pick` chooses the address to call.
fn run<S: Fabric, C: Fabric>(
    serve: impl FnOnce(&Path) -> S + Send + 'static,
    call: impl FnOnce(&Path) -> C,
    pick: fn(&Address) -> bool,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let (tell, told) = mpsc::channel();
    let theirs = path.clone();
    let engine = std::thread::spawn(move || {
        let env = TestEnv::new(serve(&theirs), 1);
        tell.send(env.fabric().addresses()).unwrap();
        let endpoint = Endpoint::new(&env, EndpointConfig::default());
        let service = conformance::register(&endpoint);
        env.block_on(service.stopped());
    });
    let address = told.recv().unwrap().into_iter().find(pick).expect("an address of the fabric under test");
    let env = TestEnv::new(call(&folder.path().join("caller.sock")), 2);
    let endpoint = Endpoint::new(&env, EndpointConfig::default());
    env.block_on(conformance::drive(&endpoint, &address)).unwrap();
    engine.join().unwrap();
}

fn engine_fabric(path: &Path) -> LocalFabric {
    LocalServer::bind(path, 1, LocalOptions::default()).unwrap().fabric(0).unwrap()
}

#[test]
fn alone() {
    run(engine_fabric, |_| LocalFabric::client().unwrap(), |_| true);
}

#[test]
fn an_engine_may_call_another_one() {
    run(engine_fabric, engine_fabric, |_| true);
}

#[test]
fn as_the_second_of_a_pair() {
    let engine = |path: &Path| {
        let other = path.with_extension("other");
        Pair::new(engine_fabric(&other), "nothing", engine_fabric(path))
    };
    let client =
        |_: &Path| Pair::new(LocalFabric::client().unwrap(), "nothing", LocalFabric::client().unwrap());
    run(engine, client, |address| address.rest().ends_with("engine.sock#0"));
}
