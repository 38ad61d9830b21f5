//! Puts a few values into a key-value object in one transaction, reads them back, and looks at the past.
//!
//! `cargo run -p daos --example kv -- DIR POOL CONTAINER`: DIR is the folder of a running development engine.

use daos::{Anchor, At, Client, DaosError, Epoch, ObjectType, OpenOptions};

fn main() -> Result<(), DaosError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, pool, container] = arguments.as_slice() else {
        eprintln!("usage: kv DIR POOL CONTAINER");
        std::process::exit(2);
    };
    let client = Client::connect(dir)?;
    client.block_on(async {
        let pool = client.pool_connect(pool).await?;
        let container = pool.container_open(container, OpenOptions::WRITE).await?;
        let kv = container.kv(container.new_object_id(ObjectType::KeyValue, Some("SX"))?)?;

        let first = container.hold(Epoch::ZERO).await?;
        kv.put_all(first, &[(b"red", b"apple"), (b"green", b"pear"), (b"yellow", b"lemon")]).await?;
        container.flush(first).await?;
        container.commit(first).await?;

        // Outside a transaction every call takes an epoch by itself.
        kv.put(At::Auto, b"green", b"lime").await?;
        kv.remove(At::Auto, &[b"red"]).await?;
        let last = container.sync().await?;

        for epoch in [first, last] {
            let mut anchor = Some(Anchor::default());
            while let Some(from) = anchor {
                let page = kv.list(epoch, &from, 100).await?;
                for key in page.items {
                    let value = kv.get(epoch, &key).await?.value().unwrap_or_default();
                    let (key, value) = (String::from_utf8_lossy(&key), String::from_utf8_lossy(&value));
                    println!("epoch {epoch}: {key} = {value}");
                }
                anchor = page.next;
            }
        }
        container.close().await?;
        pool.disconnect().await
    })
}
