//! Rename: write the entry under its new name, over what is there, and unlink the old one, in one epoch.
//!
//! # Invariants
//!
//! * What is replaced is removed only after what replaces it is there.
//! * A rename that ends between its steps is never committed.

use daos_dsr::client::{Anchor, DsrError, Fetched, Record};
use daos_types::Epoch;

use crate::{
    Directory, FileType, FsError, Inode,
    error::shown,
    fs::Store,
    layout,
    path::{Walked, check_name},
};

/// Moves what `from` found to where `to` leads. False if a directory has moved since the paths were followed, so that they
/// have to be followed again; nothing has changed then.
pub(crate) async fn rename<T: Store>(from: Walked<T>, to: Walked<T>) -> Result<bool, FsError> {
    let invalid = |what: &str| FsError::Invalid(what.to_owned());
    let (Some(from_name), Some(to_name)) = (&from.name, &to.name) else {
        return Err(FsError::Busy("the root directory, \".\" or \"..\"".to_owned()));
    };
    let shared = &from.parent.shared;
    shared.check_writable()?;
    check_name(from_name)?;
    loop {
        let epoch = shared.read_epoch();
        let source = from.parent.inode(epoch, from_name).await?;
        let source = source.ok_or_else(|| FsError::NotFound(shown(from_name)))?;
        check_name(to_name)?;
        let target = to.parent.inode(epoch, to_name).await?;
        let is_directory = source.file_type == FileType::Directory;
        if (from.slash || to.slash) && !is_directory {
            return Err(FsError::NotADirectory(shown(from_name)));
        }
        if is_directory && to.chain.contains(&source.object) {
            return Err(invalid("a directory cannot be moved into itself"));
        }
        if target.as_ref().is_some_and(|target| from.chain.contains(&target.object)) {
            return Err(FsError::NotEmpty(shown(to_name)));
        }
        if target.as_ref().is_some_and(|target| target.object == source.object) {
            return Ok(true);
        }
        let mut keys = vec![
            ((from.parent.object(), None), false),
            ((to.parent.object(), None), false),
            ((from.parent.object(), Some(from_name.clone())), true),
            ((to.parent.object(), Some(to_name.clone())), true),
        ];
        if is_directory {
            // Moves of directories happen one at a time, or two could put each into the other.
            keys.push(((layout::superblock_object(), Some(b"move".to_vec())), true));
        }
        if let Some(target) = &target
            && target.file_type == FileType::Directory
        {
            keys.push(((target.object, None), true));
        }
        let turn = shared.turn(keys).await?;
        let epoch = turn.epoch();
        from.parent.check_alive()?;
        to.parent.check_alive()?;
        let same = |now: &Option<Inode>, then: Option<&Inode>| {
            now.as_ref().map(|inode| inode.object) == then.map(|inode| inode.object)
        };
        let source_now = from.parent.inode(epoch, from_name).await?;
        let target_now = to.parent.inode(epoch, to_name).await?;
        if !same(&source_now, Some(&source)) || !same(&target_now, target.as_ref()) {
            continue;
        }
        if shared.moves.get() != from.parent.moves().min(to.parent.moves()) {
            return Ok(false);
        }
        let mut replaced_directory = None;
        if let Some(target) = &target_now {
            replaced_directory = check_replaceable(&to, to_name, target, is_directory, epoch).await?;
        }
        let from_place = (from.parent.object(), from_name.clone());
        let entry = read_entry(&from.parent, from_name, epoch).await?;
        let in_the_way = akeys_of(&to.parent, to_name, epoch).await?;
        // Times first: they may find no space, and are no loss.
        to.parent.change(&turn, async { Ok(()) }).await?;
        from.parent.change(&turn, async { Ok(()) }).await?;
        let steps = turn.begin_steps(format!("moving {} to {}", shown(from_name), shown(to_name)));
        let written = write_over(&to.parent, to_name, &entry, &in_the_way, epoch).await;
        match written {
            Ok(()) => {}
            Err(Step::First(error)) if error.nothing_changed() => {
                steps.end();
                return Err(error.into());
            }
            Err(step) => return Err(step.into()),
        }
        from.parent.document.remove_dkey(epoch, from_name).await?;
        steps.end();
        // What fails from here on leaves unused data behind; the rename has happened, and an open file goes with its name.
        let cleared = match (replaced_directory, &target_now) {
            (Some(directory), _) => {
                directory.set_removed();
                Ok(())
            }
            (None, Some(target)) => to.parent.remove_content(&turn, to_name, target).await,
            (None, None) => Ok(()),
        };
        if is_directory {
            shared.moves.set(shared.moves.get() + 1);
        }
        let open = shared.open_files.borrow_mut().remove(&from_place);
        if let Some(open) = open {
            if let Some(file) = open.upgrade() {
                file.move_to(&to.parent, to_name);
            }
            shared.open_files.borrow_mut().insert((to.parent.object(), to_name.clone()), open);
        }
        return cleared.map(|()| true);
    }
}

