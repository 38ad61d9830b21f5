//! `daos_engine`: serves the DAOS targets of a storage node.

#![forbid(unsafe_code)]

use std::{fs::OpenOptions, process::ExitCode, sync::Mutex};

use anyhow::Context;
use clap::Parser;
use daos_engine::{arguments::Arguments, config::Config, node};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daos_engine: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let config = Arguments::parse().into_config()?;
    start_log(&config)?;
    node::serve(config)
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_mask).with_context(|| {
        format!("log filter {:?}: write for example info or daos_vos=debug,warn", config.log_mask)
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_thread_names(true);
    match &config.log_file {
        None => log.with_writer(std::io::stderr).with_ansi(false).init(),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.with_context(|| format!("log file {}", path.display()))?;
            log.with_writer(Mutex::new(file)).with_ansi(false).init();
        }
    }
    Ok(())
}
