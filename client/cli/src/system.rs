//! Where the engine is: the flags that every command of both programs has.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use daos::{Client, FabricChoice, Label, System};

use crate::output::Failure;

/// How to find the system, and how to answer.
#[derive(Clone, Debug, Args)]
pub struct SystemArguments {
    /// Folder of a development engine.
    #[arg(long, env = "DAOS_DIR", global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// File with the addresses of the system's engines, as an engine writes it (`daos.json`).
    #[arg(long, env = "DAOS_AGENT_FILE", global = true, value_name = "FILE", conflicts_with = "dir")]
    pub agent_file: Option<PathBuf>,
    /// Answer with one JSON object.
    #[arg(long, short = 'j', global = true)]
    pub json: bool,
}

impl SystemArguments {
    /// Connects to the system that the flags, or the environment, name.
    pub fn connect(&self) -> Result<Client, Failure> {
        let path = self.dir.as_deref().or(self.agent_file.as_deref());
        Ok(Client::connect_to(&System::find(path)?, FabricChoice::Nearest)?)
    }
}

/// How long a program waits for the system module.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A label, or a dash.
pub fn printed(label: &Option<Label>) -> String {
    label.as_ref().map_or_else(|| "-".to_owned(), |label| label.as_str().to_owned())
}
