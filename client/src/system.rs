//! Where a system is: the file that an engine writes for its clients.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use daos_xstream::Address;
use serde::{Deserialize, Serialize};

use crate::DaosError;

/// Version of the protocol that this client speaks.
pub const PROTOCOL: u32 = 1;

/// The engines of a system and their addresses, as in `daos.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The system's name.
    pub system: String,
    /// The protocol that its engines speak.
    pub protocol: u32,
    /// The engines.
    pub ranks: Vec<Rank>,
}

/// An engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// Its number.
    pub rank: u32,
    /// Its targets.
    pub targets: Vec<RankTarget>,
}

/// A target of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankTarget {
    /// Its index.
    pub target: u32,
    /// Where it is reached, nearest first.
    pub addresses: Vec<Address>,
}

impl System {
    /// Reads the file; of a folder, its `daos.json`.
    pub fn read(path: &Path) -> Result<Self, DaosError> {
        let file: PathBuf = if path.is_dir() { path.join("daos.json") } else { path.to_owned() };
        let wrong = |why: String| DaosError::NoSystem { path: file.clone(), why };
        let text = fs::read_to_string(&file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => wrong("no engine is running there".to_owned()),
            _ => wrong(error.to_string()),
        })?;
        let system: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if system.protocol != PROTOCOL {
            let protocol = system.protocol;
            return Err(wrong(format!(
                "its engines speak protocol {protocol}, this program {PROTOCOL}: use programs of the same version"
            )));
        }
        if system.service_addresses().is_empty() {
            return Err(wrong("it names no address".to_owned()));
        }
        Ok(system)
    }

    /// Finds the system: at `path` if given, else where `DAOS_DIR` or `DAOS_AGENT_FILE` say.
    pub fn find(path: Option<&Path>) -> Result<Self, DaosError> {
        if let Some(path) = path {
            return Self::read(path);
        }
        for variable in ["DAOS_DIR", "DAOS_AGENT_FILE"] {
            if let Some(path) = env::var_os(variable) {
                return Self::read(Path::new(&path));
            }
        }
        Err(DaosError::NotNamed)
    }

    /// Addresses of the first target of the first engine: where the services are.
    pub fn service_addresses(&self) -> Vec<Address> {
        let first = self.ranks.first().and_then(|rank| rank.targets.first());
        first.map(|target| target.addresses.clone()).unwrap_or_default()
    }
}
