//! Sizes of blocks.
//!
//! A run is one chunk cut into blocks of one size. Up to 4 KiB the sizes step by an eighth to a quarter; above that they
//! are the chunk divided by a small number, rounded down to whole cache lines. What is larger than half a chunk gets
//! whole chunks.

use crate::layout::CHUNK_BYTES;

/// Block sizes, ascending, all multiples of 16.
pub(crate) const CLASS_BYTES: [u32; 40] = [
    16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 320, 384, 448, 512, 640, 768,
    896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 4096, 5440, 6528, 8192, 9344, 10880, 13056, 16384, 21824,
    32768,
];

/// The largest block that shares a chunk with others.
pub(crate) const RUN_BLOCK_BYTES_MAX: u64 = CLASS_BYTES[CLASS_BYTES.len() - 1] as u64;

const TABLE_BYTES_MAX: u64 = 4096;

/// Class by (size rounded up to 16) / 16, for sizes up to [`TABLE_BYTES_MAX`].
const CLASS_TABLE: [u8; (TABLE_BYTES_MAX / 16 + 1) as usize] = {
    let mut table = [0; (TABLE_BYTES_MAX / 16 + 1) as usize];
    let (mut step, mut class) = (0, 0);
    while step < table.len() {
        if step * 16 > CLASS_BYTES[class] as usize {
            class += 1;
        }
        table[step] = class as u8;
        step += 1;
    }
    table
};

/// Blocks in a run of `class`.
#[inline]
pub(crate) const fn blocks(class: u8) -> u32 {
    CHUNK_BYTES as u32 / CLASS_BYTES[class as usize]
}

/// The class of the smallest blocks that hold `bytes` at `align` (a power of two); `None` if whole chunks are needed.
#[inline]
pub(crate) fn class_of(bytes: u64, align: u64) -> Option<u8> {
    if bytes > RUN_BLOCK_BYTES_MAX {
        return None;
    }
    let mut class = if bytes <= TABLE_BYTES_MAX {
        CLASS_TABLE[bytes.div_ceil(16) as usize]
    } else {
        CLASS_BYTES.partition_point(|&size| u64::from(size) < bytes) as u8
    };
    while align > 16 && !u64::from(CLASS_BYTES[class as usize]).is_multiple_of(align) {
        class += 1;
        if class as usize == CLASS_BYTES.len() {
            return None;
        }
    }
    Some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_document_lists_the_classes() {
        let document = include_str!("../../../../docs/format.md");
        let list = CLASS_BYTES.map(|bytes| bytes.to_string()).join(", ");
        assert!(document.lines().any(|line| line == list), "docs/format.md has no line {list:?}");
    }

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for bytes in 0..=RUN_BLOCK_BYTES_MAX {
            let class = usize::from(class_of(bytes, 1).expect("a class"));
            assert!(u64::from(CLASS_BYTES[class]) >= bytes, "{bytes} bytes in class {class}");
            assert!(
                class == 0 || u64::from(CLASS_BYTES[class - 1]) < bytes,
                "{bytes} bytes in class {class}"
            );
        }
        assert_eq!(class_of(RUN_BLOCK_BYTES_MAX + 1, 1), None);
    }

    #[test]
    fn alignment_is_that_of_the_block_size() {
        for align in [1u64, 16, 64, 256, 4096] {
            for bytes in (1..=4096).step_by(7) {
                let class = class_of(bytes, align).expect("a class");
                assert!(u64::from(CLASS_BYTES[usize::from(class)]).is_multiple_of(align.max(1)));
            }
        }
    }
}
