//! From paths to directories and names.

use std::collections::VecDeque;

use crate::{Directory, FileType, FsError, Inode, error::shown, fs::Store};

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path, and longest target of a symbolic link, in bytes.
pub const PATH_BYTES_MAX: usize = 4095;
/// Most symbolic links that are followed on the way to one file.
pub const SYMLINKS_MAX: usize = 40;

/// What to do with the last component of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// Follow it if it is a link: the call is about what the path leads to.
    Follow,
    /// Follow it only if a slash comes after it.
    Keep,
    /// Never follow it: the call is about the entry.
    Entry,
}

/// Where a path leads.
pub(crate) struct Walked<T> {
    /// The last directory on the way.
    pub(crate) parent: Directory<T>,
    /// Objects of the directories from the root to `parent`.
    pub(crate) chain: Vec<daos_types::ObjectId>,
    /// The name in it; `None` if the path is that directory itself (`/`, `a/..`).
    pub(crate) name: Option<Vec<u8>>,
    /// What has that name.
    pub(crate) found: Option<Inode>,
    /// The path ends in a slash: it means a directory.
    pub(crate) slash: bool,
}

/// Refuses what cannot be the name of an entry.
pub(crate) fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong(shown(name)));
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(FsError::Invalid(format!("{:?} is no name of a file", shown(name))));
    }
    Ok(())
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec)
}

/// Follows `path` from the root, and links on the way; a link at the end as `at_end` says.
pub(crate) async fn walk<T: Store>(
    root: Directory<T>,
    path: &[u8],
    at_end: Last,
) -> Result<Walked<T>, FsError> {
    if path.is_empty() {
        return Err(FsError::NotFound(String::new()));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(FsError::NameTooLong(shown(&path[..80])));
    }
    if path.contains(&0) {
        return Err(FsError::Invalid("a path with a zero byte".to_owned()));
    }
    let mut slash = path.ends_with(b"/");
    let mut pending: VecDeque<Vec<u8>> = components(path).collect();
    let mut way = vec![root];
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        let parent = way.last().expect("the root stays");
        match name.as_slice() {
            b"." => continue,
            b".." => {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            _ => {}
        }
        let last = pending.is_empty();
        if last && at_end == Last::Entry && name.len() > NAME_BYTES_MAX {
            // The call will refuse the name, once everything else about its paths is known to be right.
            return Ok(finish(way, Some(name), None, slash));
        }
        check_name(&name)?;
        let follow = !last || at_end == Last::Follow || at_end == Last::Keep && slash;
        let found = parent.inode(parent.read_epoch(), &name).await?;
        match &found {
            Some(inode) if inode.file_type == FileType::Symlink && follow => {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(FsError::Loop(shown(path)));
                }
                let target = inode.link.as_deref().unwrap_or_default();
                if target.starts_with(b"/") {
                    way.truncate(1);
                }
                slash |= last && target.ends_with(b"/");
                components(target).rev().for_each(|part| pending.push_front(part));
            }
            Some(inode) if inode.file_type == FileType::Directory && !last => {
                let next = parent.child(&name, inode)?;
                way.push(next);
            }
            Some(inode) if inode.file_type != FileType::Directory && follow && (!last || slash) => {
                return Err(FsError::NotADirectory(shown(&name)));
            }
            None if !last => return Err(FsError::NotFound(shown(&name))),
            _ => return Ok(finish(way, Some(name), found, slash)),
        }
    }
    Ok(finish(way, None, None, slash))
}

fn finish<T: Store>(
    mut way: Vec<Directory<T>>,
    name: Option<Vec<u8>>,
    found: Option<Inode>,
    slash: bool,
) -> Walked<T> {
    let chain = way.iter().map(Directory::object).collect();
    let parent = way.pop().expect("the root stays");
    Walked { parent, chain, name, found, slash }
}

impl<T: Store> Walked<T> {
    /// Attributes of what was found.
    pub(crate) async fn stat(self) -> Result<Inode, FsError> {
        match self.name {
            None => self.parent.own_inode().await,
            Some(name) => {
                let inode = self.found.ok_or_else(|| FsError::NotFound(shown(&name)))?;
                self.parent.exact(inode).await
            }
        }
    }

    /// The directory that was found.
    pub(crate) fn directory(self) -> Result<Directory<T>, FsError> {
        match self.name {
            None => Ok(self.parent),
            Some(name) => {
                let inode = self.found.ok_or_else(|| FsError::NotFound(shown(&name)))?;
                self.parent.child(&name, &inode)
            }
        }
    }

    /// What was found that is no directory, for opening.
    pub(crate) fn existing(self) -> Result<(Directory<T>, Vec<u8>, Inode), FsError> {
        let Some(name) = self.name else { return Err(FsError::IsADirectory("/".to_owned())) };
        let inode = self.found.ok_or_else(|| FsError::NotFound(shown(&name)))?;
        if inode.file_type == FileType::Directory {
            return Err(FsError::IsADirectory(shown(&name)));
        }
        Ok((self.parent, name, inode))
    }

    /// A name that is free, for a directory.
    pub(crate) fn absent(self) -> Result<(Directory<T>, Vec<u8>), FsError> {
        match (self.name, self.found) {
            (Some(name), None) => Ok((self.parent, name)),
            (Some(name), Some(_)) => Err(FsError::Exists(shown(&name))),
            (None, _) => Err(FsError::Exists("/".to_owned())),
        }
    }

    /// A name that is free, for something that is no directory.
    pub(crate) fn absent_file(self) -> Result<(Directory<T>, Vec<u8>), FsError> {
        let slash = self.slash;
        let (parent, name) = self.absent()?;
        if slash { Err(FsError::NotFound(shown(&name))) } else { Ok((parent, name)) }
    }
}
