//! The engine that is measured: one of our own in a temporary folder, or one that runs already.
//!
//! An engine of our own is run by a **keeper**: this program once more, with no other work than to wait for the end of its
//! input. The kernel closes that however the measuring process ends, by signals that nobody can catch too, and the keeper
//! then stops the engine and removes the folder.

use std::{
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use daos::{Client, FabricChoice, PoolSpec, System};
use daos_xstream::rpc::system;

/// Space of an engine of our own, and of the pool in it.
const ENGINE_BYTES: u64 = 6 << 30;
const POOL_BYTES: u64 = 4 << 30;
const POOL_SCM_BYTES: u64 = 1 << 30;
const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// An engine.
pub struct Engine {
    directory: PathBuf,
    pool: String,
    /// From the start of its process until it served; of an engine of our own.
    started_in: Option<Duration>,
    own: Option<Own>,
}

struct Own {
    keeper: Child,
    /// The engine's process.
    pid: u32,
}

impl Drop for Own {
    fn drop(&mut self) {
        // The end of its input tells the keeper to clean up; no engine may outlive the measurement.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Engine {
    /// An engine that somebody else runs.
    pub fn running(directory: &Path, pool: String) -> Self {
        Self { directory: directory.to_owned(), pool, started_in: None, own: None }
    }

    /// Starts an engine with one target, which takes the first core, and makes a pool.
    pub fn start(scratch: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("daos_perf-").tempdir_in(scratch)?;
        let mut keeper = Command::new(std::env::current_exe()?)
            .arg("--keep-engine")
            .arg(folder.path())
            // A group of its own, so that what the terminal tells this process does not reach it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the keeper of an engine")?;
        // From now on the keeper removes it.
        let directory = folder.keep();
        let output = keeper.stdout.take().context("the keeper has no output")?;
        let mut own = Own { keeper, pid: 0 };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        own.pid = line.trim().parse().context("the engine did not start")?;
        let started_in = Some(wait_until_serving(&directory, &mut own.keeper)?);
        let engine = Self { directory, pool: "perf".to_owned(), started_in, own: Some(own) };
        let client = engine.client(FabricChoice::Nearest)?;
        let spec = PoolSpec {
            label: Some(engine.pool.parse()?),
            bytes: POOL_BYTES,
            scm_bytes: Some(POOL_SCM_BYTES),
            owner: None,
            acl: None,
        };
        client.block_on(client.pool_create(&spec)).context("making a pool")?;
        Ok(engine)
    }

    /// Where it is.
    pub fn system(&self) -> anyhow::Result<System> {
        Ok(System::read(&self.directory)?)
    }

    /// A client of it over one fabric.
    pub fn client(&self, choice: FabricChoice) -> anyhow::Result<Client> {
        Ok(Client::connect_to(&self.system()?, choice)?)
    }

    /// How long an engine of our own took to serve on its empty folder.
    pub fn started_in(&self) -> Option<Duration> {
        self.started_in
    }

    /// The pool to work in.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Its process.
    pub fn pid(&self, client: &Client) -> anyhow::Result<u32> {
        if let Some(own) = &self.own {
            return Ok(own.pid);
        }
        let endpoint = client.caller().endpoint();
        let address =
            self.system()?.service_addresses().first().cloned().context("the engine has no address")?;
        let peer = client.block_on(endpoint.connect(&address))?;
        Ok(client.block_on(system::query(endpoint, peer))?.pid)
    }

    /// Stops an engine of our own, removes its folder, and says whether it ended well.
    pub fn stop(self) -> anyhow::Result<()> {
        let Some(mut own) = self.own else { return Ok(()) };
        drop(own.keeper.stdin.take());
        let status = own.keeper.wait()?;
        ensure!(status.success(), "the engine did not stop as it should");
        Ok(())
    }
}

/// The keeper: runs an engine in `folder` until the input ends, then stops it and removes the folder.
#[allow(
    clippy::disallowed_methods,
    reason = "a benchmark runs on the real machine, and its keeper is no engine"
)]
pub fn keep(folder: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe()?.with_file_name("daos_engine");
    let engine = Command::new(&program)
        .args(["--dev", "--targets", "1", "--log", "error", "--size", &ENGINE_BYTES.to_string(), "--dir"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}: build it beside this program", program.display()));
    let ended = engine.and_then(|mut engine| {
        println!("{}", engine.id());
        let pid = rustix::process::Pid::from_child(&engine);
        std::thread::spawn(move || stop_at_end_of_input(pid));
        let status = engine.wait()?;
        ensure!(status.success(), "the engine ended with {status}");
        Ok(())
    });
    std::fs::remove_dir_all(folder)?;
    ended
}

/// Waits for the end of the input and stops the engine by SIGTERM, or, if it takes too long, by force. This process ends,
/// and with it this thread, when the engine has.
#[allow(clippy::disallowed_methods, reason = "a benchmark runs on the real machine")]
fn stop_at_end_of_input(engine: rustix::process::Pid) {
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let _ = rustix::process::kill_process(engine, rustix::process::Signal::TERM);
    std::thread::sleep(STOP_TIMEOUT);
    eprintln!("the engine does not stop on SIGTERM: it is killed");
    let _ = rustix::process::kill_process(engine, rustix::process::Signal::KILL);
}

#[allow(clippy::disallowed_methods, reason = "a benchmark runs on the real machine")]
fn wait_until_serving(directory: &Path, keeper: &mut Child) -> anyhow::Result<Duration> {
    let start = Instant::now();
    while !directory.join("daos.json").exists() {
        if let Some(status) = keeper.try_wait()? {
            bail!("the engine's keeper ended with {status} before it served");
        }
        ensure!(start.elapsed() < START_TIMEOUT, "the engine does not serve after {START_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(start.elapsed())
}
