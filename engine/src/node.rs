//! One engine from start to stop: storage, xstreams, services, addresses; and everything in reverse.
//!
//! # Order
//!
//! Storage is locked before anything is bound; services are up on every xstream before the address file appears, so
//! whoever finds the file finds an engine that answers; the file goes before anything is shut down. Storage that is not
//! formatted is served by the system module alone until an administrator formats it; then the services start.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use daos_xstream::{
    Address, Clock, CoreId, Credentials, Env, Fabric, Rng,
    rpc::{
        Endpoint, EndpointConfig, PROTOCOL_VERSION,
        system::{SystemInfo, SystemService},
    },
    telemetry::Registry,
};
use daos_xstream_uring::{Config as WorldConfig, Shutdown, UringRng, run};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    config::Config,
    descriptors::{self, Shares},
    fabric::{FabricMaker, NodeEnv, client_shares},
    metrics, services,
    storage::{Storage, StorageError, Superblock},
    telemetry,
};

/// How long the last replies have to leave before the endpoints go.
const FAREWELL: Duration = Duration::from_millis(20);

/// Where clients reach the engine: the content of `daos.json`.
#[derive(Serialize)]
struct AddressFile<'a> {
    system: &'a str,
    protocol: u8,
    ranks: [RankAddresses; 1],
}

#[derive(Serialize)]
struct RankAddresses {
    rank: u32,
    targets: Vec<TargetAddresses>,
}

#[derive(Serialize)]
struct TargetAddresses {
    target: u32,
    addresses: Vec<Address>,
}

/// What the xstreams of an engine share: read-only but for what is behind locks, none of which is on an I/O path.
#[derive(Clone)]
pub(crate) struct Node(Arc<Inner>);

struct Inner {
    config: Config,
    shares: Shares,
    storage: Storage,
    registry: Registry,
    shutdown: Shutdown,
    telemetry_port: Option<u16>,
    superblock: Mutex<Option<Superblock>>,
    /// Addresses of the xstreams that are ready, by number.
    addresses: Mutex<Vec<Option<Vec<Address>>>>,
    /// Why the engine cannot go on, as the first xstream said that noticed.
    failure: Mutex<Option<String>>,
}

