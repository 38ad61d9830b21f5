//! The ring and its doorbells under every interleaving and every outcome of weak memory that a model checker can reach.
//!
//! The modules are compiled once more, with loom's atomics in place of the processor's.

#![allow(dead_code, missing_docs, reason = "the parts of the modules that are not under test here")]

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    pub(crate) fn load_many(from: &[AtomicU64], to: &mut [u8]) {
        for (to, from) in to.chunks_mut(8).zip(from) {
            to.copy_from_slice(&from.load(Ordering::Relaxed).to_le_bytes()[..to.len()]);
        }
    }

    pub(crate) fn store_many(to: &[AtomicU64], from: &[[u8; 8]]) {
        to.iter().zip(from).for_each(|(to, from)| to.store(u64::from_le_bytes(*from), Ordering::Relaxed));
    }
}
#[path = "../src/ring.rs"]
mod ring;
#[path = "../src/words.rs"]
mod words;

use std::sync::Arc;

use atomic::AtomicU64;
use loom::{
    sync::{Condvar, Mutex},
    thread,
};
use ring::{Consumer, Producer, PushError, RingView};

/// A ring of 16 words: a record is a header and at most one word.
struct Shared {
    words: Vec<AtomicU64>,
    control: [AtomicU64; 4],
    /// The doorbells, as the socket would carry them: to the consumer, to the producer.
    bells: [(Mutex<bool>, Condvar); 2],
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            words: (0..16).map(|_| AtomicU64::new(0)).collect(),
            control: std::array::from_fn(|_| AtomicU64::new(0)),
            bells: std::array::from_fn(|_| (Mutex::new(false), Condvar::new())),
        })
    }

    fn view(&self) -> RingView<'_> {
        let [tail, head, asleep, starved] = &self.control;
        RingView { words: &self.words, tail, head, asleep, starved }
    }

    /// Blocks until the bell rings. If it never does, loom reports the deadlock: that is the lost wake-up.
    fn wait(&self, bell: usize) {
        let (rung, ringing) = &self.bells[bell];
        let mut rung = rung.lock().unwrap();
        while !std::mem::replace(&mut *rung, false) {
            rung = ringing.wait(rung).unwrap();
        }
    }

    fn ring(&self, bell: usize, doorbell: ring::RingDoorbell) {
        if doorbell.0 {
            let (rung, ringing) = &self.bells[bell];
            *rung.lock().unwrap() = true;
            ringing.notify_one();
        }
    }
}

fn receive(shared: &Shared, consumer: &mut Consumer) -> u64 {
    let mut out = [0u8; 8];
    loop {
        match consumer.pop(shared.view(), &mut out) {
            Ok(Some(popped)) => {
                assert_eq!(popped.length, 8);
                shared.ring(1, popped.doorbell);
                return u64::from_le_bytes(out);
            }
            Ok(None) => {
                // Sleeps at once: the protocol gets no help from polling.
                if consumer.announce_sleep(shared.view()) {
                    shared.wait(0);
                    consumer.announce_awake(shared.view());
                }
            }
            Err(lie) => panic!("{lie:?} without a liar"),
        }
    }
}

#[test]
fn no_record_is_lost_torn_or_left_lying_while_the_consumer_sleeps() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let shared = Shared::new();
        let theirs = shared.clone();
        let producer = thread::spawn(move || {
            let mut producer = Producer::default();
            for number in 1..=2u64 {
                let doorbell = producer.push(theirs.view(), &[&(number * 0x0101).to_le_bytes()], 8).unwrap();
                theirs.ring(0, doorbell);
            }
        });
        let mut consumer = Consumer::default();
        for number in 1..=2u64 {
            assert_eq!(receive(&shared, &mut consumer), number * 0x0101);
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_producer_without_room_is_woken() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let shared = Shared::new();
        // Eight records fill the ring before the two sides meet.
        let mut producer = Producer::default();
        for number in 0..8u64 {
            let _ = producer.push(shared.view(), &[&number.to_le_bytes()], 8).unwrap();
        }
        let theirs = shared.clone();
        let consumer = thread::spawn(move || {
            let mut consumer = Consumer::default();
            let mut out = [0u8; 8];
            for number in 0..2u64 {
                let popped = consumer.pop(theirs.view(), &mut out).unwrap().expect("published before");
                assert_eq!(u64::from_le_bytes(out), number);
                theirs.ring(1, popped.doorbell);
            }
        });
        loop {
            match producer.push(shared.view(), &[&8u64.to_le_bytes()], 8) {
                Ok(_) => break,
                Err(PushError::Full) => shared.wait(1),
                Err(PushError::Lie(lie)) => panic!("{lie:?} without a liar"),
            }
        }
        consumer.join().unwrap();
    });
}
