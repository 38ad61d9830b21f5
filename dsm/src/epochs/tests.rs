use super::*;
use crate::golden;

fn range(range: EpochRange) -> String {
    format!("{}..{}", range.low, range.high)
}

fn step(epochs: &mut ContainerEpochs, row: &str) -> Result<String, EpochError> {
    let container = |epochs: &ContainerEpochs| {
        let snapshots: Vec<_> = epochs.snapshots().map(|epoch| epoch.to_string()).collect();
        let snapshots =
            if snapshots.is_empty() { String::new() } else { format!(" snapshots {}", snapshots.join(" ")) };
        format!("| hce {} lre {}{snapshots}", epochs.hce(), epochs.lre())
    };
    let words: Vec<_> = row.split_whitespace().collect();
    match words[0] {
        "new" => {
            *epochs = ContainerEpochs::default();
            return Ok(container(epochs));
        }
        "restart" => {
            let stored = |record: &HandleEpochs| {
                let bytes = postcard::to_stdvec(record).expect("serialises");
                postcard::from_bytes(&bytes).expect("deserialises")
            };
            let handles: Vec<_> = epochs.handles().map(|(handle, record)| (handle, stored(record))).collect();
            *epochs = ContainerEpochs::load(epochs.record(), handles, epochs.snapshots().collect::<Vec<_>>());
            return Ok(container(epochs));
        }
        _ => {}
    }
    let handle = Uuid::from_u128(u128::from(words[0].as_bytes()[0]));
    let number = |index: usize| Epoch(words[index].parse().expect("an epoch"));
    match words[1] {
        "open" => epochs.open(handle, Cookie(handle.as_u128() as u64)),
        "close" => {
            epochs.close(handle);
            return Ok(format!("closed {}", container(epochs)));
        }
        "hold" => {
            epochs.hold(handle, number(2))?;
        }
        "gives-up" => {
            return Ok(epochs.given_up_by_hold(handle, number(2))?.map_or("nothing".to_owned(), range));
        }
        "flush" => {
            let begun = epochs.begin_flush(handle, number(2))?;
            // Writes that come while the flush is under way.
            for epoch in words.iter().skip(3) {
                epochs.rewritten(handle, Epoch(epoch.parse().expect("an epoch")))?;
            }
            epochs.flushed(handle, begun)?;
        }
        "rewrite" => epochs.rewritten(handle, number(2))?,
        "commit" => epochs.commit(handle, number(2))?,
        "uncommitted" => return Ok(range(epochs.uncommitted(handle)?)),
        "begin-discard" => {
            let asked = EpochRange { low: number(2), high: number(3) };
            return Ok(range(epochs.begin_discard(handle, asked)?));
        }
        "discard-fails" => epochs.discard_failed(handle),
        "discard" => epochs.discarded(handle, EpochRange { low: number(2), high: number(3) })?,
        "slip" => {
            epochs.slip(handle, number(2))?;
        }
        "snapshot" => epochs.snapshot_create(number(2))?,
        "unsnapshot" => {
            epochs.snapshot_destroy(number(2));
        }
        "query" => {}
        other => panic!("{other:?} is no step"),
    }
    let state = epochs.query(handle)?;
    let lhe = if state.lhe == Epoch::MAX { "-".to_owned() } else { state.lhe.to_string() };
    let interrupted = if state.interrupted { " interrupted" } else { "" };
    Ok(format!("hce {} lhe {lhe} lre {}{interrupted} {}", state.hce, state.lre, container(epochs)))
}

#[test]
fn epochs_move_as_the_table_says() {
    let mut epochs = ContainerEpochs::default();
    golden::check("epochs.txt", include_str!("../../testdata/epochs.txt"), |row| {
        step(&mut epochs, row).unwrap_or_else(|error| error.to_string())
    });
}

proptest::proptest! {
    /// Whatever is asked of it in whatever order, the invariants at the top of the module hold, a refused step changes
    /// nothing, and every step can be taken back.
    #[test]
    fn invariants_hold_after_any_steps(steps in proptest::collection::vec((0u8..9, 0u8..3, 0u64..12), 1..200)) {
        let mut epochs = ContainerEpochs::default();
        // What a handle has flushed and not written again since.
        let mut clean = BTreeMap::new();
        for (what, who, number) in steps {
            let (handle, epoch) = (Uuid::from_u128(who.into()), Epoch(number));
            let old = epochs.clone();
            let before = epochs.before(handle);
            let result = match what {
                0 => { epochs.open(handle, Cookie(who.into())); Ok(()) }
                1 => { epochs.close(handle); Ok(()) }
                2 => epochs.hold(handle, epoch).map(drop),
                3 => epochs.hold(handle, Epoch::MAX).map(drop),
                4 => epochs.begin_flush(handle, epoch).and_then(|begun| epochs.flushed(handle, begun)),
                5 | 6 => epochs.commit(handle, epoch),
                7 if number > 0 => epochs.rewritten(handle, epoch),
                _ => epochs.slip(handle, epoch).map(drop),
            };
            assert!(epochs.hce() >= old.hce() && epochs.lre() >= old.lre() && epochs.lre() <= epochs.hce());
            for (_, record) in epochs.handles() {
                if let Some(lhe) = record.lhe {
                    assert!(lhe > record.hce && lhe > epochs.hce());
                }
            }
            let min_lhe = epochs.handles().filter_map(|(_, record)| record.lhe).min();
            let expected = epochs.record().claimed.min(Epoch(min_lhe.map_or(u64::MAX, |lhe| lhe.0 - 1)));
            assert_eq!(epochs.hce(), expected.max(old.hce()));
            if result.is_err() {
                assert_eq!(epochs, old);
            }
            let clean = clean.entry(who).or_insert(Epoch::ZERO);
            match what {
                1 => *clean = Epoch::ZERO,
                4 if result.is_ok() => *clean = epoch.max(*clean),
                5 | 6 if epochs.handle(handle).ok() != old.handle(handle).ok() => assert!(*clean >= epoch),
                7 if number > 0 && result.is_ok() => *clean = Epoch(number - 1).min(*clean),
                _ => {}
            }
            let mut undone = epochs.clone();
            undone.restore(before);
            assert_eq!(undone, old);
        }
    }
}
