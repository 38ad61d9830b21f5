//! A world for a test.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{convert::Infallible, future::Future, path::Path, time::Duration};

use daos_xstream_uring::{Config, NoFabric, Shutdown, UringEnv, run};

pub type TestEnv = UringEnv<NoFabric>;

/// Runs `main` on `xstreams` cores with files below `root`.
pub fn world<M, T>(xstreams: u32, root: &Path, main: impl Fn(TestEnv) -> M + Sync) -> Vec<T>
where
    M: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let config = Config::new(xstreams, root);
    run(&config, &Shutdown::new(), |_| Ok::<_, Infallible>(NoFabric::new()), main).expect("the world starts")
}

/// Runs `main` on one core, with files in a folder of its own on disk.
pub fn alone<M, T>(main: impl Fn(TestEnv) -> M + Sync) -> T
where
    M: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let root = folder();
    world(1, root.path(), main).remove(0)
}

/// A folder on a disk, not on tmpfs, that goes away with the value.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the test")
}

/// CPU time of this process so far.
pub fn cpu_time() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(usage.tv_sec as u64, usage.tv_nsec as u32)
}
