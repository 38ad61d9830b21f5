//! What every fabric counts, under the same names, so that an engine can export it without knowing the fabric.

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counts upwards from when the endpoint was opened.
    Total,
    /// Goes up and down.
    Now,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident;)*) => {
        /// What one endpoint has counted since it was opened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct FabricCounters {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl FabricCounters {
            /// All of them: name, meaning, kind and value.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str, Kind, u64)> {
                [$((stringify!($name), concat!($($doc),+).trim_ascii(), Kind::$kind, self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Peers there are now.
    peers: Now;
    /// Peers that there have been, whoever called.
    peers_connected: Total;
    /// Newcomers turned away because of a limit.
    peers_refused: Total;
    /// Peers that ended without a disconnect by this side.
    peers_lost: Total;
    /// Times that a peer or a stranger broke the rules of the fabric.
    lies: Total;
    /// Messages handed to the layer above.
    messages_received: Total;
    /// Bytes of these messages.
    message_bytes_received: Total;
    /// Messages that the layer above has sent.
    messages_sent: Total;
    /// Bytes of these messages.
    message_bytes_sent: Total;
    /// Sends refused because the queue to the peer was full.
    sends_refused: Total;
    /// Bytes read from memory that peers expose.
    bulk_bytes_read: Total;
    /// Bytes written to memory that peers expose.
    bulk_bytes_written: Total;
    /// Bulk transfers that failed.
    bulk_failed: Total;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_listed_once_with_its_meaning() {
        let counters = FabricCounters { peers: 3, bulk_failed: 4, ..Default::default() };
        let listed: Vec<_> = counters.list().collect();
        assert_eq!(listed[0], ("peers", "Peers there are now.", Kind::Now, 3));
        assert_eq!(listed.last().map(|last| (last.0, last.3)), Some(("bulk_failed", 4)));
        assert_eq!(size_of::<FabricCounters>(), listed.len() * size_of::<u64>());
    }
}
