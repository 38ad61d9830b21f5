//! The reference: every change that was ever made, in maps; every answer by looking at all of them.

use std::{collections::BTreeMap, ops::Range};

use daos_vos::Conflict;

/// Object, dkey (or key), akey. Arrays have empty keys, KVs empty akeys.
pub type Name = (usize, Vec<u8>, Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    pub epoch: u64,
    pub cookie: u64,
    pub rebuild: bool,
    pub conflict: Conflict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub range: Range<u64>,
    pub cookie: u64,
    pub rebuild: bool,
    /// `None`: a punch.
    pub bytes: Option<Vec<u8>>,
    pub cut: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    Value(T),
    Punched(u64),
    Miss,
}

type Stamped = (u64, bool);
type Versions = BTreeMap<u64, (Stamped, Option<Vec<u8>>)>;
type Place = (usize, Option<Vec<u8>>);

#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub values: BTreeMap<Name, Versions>,
    pub arrays: BTreeMap<Name, BTreeMap<u64, Vec<Piece>>>,
    /// Punches of objects (`None`) and dkeys.
    pub punches: BTreeMap<Place, BTreeMap<u64, Stamped>>,
}

enum Verdict {
    Keep,
    Replace,
}

fn judge(old: Stamped, by: By, same: bool) -> Result<Verdict, ()> {
    match (old.1, by.rebuild) {
        _ if old.0 != by.cookie => Err(()),
        (false, true) => Ok(Verdict::Keep),
        (true, false) => Ok(Verdict::Replace),
        _ if same => Ok(Verdict::Keep),
        _ if by.conflict == Conflict::LastWins => Ok(Verdict::Replace),
        _ => Err(()),
    }
}

impl Reference {
    fn check_punches(&self, name: &Name, by: By) -> Result<(), ()> {
        for place in [(name.0, None), (name.0, Some(name.1.clone()))] {
            if let Some((cookie, _)) = self.punches.get(&place).and_then(|punches| punches.get(&by.epoch))
                && (*cookie != by.cookie || by.conflict == Conflict::Refuse)
            {
                return Err(());
            }
        }
        Ok(())
    }

    pub fn put(&mut self, name: &Name, by: By, value: Option<Vec<u8>>) -> Result<(), ()> {
        self.check_punches(name, by)?;
        let history = self.values.entry(name.clone()).or_default();
        let verdict = match history.get(&by.epoch) {
            Some((old, bytes)) => judge(*old, by, *bytes == value)?,
            None => Verdict::Replace,
        };
        if matches!(verdict, Verdict::Replace) {
            history.insert(by.epoch, ((by.cookie, by.rebuild), value));
        }
        Ok(())
    }

    pub fn write(
        &mut self,
        name: &Name,
        by: By,
        range: Range<u64>,
        bytes: Option<Vec<u8>>,
    ) -> Result<(), ()> {
        self.check_punches(name, by)?;
        let pieces = self.arrays.entry(name.clone()).or_default().entry(by.epoch).or_default();
        let mut gaps = vec![range.clone()];
        let mut replaced = Vec::new();
        for (index, old) in pieces.iter().enumerate() {
            if old.range.start >= range.end || old.range.end <= range.start {
                continue;
            }
            let same = old.range == range && old.bytes == bytes && (!old.cut || bytes.is_none());
            match judge((old.cookie, old.rebuild), by, same)? {
                Verdict::Keep if same && old.rebuild == by.rebuild => return Ok(()),
                Verdict::Keep => gaps = gaps.into_iter().flat_map(|gap| minus(&gap, &old.range)).collect(),
                Verdict::Replace => replaced.push(index),
            }
        }
        for index in replaced.into_iter().rev() {
            let old = pieces.remove(index);
            for rest in minus(&old.range, &range) {
                pieces.push(part(&old, rest));
            }
        }
        let whole = Piece { range, cookie: by.cookie, rebuild: by.rebuild, bytes, cut: false };
        for gap in gaps {
            pieces.push(if gap == whole.range { whole.clone() } else { part(&whole, gap) });
        }
        Ok(())
    }

