//! `ddb`: what a target holds, read from its files while no engine uses them.
//!
//! # Invariants
//!
//! * No file is ever written but by `upgrade`: the media that the store is given refuses to.
//! * A target whose engine runs is refused, and no engine starts on it while `ddb` looks.

#![forbid(unsafe_code)]

mod commands;
mod lock;
mod text;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use uuid::Uuid;

pub use world::{Files, ToolWorld, block_on};

/// What a command line says.
#[derive(Debug, Parser)]
#[command(
    name = "ddb",
    version,
    about = "Look into a stopped target: what its super-block, space, containers, objects, keys and log say",
    long_about = "Look into a stopped target: what its super-block, space, containers, objects, keys and log say.\n\n\
        A target is the folder with the files `heap`, `log` and (with a block tier) `blocks`; an engine keeps its\n\
        targets in DIR/pools/POOL/NUMBER. On persistent memory a target is one file.\n\
        Nothing but `upgrade` writes, and a target in use\n\
        is refused. What a crash left half done is shown as opening the target would find it.",
    after_help = "Examples:\n  \
        ddb /var/lib/daos/pools/3f8e…/0 superblock\n  \
        ddb /var/lib/daos/pools/3f8e…/0 ls                          # containers\n  \
        ddb /var/lib/daos/pools/3f8e…/0 ls CONTAINER                # its objects\n  \
        ddb /var/lib/daos/pools/3f8e…/0 ls CONTAINER OBJECT         # keys of it\n  \
        ddb /var/lib/daos/pools/3f8e…/0 ls CONTAINER OBJECT DKEY    # every version\n  \
        ddb /mnt/pmem0/target superblock --blocks /var/lib/daos/pools/3f8e…/0\n  \
        ddb -j /var/lib/daos/pools/3f8e…/0 dump >target.json\n\n\
        Exit codes: 0 done, 1 could not be done, 2 wrong command line, 3 `verify` found faults."
)]
pub struct Arguments {
    /// Print one JSON object.
    #[arg(short, long, global = true)]
    pub json: bool,
    /// The target's folder; on persistent memory, its file.
    pub target: PathBuf,
    /// The folder with `blocks` of a target on persistent memory, if it is not that of the file.
    #[arg(long, global = true, value_name = "FOLDER")]
    pub blocks: Option<PathBuf>,
    /// What to show.
    #[command(subcommand)]
    pub command: Command,
}

/// What to show.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The super-block: identity, format, sizes, where recovery begins
    Superblock,
    /// How arena and block tier are used
    Space,
    /// The tail of the log: the frames that opening the target would apply
    Log,
    /// Lists containers; objects of a container; keys of an object with all versions
    ///
    /// Keys are shown, and given, with other than printable ASCII bytes escaped: \x00, \n, \\.
    Ls {
        /// A container's UUID.
        container: Option<Uuid>,
        /// An object's ID, as listed.
        object: Option<String>,
        /// A key of a KV, or a dkey.
        key: Option<String>,
        /// An akey.
        akey: Option<String>,
    },
    /// Verifies every checksum and invariant
    Verify,
    /// Everything that is recorded (not the data), as JSON
    Dump {
        /// Only this container.
        container: Option<Uuid>,
    },
    /// Brings the target to the media format of this software; the only command that writes
    ///
    /// The target is verified first, and left as it is if anything is wrong. Older software cannot use it any more then.
    Upgrade,
}

/// A command that could not be done.
#[derive(Debug)]
pub struct Failure(pub String);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What a command found: for programs, and whether it is what it should be.
#[derive(Debug)]
pub struct Answer {
    /// What was asked for.
    pub value: serde_json::Value,
    /// `verify` found nothing wrong (true for all other commands).
    pub sound: bool,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json || matches!(arguments.command, Command::Dump { .. });
    match commands::run(&arguments) {
        Ok(answer) => {
            if json {
                println!("{}", serde_json::to_string_pretty(&answer.value).expect("plain data"));
            } else {
                print!("{}", text::of(&answer.value));
            }
            if answer.sound { ExitCode::SUCCESS } else { ExitCode::from(3) }
        }
        Err(Failure(message)) => {
            if json {
                println!("{}", serde_json::json!({ "error": message }));
            }
            eprintln!("ddb: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command.
pub fn run(arguments: &Arguments) -> Result<Answer, Failure> {
    commands::run(arguments)
}
