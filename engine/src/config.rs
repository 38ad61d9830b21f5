//! What an engine is to be: from a server file in YAML, or from a few flags (`--dev`).
//!
//! The server file uses DAOS's names where the meaning is the same, so that a file written for DAOS reads familiarly.
//! Unknown keys are refused: a misspelt one must not silently fall back to a default.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use daos_dsm::service::ScrubConfig;
use daos_vos::ScrubRate;
use serde::Deserialize;

/// Bytes in a GiB: the unit of sizes in the server file.
const GIB: u64 = 1 << 30;
/// The smallest share of storage that a target can work with, in bytes.
pub const TARGET_BYTES_MIN: u64 = 256 << 20;
/// Most targets of an engine.
pub const TARGETS_MAX: u32 = 256;

/// A checked configuration: what the engine will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the system that this engine belongs to.
    pub system: String,
    /// Folder with everything that the engine stores, its socket and its address file.
    pub directory: PathBuf,
    /// Number of targets; each has an xstream of its own.
    pub targets: u32,
    /// The core of target 0; the others follow.
    pub first_core: u32,
    /// Bytes of all targets together, memory tier and block tier.
    pub size: u64,
    /// Bytes of `size` that are the memory tier.
    pub memory_size: u64,
    /// How clients reach the engine.
    pub fabrics: Fabrics,
    /// TCP port of the metrics, on loopback; 0 lets the system choose.
    pub telemetry_port: Option<u16>,
    /// `tracing` filter, such as `info` or `daos_vos=debug`.
    pub log_mask: String,
    /// File that the log goes to instead of standard error.
    pub log_file: Option<PathBuf>,
    /// Whether the storage is formatted when it is empty, without an administrator's command.
    pub format_when_empty: bool,
    /// Users who may manage pools, besides root and the user who runs the engine.
    pub administrators: Vec<u32>,
    /// Whether and how targets compare what they store with its checksums in the background.
    pub scrub: Option<ScrubConfig>,
}

/// Whether the scrubber runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScrubMode {
    /// It does not.
    Off,
    /// A pass over every pool begins every so often.
    Timed,
}

/// Which fabrics serve clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fabrics {
    /// Shared memory, for processes of this node.
    pub local: bool,
    /// libfabric, for the network.
    pub network: Option<Network>,
}

/// How the network fabric is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// libfabric provider, such as `tcp;ofi_rxm`.
    pub provider: String,
    /// Address to listen on.
    pub host: String,
    /// Port of target 0, the others follow; 0 lets the system choose for each.
    pub port: u16,
}

/// Why a configuration cannot be used. Nothing was started or changed.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}; {remedy}")]
pub struct ConfigError {
    /// The file, key or flag.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

fn wrong(place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
    ConfigError { place: place.into(), what: what.into(), remedy: remedy.into() }
}

/// The server file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerFile {
    #[serde(default = "default_system")]
    name: String,
    #[serde(default = "default_provider")]
    provider: String,
    socket_dir: Option<PathBuf>,
    telemetry_port: Option<u16>,
    #[serde(default = "default_log_mask")]
    control_log_mask: String,
    control_log_file: Option<PathBuf>,
    #[serde(default)]
    administrators: Vec<u32>,
    engines: Vec<EngineSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EngineSection {
    targets: u32,
    #[serde(default)]
    first_core: u32,
    #[serde(default = "default_host")]
    fabric_iface: String,
    fabric_iface_port: Option<u16>,
    log_mask: Option<String>,
    log_file: Option<PathBuf>,
    #[serde(default = "default_scrub")]
    scrub: ScrubMode,
    /// Seconds.
    scrub_freq: Option<u64>,
    /// MiB per second and target.
    scrub_rate: Option<u64>,
    storage: Vec<StorageSection>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "class", rename_all = "lowercase", deny_unknown_fields)]
enum StorageSection {
    Ram { scm_mount: PathBuf, scm_size: u64 },
    File { bdev_list: Vec<PathBuf>, bdev_size: u64 },
}

fn default_system() -> String {
    "daos_server".into()
}

fn default_provider() -> String {
    "ofi+tcp;ofi_rxm".into()
}

fn default_log_mask() -> String {
    "info".into()
}

fn default_scrub() -> ScrubMode {
    ScrubMode::Timed
}

fn default_host() -> String {
    "127.0.0.1".into()
}