/// Refuses what may not be replaced. A directory that will be is returned.
async fn check_replaceable<T: Store>(
    to: &Walked<T>,
    name: &[u8],
    target: &Inode,
    is_directory: bool,
    epoch: Epoch,
) -> Result<Option<Directory<T>>, FsError> {
    match (is_directory, target.file_type == FileType::Directory) {
        (true, false) => Err(FsError::NotADirectory(shown(name))),
        (false, true) => Err(FsError::IsADirectory(shown(name))),
        (false, false) => Ok(None),
        (true, true) => {
            let directory = to.parent.child(name, target)?;
            directory.check_empty(epoch, name).await?;
            Ok(Some(directory))
        }
    }
}

async fn akeys_of<T: Store>(
    parent: &Directory<T>,
    name: &[u8],
    epoch: Epoch,
) -> Result<Vec<Vec<u8>>, FsError> {
    let mut names = Vec::new();
    let mut anchor = Some(Anchor::default());
    while let Some(next) = anchor {
        let page = parent.document.list_akeys(epoch, name, &next, 64).await?;
        names.extend(page.items);
        anchor = page.next;
    }
    Ok(names)
}

/// All attributes of an entry, whatever they are.
async fn read_entry<T: Store>(
    parent: &Directory<T>,
    name: &[u8],
    epoch: Epoch,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>, FsError> {
    let names = akeys_of(parent, name, epoch).await?;
    let akeys: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    let values = parent.document.fetch(epoch, name, &akeys).await?.into_iter().map(Fetched::value);
    Ok(names.iter().cloned().zip(values).filter_map(|(akey, value)| Some((akey, value?))).collect())
}

/// Which step of two failed.
enum Step {
    First(DsrError),
    Second(DsrError),
}

impl From<Step> for FsError {
    fn from(step: Step) -> Self {
        match step {
            Step::First(error) | Step::Second(error) => error.into(),
        }
    }
}

/// Writes an entry, then removes what its name held beyond that. The writing comes first, because it may find no space;
/// removing may use what is kept in reserve.
async fn write_over<T: Store>(
    parent: &Directory<T>,
    name: &[u8],
    entry: &[(Vec<u8>, Vec<u8>)],
    in_the_way: &[Vec<u8>],
    epoch: Epoch,
) -> Result<(), Step> {
    let records: Vec<Record<'_>> = entry.iter().map(|(akey, value)| (&akey[..], &value[..])).collect();
    parent.document.update(epoch, name, &records).await.map_err(Step::First)?;
    let stale: Vec<&[u8]> = in_the_way
        .iter()
        .map(Vec::as_slice)
        .filter(|akey| entry.iter().all(|(written, _)| written != akey))
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    parent.document.remove(epoch, name, &stale).await.map_err(Step::Second)
}
