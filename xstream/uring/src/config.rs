//! What the real world needs to know, and why it may refuse to start.

use std::{path::PathBuf, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::sched_getaffinity;

/// Locked memory that the executors ask for, per xstream.
const LOCKED_BYTES_PER_XSTREAM: u64 = 512 * 1024;

/// How to set up the xstreams of a process.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many xstreams.
    pub xstreams: u32,
    /// The CPU of each xstream. Empty: the first CPUs that this process may use. With fewer CPUs than xstreams they are
    /// shared in turn, and xstreams that share do not spin.
    pub cpus: Vec<usize>,
    /// How long a core that finds nothing to do polls on before it parks.
    pub idle_budget: Duration,
    /// The folder under which [`daos_xstream::Media`] keeps its files; it must exist.
    pub media_root: PathBuf,
    /// Pieces of work that fit into the ring between two xstreams.
    pub mailbox_capacity: usize,
    /// Entries of the submission queue of each xstream's media ring; four times as many operations may be in flight.
    pub media_depth: u32,
}

impl Config {
    /// `xstreams` xstreams with their files below `media_root`, and the usual rest.
    pub fn new(xstreams: u32, media_root: impl Into<PathBuf>) -> Self {
        Self {
            xstreams,
            cpus: Vec::new(),
            idle_budget: Duration::from_micros(50),
            media_root: media_root.into(),
            mailbox_capacity: 1024,
            media_depth: 256,
        }
    }

    /// The CPU and the idle budget of each xstream.
    pub(crate) fn places(&self) -> Result<Vec<Place>, WorldError> {
        if self.xstreams == 0 {
            return Err(WorldError::BadConfig("at least one xstream is needed".into()));
        }
        if self.mailbox_capacity == 0 {
            return Err(WorldError::BadConfig(
                "a mailbox ring needs room for at least one piece of work".into(),
            ));
        }
        let usable = usable_cpus()?;
        let cpus = if self.cpus.is_empty() { &usable } else { &self.cpus };
        if let Some(cpu) = cpus.iter().find(|cpu| !usable.contains(cpu)) {
            return Err(WorldError::BadConfig(format!(
                "this process may not use CPU {cpu} (it may use {usable:?})"
            )));
        }
        let places: Vec<_> = (0..self.xstreams as usize)
            .map(|xstream| {
                let cpu = cpus[xstream % cpus.len()];
                // Spinning would take the CPU from the very xstream that is waited for.
                let shared =
                    (0..self.xstreams as usize).filter(|other| cpus[other % cpus.len()] == cpu).count() > 1;
                Place { cpu, shared, idle_budget: if shared { Duration::ZERO } else { self.idle_budget } }
            })
            .collect();
        if places.iter().any(|place| place.shared) {
            tracing::warn!(
                xstreams = self.xstreams,
                cpus = cpus.len(),
                "xstreams share CPUs: they park at once instead of polling, which costs latency"
            );
        }
        Ok(places)
    }
}

/// Where an xstream runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) cpu: usize,
    shared: bool,
    pub(crate) idle_budget: Duration,
}

/// The CPUs that this process may use.
pub fn usable_cpus() -> Result<Vec<usize>, WorldError> {
    let set = sched_getaffinity(None).map_err(|error| WorldError::System {
        what: "asking for the CPUs of this process".into(),
        source: error.into(),
    })?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Sees that the executors will get the locked memory they ask for, raising the limit as far as that is permitted.
pub(crate) fn ensure_locked_memory(xstreams: u32) -> Result<(), WorldError> {
    let needed = LOCKED_BYTES_PER_XSTREAM * u64::from(xstreams);
    let limit = getrlimit(Resource::Memlock);
    let enough = |bytes: Option<u64>| bytes.is_none_or(|bytes| bytes >= needed);
    if enough(limit.current) {
        return Ok(());
    }
    let maximum = if enough(limit.maximum) { limit.maximum } else { Some(needed) };
    setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum })
        .map_err(|_| WorldError::LockedMemory { limit: limit.current.unwrap_or(u64::MAX), needed })
}

/// Why the real world did not start. Nothing of it is left behind, except for what services did before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// The configuration cannot be followed. A retry cannot help.
    #[error("{0}")]
    BadConfig(String),
    /// The limit on locked memory is too low for io_uring.
    #[error(
        "{limit} bytes of locked memory are allowed and {needed} are needed: raise the limit (`ulimit -l {}`, \
         `LimitMEMLOCK=` of the service, or `memlock` in /etc/security/limits.conf)",
        needed / 1024
    )]
    LockedMemory {
        /// The limit, in bytes.
        limit: u64,
        /// What is needed, in bytes.
        needed: u64,
    },
    /// The folder of the media cannot be used.
    #[error("{}: {source}", path.display())]
    Media {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The executor of an xstream cannot be made. The kernel may lack io_uring, or forbid it.
    #[error(
        "the executor of xstream {xstream} cannot start: {reason} (io_uring is needed: Linux 5.11 or newer, \
         kernel.io_uring_disabled=0, not forbidden by a container's seccomp profile)"
    )]
    Executor {
        /// Which xstream.
        xstream: u32,
        /// What the executor says.
        reason: String,
    },
    /// The fabric of an xstream cannot be made.
    #[error("the fabric of xstream {xstream} cannot start: {reason}")]
    Fabric {
        /// Which xstream.
        xstream: u32,
        /// What the fabric says.
        reason: String,
    },
}
