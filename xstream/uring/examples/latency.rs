//! What the scheduler and the mesh cost: a yield, a spawn, a message to a busy core and back, to a parked core and back,
//! a wake-up by a descriptor and by a timer.

#![allow(clippy::disallowed_methods, reason = "this measures the real world")]

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use daos_xstream::{Class, Clock, CoreId, Env, Mailbox, Rng, Spawn};
use daos_xstream_uring::{Config, NoFabric, Shutdown, UringEnv, run};
use hdrhistogram::Histogram;

type World = UringEnv<NoFabric>;

#[derive(Default)]
struct Answers(Cell<u64>, RefCell<Option<Waker>>);

fn main() {
    let mut config = Config::new(2, std::env::temp_dir());
    // Both cores stay awake while the sender measures the busy path.
    config.idle_budget = Duration::from_millis(2);
    let shutdown = Shutdown::new();
    run(
        &config,
        &shutdown,
        |_| Ok::<_, Infallible>(NoFabric::new()),
        |env| {
            let shutdown = shutdown.clone();
            async move {
                env.locals().insert(Rc::new(Answers::default()));
                if env.core() == CoreId(0) {
                    measure(&env).await;
                    shutdown.request();
                }
                env.stop_requested().await;
            }
        },
    )
    .expect("the world runs");
}

async fn measure(env: &World) {
    each("clock reading", 1_000_000, || _ = std::hint::black_box(env.clock().now()));
    each("random number", 1_000_000, || _ = std::hint::black_box(env.rng().next_u64()));
    let start = Instant::now();
    for _ in 0..100_000 {
        env.scheduler().yield_now().await;
    }
    println!("{:<40} {:>9.3} us", "yield, with the idle task between", start.elapsed().as_secs_f64() * 10.0);
    let start = Instant::now();
    let done = Rc::new(Cell::new(0));
    for _ in 0..100_000 {
        let done = done.clone();
        env.scheduler().spawn(Class::Foreground, "nothing", async move { done.set(done.get() + 1) });
    }
    while done.get() < 100_000 {
        env.scheduler().yield_now().await;
    }
    println!("{:<40} {:>9.3} us", "spawn and run a task", start.elapsed().as_secs_f64() * 10.0);

    let mut busy = Histogram::<u64>::new(3).expect("a histogram");
    for _ in 0..100_000 {
        let start = Instant::now();
        ping(env).await;
        busy.record(start.elapsed().as_nanos() as u64).expect("in range");
    }
    report("message to a busy core and back", &busy);

    let mut parked = Histogram::<u64>::new(3).expect("a histogram");
    let mut late = Histogram::<u64>::new(3).expect("a histogram");
    for _ in 0..300 {
        let deadline = env.clock().now() + Duration::from_millis(5);
        env.clock().sleep_until(deadline).await;
        late.record(env.clock().now().since(deadline).as_nanos() as u64).expect("in range");
        let start = Instant::now();
        ping(env).await;
        parked.record(start.elapsed().as_nanos() as u64).expect("in range");
    }
    report("timer of a parked core is late by", &late);
    report("message to a parked core and back", &parked);
}

/// Sends a message that the other core answers, and waits for the answer.
async fn ping(env: &World) {
    let answers = env.locals().get::<Answers>().expect("made at the start");
    let before = answers.0.get();
    let work = Box::new(|env: &World| {
        let answer = Box::new(|env: &World| {
            let answers = env.locals().get::<Answers>().expect("made at the start");
            answers.0.set(answers.0.get() + 1);
            answers.1.take().into_iter().for_each(Waker::wake);
        });
        let mut sending = Box::pin(env.mailbox().send(CoreId(0), answer));
        let sent = sending.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        assert_eq!(sent, Poll::Ready(Ok(())), "one message fits");
    });
    env.mailbox().send(CoreId(1), work).await.expect("the peer lives");
    // Waiting, not polling: the core is then free to look at its rings over and over.
    std::future::poll_fn(|context| {
        if answers.0.get() > before {
            return Poll::Ready(());
        }
        *answers.1.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    })
    .await;
}

fn each(name: &str, count: u32, mut operation: impl FnMut()) {
    let start = Instant::now();
    for _ in 0..count {
        operation();
    }
    println!("{name:<40} {:>9.3} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(count));
}

fn report(name: &str, histogram: &Histogram<u64>) {
    let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    println!("{name:<40} {:>9.3} us p50 {:>9.3} p90 {:>9.3} p99", us(0.5), us(0.9), us(0.99));
}
