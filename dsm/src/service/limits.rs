//! How much clients may make a pool hold. All of it is in memory while the pool is open, and is read when it is opened.

use daos_xstream::rpc::Status;

use super::refusal::Refusal;

/// Most of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections to one pool.
    pub pool_handles: usize,
    /// Containers of one pool.
    pub containers: usize,
    /// Open container handles of one pool.
    pub container_handles: usize,
    /// Snapshots of one container.
    pub snapshots: usize,
    /// Attributes of one container.
    pub attributes: usize,
}

impl Default for Limits {
    /// Above what programs need, and some hundred MiB of handles and containers if all are used up. Opening a pool reads them all once:
    /// of 20,000 containers in 80 ms (dev profile, simulator, with the replay of their log), so of all that there may be in half a
    /// second.
    fn default() -> Self {
        Self {
            pool_handles: 65_536,
            containers: 131_072,
            container_handles: 131_072,
            snapshots: 4096,
            attributes: 1024,
        }
    }
}

/// Refuses one more where there are `count` of at most `max`; `what` names the kind, and `remedy` says what to do.
pub fn one_more(count: usize, max: usize, what: &str, remedy: &str) -> Result<(), Refusal> {
    if count < max {
        return Ok(());
    }
    Err(Refusal::new(
        Status::LIMIT_REACHED,
        format!("there are {count} {what}, and no more than {max} may be: {remedy}"),
    ))
}
