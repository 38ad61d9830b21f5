//! A parked core wakes for its fabric's descriptor and for a request to stop from another thread.

mod common;

use std::{
    cell::Cell,
    convert::Infallible,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use daos_xstream::{Clock, Env, Spawn};
use daos_xstream_uring::{Config, NoFabric, Park, Shutdown, UringEnv, run};
use rustix::event::{EventfdFlags, eventfd};

/// What a fabric has for parking, and nothing else: a descriptor.
struct Bell {
    descriptor: Arc<OwnedFd>,
    /// Prepared minus awake: whether the world keeps the two in step.
    depth: Cell<i32>,
}

impl Park for Bell {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.descriptor.as_raw_fd()]
    }

    fn prepare_to_park(&self) -> bool {
        assert_eq!(self.depth.replace(1), 0, "prepared twice");
        true
    }

    fn wake_at(&self) -> daos_xstream::Time {
        daos_xstream::Time::NEVER
    }

    fn unpark(&self) {
        assert_eq!(self.depth.replace(0), 1, "awake without having been prepared");
    }
}

#[test]
fn a_fabric_descriptor_wakes_a_parked_core_every_time() {
    const RINGS: u64 = 50;
    let root = common::folder();
    let descriptor =
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"));
    let ringer = {
        let descriptor = descriptor.clone();
        std::thread::Builder::new().spawn(move || {
            for _ in 0..RINGS {
                #[allow(clippy::disallowed_methods, reason = "a peer that lives outside the world")]
                std::thread::sleep(Duration::from_millis(2));
                rustix::io::write(&*descriptor, &1_u64.to_ne_bytes()).expect("rung");
            }
        })
    };
    let shutdown = Shutdown::new();
    let results = run(
        &Config::new(1, root.path()),
        &shutdown,
        |_| {
            Ok::<_, Infallible>(NoFabric::parking(Bell {
                descriptor: descriptor.clone(),
                depth: Cell::new(0),
            }))
        },
        |env: UringEnv<NoFabric<Bell>>| {
            let shutdown = shutdown.clone();
            let descriptor = descriptor.clone();
            async move {
                let heard = Rc::new(Cell::new(0));
                let heard_by_source = heard.clone();
                env.scheduler().add_progress("bell", move || {
                    let mut count = [0_u8; 8];
                    if rustix::io::read(&*descriptor, &mut count).is_err() {
                        return 0;
                    }
                    heard_by_source.set(heard_by_source.get() + u64::from_ne_bytes(count));
                    if heard_by_source.get() == RINGS {
                        shutdown.request();
                    }
                    1
                });
                // No timer anywhere: only the descriptor can bring this world to its end.
                env.stop_requested().await;
                (heard.get(), env.counters().parks)
            }
        },
    )
    .expect("the world starts");
    ringer.expect("a thread").join().expect("the ringer ends");
    assert_eq!(results[0].0, RINGS);
    assert!(results[0].1 >= RINGS / 2, "parked only {} times", results[0].1);
}

#[test]
fn a_stop_from_another_thread_wakes_all_parked_cores() {
    let root = common::folder();
    let shutdown = Shutdown::new();
    let stopper = {
        let shutdown = shutdown.clone();
        std::thread::Builder::new().spawn(move || {
            #[allow(clippy::disallowed_methods, reason = "a thread that lives outside the world")]
            std::thread::sleep(Duration::from_millis(50));
            shutdown.request();
        })
    };
    let took = run(
        &Config::new(2, root.path()),
        &shutdown,
        |_| Ok::<_, Infallible>(NoFabric::new()),
        |env| async move {
            let start = env.clock().now();
            env.stop_requested().await;
            env.clock().now().since(start)
        },
    );
    stopper.expect("a thread").join().expect("the stopper ends");
    assert!(took.expect("the world starts").iter().all(|took| took.as_millis() >= 10));
}

#[test]
fn a_world_that_cannot_start_says_why_and_leaves_no_thread() {
    let root = common::folder();
    let main = |env: UringEnv<NoFabric>| async move { env.stop_requested().await };
    let failed = run(
        &Config::new(2, root.path()),
        &Shutdown::new(),
        |core| if core.0 == 1 { Err("no such network") } else { Ok(NoFabric::new()) },
        main,
    );
    assert_eq!(failed.unwrap_err().to_string(), "the fabric of xstream 1 cannot start: no such network");
    let missing = run(
        &Config::new(1, "/no/such/folder"),
        &Shutdown::new(),
        |_| Ok::<_, Infallible>(NoFabric::new()),
        main,
    );
    assert!(missing.unwrap_err().to_string().starts_with("/no/such/folder: No such file"));
    let mut config = Config::new(1, root.path());
    config.cpus = vec![100_000];
    let refused = run(&config, &Shutdown::new(), |_| Ok::<_, Infallible>(NoFabric::new()), main);
    assert!(refused.unwrap_err().to_string().contains("may not use CPU 100000"));
}

#[test]
fn more_xstreams_than_processors_share_them() {
    let root = common::folder();
    let cpus = daos_xstream_uring::usable_cpus().expect("the CPUs").len() as u32;
    let cores = common::world(cpus + 2, root.path(), |env| async move { env.core().0 });
    assert_eq!(cores, (0..cpus + 2).collect::<Vec<_>>());
}
