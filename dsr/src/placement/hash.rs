//! Hash functions that decide where data lives. Their values are for ever: changing one loses every stored object.

use daos_types::ObjectId;

/// Mixes 64 bits so that every output bit depends on every input bit (the finaliser of SplitMix64, with the constants of
/// Stafford's thirteenth variant).
pub fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hash of an object ID.
pub fn hash_object(object: ObjectId) -> u64 {
    let (high, middle, low) = object.to_parts();
    mix(mix(mix(low.wrapping_add(STEP)) ^ middle).wrapping_add(high))
}

/// Hash of a distribution key, 8 bytes a step.
pub fn hash_key(key: &[u8]) -> u64 {
    let mut chunks = key.chunks_exact(8);
    let mut hash = mix(key.len() as u64 ^ STEP);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        hash = mix(hash ^ word).wrapping_add(STEP);
    }
    let mut tail = [0; 8];
    let rest = chunks.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    mix(hash ^ u64::from_le_bytes(tail))
}

/// The bucket of `key` among `buckets`: uniform, and consistent, that is, going from n to n + 1 buckets moves one key in
/// n + 1, all of them to the new bucket. Constant expected time.
///
/// Seen over growing n, a key jumps to bucket n − 1 with probability 1/n whenever n grows. Between two powers of two,
/// `half` and `2 half`, it jumps at least once with probability 1/2, the last of those jumps is uniform over the interval,
/// and the one before it is uniform over what lies below. So one bit per interval says whether to look at all, and the
/// jumps are drawn backwards. (After O. Ertl, "JumpBackHash: say goodbye to the modulo operation to distribute keys
/// uniformly to buckets", 2024.)
///
/// # Panics
///
/// If there are no buckets.
pub fn bucket(key: u64, buckets: u32) -> u32 {
    assert!(buckets > 0, "a bucket among none");
    if buckets == 1 {
        return 0;
    }
    let buckets = u64::from(buckets);
    let mut jumped = mix(key) & u64::MAX >> (buckets - 1).leading_zeros();
    while jumped != 0 {
        let half = 1 << jumped.ilog2();
        // Every interval draws from its own stream, so that what is drawn does not depend on the number of buckets.
        let mut draw = mix(key ^ STEP.wrapping_mul(half));
        let mut candidate = half | draw & (half - 1);
        while candidate >= half {
            if candidate < buckets {
                return candidate as u32;
            }
            draw = mix(draw.wrapping_add(STEP));
            candidate = draw & (2 * half - 1);
        }
        jumped ^= half;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values, from a second implementation of the same functions: see the module's comment.
    #[test]
    fn values_stay() {
        assert_eq!(hash_key(b""), 0x4821_8226_ff3c_d4bf);
        assert_eq!(hash_key(b"dkey"), 0xadf7_f5b8_a7fb_a76a);
        assert_eq!(hash_key(b"a key of twenty-six bytes."), 0x2eab_7248_1102_1665);
        let object: ObjectId = "310000200000007.1.2".parse().expect("an object ID");
        assert_eq!(hash_object(object), 0x7e5c_3702_9b62_c5ef);
        let buckets: Vec<u32> = (0..16).map(|key| bucket(mix(key), 1000)).collect();
        assert_eq!(buckets, [0, 515, 700, 528, 546, 765, 560, 603, 401, 191, 601, 778, 672, 832, 573, 123]);
    }

    #[test]
    fn growth_moves_only_to_the_new_bucket() {
        for key in (0..3000).map(mix) {
            let mut before = bucket(key, 1);
            for buckets in 2..300 {
                let now = bucket(key, buckets);
                assert!(now == before || now == buckets - 1, "{key}: {before} to {now} of {buckets}");
                before = now;
            }
        }
    }

    #[test]
    fn buckets_are_equally_full() {
        for buckets in [2u32, 3, 5, 7, 8, 9, 100, 127, 1000] {
            let mut count = vec![0u32; buckets as usize];
            for key in 0..10_000 * u64::from(buckets) {
                count[bucket(mix(key), buckets) as usize] += 1;
            }
            // Five standard deviations of a count of 10,000.
            assert!(count.iter().all(|count| (9_500..10_500).contains(count)), "{buckets}: {count:?}");
        }
    }

    #[test]
    fn keys_that_differ_hash_apart() {
        let mut seen = std::collections::BTreeSet::new();
        for length in 0..40 {
            for position in 0..length {
                let mut key = vec![0; length];
                key[position] = 1;
                assert!(seen.insert(hash_key(&key)));
            }
            assert!(seen.insert(hash_key(&vec![0; length])), "zeros of length {length}");
        }
    }
}
