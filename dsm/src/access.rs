//! Who may do what: access control lists, and the capabilities that a handle carries to the targets.
//!
//! # Invariants
//!
//! * Authentication (who somebody is: [`Identity`]) and authorisation (what they may do: [`Acl::grants`]) are separate.
//! * The most specific entry that matches decides, alone: owner, then user, then all matching groups together, then
//!   everyone. Nobody is special: uid 0 has what the list says.
//! * A handle never carries a capability that the list did not grant when it was opened, or that was not asked for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Most entries of an access control list.
pub const ENTRIES_MAX: usize = 256;

/// Who somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// What a handle, or an entry of a list, permits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Capabilities(u16);

/// Letter and bit of each capability, in the order in which they are printed.
const LETTERS: [(char, Capabilities); 9] = [
    ('r', Capabilities::READ),
    ('w', Capabilities::WRITE),
    ('c', Capabilities::CREATE_CONTAINER),
    ('d', Capabilities::DELETE_CONTAINER),
    ('t', Capabilities::GET_PROPERTIES),
    ('T', Capabilities::SET_PROPERTIES),
    ('a', Capabilities::GET_ACL),
    ('A', Capabilities::SET_ACL),
    ('o', Capabilities::SET_OWNER),
];

impl Capabilities {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// `r`: read data; connect to the pool.
    pub const READ: Self = Self(1);
    /// `w`: change data; in a pool: make and destroy containers too.
    pub const WRITE: Self = Self(2);
    /// `c`: make containers in the pool.
    pub const CREATE_CONTAINER: Self = Self(4);
    /// `d`: destroy this container, or any of the pool.
    pub const DELETE_CONTAINER: Self = Self(8);
    /// `t`: read properties and attributes.
    pub const GET_PROPERTIES: Self = Self(16);
    /// `T`: change properties and attributes.
    pub const SET_PROPERTIES: Self = Self(32);
    /// `a`: read the list.
    pub const GET_ACL: Self = Self(64);
    /// `A`: change the list.
    pub const SET_ACL: Self = Self(128);
    /// `o`: give it to another owner.
    pub const SET_OWNER: Self = Self(256);
    /// Everything.
    pub const ALL: Self = Self(511);

