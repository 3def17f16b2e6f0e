//! What a drive keeps through a power loss: the medium, the volatile cache in front of it, writes under way.
//!
//! Invariants:
//! - `media` holds what is durable, and nothing that a power loss could still take away.
//! - `cached` holds the completed writes that are not durable, in the order in which they completed. The
//!   parts of a cached write that a later durable write covers are cut out of it: they can never surface
//!   again.
//! - `under_way` holds the writes that were submitted and have not completed; a power loss may leave any part
//!   of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::pages::PageMap;
use crate::random::Random;

/// Bytes of a sector: what a drive writes as a whole when it promises nothing more.
pub const SECTOR_BYTES: u64 = 512;

/// Pieces that a torn write is cut into, at most.
const TORN_PIECES_MAX: u64 = 64;

/// What a power loss does to writes that are not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLoss {
    /// All are lost.
    LoseAll,
    /// All survive, also those under way.
    KeepAll,
    /// Each survives or not, by the seed: later ones may survive earlier ones.
    Reordered,
    /// Each survives, or not, or in part.
    Torn,
    /// One of the above, by the seed.
    Any,
}

/// What one write does to the content.
#[derive(Debug)]
pub(crate) struct Effect {
    /// First sector.
    pub(crate) sector: u64,
    pub(crate) sectors: u64,
    /// `None` for zeros.
    pub(crate) data: Option<Box<[u8]>>,
    /// Aligned pieces of so many sectors are never torn.
    pub(crate) atomic_sectors: u64,
}

impl Effect {
    fn range(&self) -> Range<u64> {
        self.sector..self.sector + self.sectors
    }

    /// Puts the sectors of a range, which is within the effect, into the content.
    fn apply_part(&self, content: &mut PageMap, part: Range<u64>) {
        let (offset, bytes) = (part.start * SECTOR_BYTES, (part.end - part.start) * SECTOR_BYTES);
        match &self.data {
            None => content.zero(offset, bytes),
            Some(data) => {
                let skip = ((part.start - self.sector) * SECTOR_BYTES) as usize;
                let data = data.get(skip..).and_then(|rest| rest.get(..bytes as usize));
                content.write(offset, data.expect("the part is within the effect"));
            }
        }
    }

    /// Puts all of it into the content.
    pub(crate) fn apply(&self, content: &mut PageMap) {
        self.apply_part(content, self.range());
    }

    /// Puts some of it into the content: a part from the start, a part to the end, or pieces.
    pub(crate) fn apply_torn(&self, live: &[Range<u64>], content: &mut PageMap, random: &mut Random) {
        let range = self.range();
        let unit = self.atomic_sectors.max(1);
        let piece = (self.sectors / TORN_PIECES_MAX).next_multiple_of(unit).max(unit);
        let cut = range.start + random.below(self.sectors + 1);
        let cut = (cut / unit * unit).max(range.start);
        let style = random.below(3);
        let mut at = range.start;
        while at < range.end {
            let end = match style {
                // Up to the cut, or from it on.
                0 | 1 if at < cut => cut,
                0 | 1 => range.end,
                _ => (at / piece * piece + piece).min(range.end),
            };
            let kept = match style {
                0 => at < cut,
                1 => at >= cut,
                _ => random.chance(0.5),
            };
            if kept {
                for part in live {
                    let part = part.start.max(at)..part.end.min(end);
                    if part.start < part.end {
                        self.apply_part(content, part);
                    }
                }
            }
            at = end;
        }
    }
}

/// Cuts a range out of ranges.
pub(super) fn cut_out(ranges: &mut Vec<Range<u64>>, out: &Range<u64>) {
    if ranges
        .iter()
        .all(|part| part.end <= out.start || out.end <= part.start)
    {
        return;
    }
    for part in std::mem::take(ranges) {
        let before = part.start..part.end.min(out.start);
        let after = part.start.max(out.end)..part.end;
        ranges.extend([before, after].into_iter().filter(|part| part.start < part.end));
    }
}

/// A completed write that is not durable.
#[derive(Clone)]
struct Cached {
    sequence: u64,
    effect: Arc<Effect>,
    /// The sectors of it that no later durable write covers.
    live: Vec<Range<u64>>,
}

impl Cached {
    fn apply(&self, content: &mut PageMap) {
        for part in &self.live {
            self.effect.apply_part(content, part.clone());
        }
    }
}

