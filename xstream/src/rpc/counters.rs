//! What an endpoint has done, for telemetry.

use std::cell::Cell;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident;)*) => {
        /// Counts since the endpoint was made.
        #[derive(Clone, Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: Cell<u64>,)*
        }

        impl Counters {
            /// All counters by name.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Calls sent.
    calls;
    /// Calls that ended at their deadline.
    calls_timed_out;
    /// Calls that ended because their peer went away.
    calls_lost;
    /// Replies to nobody: too late, or made up.
    replies_unexpected;
    /// Requests received and well formed.
    requests;
    /// Requests refused because there was too much to do.
    requests_refused_busy;
    /// Requests for another rank.
    requests_wrong_rank;
    /// Requests for a module that is not here.
    requests_unknown_module;
    /// Responders dropped without an answer.
    requests_unanswered;
    /// Replies that could not be sent because the peer had gone.
    replies_lost;
    /// Messages put aside because the queue to the peer was full.
    sends_deferred;
    /// Messages shorter than a header.
    malformed_truncated;
    /// Messages of no protocol of ours.
    malformed_magic;
    /// Messages whose header did not match its checksum.
    malformed_header_checksum;
    /// Messages of another protocol version.
    malformed_version;
    /// Messages that were neither request nor reply.
    malformed_kind;
    /// Messages with a body of another length than their header said.
    malformed_body_length;
    /// Messages whose body did not match its checksum.
    malformed_body_checksum;
    /// Peers disconnected because they kept sending what makes no sense.
    peers_dropped_malformed;
    /// Peers disconnected because they did not take what was sent to them.
    peers_dropped_stuck;
    /// Peers that went away by themselves.
    peers_closed;
}

/// Adds one.
pub(super) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}
