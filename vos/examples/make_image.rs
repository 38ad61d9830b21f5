//! Writes images of the present media format for `tests/golden.rs`, one of each kind of media, once per format:
//!
//! ```sh
//! PMEM_IS_PMEM_FORCE=1 cargo run -p daos-vos --example make_image -- FOLDER
//! ```

use std::{fs, path::Path};

use daos_vos::{MediaKind, Pool};
use daos_xstream_sim::{Config, Loss, Simulation};

#[path = "../tests/support/mod.rs"]
mod support;
use support::{image, sample};

fn main() {
    let folder = std::env::args().nth(1).expect("a folder to write the images to");
    let folder = Path::new(&folder);
    let (version, files) = on_wal();
    write(&folder.join(format!("format-{version}.image")), &files);
    let pmem = folder.join("pmem");
    write(&folder.join(format!("format-{version}-pmem.image")), &on_pmem(&pmem));
    fs::remove_file(pmem).expect("it was made");
}

fn write(path: &Path, files: &[(String, Vec<u8>)]) {
    let packed = image::pack(files);
    println!("{}: {} bytes", path.display(), packed.len());
    fs::write(path, packed).expect("written");
}

/// The version of the pool's format, and its files.
fn on_wal() -> (u64, Vec<(String, Vec<u8>)>) {
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let made = simulation.block_on(&node, |env| async move {
        let _ = sample::make(&env, "pool").await.expect("a pool");
    });
    made.expect("the run ends");
    node.kill(Loss::Process);
    node.restart();
    // Opened once more, so that a super-block vouches for all of the log.
    let files = simulation.block_on(&node, |env| async move {
        let pool = Pool::open(&env, "pool").await.expect("the pool");
        (pool.format_version().expect("a version"), image::read_files(&env, "pool").await)
    });
    files.expect("the run ends")
}

/// The file `blocks`, then the arena as `pmem`.
fn on_pmem(file: &Path) -> Vec<(String, Vec<u8>)> {
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let media = MediaKind::Pmem { file: file.to_owned() };
    let files = simulation.block_on(&node, |env| async move {
        drop(sample::make_on(&env, "pool", media).await.expect("a pool (with PMEM_IS_PMEM_FORCE=1)"));
        image::read_files(&env, "pool").await
    });
    let mut files = files.expect("the run ends");
    files.push(("pmem".to_owned(), fs::read(file).expect("the arena")));
    files
}
