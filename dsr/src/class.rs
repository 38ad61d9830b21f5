//! Object classes: 16-bit numbers with an immutable schema of redundancy and striping.
//!
//! ```text
//!  15..14   13..9     8..0
//!  family   scheme    redundancy groups (1 to 510; 511 = X, as many as the pool's targets allow)
//! ```
//!
//! # Invariants
//!
//! * A number means one schema for ever: it is part of every object ID, and layouts are computed from it.
//! * A number that has no schema here is refused; so is one whose schema this version cannot serve, with another error.

use std::{fmt, str::FromStr};

use daos_types::ObjectClass;

/// One shard, unprotected.
pub const S1: ObjectClass = ObjectClass(1);
/// Two shards, unprotected.
pub const S2: ObjectClass = ObjectClass(2);
/// Four shards, unprotected.
pub const S4: ObjectClass = ObjectClass(4);
/// Eight shards, unprotected.
pub const S8: ObjectClass = ObjectClass(8);
/// A shard on every target, unprotected.
pub const SX: ObjectClass = ObjectClass(GROUPS_ALL);

const GROUPS_BITS: u32 = 9;
const GROUPS_ALL: u16 = (1 << GROUPS_BITS) - 1;
const FAMILY_SHIFT: u32 = 14;

/// Bytes of an array that stay together on one shard before the next shard takes over.
pub const CELL_BYTES: u64 = 1 << 20;

/// How the shards of a redundancy group protect each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Redundancy {
    /// Not at all: a lost shard is lost.
    None,
    /// So many copies.
    Replicas(u8),
    /// `data` cells and `parity` cells of a Reed–Solomon code.
    Erasure {
        /// Data cells of a stripe.
        data: u8,
        /// Parity cells of a stripe.
        parity: u8,
    },
}

/// Over how many redundancy groups an object is striped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Groups {
    /// So many, or as many as the pool's targets allow if those are fewer.
    Fixed(u16),
    /// As many as the pool's targets allow.
    All,
}

/// How targets are chosen, and whether striping changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Computed from the object ID; striping is fixed.
    Computed,
    /// The first shard is where the caller wants it.
    Affinity,
    /// Striping grows with the object.
    Dynamic,
}

/// What a class means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schema {
    /// How targets are chosen.
    pub family: Family,
    /// Protection within a group.
    pub redundancy: Redundancy,
    /// Striping over groups.
    pub groups: Groups,
    /// Bytes of an array that stay together on one shard.
    pub cell_bytes: u64,
}

/// The redundancy of each scheme number. New ones are appended; none is ever changed.
const SCHEMES: [Redundancy; 17] = [
    Redundancy::None,
    Redundancy::Replicas(2),
    Redundancy::Replicas(3),
    Redundancy::Replicas(4),
    Redundancy::Replicas(5),
    Redundancy::Replicas(6),
    Redundancy::Erasure { data: 2, parity: 1 },
    Redundancy::Erasure { data: 2, parity: 2 },
    Redundancy::Erasure { data: 4, parity: 1 },
    Redundancy::Erasure { data: 4, parity: 2 },
    Redundancy::Erasure { data: 4, parity: 3 },
    Redundancy::Erasure { data: 8, parity: 1 },
    Redundancy::Erasure { data: 8, parity: 2 },
    Redundancy::Erasure { data: 8, parity: 3 },
    Redundancy::Erasure { data: 16, parity: 1 },
    Redundancy::Erasure { data: 16, parity: 2 },
    Redundancy::Erasure { data: 16, parity: 3 },
];

/// Why a class cannot be used. Nothing was changed; a retry cannot help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClassError {
    /// The number has no schema.
    #[error("{0:#06x} is the number of no object class")]
    UnknownNumber(u16),
    /// The name has no schema.
    #[error("{0:?} is the name of no object class (S1, S2, S4 … SX; RP_2G1 … RP_6GX; EC_2P1G1 … EC_16P3GX)")]
    UnknownName(String),
    /// The class exists, and this version of the software cannot store objects of it yet.
    #[error("object class {0} is not served yet; use S1, S2, S4 … SX")]
    NotServed(String),
}

