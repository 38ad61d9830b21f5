//! Properties of layouts, computed; and golden layouts, which must never change.

use daos_types::{KeyOrder, ObjectClass, ObjectType};

use super::*;
use crate::class::{S1, S4, class_by_name};

fn schema(name: &str) -> Schema {
    name.parse().expect("a class")
}

fn object(class: ObjectClass, number: u64) -> ObjectId {
    ObjectId::new(ObjectType::Array, KeyOrder::Hashed, KeyOrder::Hashed, class, (0, 0, number))
}

/// `ranks` engines of `per_rank` targets, each engine a fault domain.
fn pool(ranks: u32, per_rank: u32) -> Vec<PlacedTarget> {
    (0..ranks)
        .flat_map(|rank| {
            (0..per_rank).map(move |target| PlacedTarget {
                rank,
                target,
                domain: rank,
                standing: Standing::Serving,
            })
        })
        .collect()
}

fn ordinals(layout: &Layout) -> Vec<u32> {
    layout.shards().iter().map(|shard| shard.ordinal).collect()
}

/// What may never happen, in any layout.
fn check(placement: &Placement, layout: &Layout) {
    let mut seen = ordinals(layout);
    seen.sort_unstable();
    let all = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), all, "a target twice: {layout:?}");
    for group in 0..layout.group_count() {
        let mut domains: Vec<u32> = layout
            .group(group)
            .iter()
            .map(|shard| placement.targets()[shard.ordinal as usize].domain)
            .collect();
        domains.sort_unstable();
        domains.dedup();
        // A spare may have to share a domain.
        let replaced = layout.group(group).iter().any(|shard| shard.replacement);
        if placement.domains >= layout.group_size() && !replaced {
            assert_eq!(domains.len() as u32, layout.group_size(), "a domain twice: {layout:?}");
        }
    }
}

/// Objects stored once stay where they are: a change here is a change of format.
#[test]
fn golden_layouts_stay() {
    let mut lines = String::new();
    let mut layout = Layout::new();
    for (ranks, per_rank) in [(1, 2), (3, 4), (100, 8)] {
        let placement = Placement::new(1, pool(ranks, per_rank));
        for name in ["S1", "S2", "S4", "RP_2G1", "RP_3G2", "EC_4P2G1"] {
            let class = class_by_name(name).expect("a class");
            for number in [1, 2, 0xdead_beef] {
                let object = object(class, number);
                let text = match placement.compute(object, &schema(name), &mut layout) {
                    Ok(()) => format!("{:?}", ordinals(&layout)),
                    Err(error) => error.to_string(),
                };
                lines += &format!("{ranks}x{per_rank} {name} {object}: {text}\n");
            }
        }
    }
    let golden = include_str!("golden.txt");
    assert!(lines == golden, "layouts differ from golden.txt; computed now:\n{lines}");
}

#[test]
fn layouts_keep_their_rules_in_all_sizes_of_pools() {
    let mut layout = Layout::new();
    for (ranks, per_rank) in [(1, 1), (1, 2), (2, 1), (2, 4), (3, 1), (3, 3), (6, 2), (7, 5), (40, 16)] {
        let placement = Placement::new(1, pool(ranks, per_rank));
        for name in ["S1", "S2", "S4", "S32", "S500", "RP_2G1", "RP_3G1", "RP_3G4", "RP_6G20", "EC_4P2G8"] {
            let class = class_by_name(name).expect("a class");
            for number in 0..200 {
                if placement.compute(object(class, number), &schema(name), &mut layout).is_ok() {
                    check(&placement, &layout);
                    let schema = schema(name);
                    assert_eq!(
                        layout.shards().len() as u32,
                        schema.group_count(ranks * per_rank) * schema.group_size()
                    );
                } else {
                    assert!(ranks * per_rank < schema(name).group_size());
                }
            }
        }
    }
}

#[test]
fn classes_over_all_targets_use_them_all() {
    let mut layout = Layout::new();
    let placement = Placement::new(1, pool(12, 4));
    placement.compute(object(crate::class::SX, 5), &schema("SX"), &mut layout).expect("a layout");
    assert_eq!(ordinals(&layout), (0..48).collect::<Vec<u32>>());
    for number in 0..100 {
        let class = class_by_name("RP_3GX").expect("a class");
        placement.compute(object(class, number), &schema("RP_3GX"), &mut layout).expect("a layout");
        assert_eq!(layout.group_count(), 16);
        check(&placement, &layout);
    }
}

/// 10^5 objects a target: the fullest target has at most 1.10 times the mean, in pools of several shapes.
#[test]
fn load_is_balanced() {
    let mut layout = Layout::new();
    for (ranks, per_rank, name) in
        [(13, 1, "S1"), (5, 5, "S1"), (20, 2, "S4"), (10, 4, "RP_3G1"), (3, 7, "RP_3G1")]
    {
        let class = class_by_name(name).expect("a class");
        let placement = Placement::new(1, pool(ranks, per_rank));
        let targets = u64::from(ranks * per_rank);
        let mut load = vec![0u64; targets as usize];
        let objects = 100_000 * targets / u64::from(schema(name).group_size());
        for number in 0..objects {
            placement.compute(object(class, number), &schema(name), &mut layout).expect("a layout");
            layout.shards().iter().for_each(|shard| load[shard.ordinal as usize] += 1);
        }
        let mean = load.iter().sum::<u64>() as f64 / targets as f64;
        let imbalance = *load.iter().max().expect("targets") as f64 / mean;
        println!("{ranks}x{per_rank} {name}: imbalance {imbalance:.4}");
        assert!(imbalance <= 1.10, "{ranks}x{per_rank} {name}: {imbalance}");
    }
}

