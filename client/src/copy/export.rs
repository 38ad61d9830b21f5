//! From a container to the local file system.

use std::{
    cell::RefCell,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use daos_dsp::{Directory, File, FileType, Inode, Store};
use daos_dsr::client::Anchor;
use daos_xstream::{Env, join_all};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::{
    CopyError, CopyOptions, container,
    job::{Job, Pipe},
    local,
};

pub(super) async fn start<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: &[u8],
    to: &Path,
    directories: &mut Vec<(PathBuf, Inode)>,
) -> Result<(), CopyError> {
    let failed = |error| container(Path::new(OsStr::from_bytes(from)), error);
    let inode = job.fs.stat(from).await.map_err(failed)?;
    if inode.file_type == FileType::Directory {
        let directory = job.fs.open_directory(from).await.map_err(failed)?;
        // The tree's own place may be a link: who names it on the command line means what it leads to.
        if !to.is_dir() {
            make_local_directory(to)?;
        }
        directories.push((to.to_owned(), inode));
        return export_tree(job, directory, to, directories).await;
    }
    let entry = from.strip_suffix(b"/").unwrap_or(from);
    let (parent, name) = match entry.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&entry[..slash + 1], &entry[slash + 1..]),
        None => (&b"/"[..], entry),
    };
    let parent = job.fs.open_directory(parent).await.map_err(failed)?;
    export_entry(job, parent, name.to_vec(), to.to_owned(), Links::Follow).await.map(drop)
}

fn make_local_directory(path: &Path) -> Result<(), CopyError> {
    // Writable for us until its attributes are set at the end.
    let make = || fs::DirBuilder::new().mode(0o700).create(path);
    let made = match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => Ok(()),
            // A link that an earlier copy has left would lead out of the tree.
            Ok(found) if found.is_symlink() => fs::remove_file(path).and_then(|()| make()),
            _ => Err(error),
        },
        made => made,
    };
    made.map_err(|error| local(path, error))
}

/// What becomes of a link that stands where a file shall be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    /// The place was named by whoever copies, and means what it leads to: `/dev/stdout` is one.
    Follow,
    /// It was left in the tree by an earlier copy, and may lead anywhere.
    Replace,
}

/// Opens a file for writing, empty.
fn make_local_file(path: &Path, links: Links) -> io::Result<fs::File> {
    let flags = match links {
        Links::Follow => rustix::fs::OFlags::empty(),
        Links::Replace => rustix::fs::OFlags::NOFOLLOW,
    };
    let open = || {
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
    };
    match open() {
        Err(error)
            if links == Links::Replace
                && error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) =>
        {
            fs::remove_file(path)?;
            open()
        }
        opened => opened,
    }
}

/// What an export has found to be a directory.
type Found<T> = Rc<RefCell<Vec<(Directory<T>, PathBuf, Inode)>>>;

/// Copies a tree. Whether a name is a file or a directory shows only when it is fetched, so every name is a task, and
/// directories that turn up are gone through once the page of their parent is done.
async fn export_tree<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    directory: Directory<T>,
    to: &Path,
    directories: &mut Vec<(PathBuf, Inode)>,
) -> Result<(), CopyError> {
    let found: Found<T> = Rc::default();
    let mut pending = vec![(directory, to.to_owned())];
    loop {
        let Some((directory, path)) = pending.pop() else {
            // Names under way may still turn out to be directories.
            let _permits =
                join_all((0..job.options.files_in_flight.max(1)).map(|_| job.files.acquire())).await;
            let more: Vec<_> = found.borrow_mut().drain(..).collect();
            if more.is_empty() || job.has_failed() {
                return Ok(());
            }
            for (directory, path, inode) in more {
                make_local_directory(&path)?;
                directories.push((path.clone(), inode));
                pending.push((directory, path));
            }
            continue;
        };
        job.done(|progress| progress.directories += 1);
        let mut anchor = Some(Anchor::default());
        while let Some(from) = anchor {
            let page = directory.list(&from, 512).await.map_err(|error| container(&path, error))?;
            for name in page.items {
                let to = path.join(OsStr::from_bytes(&name));
                let (task, parent, found) = (job.clone(), directory.clone(), found.clone());
                job.start(async move {
                    if let Some(inode) =
                        export_entry(&task, parent.clone(), name.clone(), to.clone(), Links::Replace).await?
                    {
                        let child =
                            parent.open_directory(&name).await.map_err(|error| container(&to, error))?;
                        found.borrow_mut().push((child, to, inode));
                    }
                    Ok(())
                })
                .await;
                if job.has_failed() {
                    return Ok(());
                }
            }
            anchor = page.next;
        }
    }
}

