//! Makes a directory with a file and a link in a POSIX container, lists it, and commits it.
//!
//! `cargo run -p daos --example files -- DIR POOL CONTAINER`: DIR is the folder of a running development engine, CONTAINER
//! one made with `--type POSIX`.

use daos::{Anchor, Client, DaosError, OpenOptions, fs::Attributes};

fn main() -> Result<(), DaosError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, pool, container] = arguments.as_slice() else {
        eprintln!("usage: files DIR POOL CONTAINER");
        std::process::exit(2);
    };
    let client = Client::connect(dir)?;
    client.block_on(async {
        let pool = client.pool_connect(pool).await?;
        let container = pool.container_open(container, OpenOptions::WRITE).await?;
        let fs = container.mount().await?;

        let folder = fs.mkdir("/example", Attributes::new(0o755, 0, 0)).await?;
        let file = folder.create(b"hello.txt", Attributes::new(0o644, 0, 0)).await?;
        file.write_at(0, b"Hello from a container.\n").await?;
        file.close().await?;
        fs.symlink("hello.txt", "/example/link", Attributes::new(0o777, 0, 0)).await?;
        let epoch = fs.sync().await?;

        for entry in fs.list("/example", &Anchor::default(), 100).await?.items {
            let (name, inode) = (String::from_utf8_lossy(&entry.name), entry.inode);
            println!("{:o} {:6} {name}", inode.mode(), inode.size);
        }
        print!("{}", String::from_utf8_lossy(&fs.read_file("/example/link").await?));
        println!("committed as epoch {epoch}");
        container.close().await?;
        pool.disconnect().await
    })
}
