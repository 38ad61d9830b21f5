//! The word-wise copies against plain byte slices.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::{
    atomic::AtomicU64,
    words::{load_bytes, load_ring, store_bytes, store_parts},
};

fn area(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

proptest! {
    #[test]
    fn parts_come_out_of_a_ring_as_one(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6), start in 0usize..100) {
        let ring = area(64);
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let whole = parts.concat();
        store_parts(&ring, start, &slices);
        let mut out = vec![0u64; whole.len().div_ceil(8)];
        load_ring(&ring, start, &mut out);
        prop_assert_eq!(&out.as_bytes()[..whole.len()], &whole[..]);
    }

    #[test]
    fn an_area_behaves_like_bytes(writes in prop::collection::vec((0usize..200, prop::collection::vec(any::<u8>(), 0..56)), 0..20), skip in 0usize..200, length in 0usize..56) {
        let area = area(32);
        let mut model = [0u8; 256];
        for (at, bytes) in &writes {
            store_bytes(&area, *at, bytes);
            model[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        let mut out = vec![0u8; length];
        load_bytes(&area, skip, &mut out);
        prop_assert_eq!(&out[..], &model[skip..skip + length]);
    }
}
