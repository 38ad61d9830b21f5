//! The smallest world in which RPC runs: two endpoints of one thread, joined by queues that reuse their memory, and an
//! executor that polls everything round and round. It measures what RPC itself costs.

#![allow(refining_impl_trait, reason = "a test may name its futures")]
#![allow(dead_code, reason = "each user needs a part")]
#![allow(clippy::disallowed_methods, reason = "a world of its own: this is where the clock is read")]

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, Ready, ready},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use daos_xstream::{
    Access, Address, Class, Clock, CoreId, Credentials, Env, Fabric, FabricError, IoBuffer, Locals,
    NoMailbox, NoMedia, PeerId, RemoteBuffer, Rng, Sink, Spawn, Time, WallTime,
};

/// The one peer that each side has.
pub const PEER: PeerId = PeerId(1);
const MESSAGE_BYTES_MAX: usize = 4096;
const QUEUE_MAX: usize = 64;

/// Messages in one direction, and buffers to be used again.
#[derive(Default)]
struct Queue {
    full: RefCell<VecDeque<Vec<u8>>>,
    empty: RefCell<Vec<Vec<u8>>>,
}

pub struct Loopback {
    incoming: Rc<Queue>,
    outgoing: Rc<Queue>,
    /// While set, the queue to the peer counts as full.
    pub stuck: Cell<bool>,
    disconnected: Cell<bool>,
}

impl Loopback {
    pub fn is_disconnected(&self) -> bool {
        self.disconnected.get()
    }
}

impl Fabric for Loopback {
    type Exposed = IoBuffer;

    fn addresses(&self) -> Vec<Address> {
        Vec::new()
    }

    fn connect(&self, _address: &Address) -> Ready<Result<PeerId, FabricError>> {
        ready(Ok(PEER))
    }

    fn disconnect(&self, _peer: PeerId) {
        self.disconnected.set(true);
    }

    fn credentials(&self, _peer: PeerId) -> Option<Credentials> {
        None
    }

    fn message_bytes_max(&self) -> usize {
        MESSAGE_BYTES_MAX
    }

    fn send(&self, _peer: PeerId, parts: &[&[u8]]) -> Result<(), FabricError> {
        let mut full = self.outgoing.full.borrow_mut();
        if self.stuck.get() || full.len() >= QUEUE_MAX {
            return Err(FabricError::Busy);
        }
        let mut message =
            self.outgoing.empty.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(MESSAGE_BYTES_MAX));
        message.clear();
        parts.iter().for_each(|part| message.extend_from_slice(part));
        full.push_back(message);
        Ok(())
    }

    fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize {
        for done in 0..limit {
            let Some(message) = self.incoming.full.borrow_mut().pop_front() else { return done };
            sink.message(PEER, &message);
            self.incoming.empty.borrow_mut().push(message);
        }
        limit
    }

    fn expose(
        &self,
        _peer: PeerId,
        buffer: IoBuffer,
        _access: Access,
    ) -> Result<IoBuffer, (IoBuffer, FabricError)> {
        Ok(buffer)
    }

    fn remote(&self, _exposed: &IoBuffer) -> RemoteBuffer {
        RemoteBuffer::default()
    }

    fn withdraw(&self, exposed: IoBuffer) -> IoBuffer {
        exposed
    }

    fn read(
        &self,
        _peer: PeerId,
        _remote: RemoteBuffer,
        _skip: u64,
        buffer: IoBuffer,
    ) -> Ready<(IoBuffer, Result<(), FabricError>)> {
        ready((buffer, Err(FabricError::NotExposed)))
    }

    fn write(
        &self,
        _peer: PeerId,
        _remote: RemoteBuffer,
        _skip: u64,
        buffer: IoBuffer,
    ) -> Ready<(IoBuffer, Result<(), FabricError>)> {
        ready((buffer, Err(FabricError::NotExposed)))
    }
}