/// The durable and the volatile part of a drive. A copy is cheap.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) media: PageMap,
    cached: VecDeque<Cached>,
    cached_bytes: u64,
    cached_bytes_max: u64,
    under_way: BTreeMap<u64, Arc<Effect>>,
    next_sequence: u64,
}

impl Store {
    pub(crate) fn new(media: PageMap, cached_bytes_max: u64) -> Self {
        Self {
            media,
            cached: VecDeque::new(),
            cached_bytes: 0,
            cached_bytes_max,
            under_way: BTreeMap::new(),
            next_sequence: 0,
        }
    }

    /// What a flush submitted now covers.
    pub(crate) fn sequence(&self) -> u64 {
        self.next_sequence
    }

    /// A write was submitted.
    pub(crate) fn begin(&mut self, write: u64, effect: Arc<Effect>) {
        self.under_way.insert(write, effect);
    }

    /// A write completed, with what it did: nothing, when it was lost.
    pub(crate) fn complete(&mut self, write: u64, effect: Option<Arc<Effect>>, durable: bool) {
        self.under_way.remove(&write);
        let Some(effect) = effect else {
            return;
        };
        if durable {
            let range = effect.range();
            for cached in &mut self.cached {
                cut_out(&mut cached.live, &range);
            }
            effect.apply(&mut self.media);
            return;
        }
        self.cached_bytes += effect.data.as_ref().map_or(0, |data| data.len() as u64);
        self.cached.push_back(Cached {
            sequence: self.next_sequence,
            live: vec![effect.range()],
            effect,
        });
        self.next_sequence += 1;
        while self.cached_bytes > self.cached_bytes_max {
            self.destage();
        }
    }

    /// Brings the oldest cached write to the medium.
    fn destage(&mut self) {
        if let Some(oldest) = self.cached.pop_front() {
            self.cached_bytes -= oldest.effect.data.as_ref().map_or(0, |data| data.len() as u64);
            oldest.apply(&mut self.media);
        }
    }

    /// A flush completed that was submitted when [`Store::sequence`] was `covers`.
    pub(crate) fn flush(&mut self, covers: u64) {
        while self.cached.front().is_some_and(|oldest| oldest.sequence < covers) {
            self.destage();
        }
    }

    /// The drive gave up on what is in its cache: reads still see it, the medium never will.
    pub(crate) fn forget_cached(&mut self) {
        self.cached.clear();
        self.cached_bytes = 0;
    }

    /// Writes that have not completed, oldest first; they are taken.
    pub(crate) fn take_under_way(&mut self) -> BTreeMap<u64, Arc<Effect>> {
        std::mem::take(&mut self.under_way)
    }

    /// Completed writes that are not durable.
    pub(crate) fn cached_writes(&self) -> usize {
        self.cached.len()
    }

    /// The power is lost: what is left is in `media`.
    pub(crate) fn lose_power(&mut self, loss: PowerLoss, random: &mut Random) {
        let loss = match loss {
            PowerLoss::Any => {
                let kinds = [
                    PowerLoss::LoseAll,
                    PowerLoss::KeepAll,
                    PowerLoss::Reordered,
                    PowerLoss::Torn,
                ];
                random.pick(&kinds).copied().unwrap_or(PowerLoss::Torn)
            }
            loss => loss,
        };
        self.cached_bytes = 0;
        let mut under_way: Vec<_> = std::mem::take(&mut self.under_way).into_values().collect();
        random.shuffle(&mut under_way);
        let writes = std::mem::take(&mut self.cached)
            .into_iter()
            .chain(under_way.into_iter().map(|effect| Cached {
                sequence: u64::MAX,
                live: vec![effect.range()],
                effect,
            }));
        for write in writes {
            match loss {
                PowerLoss::LoseAll | PowerLoss::Any => {}
                PowerLoss::KeepAll => write.apply(&mut self.media),
                PowerLoss::Reordered => {
                    if random.chance(0.5) {
                        write.apply(&mut self.media);
                    }
                }
                PowerLoss::Torn => match random.below(4) {
                    0 => {}
                    1 => write.apply(&mut self.media),
                    _ => write.effect.apply_torn(&write.live, &mut self.media, random),
                },
            }
        }
    }
}
