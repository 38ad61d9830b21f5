//! The engine that is measured: one of our own in a temporary folder, or one that runs already.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use daos::{Client, FabricChoice, PoolSpec, System};
use daos_xstream::rpc::system;
use tempfile::TempDir;

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
    own: Option<Own>,
}

struct Own {
    process: Child,
    folder: TempDir,
}

impl Drop for Own {
    fn drop(&mut self) {
        // After an error: no engine may outlive the measurement. After a clean stop there is nothing left to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Engine {
    /// An engine that somebody else runs.
    pub fn running(directory: &Path, pool: String) -> Self {
        Self { directory: directory.to_owned(), pool, own: None }
    }

    /// Starts an engine with one target, which takes the first core, and makes a pool.
    pub fn start(scratch: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("daos_perf-").tempdir_in(scratch)?;
        let program = std::env::current_exe()?.with_file_name("daos_engine");
        let process = Command::new(&program)
            .args(["--dev", "--targets", "1", "--log", "error", "--size", &ENGINE_BYTES.to_string(), "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}: build it beside this program", program.display()))?;
        let mut own = Own { process, folder };
        let directory = own.folder.path().to_owned();
        wait_until_serving(&directory, &mut own.process)?;
        let engine = Self { directory, pool: "perf".to_owned(), own: Some(own) };
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

    /// The pool to work in.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Its process.
    pub fn pid(&self, client: &Client) -> anyhow::Result<u32> {
        if let Some(own) = &self.own {
            return Ok(own.process.id());
        }
        let endpoint = client.caller().endpoint();
        let address =
            self.system()?.service_addresses().first().cloned().context("the engine has no address")?;
        let peer = client.block_on(endpoint.connect(&address))?;
        Ok(client.block_on(system::query(endpoint, peer))?.pid)
    }

    /// Stops an engine of our own by SIGTERM and removes its folder.
    #[allow(clippy::disallowed_methods, reason = "a benchmark runs on the real machine")]
    pub fn stop(self) -> anyhow::Result<()> {
        let Some(mut own) = self.own else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&own.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let start = Instant::now();
        let status = loop {
            match own.process.try_wait()? {
                Some(status) => break status,
                None if start.elapsed() > STOP_TIMEOUT => bail!("the engine does not stop on SIGTERM"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        ensure!(status.success(), "the engine ended with {status}");
        Ok(())
    }
}

#[allow(clippy::disallowed_methods, reason = "a benchmark runs on the real machine")]
fn wait_until_serving(directory: &Path, process: &mut Child) -> anyhow::Result<()> {
    let start = Instant::now();
    while !directory.join("daos.json").exists() {
        if let Some(status) = process.try_wait()? {
            bail!("the engine ended with {status} before it served");
        }
        ensure!(start.elapsed() < START_TIMEOUT, "the engine does not serve after {START_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
