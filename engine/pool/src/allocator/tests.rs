//! Against a plain map of blocks, with crashes back to the last checkpoint.

use proptest::prelude::*;

use super::*;

const EXTENTS: u64 = 70;
const RESERVE: u64 = 6;

#[derive(Debug, Clone)]
enum Step {
    Extent,
    Page,
    FreeExtent(usize),
    FreePage(usize),
    Close,
    Image,
    Durable,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Extent),
        8 => Just(Step::Page),
        3 => (0usize..1000).prop_map(Step::FreeExtent),
        6 => (0usize..1000).prop_map(Step::FreePage),
        2 => Just(Step::Close),
        1 => Just(Step::Image),
        2 => Just(Step::Durable),
        1 => Just(Step::Crash),
    ]
}

/// What is used, and what the last durable checkpoint and the one being written say.
#[derive(Debug, Clone, Default, PartialEq)]
struct Used {
    extents: BTreeSet<ExtentId>,
    pages: BTreeSet<(BlockAddress, BlockAddress)>,
}

impl Used {
    fn masks(&self) -> BTreeMap<u64, u16> {
        let mut masks: BTreeMap<u64, u16> = self.extents.iter().map(|at| (at.number(), WHOLE)).collect();
        for page in self.pages.iter().flat_map(|(first, second)| [first, second]) {
            let mask = masks.entry(page.extent().number()).or_insert(0);
            assert_eq!(*mask >> page.index() & 1, 0, "two pages at one place");
            *mask |= 1 << page.index();
        }
        masks
    }
}

struct Model {
    space: DeviceSpace,
    used: Used,
    closing: Option<Used>,
    /// Whether the image of the checkpoint being written was looked at, or there is none as nothing had
    /// changed.
    imaged: bool,
    durable: Used,
}

impl Model {
    fn new() -> Self {
        let space = DeviceSpace::new(3, EXTENTS, RESERVE);
        Self {
            space,
            used: Used::default(),
            closing: None,
            imaged: true,
            durable: Used::default(),
        }
    }

    /// Nothing may be given out that anything to go back to holds.
    fn assert_fresh(&self, extent: ExtentId, index: Option<u8>) {
        for used in [Some(&self.used), self.closing.as_ref(), Some(&self.durable)]
            .into_iter()
            .flatten()
        {
            let mask = used.masks().get(&extent.number()).copied().unwrap_or(0);
            let wanted = index.map_or(WHOLE, |index| 1 << index);
            assert_eq!(mask & wanted, 0);
        }
    }

    fn take_page(&mut self) -> Result<(), NoSpace> {
        let first = self.space.take_page(None)?;
        self.assert_fresh(first.extent(), Some(first.index()));
        match self.space.take_page(Some(first.extent())) {
            Ok(second) => {
                self.assert_fresh(second.extent(), Some(second.index()));
                assert_ne!(first.extent(), second.extent());
                self.used.pages.insert((first, second));
                Ok(())
            }
            Err(error) => {
                self.space.free_page(first).unwrap();
                Err(error)
            }
        }
    }

