//! What can go wrong for a program that uses this library.

use std::path::PathBuf;

use daos_dsm::client::DsmError;
use daos_dsp::FsError;
use daos_dsr::{class::ClassError, client::DsrError};
use daos_types::ParseError;
use daos_xstream::FabricError;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DaosError {
    /// Nothing says where the system is. Nothing was sent.
    #[error(
        "which system? name the engine's folder with --dir or DAOS_DIR, or a client file with DAOS_AGENT_FILE"
    )]
    NotNamed,
    /// The file that says where the system is cannot be used. Nothing was sent.
    #[error("{path}: {why}")]
    NoSystem {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The machine lacks what is needed to reach the system.
    #[error("cannot start: {0}")]
    World(#[from] FabricError),
    /// A pool, container or epoch operation failed.
    #[error(transparent)]
    Service(#[from] DsmError),
    /// An operation on an object failed.
    #[error(transparent)]
    Object(#[from] DsrError),
    /// An operation on a file system failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A class is unknown or not served. Nothing was sent.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// A text is not what it should be. Nothing was sent.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

impl DaosError {
    /// The status or errno that says the same; 0 where there is none.
    pub fn status(&self) -> i32 {
        match self {
            Self::Service(error) => error.status().0,
            Self::Object(DsrError::Target { status, .. }) => *status,
            Self::Object(DsrError::StaleMap { .. }) => daos_xstream::rpc::Status::STALE_MAP.0,
            Self::Fs(error) => error.errno(),
            Self::Object(DsrError::HalfDone(_) | DsrError::GivenUp) => 5,
            Self::NotNamed | Self::Class(_) | Self::Parse(_) | Self::Object(_) => 22,
            Self::NoSystem { .. } | Self::World(_) => 111,
        }
    }
}
