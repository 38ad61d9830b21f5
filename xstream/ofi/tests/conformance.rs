//! The suite that every fabric has to pass, over two endpoints: on two threads, and in two processes.

#![allow(clippy::disallowed_methods, reason = "a world of its own, in real time")]

mod common;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::{BufRead, BufReader},
    pin::Pin,
    process::{Command, Stdio},
    rc::Rc,
    sync::mpsc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use daos_xstream::{
    Address, Class, Clock, CoreId, Env, Fabric, Locals, NoMailbox, NoMedia, Rng, Spawn, Time, WallTime,
    conformance,
    rpc::{Endpoint, EndpointConfig},
};

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

const ENGINE: &str = "OFI_CONFORMANCE_ENGINE";

/// Serves the suite until the caller says stop; tells the address first.
fn serve(tell: impl FnOnce(Address)) {
    let env = TestEnv::new(common::server(), 1);
    tell(env.fabric().addresses().remove(0));
    let endpoint = Endpoint::new(&env, EndpointConfig::default());
    let service = conformance::register(&endpoint);
    env.block_on(service.stopped());
}

fn call(address: &Address) {
    let env = TestEnv::new(common::client_of(address), 2);
    let endpoint = Endpoint::new(&env, EndpointConfig::default());
    env.block_on(conformance::drive(&endpoint, address)).unwrap();
}

#[test]
fn in_one_process() {
    let (tell, told) = mpsc::channel();
    let engine = std::thread::spawn(move || serve(|address| tell.send(address).unwrap()));
    call(&told.recv().unwrap());
    engine.join().unwrap();
}

/// Not a test of its own: what the other process runs.
#[test]
fn engine() {
    if std::env::var_os(ENGINE).is_some() {
        serve(|address| println!("\naddress {address}"));
    }
}

#[test]
fn in_two_processes() {
    let mut engine = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "engine", "--nocapture"])
        .env(ENGINE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Read to the end, so that the engine can write to the end.
    let mut lines = BufReader::new(engine.stdout.take().unwrap()).lines();
    let address =
        lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix("address ")?.parse().ok());
    call(&address.expect("the engine tells its address"));
    lines.for_each(drop);
    assert!(engine.wait().unwrap().success());
}
