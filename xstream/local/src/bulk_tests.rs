//! The bulk area: exposures against a model, and engines against hostile tables.

use daos_xstream::{Access, FabricError, RemoteBuffer};
use proptest::prelude::*;

use crate::{
    atomic::Ordering,
    bulk::{Area, PAGE_BYTES, engine_read, engine_write},
    region::{Layout, Region},
};

const BULK_BYTES: u64 = 64 * PAGE_BYTES;

fn region() -> Region {
    Region::create(Layout::new(128 << 10, BULK_BYTES).unwrap()).unwrap().0
}

#[test]
fn the_engine_reads_what_was_exposed_until_it_is_withdrawn() {
    let (region, mut area) = (region(), Area::new(BULK_BYTES));
    let data: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
    let (piece, remote) = area.expose(&region, 0x1234_5670, &data, Access::Read).unwrap();
    let mut out = vec![0; 777];
    engine_read(&region, remote, 5001, &mut out).unwrap();
    assert_eq!(out, data[5001..5778]);
    assert_eq!(engine_write(&region, remote, 0, b"no"), Err(FabricError::NotExposed), "exposed for reading");
    assert_eq!(
        engine_read(&region, remote, 9_999, &mut [0; 2]),
        Err(FabricError::NotExposed),
        "past the end"
    );
    assert_eq!(engine_read(&region, remote, u64::MAX, &mut [0; 2]), Err(FabricError::NotExposed));
    area.withdraw(&region, piece, remote.key, None);
    assert_eq!(engine_read(&region, remote, 0, &mut out), Err(FabricError::NotExposed), "withdrawn");
    assert!(area.is_unused());
}

#[test]
fn only_what_the_engine_wrote_comes_back() {
    let (region, mut area) = (region(), Area::new(BULK_BYTES));
    // Dirt from an earlier exposure must not show.
    let (dirty, remote) = area.expose(&region, 8, &[0xEE; 9000], Access::Read).unwrap();
    area.withdraw(&region, dirty, remote.key, None);
    let mut buffer = vec![0x11u8; 9000];
    let (piece, remote) = area.expose(&region, 16, &buffer, Access::Write).unwrap();
    for (at, bytes) in [(5, &b"abc"[..]), (8, b"def"), (4095, b"across"), (8999, b"z")] {
        engine_write(&region, remote, at, bytes).unwrap();
    }
    let mut expected = buffer.clone();
    expected[5..11].copy_from_slice(b"abcdef");
    expected[4095..4101].copy_from_slice(b"across");
    expected[8999] = b'z';
    area.withdraw(&region, piece, remote.key, Some(&mut buffer));
    assert_eq!(buffer, expected);
}

#[test]
fn too_many_scattered_pieces_fail_and_do_not_corrupt() {
    let (region, mut area) = (region(), Area::new(BULK_BYTES));
    let mut buffer = vec![0u8; 4096];
    let (piece, remote) = area.expose(&region, 16, &buffer, Access::Write).unwrap();
    let outcomes: Vec<bool> =
        (0..10u64).map(|n| engine_write(&region, remote, n * 100, b"x").is_ok()).collect();
    assert_eq!(outcomes.iter().filter(|ok| **ok).count(), 6, "one page has room for six extents");
    area.withdraw(&region, piece, remote.key, Some(&mut buffer));
    assert_eq!(buffer.iter().filter(|byte| **byte == b'x').count(), 6);
}

#[test]
fn a_full_area_is_busy_and_frees_again() {
    let (region, mut area) = (region(), Area::new(BULK_BYTES));
    let half = vec![0; BULK_BYTES as usize / 2];
    let first = area.expose(&region, 8, &half, Access::Read).unwrap();
    let second = area.expose(&region, 16, &half, Access::Read).unwrap();
    assert_eq!(area.expose(&region, 24, b"x", Access::Read).unwrap_err(), FabricError::Busy);
    let more = vec![0; BULK_BYTES as usize + 1];
    let limit = FabricError::TooLong { length: BULK_BYTES + 1, limit: BULK_BYTES };
    assert_eq!(area.expose(&region, 24, &more, Access::Read).unwrap_err(), limit);
    area.withdraw(&region, first.0, first.1.key, None);
    area.withdraw(&region, second.0, second.1.key, None);
    assert!(area.is_unused());
}

