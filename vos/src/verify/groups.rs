//! Groups against records: every record that was not aggregated is named by the group of its epoch and cookie, and what a
//! group names is there.

use crate::{
    groups::{self, Entry},
    records::{ByCookie, ByEpoch, Group},
};

use super::Checker;

/// What an entry names: a record's offset, and for extents the block's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Named {
    Single(u64),
    AkeyExtent(u64, u64),
    ObjectExtent(u64, u64),
    Dkey(u64),
    Object(u64),
}

impl Named {
    fn of(entry: Entry) -> Self {
        match entry {
            Entry::Single(key) => Named::Single(key),
            Entry::AkeyExtent(key, block) => Named::AkeyExtent(key, block),
            Entry::ObjectExtent(object, block) => Named::ObjectExtent(object, block),
            Entry::Dkey(key) => Named::Dkey(key),
            Entry::Object(object) => Named::Object(object),
        }
    }

    fn record(self) -> u64 {
        match self {
            Named::Single(record) | Named::Dkey(record) | Named::Object(record) => record,
            Named::AkeyExtent(record, _) | Named::ObjectExtent(record, _) => record,
        }
    }

    /// The same, of the extent at `block`.
    pub fn at(self, block: u64) -> Self {
        match self {
            Named::AkeyExtent(key, _) => Named::AkeyExtent(key, block),
            Named::ObjectExtent(object, _) => Named::ObjectExtent(object, block),
            other => other,
        }
    }
}

type Change = (Named, u64, u64);

/// The entries of a container's groups, and what its records want to be named by.
#[derive(Default)]
pub(super) struct Entries {
    /// (what, epoch, cookie), sorted before records are looked at.
    listed: Vec<Change>,
    expected: Vec<Change>,
    /// Offsets of the objects and keys that there are.
    pub records: Vec<u64>,
}

impl Entries {
    /// A record was found that must be listed.
    pub fn expect(&mut self, named: Named, epoch: u64, cookie: u64) {
        self.expected.push((named, epoch, cookie));
    }

    /// How many entries name the array of `holder`.
    pub fn of_array(&self, holder: Named) -> u64 {
        let from = (holder.at(0), 0, 0);
        let to = (holder.at(u64::MAX), u64::MAX, u64::MAX);
        let range = self.listed.partition_point(|entry| *entry < from);
        (self.listed.partition_point(|entry| *entry <= to) - range) as u64
    }
}

impl Checker<'_> {
    /// Walks the groups of a container.
    pub(super) fn groups(&mut self, by_epoch: u64, by_cookie: u64) {
        let mut places = Vec::new();
        self.tree(ByEpoch, by_epoch, |checker, place| {
            let Group { epoch, cookie, .. } = *checker.read::<Group>(place)?;
            places.push(place);
            checker.report.groups += 1;
            if !checker.reach(place, size_of::<Group>() as u64) {
                return Ok(());
            }
            let mut chunks = Vec::new();
            let limit = checker.heap.arena_bytes() / 32;
            groups::visit_chunks(checker.heap, place, limit, &mut |chunk, bytes| {
                chunks.push((chunk, bytes));
                Ok(())
            })?;
            for (chunk, bytes) in chunks {
                checker.reach(chunk, bytes);
            }
            let listed = &mut checker.entries.listed;
            groups::visit(checker.heap, place, &mut |_, entry| {
                listed.push((Named::of(entry), epoch, cookie));
                Ok(true)
            })
        });
        let mut others = Vec::new();
        self.tree(ByCookie, by_cookie, |_, place| {
            others.push(place);
            Ok(())
        });
        places.sort_unstable();
        others.sort_unstable();
        if places != others {
            self.fault("the groups by epoch are not those by cookie".to_owned());
        }
        self.report.entries += self.entries.listed.len() as u64;
        self.entries.listed.sort_unstable();
    }

    /// Compares what is listed with what was found.
    pub(super) fn settle_entries(&mut self) {
        if self.destroying {
            return;
        }
        let mut entries = std::mem::take(&mut self.entries);
        entries.records.sort_unstable();
        for &(named, epoch, cookie) in &entries.listed {
            if entries.records.binary_search(&named.record()).is_err() {
                self.fault(format!(
                    "{named:x?}, listed in epoch {epoch} of cookie {cookie:#x}, is not there"
                ));
            }
        }
        for change in &entries.expected {
            if entries.listed.binary_search(change).is_err() {
                let (named, epoch, cookie) = change;
                let what = format!("{named:x?} was changed in epoch {epoch} by cookie {cookie:#x}");
                self.fault(format!("{what}, and no group says so"));
            }
        }
    }
}
