//! Where the engine is: the flags that every command of both programs has.

use std::path::PathBuf;

use clap::Args;

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
