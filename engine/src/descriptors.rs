//! The process's file descriptors: as many as it may have, shared out over those who use them, and watched.
//!
//! Every client of every xstream is a descriptor, and so are files of pools. An engine without a free one can open no pool and let
//! nobody in, so clients together get three quarters of them, and the log says when they become few.

use std::{io, time::Duration};

use daos_xstream::telemetry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the process may have open, where the system sets no limit.
const NO_LIMIT: u64 = 1 << 20;
/// Local clients that every xstream has a place for at least, and half as many as over the network: an engine that lets in fewer is of
/// no use to anybody, and is not started.
const CLIENTS_MIN: u64 = 16;

/// Raises the limit as far as an ordinary user may; returns it. The usual one of 1024 is meant for programs that use `select`.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(now) = current else { return NO_LIMIT };
    // Some systems allow a billion, and the kernel's table of descriptors would be as long as the highest in use.
    let wanted = maximum.unwrap_or(NO_LIMIT).min(NO_LIMIT).max(now);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!("the limit on open files stays at {now}, not {wanted}: {error}");
            now
        }
    }
}

/// How many clients each xstream may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Over shared memory.
    pub local: u32,
    /// Over the network.
    pub network: usize,
}

/// There are too few descriptors for so many targets. Nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{limit} open files are too few for {targets} targets: raise the limit to {needed} (`ulimit -n`, `LimitNOFILE=` of the service), or \
     serve fewer targets"
)]
pub struct TooFew {
    /// Descriptors that the process may have.
    pub limit: u64,
    /// Targets that it is to serve.
    pub targets: u32,
    /// Descriptors that they need.
    pub needed: u64,
}

/// Shares `limit` descriptors out: a quarter to local clients and half to network clients, over `targets` xstreams, if that is
/// less than they may have anyway.
pub fn shares(limit: u64, targets: u32, most: Shares) -> Result<Shares, TooFew> {
    let share = |descriptors: u64, most: u64| (descriptors / u64::from(targets.max(1))).min(most);
    let local = share(limit / 4, u64::from(most.local));
    if local < CLIENTS_MIN {
        return Err(TooFew { limit, targets, needed: u64::from(targets) * CLIENTS_MIN * 4 });
    }
    Ok(Shares { local: local as u32, network: share(limit / 2, most.network as u64) as usize })
}

/// Says in the log when descriptors become few, and when they are no longer: once each time.
#[derive(Debug, Default)]
pub struct Watch {
    few: bool,
}

impl Watch {
    /// Looks at how many are open of how many there may be. Returns whether it has just said that they are few.
    pub fn note(&mut self, open: u64, limit: u64) -> bool {
        let few = open >= limit / 4 * 3;
        // Not on and off at the border.
        let enough = open < limit / 2;
        if few && !self.few {
            self.few = true;
            tracing::warn!(
                open,
                limit,
                "file descriptors become few: clients are refused before files cannot be opened; look for clients that connect and do \
                 nothing, or raise the limit (`ulimit -n`, `LimitNOFILE=` of the service)"
            );
            return true;
        }
        if enough && self.few {
            self.few = false;
            tracing::info!(open, limit, "enough file descriptors again");
        }
        false
    }
}

/// How old the published number may be.
const INTERVAL: Duration = Duration::from_secs(2);

/// Counts the process's descriptors from now on, for the log and for metrics. On a thread of its own, because it takes
/// milliseconds when there are thousands.
#[allow(
    clippy::disallowed_methods,
    reason = "the engine binds the real world; this thread touches no service"
)]
pub fn watch(registry: &Registry) -> io::Result<()> {
    let metrics = registry.scope(&[("rank", "0".into())]);
    let opened = metrics.gauge("engine_descriptors_open", "File descriptors that the engine has open.");
    let limited = metrics.gauge("engine_descriptors_limit", "File descriptors that it may have open.");
    let watch = move || {
        let mut watch = Watch::default();
        loop {
            // Without a free descriptor they cannot be counted: then there are few for certain.
            let limit = getrlimit(Resource::Nofile).current.unwrap_or(NO_LIMIT);
            let (open, limit) = daos_xstream_ofi::descriptors_open().unwrap_or((limit, limit));
            watch.note(open, limit);
            opened.set(open);
            limited.set(limit);
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("descriptors".into()).spawn(watch).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Shares = Shares { local: 1024, network: 4096 };

    #[test]
    fn clients_together_leave_descriptors_for_files() {
        for (limit, targets) in [(1024, 1), (1024, 4), (1024, 16), (20_000, 8), (16_384, 256), (1 << 20, 64)]
        {
            let Shares { local, network } = shares(limit, targets, MOST).unwrap();
            assert!((u64::from(local) + network as u64) * u64::from(targets) <= limit / 4 * 3);
            assert!(local >= 16 && network >= 16);
        }
        assert_eq!(shares(1 << 20, 2, MOST), Ok(MOST));
        assert_eq!(shares(1024, 4, MOST), Ok(Shares { local: 64, network: 128 }));
    }

    /// Every xstream had 16 places of each kind, however many xstreams there were: clients of 128 targets could take 4,096 of 1,024
    /// descriptors, and leave none for files.
    #[test]
    fn more_targets_than_there_are_descriptors_for_are_refused() {
        let refused = shares(1024, 17, MOST).unwrap_err();
        assert_eq!(refused, TooFew { limit: 1024, targets: 17, needed: 1088 });
        let text = refused.to_string();
        assert!(
            text.contains("1024 open files") && text.contains("17 targets") && text.contains("1088"),
            "{text}"
        );
        assert!(shares(1088, 17, MOST).is_ok());
        assert!(shares(10, 1, MOST).is_err());
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        let before = getrlimit(Resource::Nofile);
        let lower = before.current.unwrap_or(NO_LIMIT).min(512);
        setrlimit(Resource::Nofile, Rlimit { current: Some(lower), maximum: before.maximum }).unwrap();
        let raised = raise_limit();
        assert_eq!(raised, before.maximum.unwrap_or(NO_LIMIT).min(NO_LIMIT).max(lower));
        assert_eq!(getrlimit(Resource::Nofile).current, Some(raised));
    }

    #[test]
    fn few_descriptors_are_reported_once() {
        let mut watch = Watch::default();
        let said: Vec<bool> =
            [10, 749, 752, 800, 600, 900, 400, 760].map(|open| watch.note(open, 1000)).to_vec();
        assert_eq!(said, [false, false, true, false, false, false, false, true]);
    }
}
