//! A kernel that is short of memory or of completion slots, and takes no submissions for a while.
//!
//! The story: what the kernel refused stayed in the submission queue, and nobody offered it again until something else was
//! submitted. A write on an otherwise idle core never ended. A core that went to sleep meanwhile, with its queue full, panicked.

use std::{
    os::fd::AsRawFd,
    pin::pin,
    task::{Context, Waker},
};

use super::*;

/// A ring with a doorbell and a fabric's descriptor, in that order.
fn ring(depth: u32) -> (Rc<Ring>, [OwnedFd; 2]) {
    let flags = rustix::event::EventfdFlags::NONBLOCK;
    let watched = [0, 0].map(|count| rustix::event::eventfd(count, flags).expect("an eventfd"));
    let ring = Ring::new(depth, watched[0].as_raw_fd(), &[watched[1].as_raw_fd()]).expect("a ring");
    (Rc::new(ring), watched)
}

fn nothing(ring: &Rc<Ring>) -> Completion {
    ring.operate(opcode::Nop::new().build(), Held::default())
}

fn has_ended(completion: &mut Completion) -> bool {
    pin!(completion).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// A round of progress: what is queued enters the kernel, what has completed is taken.
fn round(ring: &Ring) {
    ring.submit();
    ring.reap();
}

#[test]
fn what_the_kernel_refused_is_offered_again() {
    let (ring, _watched) = ring(8);
    ring.shortages.set(3);
    let mut alone = nothing(&ring);
    for _ in 0..2 {
        round(&ring);
        assert!(!has_ended(&mut alone), "the kernel has taken nothing yet");
    }
    assert_eq!(ring.shortages.get(), 0, "it was offered every round");
    round(&ring);
    assert!(has_ended(&mut alone));
    assert!(ring.is_idle());
    // Nothing is left behind any more: an idle ring does not enter the kernel.
    let submissions = ring.counters().submissions;
    round(&ring);
    assert_eq!(ring.counters().submissions, submissions);
}

#[test]
fn a_core_whose_queue_is_full_of_refused_operations_does_not_sleep_and_goes_on() {
    let (ring, [doorbell, _fabric]) = ring(8);
    ring.shortages.set(u32::MAX);
    let mut many: Vec<Completion> = (0..100).map(|_| nothing(&ring)).collect();
    ring.submit();
    // There is no room for what would wake it, and there is no timeout: it would sleep for ever.
    ring.wait(None);
    ring.reap();
    assert!(!many.iter_mut().any(has_ended));
    ring.shortages.set(5);
    for _ in 0..100 {
        round(&ring);
        many.retain_mut(|completion| !has_ended(completion));
    }
    assert!(many.is_empty() && ring.is_idle());
    // It sleeps again, and the doorbell wakes it.
    rustix::io::write(&doorbell, &1u64.to_ne_bytes()).expect("rung");
    ring.wait(None);
    ring.reap();
    assert!(ring.take_rung());
}

#[test]
fn a_ring_that_ends_waits_until_the_kernel_takes_what_it_refused() {
    let (ring, _watched) = ring(8);
    ring.shortages.set(4);
    let mut abandoned = nothing(&ring);
    assert!(!has_ended(&mut abandoned));
    drop(abandoned);
    ring.drain();
    assert_eq!(ring.shortages.get(), 0);
    assert!(ring.operations.borrow().is_empty());
}
