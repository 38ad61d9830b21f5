//! What an endpoint has done, for telemetry.

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
    /// Peers that ended, orderly or not.
    pub gone: u64,
    /// Peers that were disconnected because they broke the rules of the shared memory or of the doorbell.
    pub liars: u64,
    /// Messages handed to the sink.
    pub messages_received: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Sends that found the ring full.
    pub sends_busy: u64,
    /// Doorbells rung: one system call each.
    pub doorbells_sent: u64,
    /// Doorbells heard.
    pub doorbells_received: u64,
    /// Looks at the epoll descriptor: one system call each, at least.
    pub sweeps: u64,
    /// Bytes moved by bulk reads and writes.
    pub bulk_bytes: u64,
    /// Bulk transfers refused because the peer had not exposed the memory.
    pub not_exposed: u64,
}
