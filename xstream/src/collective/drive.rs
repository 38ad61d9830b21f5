//! Runs a broadcast over whatever can ask a member.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use super::{Action, Aggregate, Broadcast, Event, Merge, Span};
use crate::{Clock, Time};

type Pending<'a, R> = Pin<Box<dyn Future<Output = Event<R>> + 'a>>;

/// Carries a broadcast out at the first member of `span` and returns the answer for the span.
///
/// `execute` is this member's own part; `None` from it means that it failed. `ask` sends the request to the first member of
/// a span, to be answered by the given time of this member's clock; `None` from it means that there is no answer. What is
/// still going on when the broadcast is over is dropped.
pub async fn drive<C, R, X, A>(
    clock: &C,
    (span, arity, deadline): (Span, u32, Time),
    execute: X,
    ask: impl Fn(Span, Time) -> A,
) -> Aggregate<R>
where
    C: Clock,
    R: Merge,
    X: Future<Output = Option<R>>,
    A: Future<Output = Option<Aggregate<R>>>,
{
    let (mut broadcast, actions) = Broadcast::new(span, arity, clock.now(), deadline);
    let mut actions = VecDeque::from(actions);
    let mut execute = Some(execute);
    let mut pending: Vec<Pending<'_, R>> = Vec::new();
    let ask = &ask;
    loop {
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Answer(aggregate) => return aggregate,
                Action::Execute => {
                    if let Some(execute) = execute.take() {
                        pending.push(Box::pin(async move { Event::Executed(execute.await) }));
                    }
                }
                Action::Ask { span, deadline } => pending.push(Box::pin(async move {
                    match ask(span, deadline).await {
                        Some(aggregate) => Event::Answered(span, aggregate),
                        None => Event::Lost(span),
                    }
                })),
            }
        }
        let mut tick = Box::pin(clock.sleep_until(broadcast.next_tick()));
        let event = poll_fn(|context| {
            for at in 0..pending.len() {
                if let Poll::Ready(event) = pending[at].as_mut().poll(context) {
                    drop(pending.swap_remove(at));
                    return Poll::Ready(event);
                }
            }
            tick.as_mut().poll(context).map(|()| Event::Tick)
        })
        .await;
        actions.extend(broadcast.step(clock.now(), event));
    }
}
