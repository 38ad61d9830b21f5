//! Work between xstreams: order, back-pressure, wake-ups, the end.

mod common;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use daos_xstream::{Class, Clock, CoreId, Env, Mailbox, MailboxError, Spawn};

use common::{TestEnv, alone, folder, world};

async fn sleep(env: &TestEnv, duration: Duration) {
    let deadline = env.clock().now() + duration;
    env.clock().sleep_until(deadline).await;
}

/// What a core has received, in its order.
#[derive(Default)]
struct Received {
    next: Cell<u64>,
}

#[test]
fn a_million_messages_arrive_in_order_in_both_directions() {
    const MESSAGES: u64 = 1_000_000;
    let root = folder();
    let received = world(2, root.path(), |env| async move {
        env.locals().insert(Rc::new(Received::default()));
        let peer = CoreId(1 - env.core().0);
        for number in 0..MESSAGES {
            let work = Box::new(move |env: &TestEnv| {
                // The peer may still be starting: its first look at its rings comes after its main has begun.
                let received = env.locals().get::<Received>().expect("made before anything is received");
                assert_eq!(received.next.replace(number + 1), number);
            });
            env.mailbox().send(peer, work).await.expect("the peer lives");
        }
        let received = env.locals().get::<Received>().expect("still there");
        while received.next.get() < MESSAGES {
            sleep(&env, Duration::from_millis(1)).await;
        }
        received.next.get()
    });
    assert_eq!(received, [MESSAGES, MESSAGES]);
}

#[test]
fn a_full_ring_holds_the_sender_back() {
    let root = folder();
    let capacity = 1024;
    let sent_while_blocked = Arc::new(AtomicU64::new(0));
    let blocked = sent_while_blocked.clone();
    world(2, root.path(), move |env| {
        let blocked = blocked.clone();
        async move {
            if env.core() == CoreId(1) {
                // Core 1 looks at nothing until core 0 had every chance to overrun it.
                let start = env.clock().now();
                while env.clock().now().since(start) < Duration::from_millis(50) {}
                sleep(&env, Duration::from_millis(20)).await;
                return;
            }
            let start = env.clock().now();
            for _ in 0..5000_u64 {
                env.mailbox().send(CoreId(1), Box::new(|_| {})).await.expect("the peer lives");
                if env.clock().now().since(start) < Duration::from_millis(30) {
                    blocked.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    let sent = sent_while_blocked.load(Ordering::Relaxed);
    // Core 1 may take one round's worth before its main keeps it busy.
    assert!(sent <= capacity + 128, "{sent} messages were taken for a core that did not look");
    assert!(sent >= capacity, "only {sent} messages fit");
}

#[test]
fn a_send_that_is_dropped_while_it_waits_never_arrives() {
    alone(|env| async move {
        env.locals().insert(Rc::new(RefCell::new(Vec::<u64>::new())));
        let send = |number: u64| {
            let work = Box::new(move |env: &TestEnv| {
                env.locals().get::<RefCell<Vec<u64>>>().expect("made above").borrow_mut().push(number);
            });
            env.mailbox().send(CoreId(0), work)
        };
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = Vec::new();
        // No await: nobody takes anything out of the ring meanwhile.
        for number in 0..1026 {
            let mut sending: Pin<Box<dyn Future<Output = Result<(), MailboxError>>>> = Box::pin(send(number));
            match sending.as_mut().poll(&mut context) {
                Poll::Ready(result) => assert_eq!((result, number < 1024), (Ok(()), true)),
                Poll::Pending => waiting.push(sending),
            }
        }
        assert_eq!(waiting.len(), 2);
        drop(waiting.remove(0));
        sleep(&env, Duration::from_millis(5)).await;
        assert!(waiting[0].as_mut().poll(&mut context).is_ready());
        drop(waiting);
        sleep(&env, Duration::from_millis(5)).await;
        let arrived = env.locals().get::<RefCell<Vec<u64>>>().expect("made above").take();
        assert_eq!(arrived, (0..1024).chain([1025]).collect::<Vec<_>>());
    });
}

#[test]
fn a_parked_core_is_woken_by_a_message() {
    let root = folder();
    let answers = Arc::new(AtomicU64::new(0));
    let counter = answers.clone();
    world(2, root.path(), move |env| {
        let counter = counter.clone();
        async move {
            if env.core() == CoreId(0) {
                for _ in 0..100 {
                    sleep(&env, Duration::from_millis(1)).await;
                    let counter = counter.clone();
                    let work = Box::new(move |_: &TestEnv| {
                        counter.fetch_add(1, Ordering::Relaxed);
                    });
                    env.mailbox().send(CoreId(1), work).await.expect("the peer lives");
                }
            }
            sleep(&env, Duration::from_millis(300)).await;
            // Between messages it slept, unless others kept the processor for so long that several came at once: this test would
            // prove nothing otherwise.
            assert!(env.counters().parks >= 10, "parked {} times", env.counters().parks);
            // It has no timer of its own until now that would have woken it every millisecond.
        }
    });
    assert_eq!(answers.load(Ordering::Relaxed), 100);
}

#[test]
fn work_for_nobody_and_for_the_closed_is_refused() {
    let root = folder();
    world(2, root.path(), |env| async move {
        let nobody = env.mailbox().send(CoreId(2), Box::new(|_| {})).await;
        assert_eq!(nobody, Err(MailboxError::NoSuchCore(CoreId(2))));
        assert_eq!(env.mailbox().cores(), 2);
    });
}

#[test]
fn a_core_whose_main_has_ended_serves_until_all_have() {
    let root = folder();
    let results = world(2, root.path(), |env| async move {
        if env.core() == CoreId(1) {
            return 0;
        }
        sleep(&env, Duration::from_millis(20)).await;
        let (sender, receiver) = std::sync::mpsc::channel();
        let work = Box::new(move |env: &TestEnv| {
            let env_of_task = env.clone();
            env.scheduler().spawn(Class::Service, "answer", async move {
                sleep(&env_of_task, Duration::from_millis(1)).await;
                let _ = sender.send(env_of_task.core().0);
            });
        });
        env.mailbox().send(CoreId(1), work).await.expect("it still serves");
        loop {
            if let Ok(core) = receiver.try_recv() {
                return core;
            }
            sleep(&env, Duration::from_millis(1)).await;
        }
    });
    assert_eq!(results, [1, 0]);
}