    fn load(used: &Used) -> DeviceSpace {
        let mut space = DeviceSpace::new(3, EXTENTS, RESERVE);
        for (number, mask) in used.masks() {
            space.load(number, mask).unwrap();
        }
        for (first, second) in &used.pages {
            space.adopt_page(*first).unwrap();
            space.adopt_page(*second).unwrap();
        }
        space
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Extent => {
                if let Ok(mut extent) = self.space.take_extent() {
                    self.assert_fresh(extent, None);
                    assert_eq!(self.space.image(extent.number()), 0, "no map points to it");
                    assert!(self.space.free_extent(extent).is_err());
                    if extent.number().is_multiple_of(5) {
                        self.space.return_extent(extent);
                        self.space.return_extent(extent);
                        extent = self.space.take_extent().unwrap();
                        self.assert_fresh(extent, None);
                    }
                    self.space.record_extent(extent);
                    self.space.return_extent(extent);
                    assert!(self.used.extents.insert(extent));
                } else {
                    assert!(self.space.counts().free <= RESERVE);
                }
            }
            Step::Page => {
                let pages = self.space.free_pages();
                if self.take_page().is_err() {
                    assert!(pages <= 16, "{pages} pages were free");
                }
            }
            Step::FreeExtent(number) => {
                let count = self.used.extents.len().max(1);
                if let Some(extent) = self.used.extents.iter().nth(number % count).copied() {
                    self.space.free_extent(extent).unwrap();
                    assert!(self.space.free_extent(extent).is_err());
                    self.used.extents.remove(&extent);
                }
            }
            Step::FreePage(number) => {
                let count = self.used.pages.len().max(1);
                if let Some((first, second)) = self.used.pages.iter().nth(number % count).copied() {
                    self.space.free_page(first).unwrap();
                    self.space.free_page(second).unwrap();
                    assert!(self.space.free_page(first).is_err());
                    self.used.pages.remove(&(first, second));
                }
            }
            Step::Close if self.closing.is_none() => {
                self.imaged = self.space.dirty_leaf_count() == 0;
                assert_eq!(self.space.unprepared_leaves().count(), usize::from(!self.imaged));
                self.space.set_prepared(0);
                assert_eq!(self.space.unprepared_leaves().count(), 0);
                self.space.close_checkpoint();
                assert_eq!(self.space.dirty_leaves().count(), 0);
                self.closing = Some(self.used.clone());
            }
            Step::Close => {}
            Step::Image => self.look_at_image(),
            Step::Durable => {
                self.look_at_image();
                if let Some(used) = self.closing.take() {
                    while self.space.free_closed(1) {}
                    self.durable = used;
                }
            }
            Step::Crash => {
                self.used = self.durable.clone();
                self.closing = None;
                self.imaged = true;
                self.space = Self::load(&self.durable);
            }
        }
    }

    /// What the checkpoint has is as it was when that closed, whatever has changed since.
    fn look_at_image(&mut self) {
        let Some(closing) = &self.closing else { return };
        let image = self.space.closed_image(0);
        assert_eq!(image.is_none(), self.imaged, "once, if it had changed");
        self.imaged = true;
        let Some(image) = image else { return };
        let masks = closing.masks();
        for (number, used) in (0..).zip(image.iter()) {
            let expected = masks.get(&number).copied().unwrap_or(0);
            assert_eq!(*used, expected, "extent {number}");
        }
    }

    fn check(&self) {
        let masks = self.used.masks();
        for number in 0..EXTENTS + 1 {
            let expected = masks.get(&number).copied().unwrap_or(0);
            assert_eq!(self.space.image(number), expected, "extent {number}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn nothing_is_given_out_that_a_crash_may_go_back_to(steps in prop::collection::vec(step(), 1..200)) {
        let mut model = Model::new();
        for step in steps {
            model.run(step);
            model.check();
        }
        // All of it comes back.
        while !model.used.extents.is_empty() || !model.used.pages.is_empty() {
            model.run(Step::FreeExtent(0));
            model.run(Step::FreePage(0));
        }
        for step in [Step::Durable, Step::Close, Step::Durable] {
            model.run(step);
        }
        let empty = SpaceCounts { free: EXTENTS, freeing: 0, pages: 0 };
        prop_assert_eq!(model.space.counts(), empty);
    }
}

#[test]
fn data_leaves_the_reserve_to_pages() {
    let mut model = Model::new();
    for _ in 0..EXTENTS {
        model.run(Step::Extent);
    }
    assert_eq!(model.space.counts().free, RESERVE);
    let pages = (0..).take_while(|_| model.take_page().is_ok()).count();
    assert_eq!(pages as u64, RESERVE * 16 / 2);
    assert_eq!(
        (model.space.free_pages(), model.space.take_extent()),
        (0, Err(NoSpace))
    );
    model.run(Step::FreeExtent(0));
    assert_eq!(model.space.counts().freeing, 1);
    assert!(
        model.take_page().is_err(),
        "freed, and not free before the checkpoint"
    );
    for step in [Step::Close, Step::Durable] {
        model.run(step);
    }
    assert_eq!(model.space.counts().free, 1);
}

#[test]
fn rounds_of_filling_and_freeing_leave_nothing_behind() {
    let mut model = Model::new();
    for _ in 0..200 {
        while model
            .space
            .take_extent()
            .map(|extent| {
                model.space.record_extent(extent);
                model.used.extents.insert(extent)
            })
            .is_ok()
        {}
        assert_eq!(model.used.extents.len() as u64, EXTENTS - RESERVE);
        while !model.used.extents.is_empty() {
            model.run(Step::FreeExtent(0));
        }
        model.run(Step::Close);
        model.run(Step::Durable);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let mut space = DeviceSpace::new(3, EXTENTS, RESERVE);
    let extent = ExtentId::new(3, 5);
    assert_eq!(space.free_extent(extent), Err(StateError::NotUsed(5)));
    assert_eq!(space.free_page(extent.block(0)), Err(StateError::NotUsed(5)));
    assert_eq!(
        space.free_extent(ExtentId::new(2, 5)),
        Err(StateError::OutOfRange(5))
    );
    assert_eq!(
        space.mark_extent(ExtentId::new(3, EXTENTS), false),
        Err(StateError::OutOfRange(EXTENTS))
    );
    assert_eq!(space.mark_extent(extent, false), Ok(()));
    assert_eq!(space.mark_extent(extent, true), Ok(()));
    assert_eq!(space.mark_extent(extent, false), Err(StateError::Used(5)));
    assert_eq!(space.load(5, 1), Err(StateError::Used(5)));
    assert_eq!(space.load(EXTENTS, 1), Err(StateError::OutOfRange(EXTENTS)));
    assert_eq!(space.load(6, 1), Ok(()));
    assert_eq!(
        space.mark_extent(ExtentId::new(3, 6), true),
        Err(StateError::Used(6))
    );
    assert_eq!(
        space.adopt_page(ExtentId::new(3, 6).block(1)),
        Err(StateError::NotUsed(6))
    );
    assert_eq!(
        space.free_extent(ExtentId::new(3, 6)),
        Err(StateError::NotUsed(6))
    );
    assert_eq!(space.dirty_leaves().collect::<Vec<_>>(), [0]);
}