/// Copies a file or link; of a directory, returns its attributes.
async fn export_entry<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    parent: Directory<T>,
    name: Vec<u8>,
    to: PathBuf,
    links: Links,
) -> Result<Option<Inode>, CopyError> {
    let (inode, first) = parent.open_and_read(&name).await.map_err(|error| container(&to, error))?;
    match inode.file_type {
        FileType::Directory => return Ok(Some(inode)),
        FileType::Symlink => {
            let target = parent.readlink(&name).await.map_err(|error| container(&to, error))?;
            match fs::symlink_metadata(&to) {
                Ok(meta) if !meta.is_dir() => fs::remove_file(&to).map_err(|error| local(&to, error))?,
                _ => {}
            }
            std::os::unix::fs::symlink(OsStr::from_bytes(&target), &to).map_err(|error| local(&to, error))?;
            set_local_attributes(&to, &inode, job.options).map_err(|error| local(&to, error))?;
            job.done(|progress| progress.links += 1);
        }
        FileType::File => {
            let target = make_local_file(&to, links).map_err(|error| local(&to, error))?;
            target.write_all_at(&first, 0).map_err(|error| local(&to, error))?;
            let size = inode.size;
            if size > first.len() as u64 {
                let file = parent.open(&name).await.map_err(|error| container(&to, error))?;
                export_chunks(job, &file, Rc::new(target), &to, size).await?;
            }
            set_local_attributes(&to, &inode, job.options).map_err(|error| local(&to, error))?;
            job.done(|progress| {
                progress.files += 1;
                progress.bytes += size;
            });
        }
    }
    Ok(None)
}

async fn export_chunks<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    file: &File<T>,
    target: Rc<fs::File>,
    path: &Path,
    size: u64,
) -> Result<(), CopyError> {
    let pipe = Pipe::new();
    for (offset, length) in job.chunks_of(size) {
        let permit = job.chunks.acquire().await;
        if pipe.has_failed() || job.has_failed() {
            break;
        }
        let buffer = job.buffer(length);
        let (job, file, target, path) = (job.clone(), file.clone(), target.clone(), path.to_owned());
        pipe.start(&job.env.clone(), async move {
            let (buffer, result) = file.read_chunk(offset, buffer).await;
            let result = match result {
                Ok(()) => target.write_all_at(buffer.as_slice(), offset).map_err(|error| local(&path, error)),
                Err(error) => Err(container(&path, error)),
            };
            job.give_back(buffer);
            drop(permit);
            result
        });
    }
    pipe.finish().await
}

/// Gives a local file, link or directory the attributes of its original.
pub(super) fn set_local_attributes(path: &Path, inode: &Inode, options: CopyOptions) -> io::Result<()> {
    if options.owners && rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(inode.uid), Some(inode.gid))?;
    }
    if inode.file_type != FileType::Symlink {
        // After the owner: a change of owner clears bits of the mode.
        fs::set_permissions(path, fs::Permissions::from_mode(inode.permissions))?;
    }
    let time = |nanoseconds: u64| {
        let nanoseconds = nanoseconds as i64;
        Timespec {
            tv_sec: nanoseconds.div_euclid(1_000_000_000),
            tv_nsec: nanoseconds.rem_euclid(1_000_000_000) as _,
        }
    };
    let times = Timestamps { last_access: time(inode.accessed), last_modification: time(inode.modified) };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
