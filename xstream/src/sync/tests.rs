use std::pin::pin;

use super::*;

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[test]
fn a_notification_is_kept_once() {
    let notify = Notify::new();
    notify.notify_one();
    notify.notify_one();
    assert!(pin!(notify.notified()).poll(&mut context()).is_ready());
    assert!(pin!(notify.notified()).poll(&mut context()).is_pending());
}

#[test]
fn notify_all_wakes_those_who_wait_and_keeps_nothing() {
    let notify = Notify::new();
    let (mut first, mut second) = (pin!(notify.notified()), pin!(notify.notified()));
    assert!(first.as_mut().poll(&mut context()).is_pending());
    assert!(second.as_mut().poll(&mut context()).is_pending());
    notify.notify_all();
    assert!(first.poll(&mut context()).is_ready());
    assert!(second.poll(&mut context()).is_ready());
    assert!(pin!(notify.notified()).poll(&mut context()).is_pending());
}

#[test]
fn a_notification_outlives_a_waiter_that_was_dropped_before_it_heard() {
    let notify = Notify::new();
    let mut dropped = Box::pin(notify.notified());
    assert!(dropped.as_mut().poll(&mut context()).is_pending());
    notify.notify_one();
    drop(dropped);
    assert!(pin!(notify.notified()).poll(&mut context()).is_ready());
}

#[test]
fn permits_are_bounded_and_come_in_order() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.try_acquire().unwrap();
    assert!(semaphore.try_acquire().is_none());
    let mut first = Box::pin(semaphore.acquire());
    let mut second = Box::pin(semaphore.acquire());
    assert!(first.as_mut().poll(&mut context()).is_pending());
    assert!(second.as_mut().poll(&mut context()).is_pending());
    drop(held);
    assert!(semaphore.try_acquire().is_none(), "the unit belongs to the one who has waited");
    assert!(second.as_mut().poll(&mut context()).is_pending());
    let Poll::Ready(permit) = first.as_mut().poll(&mut context()) else {
        panic!("the first is served first")
    };
    drop(permit);
    drop(second);
    assert_eq!(semaphore.free(), 1, "a waiter that goes away gives its unit back");
}

#[test]
fn oneshot_delivers_or_says_that_it_will_not() {
    let (sender, receiver) = oneshot();
    let mut receiver = pin!(receiver);
    assert!(receiver.as_mut().poll(&mut context()).is_pending());
    sender.send(7);
    assert_eq!(receiver.poll(&mut context()), Poll::Ready(Ok(7)));

    let (sender, receiver) = oneshot::<u32>();
    assert!(sender.is_wanted());
    drop(sender);
    assert_eq!(pin!(receiver).poll(&mut context()), Poll::Ready(Err(SenderGone)));

    let (sender, receiver) = oneshot::<u32>();
    drop(receiver);
    assert!(!sender.is_wanted());
}
