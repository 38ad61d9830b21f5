//! Rename: clone the entry under its new name and unlink the old one, in one epoch.

use daos_dsr::client::{Anchor, Fetched, Record};
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
    let ticket = shared.ticket()?;
    let epoch = ticket.epoch();
    check_name(from_name)?;
    loop {
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
        let _guards = shared.locks.take_all(keys).await;
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
        if let Some(target) = &target_now {
            make_room(&to, to_name, target, is_directory, epoch, &ticket).await?;
        }
        let from_place = (from.parent.object(), from_name.clone());
        clone_entry(&from.parent, from_name, &to.parent, to_name, epoch).await?;
        to.parent.change(&ticket, async { Ok(()) }).await?;
        from.parent.change(&ticket, from.parent.document.remove_dkey(epoch, from_name)).await?;
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
        return Ok(true);
    }
}

/// Removes what is in the way, if it may be replaced.
async fn make_room<T: Store>(
    to: &Walked<T>,
    name: &[u8],
    target: &Inode,
    is_directory: bool,
    epoch: Epoch,
    ticket: &crate::epochs::Ticket,
) -> Result<(), FsError> {
    match (is_directory, target.file_type == FileType::Directory) {
        (true, false) => Err(FsError::NotADirectory(shown(name))),
        (false, true) => Err(FsError::IsADirectory(shown(name))),
        (false, false) => to.parent.remove_entry(ticket, name, target).await,
        (true, true) => {
            let directory = to.parent.child(name, target)?;
            directory.check_empty(epoch, name).await?;
            to.parent.document.remove_dkey(epoch, name).await?;
            directory.set_removed();
            Ok(())
        }
    }
}

/// Copies all attributes of an entry, whatever they are.
async fn clone_entry<T: Store>(
    from: &Directory<T>,
    from_name: &[u8],
    to: &Directory<T>,
    to_name: &[u8],
    epoch: Epoch,
) -> Result<(), FsError> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut anchor = Some(Anchor::default());
    while let Some(next) = anchor {
        let page = from.document.list_akeys(epoch, from_name, &next, 64).await?;
        names.extend(page.items);
        anchor = page.next;
    }
    let akeys: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    let values: Vec<Option<Vec<u8>>> =
        from.document.fetch(epoch, from_name, &akeys).await?.into_iter().map(Fetched::value).collect();
    let records: Vec<Record<'_>> =
        akeys.iter().zip(&values).filter_map(|(akey, value)| Some((*akey, value.as_deref()?))).collect();
    Ok(to.document.update(epoch, to_name, &records).await?)
}
