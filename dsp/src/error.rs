//! What can go wrong with a file system call.

use daos_dsr::client::DsrError;

/// Numbers of errors, as Linux has them.
pub mod errno {
    /// No such file or directory.
    pub const ENOENT: i32 = 2;
    /// Input/output error.
    pub const EIO: i32 = 5;
    /// Device or resource busy.
    pub const EBUSY: i32 = 16;
    /// File exists.
    pub const EEXIST: i32 = 17;
    /// Not a directory.
    pub const ENOTDIR: i32 = 20;
    /// Is a directory.
    pub const EISDIR: i32 = 21;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// File too large.
    pub const EFBIG: i32 = 27;
    /// Read-only file system.
    pub const EROFS: i32 = 30;
    /// File name too long.
    pub const ENAMETOOLONG: i32 = 36;
    /// Directory not empty.
    pub const ENOTEMPTY: i32 = 39;
    /// Too many levels of symbolic links.
    pub const ELOOP: i32 = 40;
    /// Structure needs cleaning.
    pub const EUCLEAN: i32 = 117;
}

/// Why a call failed. Unless said otherwise nothing was changed and a retry cannot help while the tree stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// There is no such file or directory.
    #[error("{0}: no such file or directory")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}: exists already")]
    Exists(String),
    /// A directory is needed, and this is none.
    #[error("{0}: not a directory")]
    NotADirectory(String),
    /// This is a directory, and something else is needed.
    #[error("{0}: is a directory")]
    IsADirectory(String),
    /// The directory is needed where it is: it is the root, or the path calls it `.` or `..`.
    #[error("{0}: busy")]
    Busy(String),
    /// The directory has entries.
    #[error("{0}: directory not empty")]
    NotEmpty(String),
    /// More symbolic links on the way than are followed.
    #[error("{0}: too many levels of symbolic links")]
    Loop(String),
    /// A name or path is longer than allowed.
    #[error("{0}: name too long")]
    NameTooLong(String),
    /// The arguments make no sense. The text says why.
    #[error("{0}")]
    Invalid(String),
    /// An offset or size beyond what a file can have.
    #[error("{0}: file too large")]
    TooLarge(String),
    /// A change through this container handle ended half-way, so nothing is changed and committed through it any more. What is
    /// not committed is discarded when it is closed; open it again, mount again and repeat it.
    #[error("{0} ended half-way: nothing since the last sync can be committed; mount again and repeat it")]
    HalfDone(String),
    /// What was written through this container handle and not committed was given up since the mount: by a hold of a later
    /// epoch, or by a discard. This mount changes and commits nothing any more; mount again and repeat it.
    #[error("what was written since the last sync has been given up; mount again and repeat it")]
    GivenUp,
    /// The file system was mounted for reading only.
    #[error("the file system is mounted read-only")]
    ReadOnly,
    /// The container holds no file system, or one that this version cannot mount.
    #[error("cannot mount: {0}")]
    NotMountable(String),
    /// What is stored of the file makes no sense.
    #[error("{0}")]
    Corrupt(String),
    /// The storage below failed. Parts of the operation may have happened in the epoch under way; it may be repeated.
    #[error(transparent)]
    Storage(DsrError),
}

impl From<DsrError> for FsError {
    fn from(error: DsrError) -> Self {
        match error {
            DsrError::HalfDone(what) => Self::HalfDone(what),
            DsrError::GivenUp => Self::GivenUp,
            other => Self::Storage(other),
        }
    }
}

impl FsError {
    /// The number that POSIX has for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound(_) => errno::ENOENT,
            Self::Exists(_) => errno::EEXIST,
            Self::NotADirectory(_) => errno::ENOTDIR,
            Self::IsADirectory(_) => errno::EISDIR,
            Self::Busy(_) => errno::EBUSY,
            Self::NotEmpty(_) => errno::ENOTEMPTY,
            Self::Loop(_) => errno::ELOOP,
            Self::NameTooLong(_) => errno::ENAMETOOLONG,
            Self::Invalid(_) => errno::EINVAL,
            Self::TooLarge(_) => errno::EFBIG,
            Self::ReadOnly => errno::EROFS,
            Self::NotMountable(_) => errno::EINVAL,
            Self::Corrupt(_) => errno::EUCLEAN,
            Self::HalfDone(_) | Self::GivenUp => errno::EIO,
            // Numbers from 1000 on are this system's own and mean nothing to POSIX.
            Self::Storage(DsrError::Target { status, .. }) if (1..1000).contains(status) => *status,
            Self::Storage(_) => errno::EIO,
        }
    }
}

/// A name for messages.
pub(crate) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
