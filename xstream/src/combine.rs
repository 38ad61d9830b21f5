//! Small combinators over futures of one xstream.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use crate::{
    Class, Clock, CoreId, Env, Mailbox, MailboxError, Spawn, Time,
    returns::Returns,
    sync::{Receiver, oneshot},
};

/// The deadline passed first. What the future did until then stands; it was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// What [`race`] ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first future was done; if both were, it wins.
    First(A),
    /// The second was.
    Second(B),
}

/// Waits for the first of two futures and drops the other.
pub async fn race<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> Either<A, B> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(move |context| {
        if let Poll::Ready(value) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(value));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// Waits for `future` until `deadline`.
pub async fn timeout<C: Clock, T>(
    clock: &C,
    deadline: Time,
    future: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    if deadline == Time::NEVER {
        return Ok(future.await);
    }
    match race(future, clock.sleep_until(deadline)).await {
        Either::First(value) => Ok(value),
        Either::Second(()) => Err(Elapsed),
    }
}

/// Starts a task and returns what gives its result; dropping that lets the task go on by itself. The error means that
/// the world has dropped the task.
pub fn spawn_joined<S: Spawn, T: 'static>(
    scheduler: &S,
    class: Class,
    name: &'static str,
    task: impl Future<Output = T> + 'static,
) -> Receiver<T> {
    let (sender, receiver) = oneshot();
    scheduler.spawn(class, name, async move { sender.send(task.await) });
    receiver
}

/// Waits for both results, without allocating.
pub async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut a, mut b) = (None, None);
    poll_fn(|context| {
        if a.is_none()
            && let Poll::Ready(value) = first.as_mut().poll(context)
        {
            a = Some(value);
        }
        if b.is_none()
            && let Poll::Ready(value) = second.as_mut().poll(context)
        {
            b = Some(value);
        }
        if a.is_some() && b.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (a.expect("it is done"), b.expect("it is done"))
}

/// Waits for all results; they come in the order of the futures.
pub async fn join_all<T, F: Future<Output = T>>(futures: impl IntoIterator<Item = F>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        let mut done = true;
        for (future, result) in &mut futures {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *result = Some(value),
                    Poll::Pending => done = false,
                }
            }
        }
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures.into_iter().filter_map(|(_, result)| result).collect()
}

/// Runs `work` as a task on another xstream and brings its result back; it finds its state through [`Env::locals`] of
/// the world that it is given. Dropping the future does not stop the work. For control paths: two boxed messages.
pub async fn submit_to<E, F, R>(
    env: &E,
    core: CoreId,
    work: impl FnOnce(&E) -> F + Send + 'static,
) -> Result<R, MailboxError>
where
    E: Env,
    F: Future<Output = R> + 'static,
    R: Send + 'static,
{
    let returns = Returns::of(env);
    let (number, receiver) = returns.expect();
    let origin = env.core();
    let there = Box::new(move |there: &E| {
        let work = work(there);
        let env = there.clone();
        there.scheduler().spawn(Class::Service, "submitted work", async move {
            let result = work.await;
            // An origin that has shut down meanwhile wants no result.
            let _ = env
                .mailbox()
                .send(
                    origin,
                    Box::new(move |origin: &E| Returns::of(origin).deliver(number, Box::new(result))),
                )
                .await;
        });
    });
    if let Err(error) = env.mailbox().send(core, there).await {
        returns.forget(number);
        return Err(error);
    }
    match receiver.await {
        Ok(result) => Ok(*result.downcast::<R>().expect("a result has the type of its number")),
        Err(_) => Err(MailboxError::Closed(core)),
    }
}
