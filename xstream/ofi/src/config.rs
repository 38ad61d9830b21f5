//! What an endpoint is opened with.

use std::{net::SocketAddr, time::Duration};

use daos_xstream::{Address, FabricError};

use crate::address;

/// The provider used unless another is named.
pub const DEFAULT_PROVIDER: &str = "tcp;ofi_rxm";

/// How to open an [`OfiFabric`](crate::OfiFabric). Sizes and times have defaults that fit an xstream or a client.
#[derive(Clone, Debug)]
pub struct OfiConfig {
    /// The provider, as libfabric names it: `tcp;ofi_rxm`, `verbs;ofi_rxm`, `cxi`, … The part before `;` is what its
    /// addresses begin with.
    pub provider: String,
    /// Where the endpoint is.
    pub place: Place,
    /// Peers at most; further ones are refused.
    pub peers_max: usize,
    /// Peers at most that have introduced themselves and not yet proved that they can be reached.
    pub strangers_max: usize,
    /// Receive buffers that are always posted.
    pub receive_buffers: usize,
    /// Messages that may be on their way out, over all peers.
    pub transmit_buffers: usize,
    /// Of these, how many one peer may hold, so that one that does not read cannot stop the others.
    pub sends_per_peer_max: u32,
    /// Transfers under way with one peer.
    pub transfers_per_peer_max: u32,
    /// How long [`connect`](daos_xstream::Fabric::connect) tries.
    pub connect_timeout: Duration,
    /// A peer not heard of for this long is asked whether it lives.
    pub keep_alive_idle: Duration,
    /// A peer that has been asked and is silent for this long is gone. Generous, because a client that computes does not
    /// look at its endpoint.
    pub keep_alive_timeout: Duration,
    /// A peer to which nothing could be sent for this long is gone.
    pub stall_timeout: Duration,
    /// A peer that does not let a transfer complete within this time is gone.
    pub transfer_timeout: Duration,
}

/// Where an endpoint is, and whether others may call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It listens here; port 0 lets the system choose.
    Server(Address),
    /// It is nowhere in particular: an address of this machine from which this server can be reached, any port.
    ClientOf(Address),
}

impl OfiConfig {
    /// An endpoint that others call at `address` (`tcp://HOST:PORT`).
    pub fn server(address: Address) -> Self {
        Self::at(Place::Server(address))
    }

    /// An endpoint that calls servers which are reached the way `address` is. A server looks at its endpoint all the time, so
    /// that its silence is noticed sooner than that of a client.
    pub fn client_of(address: Address) -> Self {
        Self {
            keep_alive_idle: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(8),
            ..Self::at(Place::ClientOf(address))
        }
    }

    fn at(place: Place) -> Self {
        Self {
            provider: DEFAULT_PROVIDER.to_owned(),
            place,
            peers_max: 4096,
            strangers_max: 256,
            receive_buffers: 256,
            transmit_buffers: 256,
            sends_per_peer_max: 64,
            transfers_per_peer_max: 256,
            connect_timeout: Duration::from_secs(5),
            keep_alive_idle: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(5),
            transfer_timeout: Duration::from_secs(30),
        }
    }

    /// The same with another provider.
    pub fn with_provider(mut self, provider: &str) -> Self {
        self.provider = provider.to_owned();
        self
    }

    /// What addresses of this provider begin with.
    pub(crate) fn scheme(&self) -> &str {
        self.provider.split(';').next().unwrap_or_default()
    }

    /// The socket address to listen on; `None` for a provider whose addresses are its own.
    pub(crate) fn bind(&self) -> Result<Option<SocketAddr>, FabricError> {
        let (Place::Server(address) | Place::ClientOf(address)) = &self.place;
        self.check_scheme(address)?;
        if !self.uses_sockets() {
            return Ok(None);
        }
        let named = address::resolve(address)?;
        match self.place {
            Place::Server(_) if named.ip().is_unspecified() => Err(FabricError::BadAddress(format!(
                "{address}: an endpoint tells its peers its address, so it listens on one interface's, not on all"
            ))),
            Place::Server(_) => Ok(Some(named)),
            Place::ClientOf(_) => address::local_toward(named).map(Some),
        }
    }

    /// Whether addresses are socket addresses.
    pub(crate) fn uses_sockets(&self) -> bool {
        matches!(self.scheme(), "tcp" | "verbs" | "net" | "sockets" | "udp")
    }

    pub(crate) fn check_scheme(&self, address: &Address) -> Result<(), FabricError> {
        if address.fabric() == self.scheme() {
            Ok(())
        } else {
            Err(FabricError::BadAddress(format!("{address} is not of the form {}://PLACE", self.scheme())))
        }
    }
}
