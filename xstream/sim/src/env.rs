//! The seam's traits for one simulated core.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    rc::Rc,
    task::{Poll, Waker},
};

use daos_xstream::{
    Bug, Class, Clock, CoreId, Env, Locals, Mailbox, MailboxError, Rng, Spawn, Time, WallTime, Work,
    sync::{Permit, Semaphore},
};

use crate::{
    core::Core,
    media::SimMedia,
    network::SimFabric,
    random::Random,
    world::{EventKey, Happening, World},
};

/// 2026-01-01 UTC in nanoseconds since 1970: when every run begins.
const WALL_START: u64 = 1_767_225_600_000_000_000;

/// The world of one simulated xstream. A cheap handle.
#[derive(Clone)]
pub struct SimEnv(Rc<Parts>);

struct Parts {
    clock: SimClock,
    rng: SimRng,
    scheduler: SimSpawn,
    mailbox: SimMailbox,
    fabric: SimFabric,
    media: SimMedia,
    locals: Locals,
    core: CoreId,
}

impl SimEnv {
    pub(crate) fn new(
        world: &Rc<World>,
        core: &Rc<Core>,
        life: &Rc<Life>,
        media: SimMedia,
        origin: u64,
    ) -> Self {
        Self(Rc::new(Parts {
            clock: SimClock { world: world.clone(), core: core.clone(), origin },
            rng: SimRng(Random::new(world.seed, 1000 + core.id)),
            scheduler: SimSpawn { world: world.clone(), core: core.clone() },
            mailbox: SimMailbox { world: world.clone(), life: life.clone(), own: core.number },
            fabric: SimFabric::new(world, core),
            media,
            locals: Locals::default(),
            core: CoreId(core.number),
        }))
    }

    pub(crate) fn clear_locals(&self) {
        self.0.locals.clear();
    }
}

impl Env for SimEnv {
    type Clock = SimClock;
    type Rng = SimRng;
    type Spawn = SimSpawn;
    type Mailbox = SimMailbox;
    type Fabric = SimFabric;
    type Media = SimMedia;

    fn clock(&self) -> &SimClock {
        &self.0.clock
    }

    fn rng(&self) -> &SimRng {
        &self.0.rng
    }

    fn scheduler(&self) -> &SimSpawn {
        &self.0.scheduler
    }

    fn mailbox(&self) -> &SimMailbox {
        &self.0.mailbox
    }

    fn fabric(&self) -> &SimFabric {
        &self.0.fabric
    }

    fn media(&self) -> &SimMedia {
        &self.0.media
    }

    fn locals(&self) -> &Locals {
        &self.0.locals
    }

    fn core(&self) -> CoreId {
        self.0.core
    }

    fn planted(&self, bug: Bug) -> bool {
        self.0.clock.world.planted.get() == Some(bug)
    }
}

/// Virtual time, from an origin of the node's own.
pub struct SimClock {
    world: Rc<World>,
    core: Rc<Core>,
    origin: u64,
}

impl Clock for SimClock {
    fn now(&self) -> Time {
        Time(self.origin + self.world.now.get())
    }

    fn wall(&self) -> WallTime {
        WallTime(WALL_START + self.world.now.get())
    }

    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static {
        let timer = Timer {
            world: self.world.clone(),
            core: self.core.clone(),
            shared: Rc::default(),
            event: Cell::new(None),
        };
        let due = deadline.0.saturating_sub(self.origin);
        let forever = deadline == Time::NEVER;
        poll_fn(move |context| {
            if timer.shared.fired.get() || timer.world.now.get() >= due {
                return Poll::Ready(());
            }
            timer.shared.waker.set(Some(context.waker().clone()));
            if timer.event.get().is_none() && !forever {
                timer.schedule(due);
            }
            Poll::Pending
        })
    }
}

#[derive(Default)]
struct Fired {
    fired: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// A sleep; it takes its event with it when it is dropped.
struct Timer {
    world: Rc<World>,
    core: Rc<Core>,
    shared: Rc<Fired>,
    event: Cell<Option<EventKey>>,
}

impl Timer {
    fn schedule(&self, due: u64) {
        let late = self.world.schedule.latency(self.world.config.timer_lateness_ns);
        let (world, shared, core) = (self.world.clone(), self.shared.clone(), self.core.clone());
        self.event.set(Some(self.world.at(due.saturating_add(late), move || {
            world.record(Happening::Timer, core.id, 0);
            shared.fired.set(true);
            core.poke();
            if let Some(waker) = shared.waker.take() {
                waker.wake();
            }
        })));
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.world.cancel(event);
        }
    }
}

/// The run's seed, for this core.
pub struct SimRng(Random);

impl Rng for SimRng {
    fn next_u64(&self) -> u64 {
        self.0.next()
    }
}

/// The seeded scheduler.
pub struct SimSpawn {
    world: Rc<World>,
    core: Rc<Core>,
}

impl Spawn for SimSpawn {
    fn spawn(&self, class: Class, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.core.spawn(&self.world, class, name, task);
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let mut yielded = false;
        poll_fn(move |context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn should_yield(&self) -> bool {
        self.world.schedule.chance(125_000)
    }

    fn add_progress(&self, _name: &'static str, poll: impl FnMut() -> usize + 'static) {
        self.core.add_source(Box::new(poll));
    }
}

/// The cores of one life of a node, and the rings between them.
pub(crate) struct Life {
    pub cores: Vec<Rc<Core>>,
    /// By sender, then receiver.
    rings: Vec<Vec<Ring>>,
}

struct Ring {
    /// First come, first served, so that senders do not overtake each other while it is full.
    places: Rc<Semaphore>,
    last_arrival: Cell<u64>,
}

impl Life {
    pub fn new(cores: Vec<Rc<Core>>, capacity: usize) -> Self {
        let ring = || Ring { places: Semaphore::new(capacity), last_arrival: Cell::new(0) };
        let ring_row = || cores.iter().map(|_| ring()).collect();
        let rings = cores.iter().map(|_| ring_row()).collect();
        Self { cores, rings }
    }

    pub fn alive(&self) -> bool {
        self.cores.iter().all(|core| core.alive.get())
    }
}

/// Work on its way, and the place in the ring that it takes until it is run.
pub(crate) struct Mail {
    pub work: Work<SimEnv>,
    _place: Permit,
}

/// Bounded queues between the cores of a node.
pub struct SimMailbox {
    world: Rc<World>,
    life: Rc<Life>,
    own: u32,
}

impl Mailbox<SimEnv> for SimMailbox {
    fn cores(&self) -> u32 {
        self.life.cores.len() as u32
    }

    async fn send(&self, to: CoreId, work: Work<SimEnv>) -> Result<(), MailboxError> {
        let from = self.own as usize;
        let Some(core) = self.life.cores.get(to.0 as usize) else { return Err(MailboxError::NoSuchCore(to)) };
        let ring = &self.life.rings[from][to.0 as usize];
        let place = ring.places.acquire().await;
        if !core.alive.get() {
            return Err(MailboxError::Closed(to));
        }
        let delay = self.world.schedule.latency(self.world.config.mailbox_latency_ns);
        let arrival = (self.world.now.get() + delay).max(ring.last_arrival.get());
        ring.last_arrival.set(arrival);
        let core = core.clone();
        self.world.at(arrival, move || {
            if core.alive.get() {
                core.mailbox.borrow_mut()[from].push_back(Mail { work, _place: place });
                core.poke();
            }
        });
        Ok(())
    }
}
