//! The limit of a request: an echo straight over libfabric, between two processes on two cores.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use daos_xstream::Address;
use daos_xstream_ofi::pingpong::{Pace, Server, measure, pin_to_core};

use crate::FabricName;

const SERVER_CORE: usize = 0;
const WARM_UP: usize = 2000;
const REPETITIONS: usize = 3;

/// Median round trips over one provider.
pub struct Echo {
    /// Which provider.
    pub name: String,
    provider: &'static str,
    /// Microseconds by message length.
    median_us: BTreeMap<usize, f64>,
}

impl Echo {
    /// Measures messages of 64 bytes and 4 KiB.
    pub fn measure(fabric: FabricName, seconds: f64) -> anyhow::Result<Self> {
        let provider = match fabric {
            FabricName::Local => "shm",
            FabricName::Tcp => "tcp;ofi_rxm",
        };
        let mut median_us = BTreeMap::new();
        for bytes in [64, 4096] {
            let rounds = (seconds * if fabric == FabricName::Local { 100_000.0 } else { 20_000.0 }) as usize;
            // The best of several: a limit that something else disturbed would flatter what is held against it.
            let mut best = f64::INFINITY;
            for _ in 0..REPETITIONS {
                best = best.min(round_trip_us(provider, bytes, (rounds / REPETITIONS).max(1000))?);
            }
            median_us.insert(bytes, best);
        }
        Ok(Self { name: format!("raw libfabric echo over {provider}"), provider, median_us })
    }

    /// Measures once more, briefly.
    pub fn again_us(&self, bytes: usize) -> anyhow::Result<f64> {
        let rounds = if self.provider == "shm" { 10_000 } else { 1000 };
        round_trip_us(self.provider, bytes, rounds)
    }

    /// Round trips of 64 bytes to a server that sleeps on its descriptor when there is nothing to do, after `pause` of idling each.
    pub fn after_idling(&self, rounds: usize, pause: Duration) -> anyhow::Result<Vec<Duration>> {
        round_trips(self.provider, 64, Pace { warm_up: 2, rounds, pause })
    }

    /// Median round trip of a message of this length.
    pub fn us(&self, bytes: usize) -> f64 {
        self.median_us[&bytes]
    }
}

fn place(provider: &str, port: u16) -> anyhow::Result<Option<Address>> {
    let address = || Ok(format!("tcp://127.0.0.1:{port}").parse::<Address>()?);
    (provider != "shm").then(address).transpose()
}

fn round_trip_us(provider: &str, bytes: usize, rounds: usize) -> anyhow::Result<f64> {
    let mut times = round_trips(provider, bytes, Pace { warm_up: WARM_UP, rounds, pause: Duration::ZERO })?;
    times.sort_unstable();
    Ok(times[times.len() / 2].as_nanos() as f64 / 1e3)
}

/// A server that is to be idle between rounds parks.
fn round_trips(provider: &str, bytes: usize, pace: Pace) -> anyhow::Result<Vec<Duration>> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut server = Command::new(program)
        .args(["--echo-server", provider])
        .args((!pace.pause.is_zero()).then_some("--echo-parks"))
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the far side of an echo")?;
    let mut name = String::new();
    BufReader::new(server.stdout.take().context("the far side has no output")?).read_line(&mut name)?;
    let times = measure(provider, place(provider, 1)?.as_ref(), name.trim(), bytes, pace);
    if times.is_err() {
        server.kill()?;
    }
    let status = server.wait()?;
    let times = times.with_context(|| format!("echo over {provider}"))?;
    ensure!(status.success(), "the far side of the echo over {provider} failed");
    Ok(times)
}

/// The far side: prints its name, then answers.
pub fn serve(provider: &str, parks: bool) -> anyhow::Result<()> {
    // Nobody answers, or wants to be answered, once the near side is gone.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    pin_to_core(SERVER_CORE)?;
    let server = Server::open(provider, place(provider, 0)?.as_ref())?;
    println!("{}", server.name());
    Ok(server.serve(parks)?)
}
