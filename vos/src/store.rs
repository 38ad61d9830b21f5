use daos_umem::{Heap, HeapError, Persisted, Sealed};
use daos_xstream::Env;
use std::{
    cell::{Ref, RefCell, RefMut},
    marker::PhantomData,
    rc::Rc,
};
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediaKind {
    Heap,
}
pub struct StoreOptions {
    pub uuid: uuid::Uuid,
    pub media: MediaKind,
    pub heap_bytes: u64,
    pub log_bytes: u64,
}
pub struct Store<E: Env>(Rc<RefCell<Heap>>, PhantomData<E>);
impl<E: Env> Store<E> {
    pub async fn create(_: &E, _: &str, options: StoreOptions) -> Result<Self, HeapError> {
        Ok(Self(Rc::new(RefCell::new(Heap::volatile(options.heap_bytes)?)), PhantomData))
    }
    pub async fn open(_: &E, _: &str) -> Result<Self, HeapError> {
        Err(HeapError::ReadOnly)
    }
    pub fn heap(&self) -> Ref<'_, Heap> {
        self.0.borrow()
    }
    pub fn heap_mut(&self) -> RefMut<'_, Heap> {
        self.0.borrow_mut()
    }
    pub async fn persisted(&self, _: Sealed) -> Result<Persisted, HeapError> {
        Err(HeapError::ReadOnly)
    }
    pub async fn log_space(&self) -> Result<(), HeapError> {
        Ok(())
    }
    pub async fn close(&self) -> Result<(), HeapError> {
        Ok(())
    }
}
