//! Addresses and types of persistent data.

use std::{cmp::Ordering, fmt, hash::Hash, hash::Hasher, marker::PhantomData};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// Media is little-endian and is read in place.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "persistent data is read in place, which needs a little-endian machine"
);

/// A type that may lie in the arena: a defined layout (`#[repr(C)]`), no padding, no pointers, no interior mutability,
/// and every bit pattern is a value, so that a damaged image can give a wrong value but never undefined behaviour.
///
/// Derive zerocopy's four traits to get it. Use integers of fixed width only (no `usize`).
pub trait Durable: FromBytes + IntoBytes + Immutable + KnownLayout + Sized + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Sized + 'static> Durable for T {}

/// The place of a `T` in the arena: 64 bits, little-endian on media. It has no dereference; a [`crate::Heap`] or a
/// [`crate::Transaction`] resolves it, and checks it each time.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Off<T>(u64, PhantomData<fn() -> T>);

impl<T> Off<T> {
    /// Refers to nothing: resolving it is an error.
    pub const NULL: Self = Self(0, PhantomData);

    /// The place with this raw offset. Nothing is checked until it is resolved.
    pub const fn new(offset: u64) -> Self {
        Self(offset, PhantomData)
    }

    /// The raw offset.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether it refers to nothing.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The same place, seen as another type.
    pub const fn cast<U>(self) -> Off<U> {
        Off::new(self.0)
    }

    /// The place of the element `index` steps of `T` further.
    pub const fn element(self, index: u64) -> Self {
        Self::new(self.0.wrapping_add(index.wrapping_mul(size_of::<T>() as u64)))
    }

    /// The place of something `bytes` after this.
    pub const fn after<U>(self, bytes: u64) -> Off<U> {
        Off::new(self.0.wrapping_add(bytes))
    }

    /// The place of a field; [`crate::field!`] writes this call. The closure only tells the field's type.
    pub const fn project<F>(self, _: fn(&T) -> &F, offset: usize) -> Off<F> {
        Off::new(self.0.wrapping_add(offset as u64))
    }
}

/// The place of a field: `field!(off, Node, count)` is an `Off` to `count` of the `Node` at `off`.
#[macro_export]
macro_rules! field {
    ($off:expr, $type:ty, $field:ident) => {
        $crate::Off::<$type>::project(
            $off,
            |value: &$type| &value.$field,
            ::core::mem::offset_of!($type, $field),
        )
    };
}

// Derived implementations would ask the same of `T`.
impl<T> Clone for Off<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Off<T> {}
impl<T> PartialEq for Off<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Off<T> {}
impl<T> PartialOrd for Off<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Off<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> Hash for Off<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<T> Default for Off<T> {
    fn default() -> Self {
        Self::NULL
    }
}
impl<T> fmt::Debug for Off<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Off({:#x})", self.0)
    }
}
