//! A container that is destroyed by two at once.

use daos_types::{Checksum, Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{
    Conflict, Container, FetchRequest, Fetched, KeyUpdate, MediaKind, Pool, PoolOptions, Update, Value,
};
use daos_xstream::both;
use daos_xstream_sim::{Config, SimEnv, Simulation};
use uuid::Uuid;

fn object(number: u64) -> ObjectId {
    ObjectId::new(ObjectType::KeyValue, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
}

fn put(container: &Container<SimEnv>, number: u64) {
    let writer = Writer { cookie: Cookie(9), map_version: 1, kind: WriterKind::Application };
    let value = Value::Inline(b"value", Checksum(crc32c::crc32c(b"value")));
    let update = Update::KeyValue(&[KeyUpdate { key: b"key", value: Some(value) }]);
    let _ = container.update(object(number), Epoch(2), writer, Conflict::LastWins, &update).expect("written");
}

fn is_there(container: &Container<SimEnv>, number: u64) -> bool {
    let request = FetchRequest { object: object(number), dkey: b"key", akey: None };
    container.fetch(&request, Epoch::MAX, |found| matches!(found, Fetched::Value(_))).expect("fetched")
}

/// The slower one must not go on in what the faster one's record has become: here, another container's.
#[test]
fn a_second_destroy_leaves_other_containers_alone() {
    let sim = Simulation::new(1, Config::default());
    let node = sim.add_node(1);
    let run = sim.block_on(&node, |env| async move {
        let options = PoolOptions {
            uuid: Uuid::from_u128(1),
            media: MediaKind::Wal,
            heap_bytes: 4 << 20,
            log_bytes: 1 << 20,
            block_bytes: 0,
        };
        let pool = Pool::create(&env, "pool", options).await.expect("a pool");
        let (doomed, other) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let _ = pool.container_create(doomed).expect("a container");
        put(&pool.container_open(doomed).expect("a handle"), 1);
        let destroy_and_make = async {
            let _ = pool.container_destroy(doomed).await.expect("destroyed");
            let _ = pool.container_create(other).expect("another container");
            let made = pool.container_open(other).expect("a handle");
            (0..20).for_each(|number| put(&made, number));
            let _ = pool.flush().await.expect("durable");
            made
        };
        let (made, second) = both(destroy_and_make, pool.container_destroy(doomed)).await;
        let _ = second.expect("what is not there is destroyed");
        assert_eq!((0..20).filter(|number| is_there(&made, *number)).count(), 20);
        assert_eq!(pool.containers().expect("listed"), [other]);
    });
    run.expect("it ends");
}
