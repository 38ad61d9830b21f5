//! One change of one object, and what it makes of a place in it.

use std::{fmt, ops::Range};

/// Number of a change in a run; also the seed of its content.
pub type Change = u64;
/// A handle, by its place in the model.
pub type HandleKey = usize;
/// A commit, by its place in the model.
pub type CommitKey = usize;

/// What a change covers.
#[derive(Clone, PartialEq, Eq)]
pub enum Cover {
    /// The whole object.
    Object,
    /// A distribution key with all it holds.
    Dkey(Vec<u8>),
    /// Values: (dkey, akey), or (empty, key) of a KV.
    Keys(Vec<(Vec<u8>, Vec<u8>)>),
    /// Bytes of an array.
    Extent(Range<u64>),
}

/// A place of an object that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A value: dkey, akey.
    Key(&'a [u8], &'a [u8]),
    /// A byte of an array.
    Byte(u64),
}

impl fmt::Debug for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            Self::Object => f.write_str("object"),
            Self::Dkey(dkey) => write!(f, "{}/*", text(dkey)),
            Self::Keys(keys) => f
                .debug_list()
                .entries(keys.iter().map(|(dkey, akey)| format!("{}/{}", text(dkey), text(akey))))
                .finish(),
            Self::Extent(range) => write!(f, "{range:?}"),
        }
    }
}

impl Cover {
    /// Whether the change decides about a place.
    pub fn covers(&self, place: Place<'_>) -> bool {
        match (self, place) {
            (Self::Object, _) => true,
            (Self::Dkey(dkey), Place::Key(other, _)) => dkey == other,
            (Self::Keys(keys), Place::Key(dkey, akey)) => {
                keys.iter().any(|(one, two)| one == dkey && two == akey)
            }
            (Self::Extent(range), Place::Byte(offset)) => range.contains(&offset),
            _ => false,
        }
    }
}

/// What is known of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Under way, or a crash or a failure has put it in doubt.
    Doubtful,
    /// Acknowledged: there until the engine crashes, or it is discarded.
    Visible,
    /// Acknowledged as durable.
    Durable,
    /// Committed: there for good.
    Committed,
    /// Its handle is dead, and its commit was under way.
    InCommit(CommitKey),
    /// Its handle is dead and did not commit it: there until the handle is evicted, not after.
    Abandoned,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its number.
    pub change: Change,
    /// Its epoch.
    pub epoch: u64,
    /// Who made it.
    pub handle: HandleKey,
    /// What it covers.
    pub cover: Cover,
    /// Bytes of each value; `None` for a punch.
    pub length: Option<usize>,
    /// What is known of it.
    pub standing: Standing,
    /// The life of the engine that acknowledged it as durable: by a flush, a commit, or by itself.
    pub durable_since: Option<u64>,
}

/// What is found at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What this change wrote.
    Written(Change),
    /// It was removed.
    Punched,
    /// It was never written.
    Miss,
}

impl Version {
    /// What it leaves at the places that it covers.
    pub fn answer(&self) -> Answer {
        if self.length.is_some() { Answer::Written(self.change) } else { Answer::Punched }
    }
}

/// A byte that a change wrote: at `offset` of its value, or of the array.
pub fn byte(change: Change, offset: u64) -> u8 {
    let word = (change ^ (offset / 8).rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 31)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word.to_le_bytes()[(offset % 8) as usize]
}

/// What a change wrote from `offset` on.
pub fn content(change: Change, offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64).map(|offset| byte(change, offset)).collect()
}
