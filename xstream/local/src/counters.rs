//! What an endpoint has done, for telemetry.

use daos_xstream::FabricCounters;

/// Running totals of one endpoint, and how many peers it has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalCounters {
    /// Peers there are.
    pub peers: u64,
    /// Peers that are polled; the others ring a doorbell.
    pub peers_awake: u64,
    /// Connections made, either way.
    pub connected: u64,
    /// Connections turned away by the engine's socket, or by this endpoint because it is full.
    pub refused: u64,
    /// Peers that ended, orderly or not, other than by a disconnect of this side.
    pub gone: u64,
    /// Peers that were disconnected because they broke the rules of the shared memory or of the doorbell.
    pub liars: u64,
    /// Messages handed to the sink.
    pub messages_received: u64,
    /// Bytes of these messages.
    pub message_bytes_received: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Bytes of these messages.
    pub message_bytes_sent: u64,
    /// Sends that found the ring full.
    pub sends_busy: u64,
    /// Doorbells rung: one system call each.
    pub doorbells_sent: u64,
    /// Doorbells heard.
    pub doorbells_received: u64,
    /// Looks at the epoll descriptor: one system call each, at least.
    pub sweeps: u64,
    /// Bytes read from memory that clients expose.
    pub bulk_bytes_read: u64,
    /// Bytes written to memory that clients expose.
    pub bulk_bytes_written: u64,
    /// Bulk transfers refused because the peer had not exposed the memory.
    pub not_exposed: u64,
}

impl From<LocalCounters> for FabricCounters {
    fn from(counters: LocalCounters) -> Self {
        Self {
            peers: counters.peers,
            peers_connected: counters.connected,
            peers_refused: counters.refused,
            peers_lost: counters.gone,
            lies: counters.liars,
            messages_received: counters.messages_received,
            message_bytes_received: counters.message_bytes_received,
            messages_sent: counters.messages_sent,
            message_bytes_sent: counters.message_bytes_sent,
            sends_refused: counters.sends_busy,
            bulk_bytes_read: counters.bulk_bytes_read,
            bulk_bytes_written: counters.bulk_bytes_written,
            bulk_failed: counters.not_exposed,
        }
    }
}
