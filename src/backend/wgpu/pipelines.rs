//! Compiled shaders by text: all that prepared ops hold, and the most recent ones.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// Shaders that are kept when unused. A bridge has at most about twenty texts. It finds them when
/// it is prepared for the next shape, even after the one before was dropped. A software driver
/// keeps megabytes of code for each.
pub(super) const KEPT: usize = 64;

/// Values by text. All but the most recent live as long as someone else holds them.
pub(super) struct Recent<T> {
    by_text: HashMap<Arc<str>, Weak<T>>,
    /// In order of use, the latest last.
    kept: VecDeque<Arc<T>>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent { by_text: HashMap::new(), kept: VecDeque::new() }
    }
}

impl<T> Recent<T> {
    /// The value of a text, if it is still alive.
    pub fn get(&mut self, text: &str) -> Option<Arc<T>> {
        let value = self.by_text.get(text)?.upgrade()?;
        self.keep(&value);
        Some(value)
    }

    /// Inserts a value, and returns it; another thread's, if that was faster.
    pub fn insert(&mut self, text: Arc<str>, value: Arc<T>) -> Arc<T> {
        if let Some(value) = self.get(&text) {
            return value;
        }
        self.by_text.insert(text, Arc::downgrade(&value));
        self.keep(&value);
        self.by_text.retain(|_, value| value.strong_count() > 0);
        value
    }

    fn keep(&mut self, value: &Arc<T>) {
        self.kept.retain(|kept| !Arc::ptr_eq(kept, value));
        self.kept.push_back(value.clone());
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_few_stay_and_so_does_what_somebody_holds() {
        let mut recent = Recent::default();
        let text = |i: usize| Arc::<str>::from(i.to_string());
        let held = recent.insert(text(0), Arc::new(0));
        for i in 1..2 * KEPT {
            recent.insert(text(i), Arc::new(i));
        }
        let there: Vec<usize> = (1..2 * KEPT).filter(|&i| recent.get(&i.to_string()).is_some()).collect();
        assert_eq!(there, (KEPT..2 * KEPT).collect::<Vec<_>>());
        assert_eq!(recent.by_text.len(), KEPT + 1, "texts of values that are gone go too");
        assert!(recent.get("0").is_some_and(|value| Arc::ptr_eq(&value, &held)));
    }

    #[test]
    fn what_was_asked_for_again_goes_last() {
        let mut recent = Recent::default();
        for i in 0..KEPT {
            recent.insert(i.to_string().into(), Arc::new(i));
        }
        assert_eq!(recent.get("0").as_deref(), Some(&0));
        recent.insert("new".into(), Arc::new(KEPT));
        assert_eq!(recent.get("1"), None);
        assert_eq!(recent.get("0").as_deref(), Some(&0));
    }

    #[test]
    fn two_threads_that_compile_the_same_text_share_the_first() {
        let mut recent = Recent::default();
        let first = recent.insert("text".into(), Arc::new(1));
        let second = recent.insert("text".into(), Arc::new(2));
        assert!(Arc::ptr_eq(&first, &second));
    }
}
