//! Programs by the shapes of their inputs; the least recently used goes when there are too many.

use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct Cache<T> {
    most: usize,
    /// The most recently used last.
    entries: Mutex<Vec<Entry<T>>>,
}

pub(super) type Shapes = Vec<Vec<usize>>;

#[derive(Debug)]
struct Entry<T> {
    shapes: Shapes,
    value: Arc<T>,
}

impl<T> Cache<T> {
    /// A cache of at most `most` values, at least one.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), entries: Mutex::default() }
    }

    pub(super) fn get(&self, shapes: &[Vec<usize>]) -> Option<Arc<T>> {
        self.find(|kept| kept == shapes)
    }

    /// The value for shapes that `is_it` knows.
    pub(super) fn find(&self, is_it: impl Fn(&[Vec<usize>]) -> bool) -> Option<Arc<T>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|entry| is_it(&entry.shapes))?;
        entries[at..].rotate_left(1);
        entries.last().map(|entry| entry.value.clone())
    }

    pub(super) fn insert(&self, shapes: Shapes, value: T) -> Arc<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let value = Arc::new(value);
        entries.push(Entry { shapes, value: value.clone() });
        if entries.len() > self.most {
            entries.remove(0);
        }
        value
    }

    /// The shapes of all that is kept.
    pub(super) fn shapes(&self) -> Vec<Shapes> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|entry| entry.shapes.clone()).collect()
    }

    /// Everything that is kept.
    pub(super) fn values(&self) -> Vec<Arc<T>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|entry| entry.value.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = Cache::new(2);
        let shapes = |batch| vec![vec![batch, 3]];
        cache.insert(shapes(1), 'a');
        cache.insert(shapes(2), 'b');
        assert_eq!(cache.get(&shapes(1)).as_deref(), Some(&'a'));
        cache.insert(shapes(3), 'c');
        assert_eq!(cache.get(&shapes(2)), None);
        assert_eq!(cache.get(&shapes(1)).as_deref(), Some(&'a'));
        assert_eq!(cache.get(&shapes(3)).as_deref(), Some(&'c'));
    }
}
