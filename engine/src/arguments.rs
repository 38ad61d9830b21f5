//! The command line of `daos_engine`.

use std::path::PathBuf;

use clap::Parser;

use crate::config::{Config, ConfigError, Fabrics, ScrubMode};

/// Serve the DAOS targets of a storage node.
///
/// A development engine needs nothing but a folder: it formats it on first use, serves this machine only, and leaves a
/// file there by which `daos` and `dmg` find it.
#[derive(Debug, Parser)]
#[command(
    name = "daos_engine",
    version,
    group(clap::ArgGroup::new("kind").required(true).args(["dev", "config"])),
    after_help = "Try: daos_engine --dev --dir /var/tmp/daos\n     DAOS_DIR=/var/tmp/daos dmg pool create --size 1G mypool"
)]
pub struct Arguments {
    /// Run a development engine.
    #[arg(long, conflicts_with = "config")]
    pub dev: bool,
    /// Folder of a development engine.
    #[arg(long, env = "DAOS_DIR", default_value = "/var/tmp/daos", conflicts_with = "config")]
    pub dir: PathBuf,
    /// Targets of a development engine, each with a core of its own [default: the machine's cores, at most 4].
    #[arg(long, conflicts_with = "config")]
    pub targets: Option<u32>,
    /// Space of a development engine over all targets, for example 4GiB; used when the folder is formatted.
    #[arg(long, default_value = "4GiB", value_parser = daos_types::parse_size, conflicts_with = "config")]
    pub size: u64,
    /// Fabrics of a development engine: local (shared memory), tcp (libfabric on loopback), or both.
    #[arg(long, default_value = "local,tcp", conflicts_with = "config")]
    pub fabric: String,
    /// Whether a development engine compares what it stores with its checksums in the background: timed (once a week, at
    /// 8 MiB/s for each target) or off.
    #[arg(long, value_enum, default_value = "timed", hide_possible_values = true, conflicts_with = "config")]
    pub scrub: ScrubMode,
    /// Server file of a production engine (YAML, see docs/operations.md).
    #[arg(long, short = 'o')]
    pub config: Option<PathBuf>,
    /// What to log, such as `info` or `daos_vos=debug,warn` [default: the server file's log_mask, or info].
    #[arg(long, env = "DAOS_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

impl Arguments {
    /// The configuration that these arguments ask for.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let mut config = match self.config {
            Some(path) => Config::from_file(&path)?,
            None => {
                let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4) as u32);
                let fabrics = Fabrics::parse(&self.fabric)?;
                let targets = self.targets.unwrap_or(cores);
                let config = Config::development(self.dir, targets, self.size, fabrics)?;
                Config { scrub: config.scrub.filter(|_| self.scrub == ScrubMode::Timed), ..config }
            }
        };
        if let Some(log) = self.log {
            config.log_mask = log;
        }
        Ok(config)
    }
}
