//! Work that crosses cores: one bounded single-producer single-consumer ring per ordered pair of xstreams.

use std::future::Future;

use crate::Env;

/// Number of an xstream within its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CoreId(pub u32);

/// Work to run on another xstream; it gets that xstream's world. It must not block: long work spawns a task.
pub type Work<E> = Box<dyn FnOnce(&E) + Send>;

/// The rings from this xstream to the others. For control paths: a message is boxed.
pub trait Mailbox<E: Env>: 'static {
    /// How many xstreams the process has.
    fn cores(&self) -> u32;

    /// Queues `work` for `core` and wakes it if it is parked. Waits while the ring is full (back-pressure). Work sent to
    /// one core runs in the order in which it was sent. Sending to the own core is allowed.
    fn send(&self, core: CoreId, work: Work<E>) -> impl Future<Output = Result<(), MailboxError>>;
}

/// Why work could not be sent. It did not and will not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// There is no such xstream. A retry cannot help.
    #[error("this process has no xstream {}", .0.0)]
    NoSuchCore(CoreId),
    /// The other xstream is shutting down. A retry cannot help.
    #[error("xstream {} is shutting down", .0.0)]
    Closed(CoreId),
}
