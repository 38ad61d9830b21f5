//! The engine's folder: who may use it, how it is formatted, and what it remembers.
//!
//! ```text
//! DIR/engine.lock        locked by the running engine
//! DIR/superblock.json    what this storage is; written once, when it is formatted
//! DIR/daos.json          where clients reach the running engine; removed when it stops
//! DIR/daos.sock          socket of the `local` fabric; removed when it stops
//! DIR/pools/UUID/N/      target N's share of a pool: heap, log, blocks
//! ```
//!
//! # Invariants
//!
//! * One engine per folder, by the kernel's lock on `engine.lock`: it goes with the process, however that ends.
//! * The folder is the engine's user's and nobody else may write to it; no link in it is followed. What only the engine needs is for it
//!   alone (0600, folders 0700), its locks among it: whoever can open a file can lock it. `daos.json` and `daos.sock` are for
//!   everybody who can reach the folder: a client is told apart by who it is, not by what it can see.
//! * Storage without a valid superblock is never written to, except by an explicit format, and what lies in `pools/` without a
//!   superblock is not taken for nothing.
//! * The superblock appears whole or not at all: it is written beside its place, flushed, and renamed.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::Config;

/// Version of the superblock and of the folder's layout.
const FORMAT_VERSION: u32 = 1;
const MAGIC: &str = "daos-rs engine storage";

/// What the storage remembers about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    magic: String,
    format_version: u32,
    /// Identity of this storage.
    pub uuid: Uuid,
    /// Name of the system.
    pub system: String,
    /// Number of the engine within the system.
    pub rank: u32,
    /// Number of targets.
    pub targets: u32,
    /// Bytes of the memory tier of one target.
    pub memory_bytes_per_target: u64,
    /// Bytes of the block tier of one target.
    pub block_bytes_per_target: u64,
}

/// The superblock as it lies in the file: its text, and the CRC32C of that text.
#[derive(Serialize, Deserialize)]
struct Sealed {
    crc32c: u32,
    superblock: Superblock,
}

/// A folder that this process, and no other, uses.
pub struct Storage {
    directory: PathBuf,
    // Held for its lock.
    _lock: File,
}

/// Why the storage cannot be used. Nothing on it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Another engine has it.
    #[error("{0}: another engine uses this folder; stop it (dmg system stop) or choose another --dir")]
    InUse(PathBuf),
    /// It is not formatted.
    #[error("{0}: not formatted; run `dmg storage format`, or start with --dev")]
    NotFormatted(PathBuf),
    /// It holds something that is not ours.
    #[error("{directory}: not empty and not DAOS storage (it holds {found:?}); choose an empty folder")]
    Foreign {
        /// The folder.
        directory: PathBuf,
        /// A name in it.
        found: String,
    },
    /// It is no folder.
    #[error("{0}: not a folder; choose another --dir")]
    NoFolder(PathBuf),
    /// Somebody else owns it, or may write to it.
    #[error("{directory}: {why}; an engine needs a folder of its own that nobody else may write to")]
    NotOurs {
        /// The folder.
        directory: PathBuf,
        /// Whose it is.
        why: String,
    },
    /// A name of ours is a link.
    #[error("{0}: a symbolic link, and an engine follows none in its folder; remove it")]
    Link(PathBuf),
    /// There are pools, and no superblock.
    #[error(
        "{0}: superblock.json is missing although pools/ holds something; restore it from a copy, or remove pools/ if that data may be \
         lost"
    )]
    SuperblockMissing(PathBuf),
    /// The superblock does not match its checksum, or cannot be read as one.
    #[error(
        "{path}: the superblock is damaged ({why}); restore it from a copy, or format anew, which loses all data"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// A newer or unknown format.
    #[error(
        "{path}: format version {found} is unknown to this engine (it knows {FORMAT_VERSION}); use the engine that wrote it"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The version that it states.
        found: u32,
    },
    /// It is formatted for something else than what was asked for.
    #[error("{directory}: formatted with {what}; start with that, or format anew, which loses all data")]
    Mismatch {
        /// The folder.
        directory: PathBuf,
        /// What it is formatted with.
        what: String,
    },
    /// It is formatted already.
    #[error("{0}: formatted already; add --force to lose all data in it")]
    Formatted(PathBuf),
    /// The sizes do not fit on the device.
    #[error("{directory}: {need} bytes asked for, {free} free on the device; choose a smaller size")]
    TooLarge {
        /// The folder.
        directory: PathBuf,
        /// Bytes asked for.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// The file system failed.
    #[error("{path}: {error}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
}

