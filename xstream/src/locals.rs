//! State that a module keeps once per xstream, found by its type.

use std::{
    any::{Any, TypeId},
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
};

/// The per-xstream state of all modules.
///
/// Work that arrives from another core ([`crate::Mailbox`]) carries no pointers; this is where it finds what it is to
/// work on. Not for hot paths: a module that is asked often keeps its own `Rc`.
#[derive(Clone, Default)]
pub struct Locals(Rc<RefCell<BTreeMap<TypeId, Rc<dyn Any>>>>);

impl Locals {
    /// Stores `value`, in place of an earlier one of its type.
    pub fn insert<T: 'static>(&self, value: Rc<T>) {
        self.0.borrow_mut().insert(TypeId::of::<T>(), value);
    }

    /// The value of type `T`, if this xstream has one.
    pub fn get<T: 'static>(&self) -> Option<Rc<T>> {
        self.0.borrow().get(&TypeId::of::<T>()).cloned()?.downcast().ok()
    }

    /// Drops all of them: the end of an xstream, for worlds that end before their process does.
    pub fn clear(&self) {
        let values = std::mem::take(&mut *self.0.borrow_mut());
        drop(values);
    }
}
