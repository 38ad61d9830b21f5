//! Attributes of files and directories, and how they are stored with a directory entry.

use daos_dsr::client::{Fetched, Record};
use daos_types::{ObjectId, ObjectType};

use crate::{
    FsError,
    file::FILE_BYTES_MAX,
    layout::{WRITING, akey},
};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileType {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

const TYPE_MASK: u32 = 0o170_000;

impl FileType {
    /// Its bits in `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
        }
    }

    fn of_mode(mode: u32) -> Option<Self> {
        [Self::File, Self::Directory, Self::Symlink]
            .into_iter()
            .find(|file_type| file_type.mode_bits() == mode & TYPE_MASK)
    }
}

/// Attributes that the maker of a file chooses. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions: the lower twelve bits of `st_mode`.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access; `None` is now.
    pub accessed: Option<u64>,
    /// Last change of the data; `None` is now.
    pub modified: Option<u64>,
}

impl Attributes {
    /// These permissions, owner and group, and the time of the call.
    pub fn new(permissions: u32, uid: u32, gid: u32) -> Self {
        Self { permissions, uid, gid, accessed: None, modified: None }
    }
}

/// Attributes to change; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permissions: the lower twelve bits of `st_mode`.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes of a file.
    pub size: Option<u64>,
    /// Last access.
    pub accessed: Option<u64>,
    /// Last change of the data.
    pub modified: Option<u64>,
}

/// What is known of a file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub file_type: FileType,
    /// Permissions: the lower twelve bits of `st_mode`.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file, or of a link's target; 0 for a directory.
    pub size: u64,
    /// Last access, nanoseconds since 1970.
    pub accessed: u64,
    /// Last change of the data.
    pub modified: u64,
    /// Last change of the attributes.
    pub changed: u64,
    /// The array of a file's bytes, the document of a directory's entries; links have an ID of their own, too.
    pub object: ObjectId,
    /// Whether somebody may have written beyond `size`, so that the array has to be asked.
    pub(crate) writing: bool,
    /// Target of a symbolic link.
    pub(crate) link: Option<Vec<u8>>,
}

/// The akeys of [`Inode::decode`], in its order. A fetch of the first block appends [`akey::DATA`].
pub(crate) const AKEYS: [&[u8]; 11] = [
    akey::MODE,
    akey::UID,
    akey::GID,
    akey::SIZE,
    akey::ATIME,
    akey::MTIME,
    akey::CTIME,
    akey::OBJECT,
    akey::FLAGS,
    akey::LINK,
    akey::DATA,
];

/// The akeys without the first block.
pub(crate) fn akeys_without_data() -> &'static [&'static [u8]] {
    &AKEYS[..10]
}

impl Inode {
    /// The `st_mode` of it.
    pub fn mode(&self) -> u32 {
        self.file_type.mode_bits() | self.permissions
    }

    /// A number that is the same as long as it lives, and different from that of others.
    pub fn number(&self) -> u64 {
        let (_, stamp, number) = self.object.to_parts();
        // Numbers of one mount differ; those of different mounts are kept apart by the stamp.
        if stamp == 0 { number } else { (stamp << 40).wrapping_add(number) }
    }

