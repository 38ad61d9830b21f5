//! Reading in order: from a key upwards, from a key downwards, and the greatest number not above one.

use std::ops::ControlFlow;

use daos_umem::Heap;

use super::{
    KeyClass, Probe, Root, Summary,
    insert::{entries, sort, summarise},
    node::{LEAF_CAPACITY, Node, kept},
};
use crate::{Error, memory};

/// Where a scan starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound<'p, 'k> {
    /// At the first key.
    First,
    /// At this key, or after it.
    From(&'p Probe<'k>),
    /// After this key.
    After(&'p Probe<'k>),
}

type Visit<'v> = &'v mut dyn FnMut(u64) -> Result<ControlFlow<()>, Error>;

/// Visits the records from `bound` on in ascending order of their keys, until `visit` breaks.
pub(crate) fn scan<C: KeyClass>(
    heap: &Heap,
    class: C,
    root: u64,
    bound: Bound<'_, '_>,
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, Error> {
    match Root::decode(root)? {
        Root::Empty => Ok(ControlFlow::Continue(())),
        Root::Record(record) => {
            let probe = class.probe(heap, record)?;
            let order = |other: &Probe<'_>| {
                let kept = |prefix| kept(class.narrow(), prefix);
                kept(probe.prefix).cmp(&kept(other.prefix)).then_with(|| probe.tail.cmp(other.tail))
            };
            let wanted = match bound {
                Bound::First => true,
                Bound::From(from) => order(from).is_ge(),
                Bound::After(after) => order(after).is_gt(),
            };
            if wanted { visit(record) } else { Ok(ControlFlow::Continue(())) }
        }
        Root::Node(node) => scan_node(heap, class, &Node::read(heap, node)?, bound, visit),
    }
}

