//! What a request may ask for, and what of a reply cannot be.

use daos_types::KEY_BYTES_MAX;

use crate::{
    client::DsmError,
    rpc::{
        Malformed,
        object::{
            CHUNK_BYTES, FetchReply, Outcome, PieceKind, REQUEST_DATA_BYTES_MAX, ReadRecord, UpdateRecord,
        },
    },
};

pub(super) fn too_far() -> DsmError {
    DsmError::BadReply(Malformed("it covers more than was asked for"))
}

/// Bytes of an update's body beside the data; an upper bound.
pub(super) fn overhead(dkey: &[u8], records: &[UpdateRecord<'_>]) -> usize {
    let per_record = |record: &UpdateRecord<'_>| {
        24 + record.key().len() + 4 * (record.data().len() / CHUNK_BYTES as usize + 2)
    };
    80 + dkey.len() + records.iter().map(per_record).sum::<usize>()
}

pub(super) fn check_count(records: usize) -> Result<(), DsmError> {
    if records > usize::from(u16::MAX) {
        return Err(DsmError::Invalid(format!("{records} records in one request: at most {}", u16::MAX)));
    }
    Ok(())
}

pub(super) fn check_keys(dkey: &[u8], records: &[UpdateRecord<'_>]) -> Result<(), DsmError> {
    check_count(records.len())?;
    let longest = records.iter().map(|record| record.key().len()).max().unwrap_or(0).max(dkey.len());
    if longest > KEY_BYTES_MAX {
        return Err(DsmError::Invalid(format!("a key of {longest} bytes: at most {KEY_BYTES_MAX}")));
    }
    Ok(())
}

pub(super) fn check_length(bytes: usize) -> Result<(), DsmError> {
    if bytes as u64 > REQUEST_DATA_BYTES_MAX {
        return Err(DsmError::Invalid(format!(
            "{bytes} bytes of data in one request: at most {REQUEST_DATA_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// Whether a reply answers what was asked for.
pub(super) fn outcomes_fit(records: &[ReadRecord<'_>], reply: &FetchReply<'_>) -> bool {
    records.len() == reply.record_count()
        && records.iter().zip(reply.records()).all(|(record, got)| match (record, got.outcome) {
            (ReadRecord::Value { .. }, outcome) => !matches!(outcome, Outcome::Extent { .. }),
            (ReadRecord::Extent { length, .. }, Outcome::Extent { covered }) => covered <= *length,
            (ReadRecord::Extent { .. }, _) => false,
        })
}

pub(super) fn is_data(kind: PieceKind) -> bool {
    matches!(kind, PieceKind::Data(_))
}
