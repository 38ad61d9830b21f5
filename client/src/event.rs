//! Non-blocking calls without `async`: launch, go on with other work, and ask now and then what is done.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    future::Future,
    rc::Rc,
    time::Duration,
};

use daos_xstream::{Class, Clock, Env, Spawn, Time};

use crate::ClientEnv;

/// A call that was launched in an [`EventQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event(u64);

/// Owns calls that are under way, and the results of those that are done until they are asked for.
///
/// Calls move forward whenever any queue of the client is polled, or something blocks. Dropping the queue lets the calls
/// that are under way go on, and drops their results.
pub struct EventQueue<T> {
    env: ClientEnv,
    shared: Rc<RefCell<Shared<T>>>,
}

struct Shared<T> {
    next: u64,
    under_way: usize,
    done: BTreeMap<Event, T>,
    order: VecDeque<Event>,
}

impl<T: 'static> EventQueue<T> {
    /// A queue of a client's world.
    pub fn new(env: &ClientEnv) -> Self {
        let shared = Shared { next: 0, under_way: 0, done: BTreeMap::new(), order: VecDeque::new() };
        Self { env: env.clone(), shared: Rc::new(RefCell::new(shared)) }
    }

    /// Starts a call.
    pub fn launch(&self, call: impl Future<Output = T> + 'static) -> Event {
        let event = {
            let mut shared = self.shared.borrow_mut();
            shared.next += 1;
            shared.under_way += 1;
            Event(shared.next)
        };
        let queue = self.shared.clone();
        self.env.scheduler().spawn(Class::Foreground, "event", async move {
            let result = call.await;
            let mut shared = queue.borrow_mut();
            shared.under_way -= 1;
            shared.done.insert(event, result);
            shared.order.push_back(event);
        });
        event
    }

    /// Calls under way, and calls done whose result nobody has taken.
    pub fn counts(&self) -> (usize, usize) {
        let shared = self.shared.borrow();
        (shared.under_way, shared.done.len())
    }

    /// The result of a call, if it is done; moves everything forward once. A result is given once.
    pub fn test(&self, event: Event) -> Option<T> {
        self.env.progress();
        let mut shared = self.shared.borrow_mut();
        let result = shared.done.remove(&event)?;
        shared.order.retain(|other| *other != event);
        Some(result)
    }

    /// Waits until calls are done, `timeout` is over, or none is under way, and returns up to `max` results in the order
    /// in which they came. With a timeout of zero it only looks.
    pub fn poll(&self, max: usize, timeout: Duration) -> Vec<(Event, T)> {
        let deadline = if timeout == Duration::MAX { Time::NEVER } else { self.env.clock().now() + timeout };
        self.env.progress();
        let shared = self.shared.clone();
        self.env.run_until(
            move || {
                let shared = shared.borrow();
                !shared.order.is_empty() || shared.under_way == 0
            },
            deadline,
        );
        let mut shared = self.shared.borrow_mut();
        let mut results = Vec::new();
        while results.len() < max {
            let Some(event) = shared.order.pop_front() else { break };
            if let Some(result) = shared.done.remove(&event) {
                results.push((event, result));
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use daos_xstream::{Pair, Rng};
    use daos_xstream_local::LocalFabric;

    use super::*;
    use crate::{ClientClock, ClientRng};

    fn env() -> ClientEnv {
        let rng = ClientRng::from_system().expect("randomness");
        assert_ne!(rng.next_u64(), rng.next_u64());
        ClientEnv::new(
            ClientClock::default(),
            rng,
            Pair::new(LocalFabric::client().expect("a fabric"), "local", None),
        )
    }

    #[test]
    fn results_come_in_the_order_in_which_calls_end() {
        let env = env();
        let queue = EventQueue::new(&env);
        let start = env.clock().now();
        let sleep = |milliseconds: u64| {
            let env = env.clone();
            queue.launch(async move {
                env.clock().sleep_until(start + Duration::from_millis(milliseconds)).await;
                milliseconds
            })
        };
        let (late, early, middle) = (sleep(60), sleep(10), sleep(30));
        assert!(queue.poll(10, Duration::ZERO).is_empty());
        assert_eq!(queue.test(late), None);
        let mut order = Vec::new();
        while order.len() < 3 {
            order.extend(queue.poll(1, Duration::MAX));
        }
        assert_eq!(order, [(early, 10), (middle, 30), (late, 60)]);
        assert!(env.clock().now().since(start) >= Duration::from_millis(60));
        assert!(
            queue.poll(1, Duration::MAX).is_empty(),
            "nothing is under way: there is nothing to wait for"
        );
        assert_eq!(queue.counts(), (0, 0));
    }

    #[test]
    fn who_blocks_sleeps_and_wakes_in_time() {
        let env = env();
        let (start, cpu) = (env.clock().now(), cpu_nanoseconds());
        let deadline = start + Duration::from_millis(200);
        env.block_on(env.clock().sleep_until(deadline));
        let (took, used) = (env.clock().now().since(start), cpu_nanoseconds() - cpu);
        assert!(took >= Duration::from_millis(200));
        // It spins for 50 µs and sleeps for the rest.
        assert!(used < 50_000_000, "{used} ns of CPU in {took:?}");
    }

    fn cpu_nanoseconds() -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    #[test]
    #[should_panic(expected = "a future must not block")]
    fn blocking_within_a_future_is_refused() {
        let env = env();
        env.block_on(async { env.block_on(async {}) });
    }
}
