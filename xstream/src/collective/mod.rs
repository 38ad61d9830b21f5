//! One request to many members, one answer: a broadcast over a k-ary tree with aggregated replies.
//!
//! Everybody has the same list of members (from the same version of the pool map). A request names a [`Span`] of it; the
//! first member of the span carries the request out, cuts the rest into at most `arity` spans, and passes them on. So no
//! tree is stored or sent anywhere, the message has the same size at 10 members and at 10^5, and who inherits from a dead
//! inner node is computed, not agreed upon: its parent cuts the dead one's span anew.
//!
//! # Invariants
//!
//! * The answer for a span counts every member of it exactly once: as done, or in `failed`.
//! * A member in `failed` may have carried the request out (its answer was late); one counted as done has. So what is
//!   broadcast must be idempotent: a member may be asked twice, by a slow parent and by a grandparent.
//! * Every broadcast ends by its deadline. A child gets half of its parent's time, its answer another quarter to arrive,
//!   and the last quarter is for replacing it.
//!
//! [`Broadcast`] has no I/O of its own; [`drive`] runs it over anything that can ask a member.

mod drive;

use crate::Time;

pub use drive::drive;

/// Members `first..end` of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first member; who the request is sent to.
    pub first: u32,
    /// One past the last member.
    pub end: u32,
}

impl Span {
    /// A span that is not empty; `None` for one that is.
    pub fn new(first: u32, end: u32) -> Option<Self> {
        (first < end).then_some(Self { first, end })
    }

    /// How many members.
    pub fn count(self) -> u32 {
        self.end - self.first
    }

    /// All but the first member, in at most `arity` spans of nearly the same size.
    fn cut(self, arity: u32) -> impl Iterator<Item = Span> {
        let rest = self.count() - 1;
        let parts = arity.min(rest);
        let at = move |part: u32| {
            // Wide arithmetic: the product of two member counts does not fit into 32 bits.
            self.first + 1 + (u64::from(rest) * u64::from(part) / u64::from(parts.max(1))) as u32
        };
        (0..parts).map(move |part| Span { first: at(part), end: at(part + 1) })
    }
}

/// Results that can be made into one.
pub trait Merge {
    /// Adds another result to this one. The order of additions is not defined.
    fn merge(&mut self, other: Self);
}

/// What is known of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregate<R> {
    /// The merged results of the members that are done; `None` if there are none.
    pub value: Option<R>,
    /// How many members are done.
    pub done: u32,
    /// Members of which nothing is known; in no order, without overlap.
    pub failed: Vec<Span>,
}

impl<R> Default for Aggregate<R> {
    fn default() -> Self {
        Self { value: None, done: 0, failed: Vec::new() }
    }
}

impl<R: Merge> Aggregate<R> {
    fn add(&mut self, other: Aggregate<R>) {
        match (&mut self.value, other.value) {
            (Some(value), Some(other)) => value.merge(other),
            (value @ None, other) => *value = other,
            (Some(_), None) => {}
        }
        self.done += other.done;
        self.failed.extend(other.failed);
    }

    /// Whether this accounts for every member of `span` once, and for nobody else.
    fn covers(&self, span: Span) -> bool {
        let mut failed = self.failed.clone();
        failed.sort_unstable();
        let apart = failed.windows(2).all(|pair| pair[0].end <= pair[1].first);
        let within = failed
            .iter()
            .all(|part| part.first < part.end && span.first <= part.first && part.end <= span.end);
        let failed = failed.iter().map(|part| u64::from(part.end.saturating_sub(part.first))).sum::<u64>();
        apart && within && failed + u64::from(self.done) == u64::from(span.count())
    }
}

/// What has happened to a broadcast at one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<R> {
    /// The member's own part is done; `None` if it failed.
    Executed(Option<R>),
    /// The answer to a request for `span` has come. An answer that does not account for its span counts as none.
    Answered(Span, Aggregate<R>),
    /// The request for `span` could not be delivered, or its receiver has gone.
    Lost(Span),
    /// Time has passed.
    Tick,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<R> {
    /// Carry the request out here.
    Execute,
    /// Send it to the first member of `span`, to be answered by `deadline`.
    Ask {
        /// For whom.
        span: Span,
        /// When its answer is of no use any more.
        deadline: Time,
    },
    /// Answer whoever asked. The broadcast is over here.
    Answer(Aggregate<R>),
}