    /// What the answers to a fetch of [`AKEYS`] (with or without the last) say; `None` if there is no entry.
    pub(crate) fn decode(fetched: &[Fetched]) -> Result<Option<Self>, FsError> {
        let value = |index: usize| match fetched.get(index) {
            Some(Fetched::Value(value)) => Some(value.as_slice()),
            _ => None,
        };
        let corrupt = |what: &str| FsError::Corrupt(format!("stored attribute {what} makes no sense"));
        let number_32 = |index: usize, name: &str| {
            let bytes = value(index).map(<[u8; 4]>::try_from).transpose().map_err(|_| corrupt(name))?;
            Ok::<_, FsError>(bytes.map(u32::from_le_bytes))
        };
        let number_64 = |index: usize, name: &str| {
            let bytes = value(index).map(<[u8; 8]>::try_from).transpose().map_err(|_| corrupt(name))?;
            Ok::<_, FsError>(bytes.map_or(0, u64::from_le_bytes))
        };
        let Some(mode) = number_32(0, "mode")? else { return Ok(None) };
        let file_type = FileType::of_mode(mode).ok_or_else(|| corrupt("mode"))?;
        let object = value(7).and_then(decode_object).ok_or_else(|| corrupt("oid"))?;
        let wanted = if file_type == FileType::Directory { ObjectType::Document } else { ObjectType::Array };
        if object.object_type() != wanted {
            return Err(corrupt("oid"));
        }
        let size = number_64(3, "size")?;
        if size > FILE_BYTES_MAX {
            return Err(corrupt("size"));
        }
        let link = value(9).map(<[u8]>::to_vec);
        if link.is_some() != (file_type == FileType::Symlink) {
            return Err(corrupt("link"));
        }
        Ok(Some(Self {
            file_type,
            permissions: mode & 0o7777,
            uid: number_32(1, "uid")?.unwrap_or(0),
            gid: number_32(2, "gid")?.unwrap_or(0),
            size: link.as_ref().map_or(size, |link| link.len() as u64),
            accessed: number_64(4, "atime")?,
            modified: number_64(5, "mtime")?,
            changed: number_64(6, "ctime")?,
            object,
            writing: number_32(8, "flags")?.unwrap_or(0) & WRITING != 0,
            link,
        }))
    }

    /// The records that store it.
    pub(crate) fn encode(&self) -> EncodedInode {
        EncodedInode {
            mode: self.mode().to_le_bytes(),
            uid: self.uid.to_le_bytes(),
            gid: self.gid.to_le_bytes(),
            size: self.size.to_le_bytes(),
            times: [self.accessed, self.modified, self.changed].map(u64::to_le_bytes),
            object: encode_object(self.object),
            has_size: self.file_type == FileType::File && self.size > 0,
        }
    }
}

/// Bytes of the attributes, for records to borrow.
pub(crate) struct EncodedInode {
    mode: [u8; 4],
    uid: [u8; 4],
    gid: [u8; 4],
    size: [u8; 8],
    times: [[u8; 8]; 3],
    object: [u8; 24],
    has_size: bool,
}

impl EncodedInode {
    /// The records; attributes that have their default are left out.
    pub(crate) fn records(&self) -> Vec<Record<'_>> {
        let mut records: Vec<Record<'_>> = Vec::with_capacity(AKEYS.len());
        records.extend([(akey::MODE, &self.mode[..]), (akey::UID, &self.uid), (akey::GID, &self.gid)]);
        if self.has_size {
            records.push((akey::SIZE, &self.size));
        }
        records.extend([(akey::ATIME, &self.times[0][..]), (akey::MTIME, &self.times[1])]);
        records.extend([(akey::CTIME, &self.times[2][..]), (akey::OBJECT, &self.object)]);
        records
    }
}

fn encode_object(object: ObjectId) -> [u8; 24] {
    let (high, middle, low) = object.to_parts();
    let mut bytes = [0; 24];
    for (place, part) in bytes.chunks_exact_mut(8).zip([high, middle, low]) {
        place.copy_from_slice(&part.to_le_bytes());
    }
    bytes
}

fn decode_object(bytes: &[u8]) -> Option<ObjectId> {
    let bytes: &[u8; 24] = bytes.try_into().ok()?;
    let part = |index: usize| bytes[index * 8..].first_chunk().map(|part| u64::from_le_bytes(*part));
    ObjectId::from_parts(part(0)?, part(1)?, part(2)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an entry states was believed whatever it was, and then allocated, or added to an offset.
    #[test]
    fn a_size_that_no_file_can_have_is_refused() {
        let object = crate::layout::file_object(daos_dsr::class::S1, 1, 1);
        let decode = |size: u64| {
            let mut fetched = vec![Fetched::Miss; AKEYS.len()];
            fetched[0] = Fetched::Value((FileType::File.mode_bits() | 0o644).to_le_bytes().to_vec());
            fetched[3] = Fetched::Value(size.to_le_bytes().to_vec());
            fetched[7] = Fetched::Value(encode_object(object).to_vec());
            Inode::decode(&fetched)
        };
        let inode = decode(FILE_BYTES_MAX).expect("it can have that").expect("an entry");
        assert_eq!(inode.size, FILE_BYTES_MAX);
        for size in [FILE_BYTES_MAX + 1, u64::MAX] {
            assert!(matches!(decode(size), Err(FsError::Corrupt(_))), "{size}");
        }
    }
}
