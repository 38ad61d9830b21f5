//! The command line of `dmg`. Names and words are DAOS's where the meaning is the same.

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use daos_types::parse_size;

use crate::system::SystemArguments;

/// Administer a DAOS system.
#[derive(Debug, Parser)]
#[command(
    name = "dmg",
    version,
    after_help = "A program finds the engine by --dir or DAOS_DIR (a development engine's folder) or --agent-file.\n\
                  Try: dmg pool create --size 4G mypool"
)]
pub struct Dmg {
    #[command(flatten)]
    pub system: SystemArguments,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Storage of the engines.
    #[command(subcommand)]
    Storage(StorageCommand),
    /// The system as a whole.
    #[command(subcommand)]
    System(SystemCommand),
    /// Pools.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Metrics of the engines.
    #[command(subcommand)]
    Telemetry(TelemetryCommand),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// Prepare empty storage for use.
    Format {
        /// Also when it holds data: everything is lost.
        #[arg(long)]
        force: bool,
    },
    /// What the storage holds.
    #[command(subcommand)]
    Query(StorageQuery),
}

#[derive(Debug, Subcommand)]
pub enum StorageQuery {
    /// Space of each target, used and free.
    Usage,
}

#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Engines and their state.
    Query,
    /// Stop the engine cleanly.
    Stop,
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool over all targets.
    Create {
        /// Space of the pool over all targets, for example 4GiB or 100%.
        #[arg(long, short = 'z', value_parser = pool_size)]
        size: PoolSize,
        /// Label of the new pool.
        label: String,
    },
    /// Pools of the system.
    List,
    /// State, space and targets of a pool.
    Query {
        /// Label or UUID of the pool.
        pool: String,
    },
    /// Remove a pool with everything in it.
    Destroy {
        /// Label or UUID of the pool.
        pool: String,
        /// Also when somebody is connected, or containers are left.
        #[arg(long, short)]
        force: bool,
    },
}

/// How large a pool is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// This many bytes.
    Bytes(u64),
    /// This percentage of what is free.
    Percent(u8),
}

fn pool_size(text: &str) -> Result<PoolSize, String> {
    match text.strip_suffix('%') {
        Some(number) => match number.parse() {
            Ok(percent @ 1..=100) => Ok(PoolSize::Percent(percent)),
            _ => Err(format!("{text:?} is no share: write 1% to 100%")),
        },
        None => parse_size(text).map(PoolSize::Bytes),
    }
}

#[derive(Debug, Subcommand)]
pub enum TelemetryCommand {
    /// Metrics, with their values.
    Metrics {
        /// Only metrics whose name contains this.
        #[arg(long, short)]
        filter: Option<String>,
    },
}