/// A broadcast at one member: the first of `span`.
#[derive(Debug)]
pub struct Broadcast<R> {
    span: Span,
    arity: u32,
    deadline: Time,
    /// Spans asked for and not answered, with the time until which that may take.
    asked: Vec<(Span, Time)>,
    executing: bool,
    answered: bool,
    aggregate: Aggregate<R>,
}

impl<R: Merge> Broadcast<R> {
    /// Begins: the actions are what to do first. `arity` is at least 1.
    pub fn new(span: Span, arity: u32, now: Time, deadline: Time) -> (Self, Vec<Action<R>>) {
        let mut broadcast = Self {
            span,
            arity: arity.max(1),
            deadline,
            asked: Vec::new(),
            executing: true,
            answered: false,
            aggregate: Aggregate::default(),
        };
        // The children first: their work takes longer than this member's own.
        let mut actions = Vec::new();
        broadcast.pass_on(span, now, &mut actions);
        actions.push(Action::Execute);
        (broadcast, actions)
    }

    /// When to [`step`](Self::step) with a [`Event::Tick`] at the latest.
    pub fn next_tick(&self) -> Time {
        self.asked.iter().map(|(_, until)| *until).fold(self.deadline, Time::min)
    }

    /// Something has happened.
    pub fn step(&mut self, now: Time, event: Event<R>) -> Vec<Action<R>> {
        let mut actions = Vec::new();
        if self.answered {
            return actions;
        }
        match event {
            Event::Executed(result) if self.executing => {
                self.executing = false;
                match result {
                    Some(value) => {
                        self.aggregate.add(Aggregate { value: Some(value), done: 1, failed: Vec::new() })
                    }
                    None => self.aggregate.failed.push(self.own()),
                }
            }
            Event::Answered(span, aggregate) => {
                if let Some(at) = self.asked.iter().position(|(asked, _)| *asked == span) {
                    if aggregate.covers(span) {
                        self.asked.swap_remove(at);
                        self.aggregate.add(aggregate);
                    } else {
                        self.replace(at, now, &mut actions);
                    }
                }
            }
            Event::Lost(span) => {
                if let Some(at) = self.asked.iter().position(|(asked, _)| *asked == span) {
                    self.replace(at, now, &mut actions);
                }
            }
            Event::Executed(_) | Event::Tick => {}
        }
        while let Some(at) = self.asked.iter().position(|(_, until)| *until <= now) {
            self.replace(at, now, &mut actions);
        }
        if now >= self.deadline && self.executing {
            self.executing = false;
            self.aggregate.failed.push(self.own());
        }
        if !self.executing && self.asked.is_empty() {
            self.answered = true;
            actions.push(Action::Answer(std::mem::take(&mut self.aggregate)));
        }
        actions
    }

    fn own(&self) -> Span {
        Span { first: self.span.first, end: self.span.first + 1 }
    }

    /// The first member of a span has failed; its span is cut anew.
    fn replace(&mut self, at: usize, now: Time, actions: &mut Vec<Action<R>>) {
        let (span, _) = self.asked.swap_remove(at);
        self.aggregate.failed.push(Span { first: span.first, end: span.first + 1 });
        self.pass_on(span, now, actions);
    }

    /// Asks for all of `span` but its first member, or gives it up if there is no time left.
    fn pass_on(&mut self, span: Span, now: Time, actions: &mut Vec<Action<R>>) {
        if now >= self.deadline {
            self.aggregate.failed.extend(Span::new(span.first + 1, span.end));
            return;
        }
        let left = self.deadline.since(now);
        for part in span.cut(self.arity) {
            // Nobody is below a leaf who would have to be replaced: it may use all the time.
            let (deadline, until) = match part.count() {
                1 => (self.deadline, self.deadline),
                _ => (now + left / 2, now + left * 3 / 4),
            };
            self.asked.push((part, until.max(Time(now.0 + 1))));
            actions.push(Action::Ask { span: part, deadline });
        }
    }
}

#[cfg(test)]
mod tests;