/// Growth by x % moves at most 1.2 times the share of data that the new targets must get.
#[test]
fn growth_moves_little() {
    for (before, after, per_rank, name) in [
        (10, 11, 4, "S1"),
        (10, 11, 4, "RP_3G1"),
        (100, 110, 1, "S4"),
        (4, 8, 2, "RP_2G1"),
        (50, 51, 2, "RP_3G4"),
    ] {
        let class = class_by_name(name).expect("a class");
        let (old, new) =
            (Placement::new(1, pool(before, per_rank)), Placement::new(2, pool(after, per_rank)));
        let (mut layout, mut grown) = (Layout::new(), Layout::new());
        let (mut moved, mut all) = (0u64, 0u64);
        for number in 0..100_000 {
            old.compute(object(class, number), &schema(name), &mut layout).expect("a layout");
            new.compute(object(class, number), &schema(name), &mut grown).expect("a layout");
            for (was, is) in layout.shards().iter().zip(grown.shards()) {
                all += 1;
                moved += u64::from(was.ordinal != is.ordinal);
            }
        }
        let share = moved as f64 / all as f64;
        let needed = f64::from(after - before) / f64::from(after);
        println!("{before} to {after} ranks, {name}: moved {share:.4}, {:.3} of what must", share / needed);
        assert!(share <= 1.2 * needed, "{before} to {after} ranks, {name}: {share} moved, {needed} needed");
    }
}

#[test]
fn targets_that_join_hold_nothing_yet() {
    let mut layout = Layout::new();
    let mut targets = pool(3, 2);
    targets[4].standing = Standing::Joining;
    targets[5].standing = Standing::Joining;
    let (joining, before) = (Placement::new(2, targets), Placement::new(1, pool(2, 2)));
    for number in 0..1000 {
        joining.compute(object(S4, number), &schema("S4"), &mut layout).expect("a layout");
        let now = ordinals(&layout);
        before.compute(object(S4, number), &schema("S4"), &mut layout).expect("a layout");
        assert_eq!(now, ordinals(&layout));
    }
}

#[test]
fn a_failure_moves_only_its_own_shards_and_spreads_them() {
    let mut layout = Layout::new();
    let class = class_by_name("RP_3G1").expect("a class");
    let healthy = Placement::new(1, pool(50, 2));
    let mut targets = pool(50, 2);
    targets[17].standing = Standing::Failed { version: 2 };
    let degraded = Placement::new(2, targets.clone());
    targets[33].standing = Standing::Failed { version: 3 };
    let twice = Placement::new(3, targets);
    let mut spares = std::collections::BTreeSet::new();
    for number in 0..50_000 {
        let object = object(class, number);
        healthy.compute(object, &schema("RP_3G1"), &mut layout).expect("a layout");
        let before = ordinals(&layout);
        degraded.compute(object, &schema("RP_3G1"), &mut layout).expect("a layout");
        check(&degraded, &layout);
        let once = layout.shards().to_vec();
        twice.compute(object, &schema("RP_3G1"), &mut layout).expect("a layout");
        check(&twice, &layout);
        for ((was, is), later) in before.iter().zip(&once).zip(layout.shards()) {
            assert_eq!(is.replacement, *was == 17);
            assert!(is.available && later.available && is.ordinal != 17);
            assert!(is.replacement || is.ordinal == *was);
            // The second failure moves nothing that is not on the second target.
            assert!(if is.ordinal == 33 { later.ordinal != 33 } else { later.ordinal == is.ordinal });
            if is.replacement {
                spares.insert(is.ordinal);
            }
        }
    }
    // Who takes over spreads over the pool: at least 80 % of the other targets.
    assert!(spares.len() >= 79, "{} targets take over", spares.len());
}

#[test]
fn a_lost_shard_without_redundancy_is_said_to_be_lost() {
    let mut layout = Layout::new();
    let mut targets = pool(1, 2);
    targets[1].standing = Standing::Failed { version: 2 };
    let placement = Placement::new(2, targets);
    let mut lost = 0;
    for number in 0..100 {
        placement.compute(object(S1, number), &schema("S1"), &mut layout).expect("a layout");
        let shard = layout.shards()[0];
        assert_eq!(shard.available, shard.ordinal == 0);
        lost += u32::from(!shard.available);
    }
    assert!((25..75).contains(&lost));
}

#[test]
fn too_few_targets_is_an_error() {
    let placement = Placement::new(1, pool(1, 2));
    let class = class_by_name("RP_3G1").expect("a class");
    let error = placement.compute(object(class, 1), &schema("RP_3G1"), &mut Layout::new());
    assert_eq!(
        error,
        Err(PlacementError::TooFewTargets { class: "RP_3G1".to_owned(), needed: 3, targets: 2 })
    );
}
