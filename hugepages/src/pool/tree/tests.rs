//! The tree against a model: the set of units in use.

use proptest::prelude::*;

use super::Tree;

/// Which units of the smallest class are in use, and by which slot.
struct Model {
    /// Units in a slot of each class.
    class_units: Vec<u32>,
    in_use: Vec<bool>,
    slots: Vec<(usize, u32)>,
}

impl Model {
    fn new(units: u32, shifts: &[u32]) -> Model {
        let mut class_units = vec![1];
        for shift in shifts {
            class_units.push(class_units[class_units.len() - 1] << shift);
        }
        Model {
            class_units,
            in_use: vec![false; units as usize],
            slots: Vec::new(),
        }
    }

    fn units(&mut self, class: usize, slot: u32) -> &mut [bool] {
        let units = self.class_units[class] as usize;
        &mut self.in_use[slot as usize * units..][..units]
    }

    fn take(&mut self, class: usize, slot: u32) {
        let units = self.units(class, slot);
        assert!(
            units.iter().all(|used| !used),
            "slot {slot} of class {class} was taken while in use"
        );
        units.fill(true);
        self.slots.push((class, slot));
    }

    fn give(&mut self, position: usize) -> (usize, u32) {
        let (class, slot) = self.slots.swap_remove(position);
        self.units(class, slot).fill(false);
        (class, slot)
    }

    /// Free slots of a class, those in larger free ones included.
    fn free(&self, class: usize) -> u64 {
        let slots = self.in_use.chunks_exact(self.class_units[class] as usize);
        slots.filter(|units| units.iter().all(|used| !used)).count() as u64
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Give(prop::sample::Index),
    Gather(usize, prop::sample::Index),
    StopGathering,
}

fn step(classes: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..classes).prop_map(Step::Take),
        6 => any::<prop::sample::Index>().prop_map(Step::Give),
        1 => (0..classes, any::<prop::sample::Index>()).prop_map(|(class, index)| Step::Gather(class, index)),
        1 => Just(Step::StopGathering),
    ]
}

fn steps() -> impl Strategy<Value = (u32, Vec<u32>, Vec<Step>)> {
    let shifts = prop_oneof![
        Just(vec![]),
        Just(vec![1, 1, 1]),
        Just(vec![2, 2, 2]),
        Just(vec![6]),
        Just(vec![1, 5, 2]),
    ];
    let steps_max = if cfg!(miri) { 40 } else { 400 };
    let units_end: u32 = if cfg!(miri) { 70 } else { 300 };
    (1..units_end, shifts).prop_flat_map(move |(units, shifts)| {
        let steps = prop::collection::vec(step(shifts.len() + 1), 0..steps_max);
        (Just(units), Just(shifts), steps)
    })
}

/// Takes a step in both; the slot that came back, if one did.
fn apply(step: &Step, tree: &mut Tree, model: &mut Model, gathering: &mut bool) {
    match step {
        Step::Take(class) => match tree.take(*class) {
            Some(slot) => model.take(*class, slot),
            None => assert!(
                *gathering || model.free(*class) == 0,
                "class {class} is said to have none"
            ),
        },
        Step::Give(index) if !model.slots.is_empty() => {
            let (class, slot) = model.give(index.index(model.slots.len()));
            tree.give(class, slot);
        }
        Step::Gather(wanted, index) if !model.slots.is_empty() && !tree.has(*wanted) => {
            let (class, slot) = model.give(index.index(model.slots.len()));
            tree.give(class, slot);
            if !tree.has(*wanted) {
                tree.gather_around(*wanted, class, slot);
                *gathering = true;
            }
        }
        Step::StopGathering => {
            tree.stop_gathering();
            *gathering = false;
        }
        Step::Give(_) | Step::Gather(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_unit_is_in_two_slots_and_none_is_lost((units, shifts, steps) in steps()) {
        let mut tree = Tree::new(units, shifts.iter().copied());
        let mut model = Model::new(units, &shifts);
        let mut gathering = false;
        for step in &steps {
            apply(step, &mut tree, &mut model, &mut gathering);
            if !gathering {
                for class in 0..=shifts.len() {
                    prop_assert_eq!(tree.available(class), model.free(class));
                    prop_assert_eq!(tree.has(class), model.free(class) > 0);
                }
            }
        }
        // Everything comes back, and all of it can be had again in the largest slots, then in the smallest.
        tree.stop_gathering();
        while !model.slots.is_empty() {
            let (class, slot) = model.give(0);
            tree.give(class, slot);
        }
        for class in (0..=shifts.len()).rev() {
            let expected = model.free(class);
            for _ in 0..expected {
                let slot = tree.take(class);
                model.take(class, slot.expect("the model says there is one"));
            }
            prop_assert_eq!(tree.take(class), None);
        }
        prop_assert!(model.in_use.iter().all(|&used| used));
    }
}

/// 64 units in slots of 1, 4 and 16.
fn full_tree() -> (Tree, Vec<u32>) {
    let mut tree = Tree::new(64, [2, 2].into_iter());
    let slots: Vec<u32> = std::iter::from_fn(|| tree.take(0)).collect();
    assert_eq!(slots.len(), 64);
    (tree, slots)
}

#[test]
fn a_gathered_slot_becomes_whole_although_small_ones_come_and_go() {
    let (mut tree, _) = full_tree();
    tree.give(0, 20);
    assert!(!tree.has(2));
    tree.gather_around(2, 0, 20);
    assert!(!tree.has(0), "unit 20 is set aside");
    for unit in 16..32 {
        assert!(!tree.has(2));
        if unit != 20 {
            tree.give(0, unit);
        }
        // Whoever takes small slots meanwhile gets them from elsewhere.
        tree.give(0, 40);
        if unit != 31 {
            assert_eq!(tree.take(0), Some(40));
        }
    }
    assert_eq!(tree.take(2), Some(1));
    assert_eq!(tree.take(2), None);
    assert_eq!(tree.take(0), Some(40));
}

#[test]
fn what_was_set_aside_is_there_again_when_gathering_stops() {
    let (mut tree, _) = full_tree();
    tree.give(0, 16);
    tree.gather_around(2, 0, 16);
    (17..24).for_each(|unit| tree.give(0, unit));
    assert!(!tree.has(0));
    tree.stop_gathering();
    assert_eq!(tree.available(0), 8);
    assert_eq!(tree.available(1), 2);
    assert!(tree.take(1).is_some() && tree.take(1).is_some() && tree.take(0).is_none());
}

#[test]
fn gathering_gives_up_after_a_while() {
    let (mut tree, _) = full_tree();
    tree.give(0, 16);
    tree.gather_around(2, 0, 16);
    let mut turns = 0;
    while !tree.has(0) {
        tree.give(0, 63);
        assert_eq!(tree.take(0), Some(63));
        turns += 1;
        assert!(turns <= super::gather::PATIENCE, "unit 16 stays set aside");
    }
    assert_eq!(turns, super::gather::PATIENCE);
}

#[test]
fn a_slot_that_is_a_large_part_of_the_region_is_not_gathered() {
    let mut tree = Tree::new(48, [2, 2].into_iter());
    while tree.take(0).is_some() {}
    tree.give(0, 16);
    tree.gather_around(2, 0, 16);
    assert_eq!(tree.take(0), Some(16));
}

#[test]
#[should_panic(expected = "given back twice")]
fn giving_back_twice_is_noticed() {
    let (mut tree, _) = full_tree();
    tree.give(0, 3);
    tree.give(0, 3);
}
