//! Limits of an endpoint.

use std::time::Duration;

use super::RANK_ANY;

/// Limits of an endpoint.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// The rank of this engine; requests for another are refused. [`RANK_ANY`]: a client, or not known yet.
    pub rank: u32,
    /// Messages taken from the fabric per poll.
    pub poll_limit: usize,
    /// Calls in flight to one peer; more wait here.
    pub calls_per_peer_max: u32,
    /// Requests of one peer being served, and messages kept for it; more requests are refused as busy.
    pub requests_per_peer_max: u32,
    /// Requests of all peers being served; more are refused as busy. One in 16 of these places is only for the modules
    /// `SYSTEM` and `MANAGEMENT`.
    pub requests_max: u32,
    /// Messages kept for a peer that the fabric does not take yet; one more and the peer is disconnected.
    pub outbox_messages_max: usize,
    /// Bytes kept for all peers together that the fabric does not take yet. Where there would be more, the peer with most of them is
    /// disconnected.
    pub outbox_bytes_max: usize,
    /// Bytes of memory that bulk transfers of one peer's requests may hold; further ones wait.
    pub bulk_bytes_per_peer_max: u64,
    /// The same, of all peers together.
    pub bulk_bytes_max: u64,
    /// How long a peer may take nothing of its outbox before it is disconnected.
    pub drain_timeout: Duration,
    /// Malformed messages, without many good ones between them, after which a peer is disconnected.
    pub offences_max: u32,
    /// Buffers kept for replies.
    pub buffers_kept: usize,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            rank: RANK_ANY,
            poll_limit: 64,
            calls_per_peer_max: 128,
            requests_per_peer_max: 256,
            requests_max: 4096,
            outbox_messages_max: 1024,
            outbox_bytes_max: 128 << 20,
            bulk_bytes_per_peer_max: 64 << 20,
            bulk_bytes_max: 1 << 30,
            drain_timeout: Duration::from_secs(10),
            offences_max: 8,
            buffers_kept: 256,
        }
    }
}