    /// Both together.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What both have.
    pub const fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` is permitted.
    pub const fn permits(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl TryFrom<u16> for Capabilities {
    type Error = AccessError;

    fn try_from(bits: u16) -> Result<Self, AccessError> {
        let capabilities = Self(bits);
        if Self::ALL.permits(capabilities) { Ok(capabilities) } else { Err(wrong("an unknown capability")) }
    }
}

impl From<Capabilities> for u16 {
    fn from(capabilities: Capabilities) -> u16 {
        capabilities.0
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = LETTERS.iter().filter(|(_, capability)| self.permits(*capability));
        letters.map(|(letter, _)| letter).collect::<String>().fmt(f)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Capabilities {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        text.chars().try_fold(Self::NONE, |capabilities, letter| {
            let found = LETTERS.iter().find(|(known, _)| *known == letter);
            let (_, capability) = found.ok_or_else(|| wrong("a permission that is none of rwcdtTaAo"))?;
            Ok(capabilities.with(*capability))
        })
    }
}

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Principal {
    /// `OWNER@`: the user who owns the pool or container.
    Owner,
    /// `UID@`: a user.
    User(u32),
    /// `GROUP@`: the group that owns the pool or container.
    OwnerGroup,
    /// `GID@` with flag `G`: a group.
    Group(u32),
    /// `EVERYONE@`: who matches nothing else.
    Everyone,
}

/// One line of a list, in the form `A:FLAGS:PRINCIPAL:PERMISSIONS`: `A::OWNER@:rw`, `A:G:GROUP@:r`, `A::1000@:r`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whom it is about.
    pub principal: Principal,
    /// What they may do.
    pub capabilities: Capabilities,
}

/// An access control list. At most one entry for each principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct Acl(Vec<Entry>);

/// Who owns a pool or container, and who may do what with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Owning user and group.
    pub owner: Identity,
    /// The list.
    pub acl: Acl,
}

/// Why a text or a list is no access control. A retry cannot help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad access control: {0}")]
pub struct AccessError(String);

fn wrong(text: &str) -> AccessError {
    AccessError(text.to_owned())
}

impl Ownership {
    /// What `identity` may do.
    pub fn grants(&self, identity: Identity) -> Capabilities {
        self.acl.grants(identity, self.owner)
    }
}

impl Acl {
    /// The list of a new pool or container: everything for the owner, reading and writing for the owner's group.
    pub fn initial() -> Self {
        let group = Capabilities::READ.with(Capabilities::WRITE).with(Capabilities::GET_PROPERTIES);
        Self(vec![
            Entry { principal: Principal::Owner, capabilities: Capabilities::ALL },
            Entry { principal: Principal::OwnerGroup, capabilities: group },
        ])
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// What `identity` may do with what `owner` owns.
    pub fn grants(&self, identity: Identity, owner: Identity) -> Capabilities {
        let of = |principal: Principal| {
            self.0.iter().find(|entry| entry.principal == principal).map(|entry| entry.capabilities)
        };
        if identity.uid == owner.uid
            && let Some(capabilities) = of(Principal::Owner)
        {
            return capabilities;
        }
        if let Some(capabilities) = of(Principal::User(identity.uid)) {
            return capabilities;
        }
        let owner_group = (identity.gid == owner.gid).then(|| of(Principal::OwnerGroup)).flatten();
        let groups: Vec<_> =
            [owner_group, of(Principal::Group(identity.gid))].into_iter().flatten().collect();
        if !groups.is_empty() {
            return groups.into_iter().fold(Capabilities::NONE, Capabilities::with);
        }
        of(Principal::Everyone).unwrap_or_default()
    }
}

impl TryFrom<Vec<Entry>> for Acl {
    type Error = AccessError;

    fn try_from(entries: Vec<Entry>) -> Result<Self, AccessError> {
        let mut principals: Vec<_> = entries.iter().map(|entry| entry.principal).collect();
        principals.sort_unstable();
        principals.dedup();
        if principals.len() != entries.len() {
            return Err(wrong("two entries for one principal"));
        }
        if entries.len() > ENTRIES_MAX {
            return Err(wrong("too many entries"));
        }
        Ok(Self(entries))
    }
}

impl From<Acl> for Vec<Entry> {
    fn from(acl: Acl) -> Self {
        acl.0
    }
}

impl FromStr for Entry {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let form = || {
            AccessError(format!(
                "{text:?} is not of the form A:FLAGS:PRINCIPAL:PERMISSIONS, such as A::OWNER@:rw or A:G:100@:r"
            ))
        };
        let parts: Vec<_> = text.split(':').collect();
        let &["A", flags, principal, permissions] = parts.as_slice() else { return Err(form()) };
        let id = |name: &str| name.strip_suffix('@').and_then(|id| id.parse().ok()).ok_or_else(form);
        let principal = match (flags, principal) {
            ("", "OWNER@") => Principal::Owner,
            ("", "EVERYONE@") => Principal::Everyone,
            ("", user) => Principal::User(id(user)?),
            ("G", "GROUP@") => Principal::OwnerGroup,
            ("G", group) => Principal::Group(id(group)?),
            _ => return Err(form()),
        };
        Ok(Self { principal, capabilities: permissions.parse()? })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capabilities = self.capabilities;
        match self.principal {
            Principal::Owner => write!(f, "A::OWNER@:{capabilities}"),
            Principal::User(uid) => write!(f, "A::{uid}@:{capabilities}"),
            Principal::OwnerGroup => write!(f, "A:G:GROUP@:{capabilities}"),
            Principal::Group(gid) => write!(f, "A:G:{gid}@:{capabilities}"),
            Principal::Everyone => write!(f, "A::EVERYONE@:{capabilities}"),
        }
    }
}

impl FromStr for Acl {
    type Err = AccessError;

    /// Entries separated by white space.
    fn from_str(text: &str) -> Result<Self, AccessError> {
        text.split_whitespace().map(str::parse).collect::<Result<Vec<Entry>, _>>()?.try_into()
    }
}
