//! The pages of a cache: found by their address, or at once by a place that was told before.

use std::collections::HashMap;

use super::Cached;

/// Where a page is, as long as it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PagePlace {
    key: u64,
    at: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Pages {
    places: HashMap<u64, u32, foldhash::fast::FixedState>,
    pages: Vec<Option<(u64, Cached)>>,
    free: Vec<u32>,
    /// Where [`Pages::next`] goes on.
    hand: usize,
}

impl Pages {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn place(&self, key: u64) -> Option<PagePlace> {
        let at = *self.places.get(&key)?;
        Some(PagePlace { key, at })
    }

    /// The page at a place, if it is still the same.
    #[inline]
    pub(super) fn at(&self, place: PagePlace) -> Option<&Cached> {
        let (key, cached) = self.pages.get(place.at as usize)?.as_ref()?;
        (*key == place.key).then_some(cached)
    }

    /// The page at a place, to be changed.
    #[inline]
    pub(super) fn at_mut(&mut self, place: PagePlace) -> Option<&mut Cached> {
        let (key, cached) = self.pages.get_mut(place.at as usize)?.as_mut()?;
        (*key == place.key).then_some(cached)
    }

    pub(super) fn get(&self, key: u64) -> Option<&Cached> {
        self.at(self.place(key)?)
    }

    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut Cached> {
        let place = self.place(key)?;
        self.at_mut(place)
    }

    /// Puts a page in; the one that was there before.
    pub(super) fn insert(&mut self, key: u64, cached: Cached) -> Option<Cached> {
        let before = self.remove(key);
        let at = self.free.pop().unwrap_or_else(|| {
            self.pages.push(None);
            (self.pages.len() - 1) as u32
        });
        if let Some(place) = self.pages.get_mut(at as usize) {
            *place = Some((key, cached));
        }
        self.places.insert(key, at);
        before
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<Cached> {
        let at = self.places.remove(&key)?;
        self.free.push(at);
        let (_, cached) = self.pages.get_mut(at as usize)?.take()?;
        Some(cached)
    }

    /// How many places there are, with a page or without.
    pub(super) fn places(&self) -> usize {
        self.pages.len()
    }

    /// The page at the next place, round and round; `None` if there is none at that place.
    pub(super) fn next(&mut self) -> Option<(u64, &Cached)> {
        let at = self.hand;
        self.hand = if at + 1 < self.pages.len() { at + 1 } else { 0 };
        let (key, cached) = self.pages.get(at)?.as_ref()?;
        Some((*key, cached))
    }
}
