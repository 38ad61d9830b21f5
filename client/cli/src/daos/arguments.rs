//! The command line of `daos`. Names and words are DAOS's where the meaning is the same.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use daos_types::parse_size;

use crate::system::SystemArguments;

/// Work with DAOS pools, containers, objects and files.
#[derive(Debug, Parser)]
#[command(
    name = "daos",
    version,
    after_help = "A program finds the engine by --dir or DAOS_DIR (a development engine's folder) or --agent-file.\n\
                  Try: daos container create mypool mycont --type POSIX\n     \
                  daos filesystem copy --src /usr/share/doc --dst daos://mypool/mycont/doc"
)]
pub struct Daos {
    #[command(flatten)]
    pub system: SystemArguments,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pools: what there is and what is in it.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Containers: private object address spaces, with epochs and snapshots.
    #[command(subcommand, visible_alias = "cont")]
    Container(ContainerCommand),
    /// Files of a POSIX container.
    #[command(subcommand, visible_alias = "fs")]
    Filesystem(FilesystemCommand),
    /// Key-value objects.
    #[command(subcommand)]
    Kv(KvCommand),
    /// Byte-array objects.
    #[command(subcommand)]
    Array(ArrayCommand),
    /// Objects of any type.
    #[command(subcommand, visible_alias = "obj")]
    Object(ObjectCommand),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// State, space and targets of a pool.
    Query {
        /// Label or UUID of the pool.
        pool: String,
    },
    /// Containers of a pool.
    #[command(visible_alias = "list-cont")]
    ListContainers {
        /// Label or UUID of the pool.
        pool: String,
    },
}

/// A container within its pool.
#[derive(Debug, Args)]
pub struct ContainerPath {
    /// Label or UUID of the pool.
    pub pool: String,
    /// Label or UUID of the container.
    #[arg(value_name = "CONT")]
    pub container: String,
}

/// What a container is laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Layout {
    /// A POSIX namespace: files and folders.
    Posix,
    /// Objects, as the application likes.
    Unknown,
}

#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// Make a container.
    Create {
        /// Label or UUID of the pool.
        pool: String,
        /// Label of the new container.
        label: String,
        /// What it is laid out for.
        #[arg(long = "type", value_enum, default_value = "UNKNOWN", ignore_case = true)]
        layout: Layout,
    },
    /// Containers of a pool.
    List {
        /// Label or UUID of the pool.
        pool: String,
    },
    /// State, epochs and space of a container.
    Query {
        #[command(flatten)]
        container: ContainerPath,
    },
    /// Remove a container with everything in it.
    Destroy {
        #[command(flatten)]
        container: ContainerPath,
        /// Also when somebody has it open: their handles are evicted.
        #[arg(long, short)]
        force: bool,
    },
    /// Keep the newest committed epoch readable until the snapshot is destroyed.
    CreateSnap {
        #[command(flatten)]
        container: ContainerPath,
        /// This committed epoch instead of the newest.
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// Snapshots of a container.
    ListSnaps {
        #[command(flatten)]
        container: ContainerPath,
    },
    /// Remove a snapshot.
    DestroySnap {
        #[command(flatten)]
        container: ContainerPath,
        /// The snapshot's epoch.
        #[arg(long, visible_alias = "epc")]
        epoch: u64,
    },
}

#[derive(Debug, Subcommand)]
pub enum FilesystemCommand {
    /// Copy a tree between this machine and a container.
    Copy {
        /// A local path, or daos://POOL/CONT/PATH.
        #[arg(long)]
        src: String,
        /// Where to: a local path, or daos://POOL/CONT/PATH.
        #[arg(long)]
        dst: String,
        /// How many files are under way at a time.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
        depth: u32,
        /// No progress bar.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Names in a folder of a container.
    List {
        /// daos://POOL/CONT/PATH
        path: String,
        /// With type, mode, owner, size and time.
        #[arg(long, short)]
        long: bool,
    },
    /// Attributes of a file or folder of a container.
    Stat {
        /// daos://POOL/CONT/PATH
        path: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Store a value under a key.
    Put {
        #[command(flatten)]
        object: ObjectPath,
        /// The key.
        key: String,
        /// The value; `-` reads standard input.
        value: String,
        /// Write in this epoch, held and committed by this command, instead of the next free one.
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// Print the value of a key.
    Get {
        #[command(flatten)]
        object: ObjectPath,
        /// The key.
        key: String,
        /// As of this epoch, instead of the newest state.
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// Keys of an object.
    List {
        #[command(flatten)]
        object: ObjectPath,
        /// As of this epoch, instead of the newest state.
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// Remove a key; its history stays readable at older epochs.
    Del {
        #[command(flatten)]
        object: ObjectPath,
        /// The key.
        key: String,
        /// Remove in this epoch, held and committed by this command, instead of the next free one.
        #[arg(long)]
        epoch: Option<u64>,
    },
}

/// An object within its container.
#[derive(Debug, Args)]
pub struct ObjectPath {
    #[command(flatten)]
    pub container: ContainerPath,
    /// Object: HIGH.MIDDLE.LOW as printed by `daos object list`, or a number N for the N-th object of class SX.
    #[arg(value_name = "OID")]
    pub object: String,
}

#[derive(Debug, Subcommand)]
pub enum ArrayCommand {
    /// Write bytes at an offset.
    Write {
        #[command(flatten)]
        object: ObjectPath,
        /// First byte, with an optional unit.
        #[arg(long, default_value = "0", value_parser = parse_size)]
        offset: u64,
        /// File with the bytes; standard input if left out.
        #[arg(long, short)]
        input: Option<PathBuf>,
        /// Write in this epoch, held and committed by this command, instead of the next free one.
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// Read bytes from an offset.
    Read {
        #[command(flatten)]
        object: ObjectPath,
        /// First byte, with an optional unit.
        #[arg(long, default_value = "0", value_parser = parse_size)]
        offset: u64,
        /// How many bytes, with an optional unit; up to the end if left out.
        #[arg(long, value_parser = parse_size)]
        length: Option<u64>,
        /// File for the bytes; standard output if left out.
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// As of this epoch, instead of the newest state.
        #[arg(long)]
        epoch: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ObjectCommand {
    /// Objects of a container.
    List {
        #[command(flatten)]
        container: ContainerPath,
        /// As of this epoch, instead of the newest state.
        #[arg(long)]
        epoch: Option<u64>,
    },
}
