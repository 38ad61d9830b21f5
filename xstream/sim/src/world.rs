//! What all simulated things share: time, events, randomness, and the hash of what has happened.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use daos_xstream::Bug;

use crate::{core::Core, network::Network, node::NodeState, random::Random};

/// How a simulated world behaves. Ranges are (least, most) in nanoseconds; most draws are near the least.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a core is busy with one poll.
    pub poll_ns: (u64, u64),
    /// How late timers fire.
    pub timer_lateness_ns: (u64, u64),
    /// From one core's mailbox to another's.
    pub mailbox_latency_ns: (u64, u64),
    /// Work that fits into one mailbox ring.
    pub mailbox_capacity: usize,
    /// One way between two endpoints.
    pub network_latency_ns: (u64, u64),
    /// Longest message.
    pub message_bytes_max: usize,
    /// Messages under way per connection and direction.
    pub connection_capacity: usize,
    /// How many of a million messages break their connection instead of arriving.
    pub connection_loss_ppm: u32,
    /// When an end learns that its connection is broken.
    pub break_notice_ns: (u64, u64),
    /// How long a partition lasts before connections across it break.
    pub partition_breaks_ns: (u64, u64),
    /// How long a connection attempt across a partition takes to fail.
    pub connect_timeout: Duration,
    /// Read of media.
    pub read_latency_ns: (u64, u64),
    /// Write to media.
    pub write_latency_ns: (u64, u64),
    /// Flush, durable write, name space operation.
    pub flush_latency_ns: (u64, u64),
    /// How many of a million sectors read turn out unreadable, until they are written again.
    pub sector_loss_ppm: u32,
    /// Polls and events after which a run is taken to be stuck.
    pub steps_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            poll_ns: (50, 2_000),
            timer_lateness_ns: (0, 50_000),
            mailbox_latency_ns: (100, 20_000),
            mailbox_capacity: 16,
            network_latency_ns: (2_000, 200_000),
            message_bytes_max: 16 << 10,
            connection_capacity: 64,
            connection_loss_ppm: 0,
            break_notice_ns: (100_000, 50_000_000),
            partition_breaks_ns: (1_000_000_000, 10_000_000_000),
            connect_timeout: Duration::from_secs(1),
            read_latency_ns: (20_000, 1_000_000),
            write_latency_ns: (10_000, 1_000_000),
            flush_latency_ns: (50_000, 5_000_000),
            sector_loss_ppm: 0,
            steps_max: 1_000_000_000,
        }
    }
}

/// Kinds of things that happen, as they enter the hash.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Happening {
    Task = 1,
    Progress,
    Timer,
    Mailbox,
    Message,
    Break,
    Rma,
    MediaRead,
    MediaWrite,
    MediaFlush,
    MediaName,
    Kill,
    Start,
    Partition,
    Fault,
}

/// A task, in all the world: its core and its number there.
pub(crate) type TaskKey = (u64, u64);

type Action = Box<dyn FnOnce()>;

/// Names an event that has not happened, so that it can be called off.
pub(crate) type EventKey = (u64, u64);

pub(crate) struct World {
    pub seed: u64,
    pub config: Config,
    /// Virtual time in nanoseconds.
    pub now: Cell<u64>,
    pub steps: Cell<u64>,
    /// Nothing is lost at random any more.
    pub calm: Cell<bool>,
    /// A bug on purpose.
    pub planted: Cell<Option<Bug>>,
    pub schedule: Random,
    pub weather: Random,
    pub decay: Random,
    pub cores: RefCell<Vec<Rc<Core>>>,
    pub nodes: RefCell<Vec<Rc<NodeState>>>,
    pub network: Network,
    /// Tasks whose wakers were called. The only part that is `Sync`, because wakers must be.
    pub woken: Arc<Mutex<Vec<TaskKey>>>,
    events: RefCell<BTreeMap<EventKey, Action>>,
    numbers: Cell<u64>,
    hash: Cell<u64>,
}

impl World {
    pub fn new(seed: u64, config: Config) -> Self {
        Self {
            seed,
            config,
            now: Cell::new(0),
            steps: Cell::new(0),
            calm: Cell::new(false),
            planted: Cell::new(None),
            schedule: Random::new(seed, 1),
            weather: Random::new(seed, 2),
            decay: Random::new(seed, 3),
            cores: RefCell::default(),
            nodes: RefCell::default(),
            network: Network::default(),
            woken: Arc::default(),
            events: RefCell::default(),
            numbers: Cell::new(1),
            hash: Cell::new(0xcbf2_9ce4_8422_2325),
        }
    }

    /// A number that is used once in this world.
    pub fn number(&self) -> u64 {
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        number
    }

    /// Adds to the hash (FNV-1a over words, with a final shift to carry high bits down).
    pub fn record(&self, what: Happening, first: u64, second: u64) {
        let mut hash = self.hash.get();
        for word in [what as u64, self.now.get(), first, second] {
            hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            hash ^= hash >> 29;
        }
        self.hash.set(hash);
    }

    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    /// Has `action` happen at `time`, or next if that has passed. Same time: in the order of scheduling.
    pub fn at(&self, time: u64, action: impl FnOnce() + 'static) -> EventKey {
        let key = (time.max(self.now.get()), self.number());
        self.events.borrow_mut().insert(key, Box::new(action));
        key
    }

    /// Has `action` happen `delay` nanoseconds from now.
    pub fn after(&self, delay: u64, action: impl FnOnce() + 'static) -> EventKey {
        self.at(self.now.get().saturating_add(delay), action)
    }

    /// Calls an event off.
    pub fn cancel(&self, key: EventKey) {
        let action = self.events.borrow_mut().remove(&key);
        drop(action);
    }

    /// When the next event is due.
    pub fn next_event(&self) -> Option<u64> {
        self.events.borrow().first_key_value().map(|((time, _), _)| *time)
    }

    /// Lets the next event happen, if it is due.
    pub fn run_event(&self) -> bool {
        let due = {
            let mut events = self.events.borrow_mut();
            match events.first_entry() {
                Some(first) if first.key().0 <= self.now.get() => Some(first.remove()),
                _ => None,
            }
        };
        due.map(|action| action()).is_some()
    }

    /// Drops all events; at the end of the world, to break its cycles.
    pub fn clear_events(&self) {
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
    }

    /// Moves woken tasks to their cores' ready lists.
    pub fn deliver_wakes(&self) {
        let woken = std::mem::take(&mut *self.woken.lock().expect("no code panics while it holds the list"));
        for (core, task) in woken {
            if let Some(core) = self.cores.borrow().iter().find(|candidate| candidate.id == core) {
                core.ready(task);
            }
        }
    }
}

impl Drop for World {
    #[allow(clippy::print_stderr, reason = "whoever sees a run fail needs its seed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "simulation: seed {}, {} steps, {} ns, hash {:016x}",
                self.seed,
                self.steps.get(),
                self.now.get(),
                self.hash.get()
            );
        }
    }
}
