use super::*;
use crate::golden;

fn target(rank: u32, index: u32, fault_domain: &str) -> NewTarget {
    let address = format!("sim://{rank}.{index}").parse().expect("an address");
    NewTarget {
        id: TargetId { rank, index },
        fault_domain: fault_domain.to_owned(),
        addresses: vec![address],
    }
}

fn map() -> PoolMap {
    let targets = [target(0, 0, "a/n0"), target(0, 1, "a/n0"), target(1, 0, "a/n1"), target(2, 0, "b/n2")];
    PoolMap::new(Uuid::from_u128(7), &targets).expect("a map")
}

#[test]
fn states_change_as_the_table_says() {
    let table = include_str!("../../testdata/target_states.txt");
    let mut rows = 0;
    golden::check("target_states.txt", table, |row| {
        rows += 1;
        let (state, change) = row.split_once('+').expect("STATE + change");
        let state: TargetState = state.trim().parse().expect("a state");
        let change = *StateChange::ALL
            .iter()
            .find(|known| format!("{known:?}").eq_ignore_ascii_case(change.trim()))
            .expect("a change");
        state.after(change).map_or("refused".to_owned(), |state| state.to_string())
    });
    assert_eq!(rows, TargetState::ALL.len() * StateChange::ALL.len(), "the table has every case");
}

#[test]
fn a_repeated_change_changes_nothing_and_a_senseless_one_is_refused() {
    let mut map = map();
    let id = TargetId { rank: 1, index: 0 };
    assert_eq!(map.change(id, StateChange::Exclude), Ok(true));
    assert_eq!(map.change(id, StateChange::Exclude), Ok(false));
    assert_eq!(map.version(), 2);
    let before = map.clone();
    assert!(matches!(map.change(id, StateChange::Drain), Err(PoolMapError::NotNow { .. })));
    let stranger = TargetId { rank: 9, index: 0 };
    assert_eq!(map.change(stranger, StateChange::Drain), Err(PoolMapError::NoSuchTarget(stranger)));
    assert_eq!(map, before);
}

#[test]
fn failures_keep_their_order_when_one_is_rebuilt_and_lose_it_when_it_comes_back() {
    let mut map = map();
    let (first, second) = (TargetId { rank: 2, index: 0 }, TargetId { rank: 0, index: 1 });
    map.change(first, StateChange::Exclude).expect("excluded");
    map.change(second, StateChange::Exclude).expect("excluded");
    assert_eq!(map.failure_sequence(), [3, 1]);
    map.change(first, StateChange::Rebuilt).expect("rebuilt");
    assert_eq!(map.failure_sequence(), [3, 1]);
    map.change(first, StateChange::Reintegrate).expect("reintegrated");
    assert_eq!(map.failure_sequence(), [1]);
}

/// Random histories: a map that follows by changes from any version it has seen equals the original.
#[test]
fn changes_lead_from_every_version_to_the_newest() {
    let mut map = map();
    let mut versions = vec![map.clone()];
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |bound: usize| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize % bound
    };
    for round in 0..200 {
        if next(10) == 0 {
            let rank = 10 + round;
            map.extend(&[target(rank, 0, &format!("c/n{rank}"))]).expect("extended");
        } else {
            let id = map.targets()[next(map.targets().len())].id;
            // Changes that make no sense at the moment are refused; that is part of the history.
            let _ = map.change(id, StateChange::ALL[next(5)]);
        }
        if map.version() != versions.last().expect("one").version() {
            versions.push(map.clone());
        }
    }
    assert!(versions.len() > 50);
    for old in &versions {
        let mut follower = old.clone();
        follower.apply(&map.changes_since(old.version())).expect("applies");
        assert_eq!(follower, map, "from version {}", old.version());
        let bytes = postcard::to_stdvec(old).expect("serialises");
        assert_eq!(&postcard::from_bytes::<PoolMap>(&bytes).expect("deserialises"), old);
    }
}

#[test]
fn what_is_no_map_is_refused_and_leaves_the_map_alone() {
    let mut newer = map();
    newer.change(TargetId { rank: 0, index: 0 }, StateChange::Exclude).expect("excluded");
    let good = newer.changes_since(1);
    type Spoil = fn(&mut PoolMapChanges);
    let spoils: [Spoil; 9] = [
        |changes| changes.pool = Uuid::from_u128(8),
        |changes| changes.from = 5,
        |changes| changes.domains.clear(),
        |changes| changes.domains.push(Domain { name: "x".to_owned(), parent: Some(99) }),
        |changes| changes.targets[0].0 = 1,
        |changes| changes.targets[0].0 = 99,
        |changes| changes.targets[0].1.domain = 99,
        |changes| changes.targets[0].1.changed = 99,
        |changes| {
            let twin = changes.targets[0].1.clone();
            changes.targets.push((4, twin));
        },
    ];
    for (index, spoil) in spoils.into_iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad);
        let mut follower = map();
        assert!(follower.apply(&bad).is_err(), "spoil {index} was taken");
        assert_eq!(follower, map());
    }
    let mut follower = map();
    follower.apply(&good).expect("applies");
    assert_eq!(follower, newer);
    follower.apply(&good).expect("once more changes nothing");
    assert_eq!(follower, newer);
}

#[test]
fn domains_are_shared_and_have_paths() {
    let map = map();
    assert_eq!(map.domains().len(), 5);
    let paths: Vec<_> = map.targets().iter().map(|target| map.domain_path(target.domain)).collect();
    assert_eq!(paths, ["a/n0", "a/n0", "a/n1", "b/n2"]);
    assert!(PoolMap::new(Uuid::nil(), &[target(0, 0, "a//b")]).is_err());
    assert!(PoolMap::new(Uuid::nil(), &[target(0, 0, "a"), target(0, 0, "b")]).is_err());
}
