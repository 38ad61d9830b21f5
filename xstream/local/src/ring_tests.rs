//! The ring against a queue, and against peers that lie.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::{
    atomic::{AtomicU64, Ordering},
    ring::{Consumer, Lie, Popped, Producer, PushError, RingDoorbell, RingView, message_bytes_limit},
};

const RING_BYTES: usize = 4096;

struct Shared {
    words: Vec<AtomicU64>,
    control: [AtomicU64; 4],
}

impl Shared {
    fn new() -> Self {
        Self { words: (0..RING_BYTES / 8).map(|_| AtomicU64::new(0)).collect(), control: Default::default() }
    }

    fn view(&self) -> RingView<'_> {
        let [tail, head, asleep, starved] = &self.control;
        RingView { words: &self.words, tail, head, asleep, starved }
    }
}

fn limit() -> usize {
    message_bytes_limit(RING_BYTES as u64) as usize
}

fn pop(consumer: &mut Consumer, shared: &Shared) -> Result<Option<(Vec<u8>, bool)>, Lie> {
    let mut out = vec![0u8; limit()];
    let popped = consumer.pop(shared.view(), &mut out)?;
    Ok(popped.map(|Popped { length, doorbell }| (out[..length].to_vec(), doorbell.0)))
}

proptest! {
    #[test]
    fn a_ring_is_a_queue(steps in prop::collection::vec(prop::option::weighted(0.55, (0..=limit(), any::<u8>())), 1..400)) {
        let shared = Shared::new();
        let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
        let mut model = VecDeque::new();
        let mut starved = false;
        for step in steps {
            match step {
                Some((length, byte)) => {
                    let message = vec![byte; length];
                    let (first, second) = message.split_at(length / 3);
                    match producer.push(shared.view(), &[first, second], length) {
                        Ok(_) => model.push_back(message),
                        Err(PushError::Full) => {
                            prop_assert!(!model.is_empty(), "an empty ring has room for every message");
                            starved = true;
                        }
                        Err(PushError::Lie(lie)) => prop_assert!(false, "{lie:?} without a liar"),
                    }
                }
                None => {
                    let popped = pop(&mut consumer, &shared).unwrap();
                    starved &= !popped.as_ref().is_some_and(|(_, doorbell)| *doorbell);
                    prop_assert_eq!(popped.map(|(message, _)| message), model.pop_front());
                }
            }
        }
        while let Some((message, doorbell)) = pop(&mut consumer, &shared).unwrap() {
            starved &= !doorbell;
            prop_assert_eq!(Some(message), model.pop_front());
        }
        prop_assert!(model.is_empty());
        // A push that succeeds after a failed one leaves the announcement: a spurious doorbell is allowed, a missing one is not.
        prop_assert!(!starved, "a starved producer is woken once the ring has been read");
    }

    #[test]
    fn a_consumer_survives_any_memory(words in prop::collection::vec(any::<u64>(), RING_BYTES / 8), tails in prop::collection::vec(0u64..10_000, 1..20)) {
        let shared = Shared::new();
        for (to, from) in shared.words.iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
        let mut consumer = Consumer::default();
        for tail in tails {
            shared.view().tail.store(tail, Ordering::Relaxed);
            // Whatever comes out, it comes out within bounds, and a lie is final for the caller.
            if pop(&mut consumer, &shared).is_err() {
                break;
            }
        }
    }
}

fn lie_of(prepare: impl FnOnce(RingView<'_>)) -> Lie {
    let shared = Shared::new();
    let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
    for _ in 0..3 {
        let _ = producer.push(shared.view(), &[b"honest"], 6).unwrap();
    }
    pop(&mut consumer, &shared).unwrap().expect("the first message");
    prepare(shared.view());
    loop {
        match pop(&mut consumer, &shared) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the lie was believed"),
            Err(lie) => return lie,
        }
    }
}

#[test]
fn lies_are_told_apart() {
    // The consumer has read one of three records of 16 bytes; it knows that 48 bytes are published.
    assert_eq!(lie_of(|ring| ring.tail.store(16, Ordering::Relaxed)), Lie::Position, "backwards");
    assert_eq!(lie_of(|ring| ring.tail.store(49, Ordering::Relaxed)), Lie::Position, "within a word");
    assert_eq!(
        lie_of(|ring| ring.tail.store(u64::MAX - 7, Ordering::Relaxed)),
        Lie::Position,
        "beyond the ring"
    );
    assert_eq!(lie_of(|ring| ring.words[2].store(7 << 32 | 6, Ordering::Relaxed)), Lie::Sequence);
    assert_eq!(
        lie_of(|ring| ring.words[2].store(1 << 32 | 30, Ordering::Relaxed)),
        Lie::Length,
        "beyond the tail"
    );
    assert_eq!(lie_of(|ring| ring.words[2].store(1 << 32 | 0xFFFF_FFFF, Ordering::Relaxed)), Lie::Length);
}

#[test]
fn a_message_beyond_the_limit_is_a_lie_even_if_it_was_published() {
    let shared = Shared::new();
    let mut consumer = Consumer::default();
    shared.words[0].store(limit() as u64 + 8, Ordering::Relaxed);
    shared.view().tail.store(RING_BYTES as u64, Ordering::Relaxed);
    assert_eq!(pop(&mut consumer, &shared), Err(Lie::Length));
}

#[test]
fn a_producer_believes_no_impossible_head() {
    for head in [8u64, 4, u64::MAX] {
        let shared = Shared::new();
        let mut producer = Producer::default();
        shared.view().head.store(head, Ordering::Relaxed);
        // The head is looked at only when the ring seems full.
        let message = vec![0; limit()];
        let outcome = (0..100).find_map(|_| producer.push(shared.view(), &[&message], message.len()).err());
        match head {
            // An honest consumer could be there after a while: the ring is then full for real.
            8 => assert_eq!(outcome, Some(PushError::Full)),
            _ => assert_eq!(outcome, Some(PushError::Lie(Lie::Position))),
        }
    }
}

#[test]
fn a_consumer_sleeps_only_on_an_empty_ring_and_is_rung_once() {
    let shared = Shared::new();
    let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
    assert!(consumer.announce_sleep(shared.view()));
    assert_eq!(producer.push(shared.view(), &[b"1"], 1), Ok(RingDoorbell(true)));
    assert_eq!(producer.push(shared.view(), &[b"2"], 1), Ok(RingDoorbell(false)));
    assert!(!consumer.announce_sleep(shared.view()), "there is something to read");
    pop(&mut consumer, &shared).unwrap().unwrap();
    assert!(!consumer.announce_sleep(shared.view()));
    pop(&mut consumer, &shared).unwrap().unwrap();
    assert!(consumer.announce_sleep(shared.view()));
}

#[test]
fn nothing_counts_that_is_published_after_the_end() {
    let shared = Shared::new();
    let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
    let _ = producer.push(shared.view(), &[b"last"], 4).unwrap();
    consumer.freeze(shared.view()).unwrap();
    let _ = producer.push(shared.view(), &[b"from a copy of the mapping"], 26).unwrap();
    assert_eq!(pop(&mut consumer, &shared).unwrap().unwrap().0, b"last");
    assert_eq!(pop(&mut consumer, &shared), Ok(None));
}