fn scan_node<C: KeyClass>(
    heap: &Heap,
    class: C,
    node: &Node<'_>,
    bound: Bound<'_, '_>,
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, Error> {
    if node.level() == 0 {
        return scan_leaf(heap, class, node, bound, visit);
    }
    let first = match bound {
        Bound::First => 0,
        Bound::From(probe) | Bound::After(probe) => node.child_index::<C>(probe)?,
    };
    for (step, &child) in node.children()?[first..].iter().enumerate() {
        let bound = if step == 0 { bound } else { Bound::First };
        if scan_node(heap, class, &node.child(child)?, bound, visit)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn scan_leaf<C: KeyClass>(
    heap: &Heap,
    class: C,
    leaf: &Node<'_>,
    bound: Bound<'_, '_>,
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, Error> {
    let (mut all, count) = entries(leaf)?;
    let mut kept = 0;
    for index in 0..count {
        let entry = all[index];
        let order = |probe: &Probe<'_>| -> Result<std::cmp::Ordering, Error> {
            Ok(match entry.prefix.cmp(&leaf.kept(probe.prefix)) {
                std::cmp::Ordering::Equal if C::TAILS => class.tail(heap, entry.record)?.cmp(probe.tail),
                order => order,
            })
        };
        let wanted = match bound {
            Bound::First => true,
            Bound::From(from) => order(from)?.is_ge(),
            Bound::After(after) => order(after)?.is_gt(),
        };
        if wanted {
            all[kept] = entry;
            kept += 1;
        }
    }
    for entry in &all[..kept] {
        memory::prefetch(heap, entry.record, 1);
    }
    sort(heap, class, &mut all[..kept])?;
    for entry in &all[..kept] {
        if visit(entry.record)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The record with the greatest number ≤ `number`. For classes without tails.
#[inline]
pub(crate) fn floor<C: KeyClass>(
    heap: &Heap,
    class: C,
    root: u64,
    number: u128,
) -> Result<Option<u64>, Error> {
    debug_assert!(!C::TAILS);
    match Root::decode(root)? {
        Root::Empty => Ok(None),
        Root::Record(record) => Ok((class.probe(heap, record)?.prefix <= number).then_some(record)),
        Root::Node(node) => floor_node::<C>(&Node::read(heap, node)?, number),
    }
}

fn floor_node<C: KeyClass>(node: &Node<'_>, number: u128) -> Result<Option<u64>, Error> {
    if node.level() == 0 {
        let (mut best, mut used) = (None, node.used());
        let slots = node.slots()?;
        while used != 0 {
            let (prefix, record) = slots.get(used.trailing_zeros() as usize);
            if prefix <= number && best.is_none_or(|(best, _)| prefix > best) {
                best = Some((prefix, record));
            }
            used &= used - 1;
        }
        return Ok(best.map(|(_, record)| record));
    }
    let children = node.children()?;
    let mut index = node.child_index::<C>(&Probe::number(number))?;
    loop {
        if let Some(record) = floor_node::<C>(&node.child(children[index])?, number)? {
            return Ok(Some(record));
        }
        if index == 0 {
            return Ok(None);
        }
        index -= 1;
    }
}

/// The summary of all records. For classes with summaries.
pub(crate) fn summary<C: KeyClass>(heap: &Heap, class: C, root: u64) -> Result<Summary, Error> {
    let node = match Root::decode(root)? {
        Root::Empty => return Ok(Summary::EMPTY),
        Root::Record(record) => return class.summary(heap, record),
        Root::Node(node) => Node::read(heap, node)?,
    };
    if node.level() == 0 {
        let (all, count) = entries(&node)?;
        return summarise(heap, class, &all[..count]);
    }
    Ok(node.summaries::<C>()?.iter().fold(Summary::EMPTY, |all, child| all.merge(*child)))
}

/// Visits the records with numbers from `high` down to `low` in descending order, passing by whatever lies below a summary
/// that `may` refuses, until `visit` breaks. For classes without tails.
pub(crate) fn scan_back<C: KeyClass>(
    heap: &Heap,
    class: C,
    root: u64,
    (low, high): (u128, u128),
    may: &dyn Fn(&Summary) -> bool,
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, Error> {
    debug_assert!(!C::TAILS);
    match Root::decode(root)? {
        Root::Empty => Ok(ControlFlow::Continue(())),
        Root::Record(record) => {
            let number = class.probe(heap, record)?.prefix;
            if low <= number && number <= high { visit(record) } else { Ok(ControlFlow::Continue(())) }
        }
        Root::Node(node) => scan_back_node::<C>(&Node::read(heap, node)?, (low, high), may, visit),
    }
}

fn scan_back_node<C: KeyClass>(
    node: &Node<'_>,
    (low, high): (u128, u128),
    may: &dyn Fn(&Summary) -> bool,
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, Error> {
    if node.level() == 0 {
        return scan_leaf_back(node, (low, high), visit);
    }
    let (children, summaries, separators) = (node.children()?, node.summaries::<C>()?, node.separators()?);
    for index in (0..=node.child_index::<C>(&Probe::number(high))?).rev() {
        if summaries.get(index).is_none_or(may)
            && scan_back_node::<C>(&node.child(children[index])?, (low, high), may, visit)?.is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        if index > 0 && separators.get(index) <= low {
            break;
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn scan_leaf_back(
    leaf: &Node<'_>,
    (low, high): (u128, u128),
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, Error> {
    // Mostly none or one of them is wanted: the others are not copied.
    let (slots, mut used) = (leaf.slots()?, leaf.used());
    let (mut wanted, mut count) = ([0u8; LEAF_CAPACITY], 0);
    while used != 0 {
        let index = used.trailing_zeros();
        let (prefix, _) = slots.get(index as usize);
        if low <= prefix && prefix <= high {
            wanted[count] = index as u8;
            count += 1;
        }
        used &= used - 1;
    }
    let wanted = &mut wanted[..count];
    wanted.sort_unstable_by_key(|&index| std::cmp::Reverse(slots.get(usize::from(index)).0));
    for &index in &*wanted {
        if visit(slots.get(usize::from(index)).1)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
