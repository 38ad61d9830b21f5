//! Broadcasts over made-up networks: members die, answer late, or answer nonsense, as a seed has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::*;

/// The members that carried the request out, as far as an answer tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Members(BTreeSet<u32>);

impl Merge for Members {
    fn merge(&mut self, other: Self) {
        assert!(self.0.is_disjoint(&other.0), "nobody is counted twice");
        self.0.extend(other.0);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// One activation: a member at work for whoever asked.
struct Activation {
    broadcast: Broadcast<Members>,
    asker: Option<(u64, Span)>,
}

/// Something that will happen to an activation.
enum Due {
    Happens(u64, Event<Members>),
    Begins { asker: (u64, Span), deadline: Time },
}

struct World {
    random: Random,
    now: Time,
    due: BTreeMap<(Time, u64), Due>,
    activations: BTreeMap<u64, Activation>,
    numbers: u64,
    arity: u32,
    dead: BTreeSet<u32>,
    executed: BTreeSet<u32>,
    messages: usize,
    slow_percent: u64,
}

impl World {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn later(&mut self, due: Due) {
        let slow = self.random.below(100) < self.slow_percent;
        let delay = if slow { self.random.below(300_000_000) } else { 1_000 + self.random.below(50_000) };
        let key = (Time(self.now.0 + delay), self.number());
        self.due.insert(key, due);
    }

    fn begin(&mut self, span: Span, deadline: Time, asker: Option<(u64, Span)>) -> u64 {
        let id = self.number();
        let (broadcast, actions) = Broadcast::new(span, self.arity, self.now, deadline);
        let tick = broadcast.next_tick();
        self.activations.insert(id, Activation { broadcast, asker });
        self.tick_at(id, tick);
        self.perform(id, span.first, actions);
        id
    }

    fn tick_at(&mut self, id: u64, time: Time) {
        let key = (time, self.number());
        self.due.insert(key, Due::Happens(id, Event::Tick));
    }

    fn perform(&mut self, id: u64, member: u32, actions: Vec<Action<Members>>) -> Option<Aggregate<Members>> {
        for action in actions {
            match action {
                Action::Execute => {
                    self.executed.insert(member);
                    self.later(Due::Happens(id, Event::Executed(Some(Members(BTreeSet::from([member]))))));
                }
                Action::Ask { span, deadline } => {
                    self.messages += 1;
                    let dead = self.dead.contains(&span.first);
                    if dead && self.random.below(2) == 0 {
                        self.later(Due::Happens(id, Event::Lost(span)));
                    } else if !dead {
                        self.later(Due::Begins { asker: (id, span), deadline });
                    }
                }
                Action::Answer(aggregate) => match self.activations.remove(&id).and_then(|over| over.asker) {
                    Some((asker, span)) => self.later(Due::Happens(asker, Event::Answered(span, aggregate))),
                    None => return Some(aggregate),
                },
            }
        }
        None
    }

    /// Runs until the root answers.
    fn run(&mut self, span: Span, deadline: Time) -> Aggregate<Members> {
        self.begin(span, deadline, None);
        loop {
            let ((time, _), due) = self.due.pop_first().expect("a broadcast ends by its deadline");
            self.now = time;
            match due {
                Due::Begins { asker, deadline } => {
                    self.begin(asker.1, deadline, Some(asker));
                }
                Due::Happens(id, event) => {
                    let Some(activation) = self.activations.get_mut(&id) else { continue };
                    let member = activation.broadcast.span.first;
                    let before = activation.broadcast.next_tick();
                    let actions = activation.broadcast.step(time, event);
                    let after = activation.broadcast.next_tick();
                    if after != before {
                        self.tick_at(id, after);
                    }
                    if let Some(aggregate) = self.perform(id, member, actions) {
                        return aggregate;
                    }
                }
            }
        }
    }
}

fn world(seed: u64, arity: u32) -> World {
    World {
        random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        now: Time(5),
        due: BTreeMap::new(),
        activations: BTreeMap::new(),
        numbers: 0,
        arity,
        dead: BTreeSet::new(),
        executed: BTreeSet::new(),
        messages: 0,
        slow_percent: 0,
    }
}

fn members(spans: &[Span]) -> BTreeSet<u32> {
    spans.iter().flat_map(|span| span.first..span.end).collect()
}

#[test]
fn without_faults_everybody_is_reached_with_one_message_each() {
    for (count, arity) in [(1, 2), (2, 1), (17, 1), (100, 2), (1000, 32), (5000, 8)] {
        let mut world = world(u64::from(count), arity);
        let aggregate = world.run(Span { first: 0, end: count }, Time(10_000_000_000));
        assert_eq!(aggregate.done, count);
        assert!(aggregate.failed.is_empty());
        assert_eq!(aggregate.value.unwrap().0, (0..count).collect());
        assert_eq!(world.messages, count as usize - 1);
    }
}

#[test]
fn the_tree_is_as_deep_as_its_arity_says() {
    fn depth(span: Span, arity: u32) -> u32 {
        span.cut(arity).map(|part| 1 + depth(part, arity)).max().unwrap_or(0)
    }
    assert_eq!(depth(Span { first: 0, end: 100_000 }, 32), 4);
    assert_eq!(depth(Span { first: 0, end: u32::MAX / 1000 }, 200), 3);
}

#[test]
fn the_dead_are_named_and_their_descendants_reached() {
    for seed in 0..300 {
        let mut world = world(seed, 2 + (seed % 6) as u32);
        let count = 200;
        for _ in 0..world.random.below(60) {
            let member = 1 + world.random.below(count - 1) as u32;
            world.dead.insert(member);
        }
        let span = Span { first: 0, end: count as u32 };
        let aggregate = world.run(span, Time(3_600_000_000_000));
        assert!(aggregate.covers(span), "seed {seed}");
        assert_eq!(members(&aggregate.failed), world.dead, "seed {seed}: exactly the dead have failed");
        assert_eq!(aggregate.done as usize, count as usize - world.dead.len());
    }
}

#[test]
fn slow_members_and_little_time_never_make_a_wrong_count() {
    let (mut complete, mut partial) = (0, 0);
    for seed in 0..300 {
        let mut world = world(seed, 3);
        world.slow_percent = 2 + seed % 10;
        for _ in 0..world.random.below(20) {
            let member = 1 + world.random.below(99) as u32;
            world.dead.insert(member);
        }
        let span = Span { first: 0, end: 100 };
        let deadline = Time(0) + Duration::from_secs(2);
        let aggregate = world.run(span, deadline);
        assert!(world.now <= deadline, "seed {seed}: it ends by its deadline");
        assert!(aggregate.covers(span), "seed {seed}: everybody is accounted for once");
        let done = aggregate.value.unwrap_or(Members(BTreeSet::new())).0;
        assert_eq!(done.len(), aggregate.done as usize);
        assert!(done.is_disjoint(&world.dead) && done.is_subset(&world.executed), "seed {seed}");
        match members(&aggregate.failed) == world.dead {
            true => complete += 1,
            false => partial += 1,
        }
    }
    assert!(complete > 10 && partial > 10, "both happen: {complete} complete, {partial} partial");
}

#[test]
fn an_answer_that_does_not_account_for_its_span_counts_as_none() {
    let span = Span { first: 0, end: 3 };
    let (mut broadcast, actions) = Broadcast::<Members>::new(span, 1, Time(0), Time(100));
    assert!(matches!(actions[0], Action::Ask { span: Span { first: 1, end: 3 }, .. }));
    let asked = Span { first: 1, end: 3 };
    for failed in [vec![], vec![Span { first: 0, end: 1 }], vec![Span { first: 1, end: 2 }; 2]] {
        let nonsense = Aggregate::<Members> { value: None, done: 3, failed };
        assert!(!nonsense.covers(asked));
    }
    let nonsense = Aggregate { value: None, done: 7, failed: Vec::new() };
    let actions = broadcast.step(Time(1), Event::Answered(asked, nonsense));
    let [Action::Ask { span: Span { first: 2, end: 3 }, deadline }] = actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(deadline, Time(100), "a leaf may use all the time");
    assert!(broadcast.step(Time(2), Event::Executed(None)).is_empty());
    let actions = broadcast.step(Time(100), Event::Tick);
    let [Action::Answer(aggregate)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(members(&aggregate.failed), BTreeSet::from([0, 1, 2]));
    assert!(broadcast.step(Time(101), Event::Tick).is_empty(), "it answers once");
}
