//! The settings of libfabric that can only be given in environment variables.
//!
//! # Invariants
//!
//! * They are set before the first `fi_getinfo` of the process, which is when libfabric reads them, and never afterwards.
//! * [`BUFFER_BYTES`] is the same in every process of a system: `ofi_rxm` refuses a peer whose buffer size differs.

use std::{env, ffi::OsStr, sync::Once};

/// Bytes of one eager buffer of `ofi_rxm`: 4 KiB of body and room for the headers above it.
pub const BUFFER_BYTES: usize = 4096 + 512;

/// Variable, value, and whether a value that the user has set stays.
const VARIABLES: &[(&str, &str, Keep)] = &[
    // Part of the protocol between peers, so not the user's to change.
    ("FI_OFI_RXM_BUFFER_SIZE", "4608", Keep::Never),
    // By default connection requests are looked at every 10 ms, which makes a first connection take 34 ms.
    ("FI_OFI_RXM_CM_PROGRESS_INTERVAL", "100", Keep::UsersChoice),
    // Defaults of 2048 cost 88 MB per endpoint; an xstream bounds its own queues far below that.
    ("FI_OFI_RXM_TX_SIZE", "512", Keep::UsersChoice),
    ("FI_OFI_RXM_RX_SIZE", "512", Keep::UsersChoice),
    ("FI_OFI_RXM_MSG_TX_SIZE", "128", Keep::UsersChoice),
    ("FI_OFI_RXM_MSG_RX_SIZE", "128", Keep::UsersChoice),
    // One by default, while the tcp provider below takes all that has arrived.
    ("FI_OFI_RXM_COMP_PER_PROGRESS", "64", Keep::UsersChoice),
    // Receives then belong to the tcp provider, which does not read a connection while none is posted: TCP holds a flood
    // back. Otherwise ofi_rxm reads on and keeps what it reads, and, whenever it closes a connection, reads until no
    // connection has anything more, which under a flood is never. Also part of the protocol between peers.
    ("FI_OFI_RXM_ENABLE_PASSTHRU", "1", Keep::Never),
    // No reading ahead: what the provider has read ahead when receives run out it does not look at again until more
    // arrives, and a client that has used up its credits sends nothing more.
    ("FI_TCP_PREFETCH_RBUF_SIZE", "0", Keep::Never),
    // Removing an address also closes the connection behind it. Without this a killed peer's connection, and the memory
    // of what was in flight on it, would stay until the process ends.
    ("FI_AV_REMOVE_CLEANUP", "1", Keep::Never),
];

#[derive(Clone, Copy, PartialEq)]
enum Keep {
    UsersChoice,
    Never,
}

static PREPARED: Once = Once::new();

/// Puts libfabric's settings into the process's environment, once.
///
/// Opening an endpoint does it as well. A program with threads that read the environment through C (not through
/// `std::env`, which takes a lock) calls this at the start of `main`, before it starts them.
pub fn prepare_process() {
    PREPARED.call_once(|| {
        for (name, value, keep) in VARIABLES {
            let present = env::var_os(name);
            let settled = match &present {
                Some(present) => *keep == Keep::UsersChoice || present == OsStr::new(value),
                None => false,
            };
            if !settled {
                // SAFETY: Rust's own accesses to the environment are serialised by the standard library. libfabric reads
                // it in its first fi_getinfo, which in this process comes after this call (every path to it in this crate
                // goes through here first). For C code in other threads the caller orders this call, as documented.
                unsafe { env::set_var(name, value) };
            }
        }
    });
}
