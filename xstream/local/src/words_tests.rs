//! The word-wise copies against plain byte slices.

use proptest::prelude::*;

use crate::{
    atomic::AtomicU64,
    words::{load_bytes, load_ring, store_bytes, store_parts},
};

fn area(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

proptest! {
    #[test]
    fn parts_come_out_of_a_ring_as_one(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..5), start in 0usize..1000) {
        let ring = area(256);
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let whole = parts.concat();
        store_parts(&ring, start, &slices);
        let mut out = vec![0u8; whole.len()];
        load_ring(&ring, start, &mut out);
        prop_assert_eq!(&out[..], &whole[..]);
    }

    #[test]
    fn an_area_behaves_like_bytes(writes in prop::collection::vec((0usize..1000, prop::collection::vec(any::<u8>(), 0..1048)), 0..20), skip in 0usize..1000, length in 0usize..1048) {
        let area = area(256);
        let mut model = [0u8; 2048];
        for (at, bytes) in &writes {
            store_bytes(&area, *at, bytes);
            model[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        let mut out = vec![0u8; length];
        load_bytes(&area, skip, &mut out);
        prop_assert_eq!(&out[..], &model[skip..skip + length]);
    }
}