impl Schema {
    /// The schema of `class`.
    pub fn of(class: ObjectClass) -> Result<Self, ClassError> {
        let unknown = || ClassError::UnknownNumber(class.0);
        let family = match class.0 >> FAMILY_SHIFT {
            0 => Family::Computed,
            1 => Family::Affinity,
            2 => Family::Dynamic,
            _ => return Err(unknown()),
        };
        let scheme = class.0 >> GROUPS_BITS & 0x1f;
        let redundancy = *SCHEMES.get(usize::from(scheme)).ok_or_else(unknown)?;
        let groups = match class.0 & GROUPS_ALL {
            0 => return Err(unknown()),
            GROUPS_ALL => Groups::All,
            count => Groups::Fixed(count),
        };
        Ok(Self { family, redundancy, groups, cell_bytes: CELL_BYTES })
    }

    /// The schema of `class`, if objects of it can be stored and read by this version.
    pub fn served(class: ObjectClass) -> Result<Self, ClassError> {
        let schema = Self::of(class)?;
        match (schema.family, schema.redundancy) {
            (Family::Computed, Redundancy::None) => Ok(schema),
            _ => Err(ClassError::NotServed(schema.to_string())),
        }
    }

    /// The number of this schema; `None` if it has none.
    pub fn class(&self) -> Option<ObjectClass> {
        let scheme = SCHEMES.iter().position(|redundancy| *redundancy == self.redundancy)? as u16;
        let groups = match self.groups {
            Groups::All => GROUPS_ALL,
            Groups::Fixed(count) if (1..GROUPS_ALL).contains(&count) => count,
            Groups::Fixed(_) => return None,
        };
        let family = match self.family {
            Family::Computed => 0,
            Family::Affinity => 1,
            Family::Dynamic => 2,
        };
        Some(ObjectClass(family << FAMILY_SHIFT | scheme << GROUPS_BITS | groups))
    }

    /// How many shards one redundancy group has.
    pub fn group_size(&self) -> u32 {
        match self.redundancy {
            Redundancy::None => 1,
            Redundancy::Replicas(count) => u32::from(count),
            Redundancy::Erasure { data, parity } => u32::from(data) + u32::from(parity),
        }
    }

    /// How many groups an object has in a pool of `targets` targets; 0 if not even one group fits.
    pub fn group_count(&self, targets: u32) -> u32 {
        let fitting = targets / self.group_size();
        match self.groups {
            Groups::Fixed(count) => fitting.min(u32::from(count)),
            Groups::All => fitting,
        }
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.family {
            Family::Computed => "",
            Family::Affinity => "AFF_",
            Family::Dynamic => "DYN_",
        })?;
        match self.redundancy {
            Redundancy::None => f.write_str("S")?,
            Redundancy::Replicas(count) => write!(f, "RP_{count}G")?,
            Redundancy::Erasure { data, parity } => write!(f, "EC_{data}P{parity}G")?,
        }
        match self.groups {
            Groups::Fixed(count) => write!(f, "{count}"),
            Groups::All => f.write_str("X"),
        }
    }
}

impl FromStr for Schema {
    type Err = ClassError;

    fn from_str(name: &str) -> Result<Self, ClassError> {
        parse(name).ok_or_else(|| ClassError::UnknownName(name.to_owned()))
    }
}

