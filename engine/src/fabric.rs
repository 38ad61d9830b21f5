//! The endpoints of an engine: shared memory for this node, libfabric for the network, one of each per xstream.

use daos_xstream::{Address, CoreId, FabricError, Pair};
use daos_xstream_local::{LocalFabric, LocalOptions, LocalServer};
use daos_xstream_ofi::{OfiConfig, OfiFabric};
use daos_xstream_uring::{UringEnv, UringRng};

use crate::{
    config::{Config, Network},
    descriptors::{self, Shares},
};

/// What an xstream is reached by. The cheaper one to poll comes first.
pub type NodeFabric = Pair<Option<LocalFabric>, Option<OfiFabric>>;

/// The world that the engine's services run in.
pub type NodeEnv = UringEnv<NodeFabric>;

/// Makes the endpoints of all xstreams.
pub struct FabricMaker {
    shares: Shares,
    local: Option<LocalServer>,
    network: Option<Network>,
}

/// How many clients each xstream may have, as far as the process's descriptors reach.
pub fn client_shares(targets: u32) -> anyhow::Result<Shares> {
    let most = Shares {
        local: LocalOptions::default().peers_max,
        network: OfiConfig::server("tcp://127.0.0.1:0".parse()?).peers_max,
    };
    Ok(descriptors::shares(descriptors::raise_limit(), targets, most)?)
}

impl FabricMaker {
    /// Binds what the engine has once: its socket.
    pub fn new(config: &Config, shares: Shares) -> Result<Self, FabricError> {
        let socket = config.directory.join("daos.sock");
        let defaults = LocalOptions::default();
        let options = LocalOptions {
            peers_max: shares.local,
            // Of 1024 places 768, and of fewer as many in proportion.
            peers_per_user_max: (shares.local / 4 * 3).min(defaults.peers_per_user_max),
            ..defaults
        };
        let local = config.fabrics.local.then(|| LocalServer::bind(&socket, config.targets, options));
        let network = config.fabrics.network.clone();
        if network.is_some() {
            daos_xstream_ofi::prepare_process();
        }
        Ok(Self { shares, local: local.transpose()?, network })
    }

    /// The endpoint of one xstream; called on its thread.
    pub fn make(&self, xstream: CoreId) -> Result<NodeFabric, FabricError> {
        let local = self.local.as_ref().map(|server| server.fabric(xstream.0)).transpose()?;
        let network = self.network.as_ref().map(|network| self.open_network(network, xstream)).transpose()?;
        Ok(Pair::new(local, "local", network))
    }

    fn open_network(&self, network: &Network, xstream: CoreId) -> Result<OfiFabric, FabricError> {
        // Every xstream listens on a port of its own: the base and its number, or whatever is free.
        let port = match network.port {
            0 => 0,
            base => u16::try_from(u32::from(base) + xstream.0)
                .map_err(|_| FabricError::BadAddress(format!("port {base} + {} is no port", xstream.0)))?,
        };
        let scheme = network.provider.split(';').next().unwrap_or_default();
        let address: Address = format!("{scheme}://{}:{port}", network.host).parse()?;
        let random =
            UringRng::from_system().map_err(|error| FabricError::Failed(format!("randomness: {error}")))?;
        let mut config = OfiConfig::server(address).with_provider(&network.provider);
        config.peers_max = self.shares.network;
        OfiFabric::open(config, daos_xstream_uring::now, random).map_err(|error| {
        let Network { provider, host, .. } = network;
        FabricError::Failed(format!(
            "{error} (provider {provider} at {host}); choose a provider and an address that this machine has: fi_info \
             lists them"
        ))
    })
    }
}
