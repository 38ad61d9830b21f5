//! The service modules of an xstream.

use std::time::Duration;

use daos_dsm::service::{self, Control, Limits, ServiceConfig, Target};
use daos_vos::MediaKind;
use daos_xstream::{Env, rpc::Endpoint};

use crate::{config::Config, fabric::NodeEnv, storage::Superblock};

/// How long a handle is kept whose user has gone silent, when nothing proves that the user is dead.
const HANDLE_GRACE: Duration = Duration::from_secs(120);
/// The same for a user whom the kernel vouched for and whose connection ended: it died, or is about to come back.
const HANDLE_GRACE_VERIFIED: Duration = Duration::from_secs(5);

/// Starts the services of one xstream; returns once they answer.
pub async fn start(
    env: &NodeEnv,
    endpoint: &Endpoint<NodeEnv>,
    config: &Config,
    superblock: &Superblock,
) -> anyhow::Result<()> {
    let per_target = superblock.memory_bytes_per_target + superblock.block_bytes_per_target;
    let config = ServiceConfig {
        rank: superblock.rank,
        fault_domain: format!("node{}", superblock.rank),
        media: MediaKind::Wal,
        bytes: per_target * u64::from(superblock.targets),
        trust_stated_identity: config.format_when_empty,
        administrators: Some(administrators(config)),
        grace: HANDLE_GRACE,
        grace_verified: HANDLE_GRACE_VERIFIED,
        limits: Limits::default(),
        scrub: config.scrub,
    };
    Ok(service::start(env, endpoint, config).await?)
}

/// The users who may manage pools: root, who runs the engine, and whom its server file names.
fn administrators(config: &Config) -> Vec<u32> {
    let mut users = vec![0, rustix::process::geteuid().as_raw()];
    users.extend(&config.administrators);
    users.sort_unstable();
    users.dedup();
    users
}

/// Closes what the services have open, so that the next start has nothing to replay.
pub async fn stop(env: &NodeEnv) -> anyhow::Result<()> {
    if let Some(control) = Control::of(env) {
        control.stop();
    }
    match env.locals().get::<Target<NodeEnv>>() {
        Some(target) => Ok(target.close().await?),
        None => Ok(()),
    }
}