#[test]
fn a_piece_that_the_engine_is_at_is_not_used_again() {
    let (region, mut area) = (region(), Area::new(BULK_BYTES));
    let (piece, remote) = area.expose(&region, 8, b"x", Access::Read).unwrap();
    // As the engine does before it copies.
    region.table()[0].store(remote.key | 2, Ordering::Relaxed);
    area.withdraw(&region, piece, remote.key, None);
    let (_, other) = area.expose(&region, 16, b"y", Access::Read).unwrap();
    assert_ne!(other.offset, remote.offset);
    region.table()[0].store(remote.key, Ordering::Relaxed);
    let (_, third) = area.expose(&region, 24, b"z", Access::Read).unwrap();
    assert_eq!(third.offset, remote.offset, "free now");
    assert_eq!(engine_read(&region, remote, 0, &mut [0; 1]), Err(FabricError::NotExposed), "an old key");
}

fn near(values: &'static [u64]) -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (prop::sample::select(values), -2i64..=2).prop_map(|(value, by)| value.wrapping_add_signed(by)),
        (0u64..80).prop_map(|page| page * PAGE_BYTES),
    ]
}

proptest! {
    /// Nothing that a client can say or write makes the engine reach outside of that client's area (it would panic).
    #[test]
    fn an_engine_survives_any_table_and_any_request(
        table in prop::collection::vec(any::<u64>(), 64),
        key in near(&[0, 1, 2, 4]),
        offset in near(&[0, BULK_BYTES, u64::MAX]),
        length in near(&[0, BULK_BYTES, u64::MAX, PAGE_BYTES]),
        skip in near(&[0, BULK_BYTES, u64::MAX]),
        bytes in 0usize..5000,
    ) {
        let region = region();
        let remote = RemoteBuffer { key, offset, length };
        for (entry, word) in region.table().chunks(8).zip(&table) {
            entry[1].store(*word, Ordering::Relaxed);
            entry[2].store(word.rotate_left(7), Ordering::Relaxed);
            entry[0].store(key, Ordering::Relaxed);
        }
        let mut buffer = vec![0u8; bytes];
        let read = engine_read(&region, remote, skip, &mut buffer);
        let write = engine_write(&region, remote, skip, &buffer);
        prop_assert!(read.is_err() || write.is_err(), "a key is for reading or for writing");
    }

    #[test]
    fn the_area_never_gives_out_a_page_twice(steps in prop::collection::vec((any::<bool>(), 1u64..12 * PAGE_BYTES, any::<prop::sample::Index>()), 1..120)) {
        let (region, mut area) = (region(), Area::new(BULK_BYTES));
        let mut live = Vec::new();
        for (number, (add, length, which)) in steps.into_iter().enumerate() {
            if add {
                let data = vec![number as u8; length as usize];
                match area.expose(&region, number as u64 * 8 + 8, &data, Access::Read) {
                    Ok((piece, remote)) => live.push((piece, remote, number as u8)),
                    Err(error) => prop_assert_eq!(error, FabricError::Busy),
                }
            } else if !live.is_empty() {
                let (piece, remote, _) = live.swap_remove(which.index(live.len()));
                area.withdraw(&region, piece, remote.key, None);
            }
            for (_, remote, byte) in &live {
                let mut out = vec![0; remote.length as usize];
                engine_read(&region, *remote, 0, &mut out).unwrap();
                prop_assert!(out.iter().all(|other| other == byte), "somebody else wrote there");
            }
        }
        for (piece, remote, _) in live {
            area.withdraw(&region, piece, remote.key, None);
        }
        prop_assert!(area.is_unused());
    }
}