impl Config {
    /// Reads a server file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| wrong(&place, error.to_string(), "name a server file that can be read"))?;
        let file: ServerFile = serde_saphyr::from_str(&text)
            .map_err(|error| wrong(&place, error.to_string(), "see docs/operations.md for the keys"))?;
        Self::from_server_file(file, &place)
    }

    fn from_server_file(file: ServerFile, place: &str) -> Result<Self, ConfigError> {
        let [engine] = <[EngineSection; 1]>::try_from(file.engines).map_err(|engines| {
            let what = format!("`engines` lists {} engines", engines.len());
            wrong(place, what, "give each engine a server file and a process of its own")
        })?;
        let scrub = scrub_config(&engine, place)?;
        let mut memory = None;
        let mut block_bytes = None;
        for storage in engine.storage {
            match storage {
                StorageSection::Ram { scm_mount, scm_size } if memory.is_none() => {
                    memory = Some((scm_mount, scm_size.saturating_mul(GIB)));
                }
                StorageSection::Ram { .. } => {
                    return Err(wrong(place, "two storage tiers of class ram", "keep one"));
                }
                StorageSection::File { .. } if block_bytes.is_some() => {
                    return Err(wrong(place, "two storage tiers of class file", "keep one"));
                }
                StorageSection::File { bdev_list, bdev_size } => {
                    let below = |mount: &PathBuf| bdev_list.iter().all(|bdev| bdev.starts_with(mount));
                    if !memory.as_ref().is_some_and(|(mount, _)| below(mount)) {
                        let what = "a file of `bdev_list` lies outside `scm_mount`";
                        return Err(wrong(
                            place,
                            what,
                            "list the ram tier first and keep both in one folder",
                        ));
                    }
                    block_bytes = Some(bdev_size.saturating_mul(GIB));
                }
            }
        }
        let (directory, memory_size) = memory.ok_or_else(|| {
            wrong(place, "no storage tier of class ram", "add one with `scm_mount` and `scm_size`")
        })?;
        let provider = file.provider.trim_start_matches("ofi+").to_owned();
        let config = Self {
            system: file.name,
            directory: file.socket_dir.filter(|socket_dir| *socket_dir != directory).map_or(
                Ok(directory),
                |socket_dir| {
                    let what = format!("`socket_dir` {} is not `scm_mount`", socket_dir.display());
                    Err(wrong(place, what, "leave it out: the socket lives in the engine's folder"))
                },
            )?,
            targets: engine.targets,
            first_core: engine.first_core,
            size: memory_size.saturating_add(block_bytes.unwrap_or(0)),
            memory_size,
            fabrics: Fabrics {
                local: true,
                network: Some(Network {
                    provider,
                    host: engine.fabric_iface,
                    port: engine.fabric_iface_port.unwrap_or(31316),
                }),
            },
            telemetry_port: file.telemetry_port,
            log_mask: engine.log_mask.unwrap_or(file.control_log_mask).to_lowercase(),
            log_file: engine.log_file.or(file.control_log_file),
            format_when_empty: false,
            administrators: file.administrators,
            scrub,
        };
        config.checked(place)
    }

    /// A development engine: everything in one folder, formatted on first use, loopback only.
    pub fn development(
        directory: PathBuf,
        targets: u32,
        size: u64,
        fabrics: Fabrics,
    ) -> Result<Self, ConfigError> {
        Self {
            system: default_system(),
            directory,
            targets,
            first_core: 0,
            size,
            // Metadata and small values live in memory; a quarter fits a tree of small files, and the rest is bulk.
            memory_size: size / 4,
            fabrics,
            telemetry_port: Some(0),
            log_mask: default_log_mask(),
            log_file: None,
            format_when_empty: true,
            administrators: Vec::new(),
            scrub: Some(ScrubConfig::default()),
        }
        .checked("--dev")
    }

    /// The CPUs of the targets' xstreams: from `first_core` on, as far as this process may use them.
    pub fn cpus(&self) -> Result<Vec<usize>, ConfigError> {
        let usable = daos_xstream_uring::usable_cpus()
            .map_err(|error| wrong("the machine", error.to_string(), "check the process's CPU affinity"))?;
        let first = self.first_core as usize;
        if first >= usable.len() {
            let what = format!("first_core {first} of a process that may use {} cores", usable.len());
            return Err(wrong("first_core", what, "choose a lower one"));
        }
        Ok(usable[first..].iter().copied().take(self.targets as usize).collect())
    }

    fn checked(self, place: &str) -> Result<Self, ConfigError> {
        if self.targets == 0 || self.targets > TARGETS_MAX {
            let what = format!("{} targets", self.targets);
            return Err(wrong(place, what, format!("choose between 1 and {TARGETS_MAX}")));
        }
        let need = TARGET_BYTES_MIN * u64::from(self.targets);
        if self.size < need {
            let what = format!("{} bytes for {} targets", self.size, self.targets);
            return Err(wrong(place, what, format!("give at least {need}: {TARGET_BYTES_MIN} for each")));
        }
        if !self.fabrics.local && self.fabrics.network.is_none() {
            return Err(wrong(place, "no fabric", "name `local`, `tcp`, or both"));
        }
        Ok(self)
    }
}

