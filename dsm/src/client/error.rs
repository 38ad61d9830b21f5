//! What can go wrong for a client.

use daos_xstream::{
    FabricError,
    rpc::{RpcError, Status},
};

use crate::rpc::{Malformed, control::LabelError};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DsmError {
    /// The service or target refused. Nothing changed unless the status says otherwise.
    #[error("{status}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Refused {
        /// Why.
        status: Status,
        /// What it said.
        message: String,
    },
    /// A target refused a change, but an earlier attempt was not answered, and may have been carried out or still be. A retry is
    /// safe.
    #[error("{status}{}{message}; an attempt before was not answered", if .message.is_empty() { "" } else { ": " })]
    RefusedLate {
        /// Why.
        status: Status,
        /// What it said.
        message: String,
    },
    /// The request was made with an old pool map. Nothing changed; the handle has the new one now: compute again where
    /// to ask, and repeat.
    #[error("the pool map has changed, to version {version}")]
    StaleMap {
        /// The version that the handle has now.
        version: u32,
    },
    /// Nobody answered until the deadline. Whether anything changed is unknown; a retry is safe.
    #[error("no answer in time; the last attempt ended with: {last}")]
    TimedOut {
        /// What the last attempt ended with.
        last: String,
    },
    /// The engine has restarted and may have lost uncommitted writes. Discard them and write them again.
    #[error("the engine has restarted: uncommitted epochs must be discarded and written again")]
    Interrupted,
    /// The arguments make no sense. Nothing was sent.
    #[error("{0}")]
    Invalid(String),
    /// Data arrived damaged, again and again. A retry may help.
    #[error("the data does not match its checksum")]
    BadChecksum,
    /// The reply cannot be understood. Whether anything changed is unknown.
    #[error("the reply cannot be understood: {0}")]
    BadReply(Malformed),
}

impl DsmError {
    /// The status that says the same.
    pub fn status(&self) -> Status {
        match self {
            Self::Refused { status, .. } | Self::RefusedLate { status, .. } => *status,
            Self::StaleMap { .. } => Status::STALE_MAP,
            Self::TimedOut { .. } => Status::TIMED_OUT,
            Self::Interrupted => Status::INTERRUPTED,
            Self::Invalid(_) => Status::INVALID,
            Self::BadChecksum => Status::BAD_CHECKSUM,
            Self::BadReply(_) => Status::BAD_PROTOCOL,
        }
    }

    /// Whether the request has surely changed nothing.
    pub fn nothing_changed(&self) -> bool {
        match self {
            Self::Refused { status, .. } => status.nothing_changed(),
            Self::StaleMap { .. } | Self::Invalid(_) => true,
            Self::RefusedLate { .. }
            | Self::TimedOut { .. }
            | Self::Interrupted
            | Self::BadChecksum
            | Self::BadReply(_) => false,
        }
    }

    /// The same, when an earlier attempt was not answered.
    pub(super) fn late(self) -> Self {
        match self {
            Self::Refused { status, message } => Self::RefusedLate { status, message },
            other => other,
        }
    }

    pub(super) fn from_rpc(error: RpcError) -> Self {
        match error {
            RpcError::Refused { status: Status::INTERRUPTED, .. } => Self::Interrupted,
            RpcError::Refused { status, message, .. } => Self::Refused { status, message },
            RpcError::Fabric(FabricError::TooLong { .. } | FabricError::BadAddress(_)) => {
                Self::Refused { status: error.status(), message: error.to_string() }
            }
            other => Self::TimedOut { last: other.to_string() },
        }
    }
}

impl From<Malformed> for DsmError {
    fn from(malformed: Malformed) -> Self {
        Self::BadReply(malformed)
    }
}

impl From<LabelError> for DsmError {
    fn from(error: LabelError) -> Self {
        Self::Invalid(error.to_string())
    }
}
