//! Errors as services answer them.

use std::fmt;

use daos_vos::Error as VosError;
use daos_xstream::{FabricError, MailboxError, MediaError, rpc::Status};

use crate::{access::AccessError, epochs::EpochError, pool_map::PoolMapError, rpc::Malformed};

/// Why a request is refused: a code for programs, a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub status: Status,
    /// The text.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_str() {
            "" => self.status.fmt(f),
            message => f.write_str(message),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::new(status, "")
    }
}

/// What a client is told that reaches for the container with the pool's own metadata.
pub fn reserved() -> Refusal {
    Refusal::new(Status::NOT_PERMITTED, "this container is the pool's own: no client may use its UUID")
}

/// The code of an error of the store.
pub fn vos_status(error: &VosError) -> Status {
    match error {
        VosError::NotFound(_) => Status::NOT_FOUND,
        VosError::Exists(_) => Status::EXISTS,
        VosError::WrongType(_) | VosError::Invalid(_) => Status::INVALID,
        VosError::EpochConflict { .. } => Status::EPOCH_CONFLICT,
        VosError::NoSpace(_) => Status::NO_SPACE,
        VosError::LogFull => Status::BUSY,
        VosError::ReadOnly => Status::READ_ONLY,
        VosError::BadChecksum { .. } => Status::BAD_CHECKSUM,
        VosError::Corrupt { .. }
        | VosError::UnknownFormat { .. }
        | VosError::OldFormat { .. }
        | VosError::Damaged(_) => Status::CORRUPT,
        _ => Status::MEDIA_FAILED,
    }
}

impl From<VosError> for Refusal {
    fn from(error: VosError) -> Self {
        Self::new(vos_status(&error), error.to_string())
    }
}

impl From<EpochError> for Refusal {
    fn from(error: EpochError) -> Self {
        let status = match error {
            EpochError::BadHandle => Status::BAD_HANDLE,
            EpochError::Interrupted => Status::INTERRUPTED,
            EpochError::NotFlushed { .. } => Status::NOT_FLUSHED,
            EpochError::Discarding => Status::TRY_AGAIN,
            _ => Status::BAD_EPOCH,
        };
        Self::new(status, error.to_string())
    }
}

impl From<MailboxError> for Refusal {
    fn from(error: MailboxError) -> Self {
        Self::new(Status::SHUTTING_DOWN, error.to_string())
    }
}

impl From<MediaError> for Refusal {
    fn from(error: MediaError) -> Self {
        let status = match error {
            MediaError::Full(_) => Status::NO_SPACE,
            _ => Status::MEDIA_FAILED,
        };
        Self::new(status, error.to_string())
    }
}

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Self {
        Self::new(Status::INVALID, error.to_string())
    }
}

impl From<PoolMapError> for Refusal {
    fn from(error: PoolMapError) -> Self {
        Self::new(Status::INVALID, error.to_string())
    }
}

impl From<AccessError> for Refusal {
    fn from(error: AccessError) -> Self {
        Self::new(Status::INVALID, error.to_string())
    }
}

impl From<FabricError> for Refusal {
    fn from(error: FabricError) -> Self {
        Self::new(Status::BULK_FAILED, error.to_string())
    }
}