/// What an engine's section says of the scrubber.
fn scrub_config(engine: &EngineSection, place: &str) -> Result<Option<ScrubConfig>, ConfigError> {
    let default = ScrubConfig::default();
    let at_least_one = |key, value: Option<u64>| match value {
        Some(0) => Err(wrong(place, format!("`{key}` is 0"), "choose 1 or more, or `scrub: off`")),
        value => Ok(value),
    };
    let period = at_least_one("scrub_freq", engine.scrub_freq)?.map_or(default.period, Duration::from_secs);
    let rate = at_least_one("scrub_rate", engine.scrub_rate)?
        .map_or(default.rate, |mebibytes| ScrubRate { bytes_per_second: mebibytes.saturating_mul(1 << 20) });
    Ok((engine.scrub == ScrubMode::Timed).then_some(ScrubConfig { period, rate }))
}

impl Fabrics {
    /// Parses a list such as `local,tcp`.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut fabrics = Fabrics { local: false, network: None };
        for name in text.split(',') {
            match name.trim() {
                "local" => fabrics.local = true,
                "tcp" => {
                    fabrics.network =
                        Some(Network { provider: "tcp;ofi_rxm".into(), host: default_host(), port: 0 });
                }
                other => {
                    let what = format!("{other:?} is no fabric of a development engine");
                    return Err(wrong("--fabric", what, "name `local`, `tcp`, or both with a comma between"));
                }
            }
        }
        Ok(fabrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
name: daos_server
provider: ofi+tcp;ofi_rxm
telemetry_port: 9191
control_log_mask: INFO
engines:
- targets: 2
  first_core: 0
  fabric_iface: 127.0.0.1
  fabric_iface_port: 31316
  storage:
  - class: ram
    scm_mount: /srv/daos
    scm_size: 1
  - class: file
    bdev_list: [/srv/daos/blocks]
    bdev_size: 3
";

    fn parse(text: &str) -> Result<Config, String> {
        let file = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        Config::from_server_file(file, "test.yml").map_err(|error| error.to_string())
    }

    #[test]
    fn a_server_file_is_read() {
        let config = parse(FILE).unwrap();
        assert_eq!((config.targets, config.memory_size, config.size), (2, GIB, 4 * GIB));
        assert_eq!(config.fabrics.network.unwrap().provider, "tcp;ofi_rxm");
        assert_eq!((config.telemetry_port, config.log_mask.as_str()), (Some(9191), "info"));
        assert!(!config.format_when_empty);
        assert!(config.administrators.is_empty());
    }

    #[test]
    fn administrators_are_named_by_number() {
        let text = FILE.replace("telemetry_port: 9191", "administrators: [1000, 1001]");
        assert_eq!(parse(&text).unwrap().administrators, [1000, 1001]);
        let error = parse(&FILE.replace("telemetry_port: 9191", "administrators: [alice]")).unwrap_err();
        assert!(error.contains("administrators") || error.contains("u32"), "{error}");
    }

    #[test]
    fn the_scrubber_runs_unless_told_otherwise() {
        assert_eq!(parse(FILE).unwrap().scrub, Some(ScrubConfig::default()));
        let with = |lines: &str| parse(&FILE.replace("  first_core: 0\n", lines));
        assert_eq!(with("  scrub: off\n").unwrap().scrub, None);
        let scrub = with("  scrub: timed\n  scrub_freq: 3600\n  scrub_rate: 2\n").unwrap().scrub.unwrap();
        assert_eq!((scrub.period.as_secs(), scrub.rate.bytes_per_second), (3600, 2 << 20));
        for (lines, reason) in [
            ("  scrub: lazy\n", "lazy"),
            ("  scrub_freq: 0\n", "`scrub_freq` is 0"),
            ("  scrub_rate: 0\n", "`scrub_rate` is 0"),
        ] {
            let error = with(lines).unwrap_err();
            assert!(error.contains(reason), "{lines}: {error}");
        }
    }

    #[test]
    fn a_wrong_server_file_is_refused_with_its_reason() {
        for (from, to, reason) in [
            ("targets: 2", "targets: 0", "0 targets"),
            ("targets: 2", "targets: 20", "for 20 targets"),
            ("targets: 2", "tragets: 2", "tragets"),
            ("class: ram", "class: rma", "rma"),
            ("[/srv/daos/blocks]", "[/elsewhere]", "outside `scm_mount`"),
            ("telemetry_port: 9191", "socket_dir: /run/other", "is not `scm_mount`"),
        ] {
            let error = parse(&FILE.replace(from, to)).unwrap_err();
            assert!(error.contains(reason), "{to}: {error}");
        }
    }

    #[test]
    fn fabrics_are_named() {
        assert!(Fabrics::parse("local").unwrap().network.is_none());
        assert!(Fabrics::parse("tcp, local").unwrap().local);
        assert!(Fabrics::parse("verbs").unwrap_err().to_string().contains("verbs"));
    }
}
