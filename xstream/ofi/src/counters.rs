//! What an endpoint counts, for telemetry.

use daos_xstream::FabricCounters;

/// Counters of one endpoint since it was opened. Gauges say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfiCounters {
    /// Messages handed to the layer above.
    pub messages_received: u64,
    /// Bytes of these messages.
    pub message_bytes_received: u64,
    /// Messages of the layer above that libfabric has taken.
    pub messages_sent: u64,
    /// Bytes of these messages.
    pub message_bytes_sent: u64,
    /// Sends refused with [`Busy`](daos_xstream::FabricError::Busy).
    pub sends_refused: u64,
    /// Messages that are none, or introductions that cannot be true.
    pub garbage_received: u64,
    /// Messages under a token that nobody has: usually of a peer that was given up.
    pub unknown_tokens: u64,
    /// Peers that have proved themselves, or that we called and that have answered.
    pub peers_established: u64,
    /// Newcomers refused because of a limit.
    pub peers_refused: u64,
    /// Connections that were ended because nothing came over them.
    pub silent_ended: u64,
    /// Peers that ended other than by [`disconnect`](daos_xstream::Fabric::disconnect).
    pub peers_lost: u64,
    /// Transfers that ended well.
    pub transfers_done: u64,
    /// Bytes of reads that ended well.
    pub bytes_read: u64,
    /// Bytes of writes that ended well.
    pub bytes_written: u64,
    /// Transfers that failed.
    pub transfers_failed: u64,
    /// Operations that libfabric reported as failed, of all kinds.
    pub operations_failed: u64,
    /// Gauge: peers now.
    pub peers: u64,
    /// Gauge: transfers now.
    pub transfers: u64,
    /// Gauge: exposed buffers kept although their owner is done with them, because the peer might still write to them.
    pub buffers_fenced: u64,
    /// Gauge: buffers of transfers with peers that are gone, which libfabric has not given back in good time.
    pub buffers_lost: u64,
    /// Gauge: connections of peers that are gone, which libfabric is not done with.
    pub connections_leaving: u64,
}

impl From<OfiCounters> for FabricCounters {
    fn from(counters: OfiCounters) -> Self {
        Self {
            peers: counters.peers,
            peers_connected: counters.peers_established,
            peers_refused: counters.peers_refused + counters.silent_ended,
            peers_lost: counters.peers_lost,
            lies: counters.garbage_received,
            messages_received: counters.messages_received,
            message_bytes_received: counters.message_bytes_received,
            messages_sent: counters.messages_sent,
            message_bytes_sent: counters.message_bytes_sent,
            sends_refused: counters.sends_refused,
            bulk_bytes_read: counters.bytes_read,
            bulk_bytes_written: counters.bytes_written,
            bulk_failed: counters.transfers_failed,
        }
    }
}

/// Descriptors that this process has open, and its limit. libfabric's `tcp` provider never closes the descriptor of a
/// connection that said nothing valid, so an engine watches this and reports a leak before the limit. `None` if the
/// system does not tell.
pub fn descriptors_open() -> Option<(u64, u64)> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let limit = line.split_whitespace().nth(3)?.parse().ok()?;
    Some((open, limit))
}