/// Runs an engine until it is asked to stop, by SIGTERM, SIGINT or `dmg system stop`.
pub fn serve(config: Config) -> anyhow::Result<()> {
    let shares = client_shares(config.targets)?;
    let storage = Storage::lock(&config.directory)?;
    // What a killed engine left would lead clients astray until this one serves.
    storage.withdraw();
    let shutdown = Shutdown::new();
    let _signals = shutdown.on_signals().context("watching for signals")?;
    let superblock = match storage.open_or_format(&config, random_uuid()?) {
        Ok(superblock) => Some(superblock),
        Err(error @ StorageError::NotFormatted(_)) => {
            tracing::warn!("{error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let registry = Registry::default();
    descriptors::watch(&registry).context("watching the file descriptors")?;
    let telemetry_port = config.telemetry_port.map(|port| {
        telemetry::serve(registry.clone(), port)
            .with_context(|| format!("metrics on port {port}: choose another telemetry_port"))
    });
    let node = Node(Arc::new(Inner {
        telemetry_port: telemetry_port.transpose()?,
        superblock: Mutex::new(superblock),
        addresses: Mutex::new(vec![None; config.targets as usize]),
        failure: Mutex::default(),
        config,
        shares,
        storage,
        registry,
        shutdown,
    }));
    let outcome = node.run();
    node.0.storage.withdraw();
    outcome
}

/// A UUID from the operating system's randomness, for what is named before any xstream runs.
fn random_uuid() -> anyhow::Result<Uuid> {
    let random = UringRng::from_system().context("asking for randomness")?;
    Ok(uuid_of(&random))
}

fn uuid_of(random: &impl Rng) -> Uuid {
    let (high, low) = (random.next_u64(), random.next_u64());
    uuid::Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_le_bytes()).into_uuid()
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    fn run(&self) -> anyhow::Result<()> {
        let Inner { config, shares, storage, shutdown, .. } = &*self.0;
        let fabrics = FabricMaker::new(config, *shares)?;
        let mut world = WorldConfig::new(config.targets, storage.directory());
        world.cpus = config.cpus()?;
        run(
            &world,
            shutdown,
            |xstream| fabrics.make(xstream),
            |env| {
                let node = self.clone();
                async move {
                    if let Err(error) = node.xstream(&env).await {
                        locked(&node.0.failure).get_or_insert(format!("{error:#}"));
                        node.0.shutdown.request();
                    }
                }
            },
        )?;
        match locked(&self.0.failure).take() {
            Some(failure) => Err(anyhow::anyhow!(failure)),
            None => Ok(()),
        }
    }

    /// The life of one xstream.
    async fn xstream(&self, env: &NodeEnv) -> anyhow::Result<()> {
        let scope = self.0.registry.scope(&[("rank", "0".into()), ("target", env.core().0.to_string())]);
        env.locals().insert(Rc::new(scope.clone()));
        let endpoint = Endpoint::new(env, EndpointConfig { rank: 0, ..EndpointConfig::default() });
        let info = Rc::new(RefCell::new(self.info()));
        endpoint.register(Rc::new(self.system_service(env, info.clone())));
        metrics::publish(env, &endpoint, &scope);

        if locked(&self.0.superblock).is_none() {
            self.announce(env)?;
        }
        let Some(superblock) = self.formatted(env).await else { return Ok(()) };
        *info.borrow_mut() = self.info();
        services::start(env, &endpoint, &self.0.config, &superblock).await?;
        self.announce(env)?;
        tracing::info!(target = env.core().0, "serving");

        env.stop_requested().await;
        if env.core() == CoreId(0) {
            self.0.storage.withdraw();
        }
        env.clock().sleep_until(env.clock().now() + FAREWELL).await;
        services::stop(env).await
    }

    fn info(&self) -> SystemInfo {
        let superblock = locked(&self.0.superblock);
        SystemInfo {
            system: self.0.config.system.clone(),
            rank: 0,
            uuid: superblock.as_ref().map_or(Uuid::nil(), |superblock| superblock.uuid),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            targets: self.0.config.targets,
            formatted: superblock.is_some(),
            telemetry_port: self.0.telemetry_port,
        }
    }

    fn system_service(&self, env: &NodeEnv, info: Rc<RefCell<SystemInfo>>) -> SystemService {
        let shutdown = self.0.shutdown.clone();
        let (node, format_env) = (self.clone(), env.clone());
        SystemService::new(info, self.0.registry.clone(), may_administer, move || shutdown.request())
            .with_format(move |force| node.format(&format_env, force))
    }

    fn format(&self, env: &NodeEnv, force: bool) -> Result<(), String> {
        let mut superblock = locked(&self.0.superblock);
        if superblock.is_some() {
            let directory = self.0.storage.directory().to_owned();
            return Err(format!(
                "{}; stop the engine first if you mean to lose all of it",
                StorageError::Formatted(directory)
            ));
        }
        let formatted = self.0.storage.format(&self.0.config, uuid_of(env.rng()), force);
        *superblock = Some(formatted.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Waits until the storage is formatted. `None`: the engine is to stop.
    async fn formatted(&self, env: &NodeEnv) -> Option<Superblock> {
        const LOOK_INTERVAL: Duration = Duration::from_millis(100);
        loop {
            if let Some(superblock) = &*locked(&self.0.superblock) {
                return Some(superblock.clone());
            }
            if self.0.shutdown.requested() {
                return None;
            }
            env.clock().sleep_until(env.clock().now() + LOOK_INTERVAL).await;
        }
    }

    /// Says that this xstream is ready; the last one to say so writes the address file.
    fn announce(&self, env: &NodeEnv) -> anyhow::Result<()> {
        let mut addresses = locked(&self.0.addresses);
        addresses[env.core().0 as usize] = Some(env.fabric().addresses());
        if addresses.iter().all(Option::is_some) {
            let target = |(target, addresses): (u32, &mut Option<_>)| TargetAddresses {
                target,
                addresses: addresses.take().unwrap_or_default(),
            };
            let targets = (0..).zip(addresses.iter_mut()).map(target).collect();
            let engine = RankAddresses { rank: 0, targets };
            let system = &self.0.config.system;
            self.0.storage.publish(&AddressFile { system, protocol: PROTOCOL_VERSION, ranks: [engine] })?;
        }
        Ok(())
    }
}

/// Root, and the user who runs the engine; both only where the kernel vouches for them.
fn may_administer(credentials: Option<Credentials>) -> bool {
    credentials.is_some_and(|who| who.uid == 0 || who.uid == rustix::process::geteuid().as_raw())
}
