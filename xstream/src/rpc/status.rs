//! The one table of result codes on the wire.

use std::fmt;

/// Result code of an RPC: 0 for success, an errno number where one exists, 1000 and above for our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(pub i32);

macro_rules! statuses {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $text:literal;)*) => {
        impl Status {
            $($(#[doc = $doc])+ pub const $name: Status = Status($code);)*

            /// The code's name as in this table, or `None` for a number that is not in it.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// What the code means, for people.
            pub fn text(self) -> &'static str {
                match self.0 {
                    $($code => $text,)*
                    _ => "unknown status",
                }
            }
        }
    };
}

statuses! {
    /// Success.
    OK = 0, "success";
    /// EPERM: the handle's owner may not do this. Nothing changed; a retry cannot help.
    NOT_PERMITTED = 1, "operation not permitted";
    /// ENOENT: the pool, container, object or entry is not there.
    NOT_FOUND = 2, "not found";
    /// EIO: media failed. What changed is unknown; the target will say more in its log.
    MEDIA_FAILED = 5, "media failed";
    /// EAGAIN: not now. Nothing changed; a retry may help.
    TRY_AGAIN = 11, "try again";
    /// ENOMEM: the engine cannot hold more of this kind. Nothing changed; a retry may help later.
    NO_MEMORY = 12, "out of memory";
    /// EACCES: the credentials do not suffice. Nothing changed.
    ACCESS_DENIED = 13, "access denied";
    /// EBUSY: somebody uses it. Nothing changed; a retry helps once they have let go, or with force.
    IN_USE = 16, "in use";
    /// EEXIST: what was to be created is there already.
    EXISTS = 17, "exists already";
    /// ENOTDIR: a path leads through something that is no directory.
    NOT_DIRECTORY = 20, "not a directory";
    /// EISDIR: a directory, where a file was needed.
    IS_DIRECTORY = 21, "is a directory";
    /// EINVAL: the request makes no sense. A retry cannot help.
    INVALID = 22, "invalid argument";
    /// EFBIG: over a size limit. A retry cannot help.
    TOO_LARGE = 27, "too large";
    /// ENOSPC: the target is full. Nothing changed; it helps to free space.
    NO_SPACE = 28, "no space left";
    /// EROFS: the target, container or handle is read-only.
    READ_ONLY = 30, "read-only";
    /// ENAMETOOLONG: a name is over its limit.
    NAME_TOO_LONG = 36, "name too long";
    /// ENOSYS: there is no such module or procedure here. A retry cannot help.
    NO_SUCH_PROCEDURE = 38, "no such procedure";
    /// ENOTEMPTY: a directory with entries.
    NOT_EMPTY = 39, "directory not empty";
    /// EMSGSIZE: the request or its reply does not fit into a message.
    TOO_LONG = 90, "message too long";
    /// ESHUTDOWN: the engine or module is stopping.
    SHUTTING_DOWN = 108, "shutting down";
    /// ETIMEDOUT: the deadline passed. Whether anything changed is unknown; requests are idempotent, so retry.
    TIMED_OUT = 110, "timed out";
    /// ESTALE: the handle was good and is no more.
    STALE_HANDLE = 116, "stale handle";
    /// ECANCELED: given up on purpose.
    CANCELED = 125, "canceled";

    /// The engine has too much to do. Nothing changed; retry after a pause.
    BUSY = 1000, "busy";
    /// The request was made with an old pool map. Nothing changed; the reply carries the current version: fetch it, retry.
    STALE_MAP = 1001, "stale pool map";
    /// This replica does not lead. Nothing changed; ask another.
    NOT_LEADER = 1002, "not the leader";
    /// No such handle here. Nothing changed; open again.
    BAD_HANDLE = 1003, "bad handle";
    /// Data does not match its checksum. From the wire: nothing changed, retry. From media: a retry cannot help.
    BAD_CHECKSUM = 1004, "checksum mismatch";
    /// The peer speaks another protocol version, or no protocol of ours. A retry cannot help.
    BAD_PROTOCOL = 1005, "protocol not understood";
    /// The engine has another rank than the request was meant for. Nothing changed; fetch the pool map.
    WRONG_RANK = 1006, "wrong rank";
    /// The engine has no such target, or the target is down. Nothing changed; fetch the pool map.
    BAD_TARGET = 1007, "no such target";
    /// The epoch may not be used by this handle in this way. Nothing changed.
    BAD_EPOCH = 1008, "epoch not allowed";
    /// Another writer has written the same thing at the same epoch. Nothing changed; choose another epoch.
    EPOCH_CONFLICT = 1009, "written at this epoch by another writer";
    /// An invariant of the service did not hold, or it gave up without an answer. What changed is unknown.
    INTERNAL = 1010, "internal error";
    /// The client's memory could not be read or written. Nothing changed.
    BULK_FAILED = 1011, "bulk transfer failed";
    /// What is stored cannot be understood. A retry cannot help.
    CORRUPT = 1012, "stored data is corrupt";
    /// The media or the engine has not been formatted. Nothing changed; format first.
    NOT_FORMATTED = 1013, "not formatted";
    /// The engine has restarted and may have lost uncommitted writes of the handle. Nothing changed; discard the
    /// uncommitted epochs and write them again.
    INTERRUPTED = 1014, "uncommitted epochs were interrupted by a restart";
    /// The epoch was not flushed since it was last written. Nothing changed; flush it, then commit again.
    NOT_FLUSHED = 1015, "not flushed";
    /// There are as many of this kind as there may be. Nothing changed; it helps to close or remove some.
    LIMIT_REACHED = 1016, "limit reached";
}

impl Status {
    /// Whether this is success.
    pub fn is_ok(self) -> bool {
        self == Status::OK
    }

    /// Whether a request that was refused with this has surely changed nothing. False where that is unknown.
    pub fn nothing_changed(self) -> bool {
        matches!(
            self,
            Status::NOT_PERMITTED
                | Status::TRY_AGAIN
                | Status::NO_MEMORY
                | Status::ACCESS_DENIED
                | Status::IN_USE
                | Status::INVALID
                | Status::TOO_LARGE
                | Status::NO_SPACE
                | Status::READ_ONLY
                | Status::NO_SUCH_PROCEDURE
                | Status::TOO_LONG
                | Status::BUSY
                | Status::STALE_MAP
                | Status::NOT_LEADER
                | Status::BAD_HANDLE
                | Status::WRONG_RANK
                | Status::BAD_TARGET
                | Status::BAD_EPOCH
                | Status::EPOCH_CONFLICT
                | Status::BULK_FAILED
                | Status::INTERRUPTED
                | Status::LIMIT_REACHED
        )
    }

    /// Whether the same request to the same place may succeed later.
    pub fn retry_helps(self) -> bool {
        matches!(self, Status::BUSY | Status::TRY_AGAIN | Status::NO_MEMORY | Status::TIMED_OUT)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(_) => f.write_str(self.text()),
            None => write!(f, "unknown status {}", self.0),
        }
    }
}
