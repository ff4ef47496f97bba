//! Room for the lists that a kernel makes while it runs, kept by each thread for its next command.
//!
//! A steady run allocates nothing: what is dropped here comes back, empty, with the memory it had.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Lists of a kind that a thread keeps: more than a kernel has at a time.
const KEPT: usize = 8;
/// Bytes above which a list is not kept: what one command needed is not held for ever.
const MOST_BYTES: usize = 4 << 20;

thread_local! {
    /// By element, the lists that nobody uses: each a `Vec<Vec<T>>`.
    static FREE: RefCell<Vec<(TypeId, Box<dyn Any>)>> = const { RefCell::new(Vec::new()) };
}

/// An empty list at first, in memory that the thread may have used before.
#[derive(Debug)]
pub(crate) struct Room<T: 'static>(Vec<T>);

impl<T: 'static> Room<T> {
    /// An empty list.
    pub(crate) fn new() -> Self {
        // A thread that ends has none any more.
        let found = FREE.try_with(|free| {
            let mut free = free.try_borrow_mut().ok()?;
            let (_, lists) = free.iter_mut().find(|(id, _)| *id == TypeId::of::<T>())?;
            lists.downcast_mut::<Vec<Vec<T>>>()?.pop()
        });
        Self(found.ok().flatten().unwrap_or_default())
    }

    /// `len` times `value`.
    pub(crate) fn of(value: T, len: usize) -> Self
    where
        T: Clone,
    {
        let mut room = Self::new();
        room.resize(len, value);
        room
    }
}

impl<'r, T: 'static> IntoIterator for &'r Room<T> {
    type Item = &'r T;
    type IntoIter = std::slice::Iter<'r, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: 'static> Default for Room<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: 'static> FromIterator<T> for Room<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut room = Self::new();
        room.extend(items);
        room
    }
}

impl<T: 'static> Drop for Room<T> {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.0);
        list.clear();
        if list.capacity() == 0 || list.capacity().saturating_mul(size_of::<T>()) > MOST_BYTES {
            return;
        }
        // Without room of its own, as when the thread ends, the list goes.
        let _ = FREE.try_with(|free| {
            let Ok(mut free) = free.try_borrow_mut() else { return };
            let id = TypeId::of::<T>();
            let at = free.iter().position(|(of, _)| *of == id).unwrap_or_else(|| {
                free.push((id, Box::new(Vec::<Vec<T>>::with_capacity(KEPT))));
                free.len() - 1
            });
            if let Some(lists) = free[at].1.downcast_mut::<Vec<Vec<T>>>()
                && lists.len() < KEPT
            {
                lists.push(list);
            }
        });
    }
}

impl<T: 'static> Deref for Room<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: 'static> DerefMut for Room<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_comes_back_empty_in_the_same_memory() {
        let mut first = Room::<u64>::new();
        first.extend(0..100);
        let (at, room) = (first.as_ptr(), first.capacity());
        drop(first);
        let again = Room::<u64>::new();
        assert_eq!((again.as_ptr(), again.capacity(), again.len()), (at, room, 0));
        // Lists of other elements are their own, and two at a time are two.
        assert_eq!(Room::<i64>::new().capacity(), 0);
        assert_eq!(Room::<u64>::new().capacity(), 0);
    }

    #[test]
    fn what_is_too_large_or_too_many_goes() {
        drop(Room::of(0_u8, MOST_BYTES + 1));
        assert_eq!(Room::<u8>::new().capacity(), 0);
        let many: Vec<Room<u8>> = (0..2 * KEPT).map(|_| Room::of(0, 10)).collect();
        drop(many);
        let again: Vec<Room<u8>> = (0..2 * KEPT).map(|_| Room::new()).collect();
        assert_eq!(again.iter().filter(|room| room.capacity() > 0).count(), KEPT);
    }
}
