//! An engine process in a folder of its own, and the programs that talk to it.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use daos::{Client, FabricChoice, System};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Names the program that this binary shall be.
pub const PROGRAM: &str = "PROGRAM";
/// After this long something has gone wrong for good.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `found` is something.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        thread::sleep(LOOK_INTERVAL);
    }
}

/// What a program did.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// It worked; what it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == Some(0) && self.stderr.is_empty(), "{self:?}");
        self.stdout
    }

    /// It failed with exit code 1 and one line that holds each of `parts`.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:?}");
        let line = self.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {self:?}"));
        assert!(!line.contains('\n') && line.len() < 400, "one line: {self:?}");
        for part in parts {
            assert!(line.contains(part), "no {part:?} in {line:?}");
        }
    }
}

/// Runs a program to its end.
pub fn output(command: &mut Command, input: &[u8]) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("it starts");
    let mut stdin = process.stdin.take().expect("piped");
    let input = input.to_vec();
    // It may well end without having read everything.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = process.wait_with_output().expect("it ends");
    writer.join().expect("the writer ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Output { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `daos_engine`, without arguments.
pub fn engine_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daos_engine"));
    command.env_remove("DAOS_DIR").env_remove("DAOS_LOG").env_remove("DAOS_AGENT_FILE");
    command
}

/// `daos` or `dmg`, without arguments.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(PROGRAM, name).env_remove("DAOS_DIR").env_remove("DAOS_AGENT_FILE");
    command
}

/// A development engine of two targets.
pub struct Engine {
    folder: TempDir,
    process: Option<Child>,
    arguments: Vec<String>,
}

impl Engine {
    /// Starts one in an empty folder and waits until it serves.
    pub fn start() -> Self {
        Self::start_with(&["--size", "1GiB"])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("daos-programs-").tempdir().expect("a folder");
        let arguments = arguments.iter().map(|argument| argument.to_string()).collect();
        let mut engine = Self { folder, process: None, arguments };
        engine.start_again();
        engine
    }

    /// Starts it in the folder as it is and waits until it serves.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        // What a killed engine left there would be taken for the new one's.
        let _ = fs::remove_file(self.dir().join("daos.json"));
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let process = engine_command()
            .args(["--dev", "--targets", "2", "--log", "info", "--dir"])
            .arg(self.dir())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.process = Some(process.expect("the engine starts"));
        wait_for("address file", || {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().expect("a child"));
            assert!(ended.is_none(), "the engine ended: {}", self.log());
            self.dir().join("daos.json").exists().then_some(())
        });
    }

    /// The folder that it uses.
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("engine")
    }

    /// A folder for what belongs to the test.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it has logged since the first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().expect("a child").is_none())
    }

    /// Ends it with a signal and waits.
    pub fn signal(&mut self, signal: Signal) -> ExitStatus {
        let process = self.process.as_ref().expect("it runs");
        kill_process(Pid::from_child(process), signal).expect("signalled");
        self.end()
    }

    /// Waits until it ends by itself.
    pub fn end(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("it runs");
        let status = wait_for("end of the engine", || process.try_wait().expect("a child"));
        self.process = None;
        status
    }

    /// Runs `daos` or `dmg` with it.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Output {
        self.run_with(name, arguments, b"")
    }

    /// Runs `daos` or `dmg` with it and this standard input.
    pub fn run_with(&self, name: &str, arguments: &[&str], input: &[u8]) -> Output {
        output(program(name).arg("--dir").arg(self.dir()).args(arguments), input)
    }

    pub fn daos(&self, arguments: &[&str]) -> Output {
        self.run("daos", arguments)
    }

    pub fn dmg(&self, arguments: &[&str]) -> Output {
        self.run("dmg", arguments)
    }

    /// Makes pool `tank` of `size` with containers `box` and `tree` (POSIX).
    pub fn make(&self, size: &str) {
        self.dmg(&["pool", "create", "--size", size, "tank"]).ok();
        self.daos(&["container", "create", "tank", "box"]).ok();
        self.daos(&["container", "create", "tank", "tree", "--type", "POSIX"]).ok();
    }

    /// A client of it in this process.
    pub fn client(&self, choice: FabricChoice) -> Client {
        let system = System::read(&self.dir()).expect("the engine's file");
        Client::connect_to(&system, choice).expect("a client")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if thread::panicking() {
            println!("the engine's log:\n{}", self.log());
        }
    }
}