    pub fn punch_above(&mut self, object: usize, dkey: Option<Vec<u8>>, by: By) -> Result<(), ()> {
        let place = (object, dkey.clone());
        if let Some(dkey) = &dkey {
            let above = self.punches.get(&(object, None)).and_then(|punches| punches.get(&by.epoch));
            let _ = dkey;
            if above.is_some_and(|(cookie, _)| *cookie != by.cookie || by.conflict == Conflict::Refuse) {
                return Err(());
            }
        }
        if let Some(old) = self.punches.get(&place).and_then(|punches| punches.get(&by.epoch)) {
            judge(*old, by, true)?;
        }
        let below = |name: &Name| name.0 == object && dkey.as_ref().is_none_or(|dkey| *dkey == name.1);
        let other = |cookie: u64| cookie != by.cookie || by.conflict == Conflict::Refuse;
        if !by.rebuild {
            let values = self.values.iter().filter(|(name, _)| below(name));
            let arrays = self.arrays.iter().filter(|(name, _)| below(name));
            let dkeys =
                self.punches.iter().filter(|((of, at), _)| *of == object && at.is_some() && dkey.is_none());
            if values.flat_map(|(_, history)| history.get(&by.epoch)).any(|(stamp, _)| other(stamp.0))
                || arrays
                    .flat_map(|(_, history)| history.get(&by.epoch))
                    .flatten()
                    .any(|piece| other(piece.cookie))
                || dkeys.flat_map(|(_, history)| history.get(&by.epoch)).any(|stamp| other(stamp.0))
            {
                return Err(());
            }
            self.values.iter_mut().filter(|(name, _)| below(name)).for_each(|(_, history)| {
                history.remove(&by.epoch);
            });
            self.arrays.iter_mut().filter(|(name, _)| below(name)).for_each(|(_, history)| {
                history.remove(&by.epoch);
            });
            if dkey.is_none() {
                for ((of, at), punches) in &mut self.punches {
                    if *of == object && at.is_some() {
                        punches.remove(&by.epoch);
                    }
                }
            }
        }
        self.punches.entry(place).or_default().entry(by.epoch).or_insert((by.cookie, by.rebuild));
        Ok(())
    }

    /// The newest punch above `name` at or before `epoch`.
    fn hidden(&self, name: &Name, epoch: u64) -> u64 {
        [(name.0, None), (name.0, Some(name.1.clone()))]
            .iter()
            .filter_map(|place| self.punches.get(place)?.range(..=epoch).next_back())
            .map(|(epoch, _)| *epoch)
            .max()
            .unwrap_or(0)
    }

    pub fn get(&self, name: &Name, epoch: u64) -> Answer<Vec<u8>> {
        let hidden = self.hidden(name, epoch);
        match self.values.get(name).and_then(|history| history.range(..=epoch).next_back()) {
            Some((at, (_, Some(bytes)))) if *at >= hidden => Answer::Value(bytes.clone()),
            Some((at, (_, None))) if *at >= hidden => Answer::Punched(*at),
            _ if hidden > 0 => Answer::Punched(hidden),
            _ => Answer::Miss,
        }
    }

    /// What is at each byte of the range.
    pub fn bytes(&self, name: &Name, range: Range<u64>, epoch: u64) -> Vec<Answer<u8>> {
        let hidden = self.hidden(name, epoch);
        let nothing = if hidden > 0 { Answer::Punched(hidden) } else { Answer::Miss };
        let mut answer = vec![nothing; (range.end - range.start) as usize];
        let Some(history) = self.arrays.get(name) else { return answer };
        for (at, pieces) in history.range(hidden..=epoch) {
            for piece in pieces {
                for offset in piece.range.start.max(range.start)..piece.range.end.min(range.end) {
                    answer[(offset - range.start) as usize] = match &piece.bytes {
                        Some(bytes) => Answer::Value(bytes[(offset - piece.range.start) as usize]),
                        None => Answer::Punched(*at),
                    };
                }
            }
        }
        answer
    }

    pub fn discard(&mut self, cookie: u64, range: Range<u64>) {
        let goes = |epoch: &u64, of: u64| range.contains(epoch) && of == cookie;
        for history in self.values.values_mut() {
            history.retain(|epoch, (stamp, _)| !goes(epoch, stamp.0));
        }
        for history in self.arrays.values_mut() {
            history.retain(|epoch, pieces| {
                pieces.retain(|piece| !goes(epoch, piece.cookie));
                !pieces.is_empty()
            });
        }
        for punches in self.punches.values_mut() {
            punches.retain(|epoch, stamp| !goes(epoch, stamp.0));
        }
    }