impl Storage {
    /// Takes the folder for this process; makes it if it is not there.
    pub fn lock(directory: &Path) -> Result<Self, StorageError> {
        let failed = |error| StorageError::Io { path: directory.to_owned(), error };
        if fs::metadata(directory).is_ok_and(|found| !found.is_dir()) {
            return Err(StorageError::NoFolder(directory.to_owned()));
        }
        make_folder(directory).map_err(failed)?;
        check_owner(directory)?;
        let ours = [
            "engine.lock",
            "superblock.json",
            "superblock.json.new",
            "daos.json",
            "daos.json.new",
            "daos.sock",
            "daos.sock.lock",
            "pools",
        ];
        for entry in fs::read_dir(directory).map_err(failed)? {
            let found = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            // A fresh file system has this folder at its root.
            if !ours.contains(&found.as_str()) && found != "lost+found" {
                return Err(StorageError::Foreign { directory: directory.to_owned(), found });
            }
        }
        let lock_path = directory.join("engine.lock");
        let lock = private(OpenOptions::new().create(true).truncate(false).write(true))
            .open(&lock_path)
            .map_err(|error| at(lock_path, error))?;
        // An earlier version made it readable for everybody.
        lock.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory: directory.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StorageError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the superblock.
    pub fn superblock(&self) -> Result<Superblock, StorageError> {
        let path = self.directory.join("superblock.json");
        let mut text = Vec::new();
        let file = private(OpenOptions::new().read(true)).open(&path);
        match file.and_then(|mut file| file.read_to_end(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StorageError::NotFormatted(self.directory.clone()));
            }
            Err(error) => return Err(at(path, error)),
        }
        // The version is looked at before the rest: another version may have other fields.
        let value: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| StorageError::Damaged { path: path.clone(), why: error.to_string() })?;
        let found =
            value["superblock"]["format_version"].as_u64().and_then(|version| u32::try_from(version).ok());
        if let Some(found) = found.filter(|found| *found != FORMAT_VERSION) {
            return Err(StorageError::UnknownFormat { path, found });
        }
        let sealed: Sealed = serde_json::from_value(value)
            .map_err(|error| StorageError::Damaged { path: path.clone(), why: error.to_string() })?;
        if sealed.superblock.magic != MAGIC || sealed.crc32c != sealed.superblock.checksum() {
            return Err(StorageError::Damaged { path, why: "its checksum does not match".into() });
        }
        Ok(sealed.superblock)
    }

    /// Checks that the storage is what `config` asks for, formats it if it is empty and may be, and returns what it is.
    pub fn open_or_format(&self, config: &Config, uuid: Uuid) -> Result<Superblock, StorageError> {
        let superblock = match self.superblock() {
            Err(StorageError::NotFormatted(_)) if config.format_when_empty => {
                self.format(config, uuid, false)?
            }
            other => other?,
        };
        if superblock.targets != config.targets {
            let what = format!("{} targets, not {}", superblock.targets, config.targets);
            return Err(StorageError::Mismatch { directory: self.directory.clone(), what });
        }
        if superblock.system != config.system {
            let what = format!("system name {:?}, not {:?}", superblock.system, config.system);
            return Err(StorageError::Mismatch { directory: self.directory.clone(), what });
        }
        let formatted = (superblock.memory_bytes_per_target, superblock.block_bytes_per_target);
        let wanted = tiers(config);
        if formatted != wanted {
            let what = format!(
                "{} bytes of memory and {} of blocks for each target, not {} and {}",
                formatted.0, formatted.1, wanted.0, wanted.1
            );
            // A development engine's size is for the format only.
            if !config.format_when_empty {
                return Err(StorageError::Mismatch { directory: self.directory.clone(), what });
            }
            tracing::info!("formatted with {what}: the sizes stay");
        }
        Ok(superblock)
    }

    /// Formats the storage; with `force` also over data, which is lost.
    pub fn format(&self, config: &Config, uuid: Uuid, force: bool) -> Result<Superblock, StorageError> {
        if !force && !matches!(self.superblock(), Err(StorageError::NotFormatted(_))) {
            return Err(StorageError::Formatted(self.directory.clone()));
        }
        let failed = |error| StorageError::Io { path: self.directory.clone(), error };
        let pools = self.directory.join("pools");
        if !force && fs::read_dir(&pools).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(StorageError::SuperblockMissing(self.directory.clone()));
        }
        let space = rustix::fs::statvfs(&self.directory).map_err(|error| failed(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if config.size > free {
            return Err(StorageError::TooLarge {
                directory: self.directory.clone(),
                need: config.size,
                free,
            });
        }
        let (memory_bytes_per_target, block_bytes_per_target) = tiers(config);
        let superblock = Superblock {
            magic: MAGIC.into(),
            format_version: FORMAT_VERSION,
            uuid,
            system: config.system.clone(),
            rank: 0,
            targets: config.targets,
            memory_bytes_per_target,
            block_bytes_per_target,
        };
        // The superblock goes first: storage that is being cleared must not look whole.
        remove_if_there(&self.directory.join("superblock.json")).map_err(failed)?;
        sync_folder(&self.directory).map_err(failed)?;
        match fs::remove_dir_all(&pools) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&pools).map_err(failed)?;
        let sealed = Sealed { crc32c: superblock.checksum(), superblock: superblock.clone() };
        let text = serde_json::to_vec_pretty(&sealed).expect("a superblock is plain data");
        write_whole(&self.directory.join("superblock.json"), &text, 0o600).map_err(failed)?;
        Ok(superblock)
    }

    /// Tells clients where the engine is.
    pub fn publish(&self, addresses: &impl Serialize) -> Result<(), StorageError> {
        let path = self.directory.join("daos.json");
        let text = serde_json::to_vec_pretty(addresses).expect("addresses are plain data");
        write_whole(&path, &text, 0o644).map_err(|error| StorageError::Io { path, error })
    }

    /// Takes back what only a running engine leaves in its folder.
    pub fn withdraw(&self) {
        // The lock of the socket is free or held by this process: the folder is ours.
        for name in ["daos.json", "daos.sock", "daos.sock.lock"] {
            if let Err(error) = remove_if_there(&self.directory.join(name)) {
                tracing::warn!("{name}: {error}");
            }
        }
    }
}

