//! A pool with one container, in the simulator.

use daos_types::{Epoch, ObjectId};
use daos_vos::{Container, FetchRequest, Fetched, MediaKind, Pool, PoolOptions};
use daos_xstream::Env;
use daos_xstream_sim::{Config, SimEnv, Simulation};
use uuid::Uuid;

/// The container that [`create`] makes.
pub const CONTAINER: Uuid = Uuid::from_u128(7);

/// A pool of this size on `wal` media; bytes.
pub fn wal(heap_bytes: u64, log_bytes: u64, block_bytes: u64) -> PoolOptions {
    PoolOptions { uuid: Uuid::from_u128(1), media: MediaKind::Wal, heap_bytes, log_bytes, block_bytes }
}

/// A pool of this size on `heap` media; bytes.
pub fn heap(heap_bytes: u64, block_bytes: u64) -> PoolOptions {
    PoolOptions { media: MediaKind::Heap, ..wal(heap_bytes, 0, block_bytes) }
}

/// Makes the pool "pool" and a container in it.
pub async fn create<E: Env>(env: &E, options: PoolOptions) -> (Pool<E>, Container<E>) {
    let pool = Pool::create(env, "pool", options).await.expect("a pool");
    let _ = pool.container_create(CONTAINER).expect("a container");
    let container = pool.container_open(CONTAINER).expect("the container");
    (pool, container)
}

/// Runs a task to its end on a node of its own.
pub fn run<F: Future<Output: 'static> + 'static>(task: impl FnOnce(SimEnv) -> F) -> F::Output {
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    simulation.block_on(&node, task).expect("the run ends")
}

/// Whether a KV object has a value under this key, at any epoch.
pub fn is_there<E: Env>(container: &Container<E>, object: ObjectId, key: &[u8]) -> bool {
    let request = FetchRequest { object, dkey: key, akey: None };
    container.fetch(&request, Epoch::MAX, |found| matches!(found, Fetched::Value(_))).expect("fetched")
}