pub struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time(self.0.elapsed().as_nanos() as u64)
    }

    fn wall(&self) -> WallTime {
        WallTime::default()
    }

    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static {
        let origin = self.0;
        std::future::poll_fn(move |context| {
            if origin.elapsed().as_nanos() as u64 >= deadline.0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }
}

pub struct Count(Cell<u64>);

impl Rng for Count {
    fn next_u64(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
    waker: Waker,
}

type Source = Box<dyn FnMut() -> usize>;

#[derive(Default)]
pub struct Executor {
    spawned: RefCell<Vec<Task>>,
    sources: RefCell<Vec<Source>>,
}

impl Spawn for Executor {
    fn spawn(&self, _class: Class, _name: &'static str, task: impl Future<Output = ()> + 'static) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(flag.clone());
        self.spawned.borrow_mut().push(Task { future: Box::pin(task), flag, waker });
    }

    fn yield_now(&self) -> Ready<()> {
        ready(())
    }

    fn should_yield(&self) -> bool {
        false
    }

    fn add_progress(&self, _name: &'static str, poll: impl FnMut() -> usize + 'static) {
        self.sources.borrow_mut().push(Box::new(poll));
    }
}

impl Executor {
    /// Polls the sources, and the tasks that are awake.
    fn turn(&self, tasks: bool) {
        self.sources.borrow_mut().iter_mut().for_each(|source| {
            source();
        });
        if tasks {
            let mut spawned = std::mem::take(&mut *self.spawned.borrow_mut());
            spawned.retain_mut(|task| {
                !task.flag.0.swap(false, Ordering::Relaxed)
                    || task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_pending()
            });
            // What was spawned meanwhile joins the list that has the memory.
            let mut new = self.spawned.borrow_mut();
            spawned.append(&mut new);
            *new = spawned;
        }
    }
}

#[derive(Clone)]
pub struct Local(Rc<Parts>);

struct Parts {
    clock: RealClock,
    rng: Count,
    executor: Executor,
    mailbox: NoMailbox,
    fabric: Loopback,
    media: NoMedia,
    locals: Locals,
}

impl Env for Local {
    type Clock = RealClock;
    type Rng = Count;
    type Spawn = Executor;
    type Mailbox = NoMailbox;
    type Fabric = Loopback;
    type Media = NoMedia;

    fn clock(&self) -> &RealClock {
        &self.0.clock
    }

    fn rng(&self) -> &Count {
        &self.0.rng
    }

    fn scheduler(&self) -> &Executor {
        &self.0.executor
    }

    fn mailbox(&self) -> &NoMailbox {
        &self.0.mailbox
    }

    fn fabric(&self) -> &Loopback {
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

/// Two worlds joined back to back.
pub fn pair() -> (Local, Local) {
    let (there, back) = (Rc::new(Queue::default()), Rc::new(Queue::default()));
    let origin = Instant::now();
    let make = |incoming: &Rc<Queue>, outgoing: &Rc<Queue>| {
        Local(Rc::new(Parts {
            clock: RealClock(origin),
            rng: Count(Cell::new(0)),
            executor: Executor::default(),
            mailbox: NoMailbox,
            fabric: Loopback {
                incoming: incoming.clone(),
                outgoing: outgoing.clone(),
                stuck: Cell::new(false),
                disconnected: Cell::new(false),
            },
            media: NoMedia,
            locals: Locals::default(),
        }))
    };
    (make(&back, &there), make(&there, &back))
}

/// Runs both worlds until `future` is done. Sleeping tasks are looked at every 1024 turns.
pub fn run<T>(worlds: &[&Local], future: impl Future<Output = T>) -> T {
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    let mut future = pin!(future);
    for turn in 0_u64.. {
        if flag.0.swap(false, Ordering::Relaxed)
            && let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            return value;
        }
        for world in worlds {
            world.0.executor.turn(turn.is_multiple_of(1024));
        }
    }
    unreachable!("the turns do not run out")
}
