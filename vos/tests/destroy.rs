//! A container that is destroyed by two at once.

mod support;

use daos_types::{Checksum, Epoch, ObjectId, ObjectType};
use daos_vos::{Conflict, Container, KeyUpdate, Update, Value};
use daos_xstream::both;
use daos_xstream_sim::SimEnv;
use support::{
    arrays::{self, writer},
    pool::{self, CONTAINER, is_there},
};
use uuid::Uuid;

fn object(number: u64) -> ObjectId {
    arrays::object(ObjectType::KeyValue, number)
}

fn put(container: &Container<SimEnv>, number: u64) {
    let value = Value::Inline(b"value", Checksum(crc32c::crc32c(b"value")));
    let update = Update::KeyValue(&[KeyUpdate { key: b"key", value: Some(value) }]);
    let _ =
        container.update(object(number), Epoch(2), writer(9), Conflict::LastWins, &update).expect("written");
}

/// The slower one must not go on in what the faster one's record has become: here, another container's.
#[test]
fn a_second_destroy_leaves_other_containers_alone() {
    pool::run(|env| async move {
        let (pool, container) = pool::create(&env, pool::wal(4 << 20, 1 << 20, 0)).await;
        let (doomed, other) = (CONTAINER, Uuid::from_u128(8));
        put(&container, 1);
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
        assert_eq!((0..20).filter(|number| is_there(&made, object(*number), b"key")).count(), 20);
        assert_eq!(pool.containers().expect("listed"), [other]);
    });
}