fn parse(name: &str) -> Option<Schema> {
    let (family, rest) = if let Some(rest) = name.strip_prefix("AFF_") {
        (Family::Affinity, rest)
    } else if let Some(rest) = name.strip_prefix("DYN_") {
        (Family::Dynamic, rest)
    } else {
        (Family::Computed, name)
    };
    let (redundancy, groups) = if let Some(rest) = rest.strip_prefix("RP_") {
        let (count, groups) = rest.split_once('G')?;
        (Redundancy::Replicas(count.parse().ok()?), groups)
    } else if let Some(rest) = rest.strip_prefix("EC_") {
        let (cells, groups) = rest.split_once('G')?;
        let (data, parity) = cells.split_once('P')?;
        (Redundancy::Erasure { data: data.parse().ok()?, parity: parity.parse().ok()? }, groups)
    } else {
        (Redundancy::None, rest.strip_prefix('S')?)
    };
    let groups = match groups {
        "X" => Groups::All,
        count => Groups::Fixed(count.parse().ok()?),
    };
    let schema = Schema { family, redundancy, groups, cell_bytes: CELL_BYTES };
    // Only what has a number is a class, and only in the one spelling that it prints as.
    (schema.class().is_some() && schema.to_string() == name).then_some(schema)
}

/// The class with this name.
pub fn class_by_name(name: &str) -> Result<ObjectClass, ClassError> {
    let schema: Schema = name.parse()?;
    schema.class().ok_or_else(|| ClassError::UnknownName(name.to_owned()))
}

/// The name of a class; its number in hexadecimal if it has no schema.
pub fn class_name(class: ObjectClass) -> String {
    Schema::of(class).map_or_else(|_| format!("{:#06x}", class.0), |schema| schema.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_one_name_or_refused() {
        let mut known = 0;
        for number in 0..=u16::MAX {
            match Schema::of(ObjectClass(number)) {
                Ok(schema) => {
                    known += 1;
                    assert_eq!(schema.class(), Some(ObjectClass(number)));
                    assert_eq!(schema.to_string().parse(), Ok(schema), "{schema}");
                }
                Err(error) => assert_eq!(error, ClassError::UnknownNumber(number)),
            }
        }
        assert_eq!(known, 3 * SCHEMES.len() * 511);
    }

    /// These numbers are on media in every object ID: a change here is a change of format.
    #[test]
    fn numbers_stay() {
        for (name, number) in [
            ("S1", 0x0001),
            ("S8", 0x0008),
            ("SX", 0x01ff),
            ("RP_2G1", 0x0201),
            ("RP_3GX", 0x05ff),
            ("EC_2P1G1", 0x0c01),
            ("EC_4P2G1", 0x1201),
            ("EC_8P2GX", 0x19ff),
            ("EC_16P3G32", 0x2020),
            ("AFF_S1", 0x4001),
            ("DYN_RP_2GX", 0x83ff),
        ] {
            assert_eq!(class_by_name(name), Ok(ObjectClass(number)), "{name}");
            assert_eq!(class_name(ObjectClass(number)), name);
        }
        assert_eq!((S1, S2, S4, S8, SX), {
            let class = |name| class_by_name(name).expect("a class");
            (class("S1"), class("S2"), class("S4"), class("S8"), class("SX"))
        });
    }

    #[test]
    fn what_is_no_class_is_refused() {
        for name in [
            "", "S", "S0", "S01", "S511", "s1", "RP_1G1", "RP_7G1", "RP_2", "EC_3P1G1", "EC_4P2", "XS1",
            "S+1",
        ] {
            assert_eq!(class_by_name(name), Err(ClassError::UnknownName(name.to_owned())));
        }
        for name in ["RP_2G1", "EC_4P2GX", "AFF_S1", "DYN_SX"] {
            let class = class_by_name(name).expect("a class");
            assert_eq!(Schema::served(class), Err(ClassError::NotServed(name.to_owned())));
        }
        assert!(Schema::served(S4).is_ok());
    }

    #[test]
    fn groups_never_exceed_what_fits() {
        let schema = |name: &str| name.parse::<Schema>().expect("a class");
        assert_eq!(schema("S4").group_count(2), 2);
        assert_eq!(schema("S4").group_count(100), 4);
        assert_eq!(schema("SX").group_count(100_000), 100_000);
        assert_eq!(schema("RP_3GX").group_count(10), 3);
        assert_eq!(schema("RP_3G1").group_count(2), 0);
        assert_eq!(schema("EC_8P2GX").group_count(25), 2);
    }
}
