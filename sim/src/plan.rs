//! What a seed decides about a run before it begins.

use std::time::Duration;

use daos_xstream::Bug;
use daos_xstream_sim::Config;

/// What happens to the engine's media, beside crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nothing.
    Sound,
    /// Accesses fail for a while, all of them or some.
    Failing,
    /// The device is full for a while.
    Full,
    /// Bits of stored data flip, and sectors of it become unreadable.
    Decaying,
    /// A bit of the heap's file flips while the engine is down.
    Tampered,
}

/// What the seed has decided about a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the world behaves.
    pub world: Config,
    /// Clients that work.
    pub clients: usize,
    /// Containers.
    pub containers: usize,
    /// Rounds of each client.
    pub rounds: u32,
    /// Faults in the safety phase.
    pub faults: u32,
    /// How long unused handles are kept.
    pub grace: Duration,
    /// Bytes of the pool.
    pub pool_bytes: u64,
    /// Longest pause of a client between operations.
    pub think_us_max: u64,
    /// What happens to media.
    pub storage: Storage,
    /// Who works beside the clients.
    pub helper: Option<Helper>,
    /// Targets aggregate meanwhile.
    pub aggregates: bool,
}

/// A client of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// It uses a file system.
    Tree,
    /// It makes and destroys pools.
    BriefPools,
    /// It makes and destroys containers.
    BriefContainers,
}

/// A small generator of the plan; the world has its own.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

impl Plan {
    /// The same for longer, with what it takes to see a planted bug.
    pub fn that_provokes(self, bug: Bug) -> Self {
        let storage = if bug == Bug::SkippedChecksum { Storage::Decaying } else { self.storage };
        let aggregates = self.aggregates || bug == Bug::AggregatedInUse;
        Self { rounds: self.rounds * 3, faults: self.faults * 3, storage, aggregates, ..self }
    }

    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let slow_network = dice.roll(4) == 0;
        let slow_disk = dice.roll(4) == 0;
        let mut world = Config { steps_max: 20_000_000, ..Config::default() };
        world.connection_loss_ppm = [0, 0, 300, 3_000][dice.roll(4) as usize];
        world.partition_breaks_ns = (100_000_000, 3_000_000_000);
        world.network_latency_ns = if slow_network { (1_000_000, 50_000_000) } else { (2_000, 200_000) };
        if slow_disk {
            world.write_latency_ns = (1_000_000, 30_000_000);
            world.flush_latency_ns = (5_000_000, 100_000_000);
        }
        Self {
            world,
            clients: 2 + dice.roll(2) as usize,
            containers: 1 + dice.roll(2) as usize,
            rounds: 2 + dice.roll(3) as u32,
            faults: 3 + dice.roll(6) as u32,
            grace: Duration::from_millis(1000 + dice.roll(5000)),
            pool_bytes: 40 << 20,
            think_us_max: [1_000, 50_000, 400_000][dice.roll(3) as usize],
            storage: match dice.roll(8) {
                0 => Storage::Failing,
                1 => Storage::Full,
                2 => Storage::Decaying,
                3 => Storage::Tampered,
                _ => Storage::Sound,
            },
            helper: match dice.roll(4) {
                0 => Some(Helper::Tree),
                1 => Some(Helper::BriefPools),
                2 => Some(Helper::BriefContainers),
                _ => None,
            },
            aggregates: dice.roll(2) == 0,
        }
    }
}