impl Superblock {
    fn checksum(&self) -> u32 {
        crc32c::crc32c(&serde_json::to_vec(self).expect("a superblock is plain data"))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Bytes of the memory tier and of the block tier of each target.
fn tiers(config: &Config) -> (u64, u64) {
    let whole_blocks = |bytes: u64| bytes / u64::from(config.targets) / 4096 * 4096;
    (whole_blocks(config.memory_size), whole_blocks(config.size - config.memory_size))
}

/// Has a file opened for this process alone, and never through a link.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
}

fn at(path: PathBuf, error: io::Error) -> StorageError {
    match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::LOOP) => StorageError::Link(path),
        _ => StorageError::Io { path, error },
    }
}

/// Makes a folder and those above it that are not there, so that they stay.
fn make_folder(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    for folder in missing.into_iter().filter(|folder| !folder.as_os_str().is_empty()) {
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Others could put anything into a folder that they may write to, or take everything out of it.
fn check_owner(directory: &Path) -> Result<(), StorageError> {
    let not_ours = |why: String| Err(StorageError::NotOurs { directory: directory.to_owned(), why });
    let found =
        fs::metadata(directory).map_err(|error| StorageError::Io { path: directory.to_owned(), error })?;
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us {
        return not_ours(format!("belongs to user {}, and the engine runs as {us}", found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        return not_ours(format!("mode {:o} lets others write to it (chmod go-w)", found.mode() & 0o7777));
    }
    Ok(())
}

fn write_whole(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    // Whatever is there is a leftover, or a link: it goes, and is not written through.
    remove_if_there(Path::new(&beside))?;
    let mut file = private(OpenOptions::new().create_new(true).write(true)).mode(mode).open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Fabrics;

    fn config(directory: &Path, targets: u32) -> Config {
        let fabrics = Fabrics { local: true, network: None };
        Config::development(directory.to_owned(), targets, 1 << 30, fabrics).unwrap()
    }

    #[test]
    fn a_second_engine_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Storage::lock(folder.path()).unwrap();
        assert!(matches!(Storage::lock(folder.path()), Err(StorageError::InUse(_))));
        drop(first);
        Storage::lock(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_with_other_things_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "years").unwrap();
        assert!(matches!(Storage::lock(folder.path()), Err(StorageError::Foreign { .. })));
        assert!(!folder.path().join("engine.lock").exists());
    }

    #[test]
    fn what_was_formatted_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::lock(folder.path()).unwrap();
        let formatted = storage.open_or_format(&config(folder.path(), 2), Uuid::from_u128(7)).unwrap();
        assert_eq!(storage.open_or_format(&config(folder.path(), 2), Uuid::from_u128(8)).unwrap(), formatted);
        assert_eq!(
            (formatted.memory_bytes_per_target, formatted.block_bytes_per_target),
            (128 << 20, 384 << 20)
        );
        let other = storage.open_or_format(&config(folder.path(), 3), Uuid::nil());
        assert!(matches!(other, Err(StorageError::Mismatch { .. })));
        assert!(matches!(
            storage.format(&config(folder.path(), 3), Uuid::nil(), false),
            Err(StorageError::Formatted(_))
        ));
    }

    #[test]
    fn only_an_explicit_format_writes_to_unformatted_storage() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::lock(folder.path()).unwrap();
        let mut config = config(folder.path(), 2);
        config.format_when_empty = false;
        let outcome = storage.open_or_format(&config, Uuid::nil());
        assert!(matches!(outcome, Err(StorageError::NotFormatted(_))));
        config.size = u64::MAX;
        assert!(matches!(storage.format(&config, Uuid::nil(), false), Err(StorageError::TooLarge { .. })));
    }

    /// `daos.json.new` was written through a link, to wherever it led; locks could be held by whoever could read them.
    #[test]
    fn links_in_the_folder_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "years").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let link = |name: &str| std::os::unix::fs::symlink(&victim, folder.path().join(name)).unwrap();
        let remove = |name: &str| fs::remove_file(folder.path().join(name)).unwrap();
        link("engine.lock");
        assert!(matches!(Storage::lock(folder.path()), Err(StorageError::Link(_))));
        remove("engine.lock");
        let storage = Storage::lock(folder.path()).unwrap();
        link("superblock.json");
        assert!(matches!(storage.superblock(), Err(StorageError::Link(_))));
        remove("superblock.json");
        link("superblock.json.new");
        link("daos.json.new");
        storage.open_or_format(&config(folder.path(), 2), Uuid::from_u128(7)).unwrap();
        storage.publish(&"here").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "years");
        let mode = |name: &str| fs::symlink_metadata(folder.path().join(name)).unwrap().mode() & 0o777;
        assert_eq!([mode("engine.lock"), mode("superblock.json"), mode("pools")], [0o600, 0o600, 0o700]);
        assert_eq!(mode("daos.json") | 0o044, 0o644, "whoever may come in may read it");
    }

    /// Anybody could have replaced everything in a folder that all may write to.
    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("new").join("engine");
        drop(Storage::lock(&folder).unwrap());
        for (mode, fits) in [(0o777, false), (0o1777, false), (0o775, false), (0o755, true), (0o700, true)] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            match Storage::lock(&folder) {
                Ok(_) => assert!(fits, "{mode:o}"),
                Err(StorageError::NotOurs { .. }) => assert!(!fits, "{mode:o}"),
                Err(other) => panic!("{mode:o}: {other}"),
            }
        }
    }

    /// A development engine took a folder whose superblock had been lost for an empty one, and removed its pools.
    #[test]
    fn pools_without_a_superblock_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::lock(folder.path()).unwrap();
        let config = config(folder.path(), 2);
        storage.open_or_format(&config, Uuid::from_u128(7)).unwrap();
        let pool = folder.path().join("pools").join("a pool");
        fs::create_dir(&pool).unwrap();
        fs::remove_file(folder.path().join("superblock.json")).unwrap();
        for outcome in
            [storage.open_or_format(&config, Uuid::nil()), storage.format(&config, Uuid::nil(), false)]
        {
            let error = outcome.unwrap_err();
            assert!(matches!(error, StorageError::SuperblockMissing(_)), "{error}");
        }
        assert!(pool.exists());
        storage.format(&config, Uuid::nil(), true).unwrap();
        assert!(!pool.exists());
    }

    /// Sizes that had been changed in the server file were ignored without a word.
    #[test]
    fn changed_sizes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::lock(folder.path()).unwrap();
        let mut config = config(folder.path(), 2);
        storage.open_or_format(&config, Uuid::from_u128(7)).unwrap();
        config.size += 1 << 30;
        storage.open_or_format(&config, Uuid::nil()).expect("a development engine's size is for the format");
        config.format_when_empty = false;
        let error = storage.open_or_format(&config, Uuid::nil()).unwrap_err();
        assert!(matches!(error, StorageError::Mismatch { .. }), "{error}");
    }

    #[test]
    fn every_flipped_bit_of_a_superblock_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::lock(folder.path()).unwrap();
        let formatted = storage.open_or_format(&config(folder.path(), 2), Uuid::from_u128(7)).unwrap();
        let path = folder.path().join("superblock.json");
        let text = fs::read(&path).unwrap();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            match storage.superblock() {
                // White space between the fields carries nothing.
                Ok(found) => assert_eq!(found, formatted, "bit {bit}"),
                Err(StorageError::Damaged { .. } | StorageError::UnknownFormat { .. }) => {}
                Err(other) => panic!("bit {bit}: {other}"),
            }
        }
    }
}
