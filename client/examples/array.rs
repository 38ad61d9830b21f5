//! Writes an array with many requests in flight, through an event queue, and reads it back.
//!
//! `cargo run -p daos --example array -- DIR POOL CONTAINER`: DIR is the folder of a running development engine.

use std::{rc::Rc, time::Duration};

use daos::{Client, DaosError, Epoch, EventQueue, IoBuffer, ObjectType, OpenOptions};

const CHUNK: usize = 1 << 20;
const CHUNKS: u64 = 32;

fn main() -> Result<(), DaosError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, pool, container] = arguments.as_slice() else {
        eprintln!("usage: array DIR POOL CONTAINER");
        std::process::exit(2);
    };
    let client = Client::connect(dir)?;
    let pool = client.block_on(client.pool_connect(pool))?;
    let container = client.block_on(pool.container_open(container, OpenOptions::WRITE))?;
    let array = Rc::new(container.array(container.new_object_id(ObjectType::Array, Some("SX"))?)?);
    let epoch = client.block_on(container.hold(Epoch::ZERO))?;

    let queue = EventQueue::new(client.env());
    for chunk in 0..CHUNKS {
        let array = array.clone();
        let mut data = IoBuffer::zeroed(CHUNK);
        data.as_mut_slice().fill(chunk as u8);
        queue.launch(async move { array.write(epoch, chunk * CHUNK as u64, data).await.1 });
    }
    let mut done = 0;
    while done < CHUNKS {
        for (_, result) in queue.poll(8, Duration::MAX) {
            result?;
            done += 1;
        }
    }
    client.block_on(container.flush(epoch))?;
    client.block_on(container.commit(epoch))?;

    let size = client.block_on(array.size(epoch))?;
    let bytes = client.block_on(array.read_at(epoch, 5 * CHUNK as u64 - 2, 4))?;
    println!("object {}: {size} bytes; around the end of the fifth chunk: {bytes:?}", array.id());
    client.block_on(container.close())?;
    client.block_on(pool.disconnect())
}
