//! From the local file system into a container.

use std::{
    fs,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use daos_dsp::{Directory, File, FsError, SetAttributes, Store};
use daos_xstream::{Env, join_all};

use super::{
    CopyError, container,
    job::{Job, Pipe},
    local,
};

pub(super) async fn start<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: &Path,
    meta: &fs::Metadata,
    to: &[u8],
) -> Result<(), CopyError> {
    let failed = |error| container(from, error);
    let attributes = job.attributes(meta);
    if meta.is_dir() {
        let (directory, fresh) = match job.fs.mkdir(to, attributes).await {
            Ok(directory) => {
                job.state.borrow_mut().made.push((from.to_owned(), directory.clone(), attributes));
                (directory, true)
            }
            Err(FsError::Exists(_)) => (job.fs.open_directory(to).await.map_err(failed)?, false),
            Err(error) => return Err(failed(error)),
        };
        return import_tree(job, from, directory, fresh).await;
    }
    let to = to.strip_suffix(b"/").unwrap_or(to);
    let (parent, name) = match to.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&to[..slash + 1], &to[slash + 1..]),
        None => (&b"/"[..], to),
    };
    let parent = job.fs.open_directory(parent).await.map_err(failed)?;
    import_entry(job, from.to_owned(), meta.clone(), parent, name.to_vec(), false).await
}

/// Copies a tree, directory by directory; files are started and not waited for.
async fn import_tree<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: &Path,
    directory: Directory<T>,
    fresh: bool,
) -> Result<(), CopyError> {
    let mut pending = vec![(from.to_owned(), directory, fresh)];
    while let Some((path, directory, fresh)) = pending.pop() {
        job.done(|progress| progress.directories += 1);
        for entry in fs::read_dir(&path).map_err(|error| local(&path, error))? {
            let entry = entry.map_err(|error| local(&path, error))?;
            let (from, name) = (entry.path(), entry.file_name().as_bytes().to_vec());
            let kind = entry.file_type().map_err(|error| local(&from, error))?;
            if kind.is_dir() {
                let meta = entry.metadata().map_err(|error| local(&from, error))?;
                let attributes = job.attributes(&meta);
                let (child, fresh) = match directory.mkdir(&name, attributes).await {
                    Ok(child) => {
                        job.state.borrow_mut().made.push((from.clone(), child.clone(), attributes));
                        (child, true)
                    }
                    Err(FsError::Exists(_)) => (
                        directory.open_directory(&name).await.map_err(|error| container(&from, error))?,
                        false,
                    ),
                    Err(error) => return Err(container(&from, error)),
                };
                pending.push((from, child, fresh));
                continue;
            }
            let (task, parent) = (job.clone(), directory.clone());
            job.start(async move {
                let meta = entry.metadata().map_err(|error| local(&from, error))?;
                import_entry(&task, from, meta, parent, name, fresh).await
            })
            .await;
            if job.has_failed() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Copies what is no directory.
async fn import_entry<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: PathBuf,
    meta: fs::Metadata,
    parent: Directory<T>,
    name: Vec<u8>,
    fresh: bool,
) -> Result<(), CopyError> {
    let attributes = job.attributes(&meta);
    if meta.is_symlink() {
        let target = fs::read_link(&from).map_err(|error| local(&from, error))?;
        let target = target.as_os_str().as_bytes();
        let mut made = parent.symlink(&name, target, attributes).await;
        if let Err(FsError::Exists(_)) = made {
            parent.unlink(&name).await.map_err(|error| container(&from, error))?;
            made = parent.symlink(&name, target, attributes).await;
        }
        made.map_err(|error| container(&from, error))?;
        job.done(|progress| progress.links += 1);
        return Ok(());
    }
    if !meta.is_file() {
        job.done(|progress| progress.skipped += 1);
        return Ok(());
    }
    let size = meta.len();
    let mut source = fs::File::open(&from).map_err(|error| local(&from, error))?;
    let mut first = vec![0; size.min(job.first_block()) as usize];
    source.read_exact(&mut first).map_err(|error| short(&from, error))?;
    let mut made = parent.create_with(&name, attributes, &first, size, fresh).await;
    if let Err(FsError::Exists(_)) = made {
        parent.unlink(&name).await.map_err(|error| container(&from, error))?;
        made = parent.create_with(&name, attributes, &first, size, fresh).await;
    }
    let file = made.map_err(|error| container(&from, error))?;
    if size > first.len() as u64 {
        import_chunks(job, &from, source, &file, size).await?;
    }
    job.done(|progress| {
        progress.files += 1;
        progress.bytes += size;
    });
    Ok(())
}

fn short(path: &Path, error: io::Error) -> CopyError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CopyError::Changed(path.to_owned()),
        _ => local(path, error),
    }
}

async fn import_chunks<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    path: &Path,
    source: fs::File,
    file: &File<T>,
    size: u64,
) -> Result<(), CopyError> {
    let pipe = Pipe::new();
    for (offset, length) in job.chunks_of(size) {
        let permit = job.chunks.acquire().await;
        if pipe.has_failed() || job.has_failed() {
            break;
        }
        let mut buffer = job.buffer(length);
        source.read_exact_at(buffer.as_mut_slice(), offset).map_err(|error| short(path, error))?;
        let (job, file, path) = (job.clone(), file.clone(), path.to_owned());
        pipe.start(&job.env.clone(), async move {
            let (buffer, result) = file.write_chunk(offset, buffer).await;
            job.give_back(buffer);
            drop(permit);
            result.map_err(|error| container(&path, error))
        });
    }
    pipe.finish().await
}

/// Gives the directories that were made their times again, where the mount has changed them with every entry.
pub(super) async fn restore_times<E: Env, T: Store>(job: &Rc<Job<E, T>>) -> Result<(), CopyError> {
    let made = std::mem::take(&mut job.state.borrow_mut().made);
    if !job.fs.has_directory_times() {
        return Ok(());
    }
    for some in made.chunks(job.options.files_in_flight.max(1)) {
        let restored = some.iter().map(|(path, directory, attributes)| async move {
            let set = SetAttributes {
                accessed: attributes.accessed,
                modified: attributes.modified,
                ..SetAttributes::default()
            };
            directory.set_own_attributes(set).await.map_err(|error| container(path, error))
        });
        join_all(restored).await.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}
