//! Tasks, timers, parking and the end of a world.

mod common;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use daos_xstream::{Class, Clock, Env, Rng, Spawn};

use common::{TestEnv, alone, folder, world};

async fn sleep(env: &TestEnv, duration: Duration) {
    let deadline = env.clock().now() + duration;
    env.clock().sleep_until(deadline).await;
}

#[test]
fn timers_fire_in_order_and_not_early() {
    let fired = alone(|env| async move {
        let fired = Rc::new(RefCell::new(Vec::new()));
        for millis in [30_u64, 10, 20, 0, 10] {
            let (env_of_task, fired) = (env.clone(), fired.clone());
            env.scheduler().spawn(Class::Service, "sleeper", async move {
                let start = env_of_task.clock().now();
                sleep(&env_of_task, Duration::from_millis(millis)).await;
                fired.borrow_mut().push((millis, env_of_task.clock().now().since(start)));
            });
        }
        sleep(&env, Duration::from_millis(60)).await;
        fired.take()
    });
    assert_eq!(fired.iter().map(|(millis, _)| *millis).collect::<Vec<_>>(), [0, 10, 10, 20, 30]);
    assert!(fired.iter().all(|(millis, took)| took.as_millis() >= u128::from(*millis)), "{fired:?}");
}

#[test]
fn a_dropped_timer_does_not_wake_anybody() {
    alone(|env| async move {
        {
            let deadline = env.clock().now() + Duration::from_millis(5);
            let mut sleep = Box::pin(env.clock().sleep_until(deadline));
            std::future::poll_fn(|context| {
                assert!(sleep.as_mut().poll(context).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        let polls = env.counters().task_polls;
        sleep(&env, Duration::from_millis(20)).await;
        // One poll to arm the timer of this sleep, which has been counted by its end.
        assert_eq!(env.counters().task_polls - polls, 1);
    });
}

#[test]
fn busy_classes_share_the_core_by_weight() {
    let counts = alone(|env| async move {
        let counts: Rc<[Cell<u64>; 4]> = Rc::default();
        let end = env.clock().now() + Duration::from_millis(400);
        for class in Class::ALL {
            let (env_of_task, counts) = (env.clone(), counts.clone());
            env.scheduler().spawn(class, "burner", async move {
                while env_of_task.clock().now() < end {
                    let slice = env_of_task.clock().now();
                    while env_of_task.clock().now().since(slice) < Duration::from_micros(50) {}
                    counts[class as usize].set(counts[class as usize].get() + 1);
                    env_of_task.scheduler().yield_now().await;
                }
            });
        }
        sleep(&env, Duration::from_millis(420)).await;
        counts.iter().map(Cell::get).collect::<Vec<_>>()
    });
    for (class, count) in Class::ALL.into_iter().zip(&counts) {
        let fair = class.shares() as f64 / 1700.0;
        let got = *count as f64 / counts.iter().sum::<u64>() as f64;
        assert!(
            (got / fair - 1.0).abs() < 0.35,
            "{class:?} got {got:.3} of the core, fair is {fair:.3}: {counts:?}"
        );
    }
}

#[test]
fn a_progress_source_is_asked_while_tasks_keep_the_core_busy() {
    let (asked, gap_max) = alone(|env| async move {
        let asked = Rc::new(Cell::new(0_u64));
        let last = Rc::new(Cell::new(env.clock().now()));
        let gap_max = Rc::new(Cell::new(Duration::ZERO));
        {
            let (asked, last, gap_max, env_of_source) =
                (asked.clone(), last.clone(), gap_max.clone(), env.clone());
            env.scheduler().add_progress("probe", move || {
                let now = env_of_source.clock().now();
                gap_max.set(gap_max.get().max(now.since(last.replace(now))));
                asked.set(asked.get() + 1);
                0
            });
        }
        let end = env.clock().now() + Duration::from_millis(200);
        for class in [Class::Foreground, Class::Background, Class::Rebuild] {
            for _ in 0..4 {
                let env_of_task = env.clone();
                env.scheduler().spawn(class, "burner", async move {
                    while env_of_task.clock().now() < end {
                        if env_of_task.scheduler().should_yield() {
                            env_of_task.scheduler().yield_now().await;
                        }
                    }
                });
            }
        }
        while env.clock().now() < end {
            env.scheduler().yield_now().await;
        }
        (asked.get(), gap_max.get())
    });
    // Slices are 500 µs: 200 ms hold 400 of them, and between any two a round is due.
    assert!(asked >= 100, "asked {asked} times");
    assert!(gap_max < Duration::from_millis(100), "once not asked for {gap_max:?}");
}

#[test]
fn a_task_that_holds_the_core_is_counted() {
    let (before, after) = alone(|env| async move {
        let before = env.counters();
        let env_of_task = env.clone();
        env.scheduler().spawn(Class::Background, "hog", async move {
            let start = env_of_task.clock().now();
            while env_of_task.clock().now().since(start) < Duration::from_millis(5) {}
        });
        sleep(&env, Duration::from_millis(20)).await;
        (before, env.counters())
    });
    assert!(after.stalls > before.stalls);
    assert!(after.stall_ns_max >= 5_000_000);
}

#[test]
fn the_end_drops_every_task() {
    struct Witness(std::sync::mpsc::Sender<&'static str>);
    impl Drop for Witness {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    alone(|env| {
        let sender = sender.lock().unwrap().clone();
        async move {
            for _ in 0..10 {
                let witness = Witness(sender.clone());
                env.scheduler().spawn(Class::Background, "endless", async move {
                    let _witness = witness;
                    std::future::pending::<()>().await;
                });
            }
            let witness = Witness(sender.clone());
            env.scheduler().add_progress("holder", move || {
                let _ = &witness;
                0
            });
            env.locals().insert(Rc::new((env.clone(), Witness(sender))));
            sleep(&env, Duration::from_millis(1)).await;
            assert_eq!(env.counters().tasks, 11);
        }
    });
    drop(sender);
    assert_eq!(receiver.iter().count(), 12, "ten tasks, one source, one local");
}

#[test]
fn randomness_differs_between_xstreams_and_calls() {
    let root = folder();
    let numbers =
        world(
            2,
            root.path(),
            |env| async move { (0..100).map(|_| env.rng().next_u64()).collect::<Vec<_>>() },
        );
    let mut all = numbers.concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 200);
}
