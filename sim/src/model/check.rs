//! What a read may find, and what it settles.

use std::collections::BTreeSet;

use daos_dsr::{
    class::CELL_BYTES,
    client::{Extent, ExtentKind, Fetched},
};
use daos_types::{ObjectId, ObjectType};

use super::{Answer, Change, CommitKey, Cover, HandleKey, Model, Place, Standing, Version, byte, content};
use crate::violation::Rule;

/// From where a read looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// At a committed epoch, or when nobody writes.
    Committed,
    /// A handle at its own uncommitted epochs.
    Own(HandleKey),
}

/// Something that may be found at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    answer: Answer,
    /// The commit in doubt that it belongs to.
    commit: Option<CommitKey>,
    /// As in [`Version`].
    durable_since: Option<u64>,
}

const MISS: Candidate = Candidate { answer: Answer::Miss, commit: None, durable_since: None };

/// Where somebody has looked.
#[derive(Clone, Copy)]
struct Asked {
    container: usize,
    object: ObjectId,
    epoch: u64,
    view: View,
}

impl Model {
    /// What may be found at a place, the newest first; the last one is certain if the others are not there.
    fn candidates(
        &self,
        container: usize,
        object: ObjectId,
        place: Place<'_>,
        epoch: u64,
        view: View,
    ) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        let Some(versions) = self.containers[container].objects.get(&object) else {
            return vec![MISS];
        };
        let mut relevant: Vec<&Version> =
            versions.iter().filter(|version| version.epoch <= epoch && version.cover.covers(place)).collect();
        relevant.sort_by_key(|version| (version.epoch, version.change));
        let mut passed: BTreeSet<CommitKey> = BTreeSet::new();
        for version in relevant.into_iter().rev() {
            let (answer, durable_since) = (version.answer(), version.durable_since);
            let own = view == View::Own(version.handle);
            let (maybe, commit) = match version.standing {
                Standing::Committed => {
                    found.push(Candidate { answer, commit: None, durable_since });
                    return found;
                }
                Standing::InCommit(commit) => (passed.insert(commit), Some(commit)),
                Standing::Abandoned => (view != View::Committed, None),
                Standing::Visible | Standing::Durable if own => {
                    found.push(Candidate { answer, commit: None, durable_since });
                    return found;
                }
                Standing::Doubtful if own => (true, None),
                // Of another handle that lives: below the HCE only if its commit is under way.
                _ => (self.handles[version.handle].commit.is_some(), None),
            };
            if maybe {
                found.push(Candidate { answer, commit, durable_since: None });
            }
        }
        found.push(MISS);
        found
    }

    /// Which rule is broken, if none of the candidates was found.
    fn classify(&self, asked: Asked, candidates: &[Candidate], matches: impl Fn(Answer) -> bool) -> Rule {
        let container = &self.containers[asked.container];
        let versions = container.objects.get(&asked.object).into_iter().flatten();
        let gone = container.gone.get(&asked.object).into_iter().flatten();
        let written = |change: Change| matches(Answer::Written(change));
        let expected = candidates.last().and_then(|candidate| candidate.durable_since);
        if versions.clone().any(|version| version.epoch > asked.epoch && written(version.change)) {
            Rule::ReadEpoch
        } else if gone.clone().any(|(change, _)| written(*change)) {
            Rule::Discard
        } else if self.damaged
            && !versions.clone().any(|version| written(version.change))
            && !matches(Answer::Miss)
            && !matches(Answer::Punched)
        {
            Rule::Checksum
        } else if expected.is_some_and(|life| life < self.engine_life) {
            Rule::Durability
        } else if asked.view == View::Committed {
            Rule::CommittedEpochs
        } else {
            Rule::OwnWrites
        }
    }

    /// Compares what was found with what may be; settles what that settles.
    fn compare(
        &mut self,
        what: impl Fn() -> String,
        candidates: &[Candidate],
        asked: Asked,
        matches: impl Fn(Answer) -> bool,
        found: impl Fn() -> String,
    ) {
        self.comparisons += 1;
        let mut fitting = candidates.iter().enumerate().filter(|(_, candidate)| matches(candidate.answer));
        let Some((place, candidate)) = fitting.next() else {
            let rule = self.classify(asked, candidates, &matches);
            let expected: Vec<Answer> = candidates.iter().map(|candidate| candidate.answer).collect();
            let story = format!("{}: found {}, expected one of {expected:?}", what(), found());
            return self.violate(rule, story);
        };
        if asked.view != View::Committed || fitting.next().is_some() {
            return;
        }
        for skipped in &candidates[..place] {
            if let Some(commit) = skipped.commit {
                self.committed(commit, false);
            }
        }
        if let Some(commit) = candidate.commit {
            self.committed(commit, true);
        }
    }

    /// Whether what a handle sees of its own may vanish during a read: somebody has begun to evict it.
    fn is_threatened(&self, view: View) -> bool {
        matches!(view, View::Own(handle) if self.handles[handle].threatened)
    }

    /// A value was read.
    pub fn read_value(
        &mut self,
        container: usize,
        object: ObjectId,
        (dkey, akey): (&[u8], &[u8]),
        epoch: u64,
        view: View,
        found: &Fetched,
    ) {
        if self.is_threatened(view) {
            return;
        }
        let candidates = self.candidates(container, object, Place::Key(dkey, akey), epoch, view);
        let lengths: Vec<(u64, usize)> = self.lengths(container, object);
        let forgets = self.containers[container].may_forget_punches(epoch);
        let matches = |answer: Answer| match (answer, found) {
            (Answer::Written(change), Fetched::Value(value)) => {
                let length =
                    lengths.iter().find(|(other, _)| *other == change).map_or(0, |(_, length)| *length);
                *value == content(change, 0, length)
            }
            (Answer::Punched, Fetched::Punched) | (Answer::Miss, Fetched::Miss) => true,
            (Answer::Punched, Fetched::Miss) => forgets,
            _ => false,
        };
        let what = || {
            format!(
                "container {container} object {object} key {}/{} at epoch {epoch} ({view:?})",
                String::from_utf8_lossy(dkey),
                String::from_utf8_lossy(akey)
            )
        };
        let shown = || match found {
            Fetched::Value(value) => match lengths
                .iter()
                .find(|(change, length)| value.len() == *length && *value == content(*change, 0, *length))
            {
                Some((change, _)) => format!("what change {change} wrote"),
                None => format!("{} bytes that nobody (who is known) wrote", value.len()),
            },
            other => format!("{other:?}"),
        };
        self.compare(what, &candidates, Asked { container, object, epoch, view }, matches, shown);
    }

    /// A range of an array was read.
    pub fn read_range(
        &mut self,
        container: usize,
        object: ObjectId,
        start: u64,
        epoch: u64,
        view: View,
        (data, extents): (&[u8], &[Extent]),
    ) {
        if self.is_threatened(view) {
            return;
        }
        let forgets = self.containers[container].may_forget_punches(epoch);
        let end = start + data.len() as u64;
        let mut cuts: BTreeSet<u64> = [start, end].into();
        cuts.extend(extents.iter().flat_map(|extent| [extent.range.start, extent.range.end]));
        if let Some(versions) = self.containers[container].objects.get(&object) {
            for version in versions {
                if let Cover::Extent(range) = &version.cover {
                    cuts.extend([range.start, range.end].iter().filter(|cut| (start..end).contains(cut)));
                }
            }
        }
        // A write over a border between shards is two, each with its own fate (seed 629).
        cuts.extend((start..end).filter(|offset| offset.is_multiple_of(CELL_BYTES)));
        let cuts: Vec<u64> = cuts.into_iter().filter(|cut| (start..=end).contains(cut)).collect();
        for pair in cuts.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let kind = extents.iter().find(|extent| extent.range.contains(&from)).map(|extent| extent.kind);
            let bytes = &data[(from - start) as usize..(to - start) as usize];
            let candidates = self.candidates(container, object, Place::Byte(from), epoch, view);
            let matches = |answer: Answer| match (answer, kind) {
                (Answer::Written(change), Some(ExtentKind::Data)) => {
                    bytes.iter().zip(from..).all(|(found, offset)| *found == byte(change, offset))
                }
                (Answer::Punched, Some(ExtentKind::Punched)) | (Answer::Miss, Some(ExtentKind::Miss)) => {
                    bytes.iter().all(|byte| *byte == 0)
                }
                (Answer::Punched, Some(ExtentKind::Miss)) => forgets && bytes.iter().all(|byte| *byte == 0),
                _ => false,
            };
            let what = || {
                format!("container {container} array {object} bytes {from}..{to} at epoch {epoch} ({view:?})")
            };
            let asked = Asked { container, object, epoch, view };
            self.compare(what, &candidates, asked, matches, || format!("{kind:?}"));
        }
    }

    /// Keys were listed, all of a KV, or the akeys of `dkey` of a document: every key of `known` that must be there is,
    /// and none that must not.
    pub fn listed(
        &mut self,
        container: usize,
        object: ObjectId,
        dkey: &[u8],
        known: &[Vec<u8>],
        epoch: u64,
        found: &[Vec<u8>],
    ) {
        self.comparisons += 1;
        let mut wrong = Vec::new();
        let unique: BTreeSet<&Vec<u8>> = found.iter().collect();
        if unique.len() != found.len() {
            wrong.push("a key is listed twice".to_owned());
        }
        if let Some(other) = found.iter().find(|key| !known.contains(key)) {
            wrong.push(format!("{} is listed, which nobody wrote", String::from_utf8_lossy(other)));
        }
        for key in known {
            let candidates =
                self.candidates(container, object, Place::Key(dkey, key), epoch, View::Committed);
            let visible = |candidate: &Candidate| matches!(candidate.answer, Answer::Written(_));
            let listed = unique.contains(key);
            if candidates.iter().all(|candidate| visible(candidate) != listed) {
                let how =
                    if listed { "is listed and holds nothing" } else { "is not listed and holds a value" };
                wrong.push(format!("{} {how}", String::from_utf8_lossy(key)));
            }
        }
        if !wrong.is_empty() {
            let story =
                format!("container {container} object {object} at epoch {epoch}: {}", wrong.join("; "));
            self.violate(Rule::Enumeration, story);
        }
    }

    /// Whether a place holds a value; `None` if that is in doubt.
    pub fn holds(&self, container: usize, object: ObjectId, place: Place<'_>, epoch: u64) -> Option<bool> {
        let candidates = self.candidates(container, object, place, epoch, View::Committed);
        let written = |candidate: &Candidate| matches!(candidate.answer, Answer::Written(_));
        let first = written(candidates.first()?);
        candidates.iter().all(|candidate| written(candidate) == first).then_some(first)
    }

    /// The size of an array was asked for.
    pub fn sized(&mut self, container: usize, object: ObjectId, epoch: u64, size: u64) {
        self.comparisons += 1;
        debug_assert_eq!(object.object_type(), ObjectType::Array);
        let ends = self.containers[container].objects.get(&object).into_iter().flatten();
        let mut ends: Vec<u64> = ends
            .filter_map(|version| match &version.cover {
                Cover::Extent(range) => Some([range.start, range.end]),
                _ => None,
            })
            .flatten()
            .filter(|end| *end > 0)
            .collect();
        ends.sort_unstable();
        let mut expected = Some(0);
        for end in ends.into_iter().rev() {
            match self.holds(container, object, Place::Byte(end - 1), epoch) {
                Some(false) => {}
                Some(true) => {
                    expected = Some(end);
                    break;
                }
                None => {
                    expected = None;
                    break;
                }
            }
        }
        if let Some(expected) = expected
            && expected != size
        {
            let story =
                format!("container {container} array {object} at epoch {epoch}: size {size}, not {expected}");
            self.violate(Rule::CommittedEpochs, story);
        }
    }

    fn lengths(&self, container: usize, object: ObjectId) -> Vec<(u64, usize)> {
        let container = &self.containers[container];
        let versions = container.objects.get(&object).into_iter().flatten();
        let known = versions.filter_map(|version| Some((version.change, version.length?)));
        known.chain(container.gone.get(&object).into_iter().flatten().copied()).collect()
    }
}