    /// What it knows of one object.
    pub fn only(&self, object: usize) -> Self {
        let values = self.values.iter().filter(|(name, _)| name.0 == object);
        let arrays = self.arrays.iter().filter(|(name, _)| name.0 == object);
        let punches = self.punches.iter().filter(|((of, _), _)| *of == object);
        Self {
            values: values.map(|(name, history)| (name.clone(), history.clone())).collect(),
            arrays: arrays.map(|(name, history)| (name.clone(), history.clone())).collect(),
            punches: punches.map(|(place, history)| (place.clone(), history.clone())).collect(),
        }
    }

    /// The most records that may be left once everything up to `high` has been aggregated: what is newer, and what is
    /// visible then.
    pub fn records_after(&self, high: u64) -> usize {
        let mut count = 0;
        for (name, history) in &self.values {
            count += history.range(high + 1..).count();
            count += usize::from(matches!(self.get(name, high), Answer::Value(_)));
        }
        for (name, history) in &self.arrays {
            count += history.range(high + 1..).map(|(_, pieces)| pieces.len()).sum::<usize>();
            let mut shown: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
            for (at, pieces) in history.range(self.hidden(name, high)..=high) {
                for (index, piece) in pieces.iter().enumerate() {
                    for offset in piece.range.clone() {
                        match piece.bytes {
                            Some(_) => shown.insert(offset, (*at, index)),
                            None => shown.remove(&offset),
                        };
                    }
                }
            }
            let mut pieces: BTreeMap<(u64, usize), usize> = BTreeMap::new();
            let mut last = None;
            for (offset, which) in shown {
                *pieces.entry(which).or_default() +=
                    usize::from(last != Some((offset.wrapping_sub(1), which)));
                last = Some((offset, which));
            }
            // A write with holes that are not worth a copy stays whole, and so do the punches that make them.
            for ((at, index), pieces) in pieces {
                let whole = &history[&at][index].range;
                let later = history.range(at..=high).flat_map(|(_, pieces)| pieces);
                let holes = later.filter(|piece| {
                    piece.bytes.is_none() && piece.range.start < whole.end && whole.start < piece.range.end
                });
                count += pieces.max(1 + holes.count());
            }
        }
        count + self.punches.values().map(|punches| punches.range(high + 1..).count()).sum::<usize>()
    }

    /// Forgets changes that no read at `high` or later can show.
    pub fn forget_hidden(&mut self, high: u64) {
        let (before, mut names) = (self.clone(), Vec::new());
        names.extend(self.values.keys().cloned());
        for name in names {
            let hidden = before.hidden(&name, high);
            let history = self.values.get_mut(&name).expect("its name");
            let newest = history.range(..=high).next_back().map(|(epoch, _)| *epoch);
            history.retain(|epoch, _| *epoch > high || (Some(*epoch) == newest && *epoch >= hidden));
        }
        for (name, history) in &mut self.arrays {
            let hidden = before.hidden(name, high);
            let mut covered = std::collections::BTreeSet::new();
            for (_, pieces) in history.range_mut(..=high).rev() {
                let mut shown = Vec::new();
                pieces.retain(|piece| {
                    let visible = piece.range.clone().any(|offset| !covered.contains(&offset));
                    shown.extend(piece.range.clone());
                    visible
                });
                covered.extend(shown);
            }
            history.retain(|epoch, pieces| !pieces.is_empty() && (*epoch > high || *epoch >= hidden));
        }
        self.values.retain(|_, history| !history.is_empty());
        self.arrays.retain(|_, history| !history.is_empty());
    }

    /// Records: versions, extents, negative entries.
    pub fn records(&self) -> usize {
        self.values.values().map(BTreeMap::len).sum::<usize>()
            + self.arrays.values().flat_map(BTreeMap::values).map(Vec::len).sum::<usize>()
            + self.punches.values().map(BTreeMap::len).sum::<usize>()
    }
}

fn minus(range: &Range<u64>, other: &Range<u64>) -> Vec<Range<u64>> {
    if other.end <= range.start || other.start >= range.end {
        return vec![range.clone()];
    }
    let parts = [range.start..other.start.max(range.start), other.end.min(range.end)..range.end];
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

fn part(piece: &Piece, range: Range<u64>) -> Piece {
    let skip = (range.start - piece.range.start) as usize;
    let length = (range.end - range.start) as usize;
    let bytes = piece.bytes.as_ref().map(|bytes| bytes[skip..skip + length].to_vec());
    Piece { range, bytes, cut: true, ..*piece }
}
