//! The laws of `windows-sync.md` 4.5, against a model that is a plain map from (item, change unit) to vector.
//!
//! The operations name items of a small universe; the model also has one item of each gap between them, so that it sees a
//! bound that is off by one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

/// A schema, the items that operations name, and those that lie between them.
#[derive(Clone, Copy, Debug)]
struct Universe {
    format: IdFormat,
    named: &'static [&'static [u8]],
    between: &'static [&'static [u8]],
}

const VARIABLE: Universe = Universe {
    format: IdFormat::Variable(2),
    named: &[b"\0", b"a", b"a\0", b"ab", b"a\xff", b"b", b"\xff\xff"],
    between: &[b"\0\0", b"A", b"a\x01", b"ac", b"b\0", b"\xff\xfe"],
};

const FIXED: Universe = Universe {
    format: IdFormat::Fixed(2),
    named: &[b"\0\0", b"\0\x01", b"\0\xff", b"\x01\0", b"ab", b"\xff\xff"],
    between: &[b"\0\x02", b"\x01\x01", b"ac", b"\xff\xfe"],
};

const UNITS: [&str; 2] = ["c1", "c2"];
/// Stands for every change unit that is not named.
const OTHER: &str = "zz";
const REPLICAS: [&str; 3] = ["A", "B", "C"];

type Cell = (ItemId, ChangeUnitId);

#[derive(Clone, Debug, PartialEq)]
struct Model(BTreeMap<Cell, ClockVector>);

impl Model {
    fn uniform(universe: Universe, vector: &ClockVector) -> Self {
        let items = universe.named.iter().chain(universe.between);
        let cells = items.flat_map(|id| UNITS.iter().chain([&OTHER]).map(|name| (ItemId::from(*id), unit(name))));
        Self(cells.map(|cell| (cell, vector.clone())).collect())
    }

    fn of(universe: Universe, knowledge: &Knowledge) -> Self {
        let mut model = Self::uniform(universe, &ClockVector::new());
        for ((item, unit), vector) in &mut model.0 {
            *vector = ClockVector::clone(knowledge.vector_for_change_unit(item, unit));
        }
        model
    }

    fn zip(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let cells = self.0.iter().map(|(cell, a)| {
            let b = &other.0[cell];
            let ticks = REPLICAS.map(|name| (replica(name), op(a.get(&replica(name)), b.get(&replica(name)))));
            (cell.clone(), ticks.into_iter().filter(|(_, tick)| *tick > 0).collect())
        });
        Self(cells.collect())
    }

    fn keep(&self, keep: impl Fn(&ItemId, &ChangeUnitId) -> bool) -> Self {
        let cells = self.0.iter().map(|(cell, vector)| {
            (cell.clone(), if keep(&cell.0, &cell.1) { vector.clone() } else { ClockVector::new() })
        });
        Self(cells.collect())
    }

    fn ticks<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a ItemId, u64, u64)> {
        self.0.iter().flat_map(|(cell, vector)| {
            REPLICAS.map(|name| (&cell.0, vector.get(&replica(name)), other.0[cell].get(&replica(name))))
        })
    }

    fn contains(&self, other: &Self) -> bool {
        self.ticks(other).all(|(_, ours, theirs)| theirs <= ours)
    }
}

/// A step of a random program over knowledge.
#[derive(Clone, Debug)]
enum Step {
    Union(Vec<(&'static str, u64)>),
    Complement(Vec<(&'static str, u64)>),
    Project(Vec<ItemId>),
    Exclude(Vec<ItemId>),
    ProjectRange(ItemId, Option<ItemId>),
    ProjectUnits(Vec<&'static str>),
    ExcludeUnit(ItemId, &'static str),
    LearnItems(Vec<ItemId>, Vec<(&'static str, u64)>),
    LearnUnit(ItemId, &'static str, Vec<(&'static str, u64)>),
    LocalTick(u64),
}

fn apply(step: &Step, universe: Universe, knowledge: &Knowledge, model: &Model) -> (Knowledge, Model) {
    let uniform = |elements: &[(&str, u64)]| {
        let vector = vector(elements);
        (Knowledge::from_vector(universe.format, vector.clone()), Model::uniform(universe, &vector))
    };
    match step {
        Step::Union(elements) => {
            let (other, other_model) = uniform(elements);
            (knowledge.union(&other), model.zip(&other_model, u64::max))
        }
        Step::Complement(elements) => {
            let (other, other_model) = uniform(elements);
            (knowledge.complement(&other), model.zip(&other_model, |a, b| if a > b { a } else { 0 }))
        }
        Step::Project(items) => (knowledge.project_onto_items(items), model.keep(|item, _| items.contains(item))),
        Step::Exclude(items) => {
            let mut rest = knowledge.clone();
            rest.exclude_items(items);
            (rest, model.keep(|item, _| !items.contains(item)))
        }
        Step::ProjectRange(lower, upper) => {
            let inside =
                |item: &ItemId, _: &ChangeUnitId| lower <= item && upper.as_ref().is_none_or(|upper| item <= upper);
            (knowledge.project_onto_range(lower, upper.as_ref()), model.keep(inside))
        }
        Step::ProjectUnits(names) => {
            let units: Vec<_> = names.iter().map(|name| unit(name)).collect();
            (knowledge.project_onto_change_units(&units), model.keep(|_, unit| units.contains(unit)))
        }
        Step::ExcludeUnit(item, name) => {
            let mut rest = knowledge.clone();
            rest.exclude_change_unit(item, &unit(name));
            (rest, model.keep(|at, of| (at, of) != (item, &unit(name))))
        }
        Step::LearnItems(items, elements) => {
            let (other, other_model) = uniform(elements);
            let learned = other_model.keep(|item, _| items.contains(item));
            (knowledge.union(&other.project_onto_items(items)), model.zip(&learned, u64::max))
        }
        Step::LearnUnit(item, name, elements) => {
            let (other, other_model) = uniform(elements);
            let learned = other_model.keep(|at, of| (at, of) == (item, &unit(name)));
            (knowledge.union(&other.project_onto_change_unit(item, &unit(name))), model.zip(&learned, u64::max))
        }
        Step::LocalTick(tick) => {
            let mut next = knowledge.clone();
            next.set_local_tick(&replica("A"), *tick);
            let mut next_model = model.clone();
            next_model.0.values_mut().for_each(|vector| vector.set(&replica("A"), *tick));
            (next, next_model)
        }
    }
}

fn items(universe: Universe) -> impl Strategy<Value = Vec<ItemId>> {
    let named: Vec<ItemId> = universe.named.iter().map(|id| ItemId::from(*id)).collect();
    let most = named.len();
    subsequence(named, 0..=most)
}

fn an_item(universe: Universe) -> impl Strategy<Value = ItemId> {
    select(universe.named).prop_map(ItemId::from)
}

fn elements() -> impl Strategy<Value = Vec<(&'static str, u64)>> {
    prop::collection::vec((select(&REPLICAS[..]), 1_u64..4), 0..3)
}

fn a_unit() -> impl Strategy<Value = &'static str> {
    select(&UNITS[..])
}

fn step(universe: Universe) -> impl Strategy<Value = Step> {
    let lower = prop_oneof![Just(ItemId::default()), an_item(universe)];
    prop_oneof![
        elements().prop_map(Step::Union),
        elements().prop_map(Step::Complement),
        items(universe).prop_map(Step::Project),
        items(universe).prop_map(Step::Exclude),
        (lower, prop::option::of(an_item(universe))).prop_map(|(lower, upper)| Step::ProjectRange(lower, upper)),
        subsequence(UNITS.to_vec(), 0..=2).prop_map(Step::ProjectUnits),
        (an_item(universe), a_unit()).prop_map(|(item, unit)| Step::ExcludeUnit(item, unit)),
        (items(universe), elements()).prop_map(|(items, elements)| Step::LearnItems(items, elements)),
        (an_item(universe), a_unit(), elements()).prop_map(|(item, unit, of)| Step::LearnUnit(item, unit, of)),
        (0_u64..4).prop_map(Step::LocalTick),
    ]
}

fn run(universe: Universe, steps: &[Step]) -> (Knowledge, Model) {
    let mut state = (Knowledge::new(universe.format), Model::uniform(universe, &ClockVector::new()));
    for step in steps {
        state = apply(step, universe, &state.0, &state.1);
    }
    state
}

/// A knowledge with its model, made by a random program.
fn a_knowledge(universe: Universe) -> impl Strategy<Value = (Knowledge, Model)> {
    prop::collection::vec(step(universe), 0..8).prop_map(move |steps| run(universe, &steps))
}

fn a_universe() -> impl Strategy<Value = Universe> {
    prop_oneof![Just(VARIABLE), Just(FIXED)]
}

fn three() -> impl Strategy<Value = (Universe, [(Knowledge, Model); 3], Vec<ItemId>)> {
    a_universe().prop_flat_map(|universe| {
        let knowledges = [a_knowledge(universe), a_knowledge(universe), a_knowledge(universe)];
        (Just(universe), knowledges, items(universe))
    })
}

/// The structural invariants of the representation.
fn assert_canonical(knowledge: &Knowledge) {
    let fragments = knowledge.fragments();
    assert!(fragments[0].change_unit_ids.is_empty());
    assert!(fragments[1..].iter().all(|fragment| !fragment.change_unit_ids.is_empty()));
    for (at, fragment) in fragments.iter().enumerate() {
        assert!(fragment.change_unit_ids.is_sorted());
        assert!(fragment.ranges[0].lower_bound.as_bytes().is_empty());
        for pair in fragment.ranges.windows(2) {
            assert!(pair[0].lower_bound < pair[1].lower_bound && pair[0].vector != pair[1].vector);
            assert!(knowledge.item_format().fits(pair[1].lower_bound.as_bytes().len()));
        }
        assert!(fragments[..at].iter().all(|before| before.ranges != fragment.ranges));
    }
    let again = Knowledge::from_fragments(knowledge.item_format(), fragments.to_vec());
    assert_eq!(again.as_ref(), Ok(knowledge));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model((universe, [(a, a_model), (b, b_model), (p, p_model)], _) in three()) {
        for (knowledge, model) in [(&a, &a_model), (&b, &b_model)] {
            prop_assert_eq!(&Model::of(universe, knowledge), model);
            assert_canonical(knowledge);
        }
        prop_assert_eq!(a.contains(&b), a_model.contains(&b_model));
        prop_assert_eq!(a.intersects(&b), a_model.ticks(&b_model).any(|(_, a, b)| a.min(b) > 0));
        for (result, model) in [
            (a.union(&b), a_model.zip(&b_model, u64::max)),
            (a.complement(&b), a_model.zip(&b_model, |a, b| if a > b { a } else { 0 })),
        ] {
            prop_assert_eq!(&Model::of(universe, &result), &model);
            assert_canonical(&result);
        }
        let projected = a.project_with_prerequisite(&p, &b);
        assert_canonical(&projected);
        for ((item, unit), vector) in &Model::of(universe, &projected).0 {
            let cell = (item.clone(), unit.clone());
            let had = b_model.0[&cell].contains_vector(&p_model.0[&cell]);
            prop_assert_eq!(vector, if had { &a_model.0[&cell] } else { &ClockVector::default() });
        }
    }

    #[test]
    fn point_queries_agree_with_the_model((_, [(a, a_model), (b, b_model), _], _) in three()) {
        for (item, unit) in a_model.0.keys() {
            let cells = [&a_model, &b_model].map(|model| &model.0[&(item.clone(), unit.clone())]);
            prop_assert_eq!(a.contains_for_change_unit(&b, item, unit), cells[0].contains_vector(cells[1]));
            let whole = a_model.ticks(&b_model).filter(|(at, ..)| *at == item).all(|(_, ours, theirs)| theirs <= ours);
            prop_assert_eq!(a.contains_for_item(&b, item), whole);
            for (name, tick) in REPLICAS.iter().flat_map(|name| (1..4).map(move |tick| (*name, tick))) {
                let version = version(name, tick);
                prop_assert_eq!(a.contains_change_unit(item, unit, &version), cells[0].contains(&version));
                let mut of_item = a_model.0.iter().filter(|((at, _), _)| at == item);
                prop_assert_eq!(a.contains_change(item, &version), of_item.all(|(_, vector)| vector.contains(&version)));
            }
        }
        for name in REPLICAS {
            let ticks = || a_model.0.values().map(|vector| vector.get(&replica(name)));
            prop_assert_eq!(Some(a.min_tick(&replica(name))), ticks().min());
            prop_assert_eq!(Some(a.max_tick(&replica(name))), ticks().max());
        }
        let lowest = a_model.ticks(&b_model).find(|(_, ours, theirs)| theirs > ours).map(|(item, ..)| item.clone());
        let found = a.lowest_uncontained(&b);
        prop_assert_eq!(found.is_some(), lowest.is_some());
        prop_assert!(found.zip(lowest).is_none_or(|(found, lowest)| found <= lowest));
        prop_assert_eq!(a.is_empty(), a_model.0.values().all(ClockVector::is_empty));
    }

    /// Forgotten knowledge, and whom it makes out of date.
    #[test]
    fn forgetting_agrees_with_the_model(
        (universe, [(known, known_model), (forgotten, forgotten_model), (source, source_model)], _) in three(),
        versions in elements(),
    ) {
        let upper = Model::uniform(universe, &vector(&versions));
        let both = known.intersection(&forgotten);
        assert_canonical(&both);
        prop_assert_eq!(Model::of(universe, &both), known_model.zip(&forgotten_model, u64::min));
        let forgot = forgotten.forget_to_versions(&known, &vector(&versions));
        assert_canonical(&forgot);
        let more = known_model.zip(&upper, u64::min);
        prop_assert_eq!(Model::of(universe, &forgot), forgotten_model.zip(&more, u64::max));

        let made_with = source.union(&forgotten);
        let group = ChangeGroup {
            kind: GroupKind::Ordered { lower_bound: ItemId::default(), upper_bound: None },
            made_with_knowledge: Arc::new(made_with.clone()),
            changes: Vec::new(),
        };
        let mut batch = batch(&source, vec![group]);
        batch.forgotten_knowledge = Arc::new(forgotten);
        let made_with = source_model.zip(&forgotten_model, u64::max);
        let out_of_date = |cell: &Cell| {
            let ticks = |model: &Model| REPLICAS.map(|name| model.0[cell].get(&replica(name)));
            let (known, forgotten) = (ticks(&known_model), ticks(&forgotten_model));
            let (asked, source) = (ticks(&source_model), ticks(&made_with));
            let all = |of: &dyn Fn(usize) -> bool| (0..REPLICAS.len()).all(of);
            !all(&|r| forgotten[r] <= known[r])
                && all(&|r| asked[r] <= known[r])
                && !all(&|r| known[r].min(source[r]) == 0)
        };
        let lowest = known_model.0.keys().filter(|cell| out_of_date(cell)).map(|(item, _)| item).min();
        let found = known.out_of_date_from(&batch);
        prop_assert_eq!(found.is_some(), lowest.is_some());
        // A bound lies at or below the first item of its range, and above every item before it.
        if let (Some(found), Some(lowest)) = (found, lowest) {
            prop_assert!(found <= *lowest);
            let between = known_model.0.keys().map(|(item, _)| item).filter(|item| **item >= found && *item < lowest);
            prop_assert_eq!(between.count(), 0);
        }
    }

    #[test]
    fn laws((universe, [(a, _), (b, _), (c, _)], items) in three()) {
        let nothing = Knowledge::new(universe.format);
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.union(&b).union(&c), a.union(&b.union(&c)));
        prop_assert_eq!(Knowledge::union_all(universe.format, [a.clone(), b.clone(), c.clone()]), a.union(&b).union(&c));
        prop_assert_eq!(a.union(&a), a.clone());
        prop_assert_eq!(a.union(&nothing), a.clone());
        prop_assert!(a.union(&b).contains(&a));
        prop_assert!(!b.contains(&a) || b.union(&c).contains(&a.union(&c)));
        prop_assert!(a.contains(&a));
        prop_assert!(!(a.contains(&b) && b.contains(&a)) || a == b);
        prop_assert!(!(a.contains(&b) && b.contains(&c)) || a.contains(&c));
        prop_assert!(a.complement(&a).is_empty());
        prop_assert_eq!(b.union(&a.complement(&b)), a.union(&b));

        let projected = a.project_onto_items(&items);
        prop_assert_eq!(projected.project_onto_items(&items), projected.clone());
        prop_assert!(a.contains(&projected));
        let mut rest = a.clone();
        rest.exclude_items(&items);
        prop_assert_eq!(rest.union(&projected), a.clone());
        prop_assert!(!rest.intersects(&projected));
        let mut bounds = items.clone();
        bounds.sort();
        bounds.dedup();
        let spans: Vec<_> = bounds.chunks(2).map(|span| (span[0].clone(), span[span.len() - 1].clone())).collect();
        let mut rest = a.clone();
        rest.exclude_ranges(&spans);
        let parts = spans.iter().map(|(first, last)| a.project_onto_range(first, Some(last)));
        let within = Knowledge::union_all(a.item_format(), parts);
        prop_assert!(!rest.intersects(&within));
        prop_assert_eq!(rest.union(&within), a.clone());
        prop_assert_eq!(&a.project_with_prerequisite(&nothing, &b), &a);
        prop_assert_eq!(a.lowest_uncontained(&b).is_none(), a.contains(&b));
    }

    #[test]
    fn what_is_no_single_item_is_known_up_to_the_tick_elsewhere((universe, [(a, _), ..], _) in three()) {
        let singles = a.single_items();
        prop_assert!(singles.is_sorted_by(|one, next| one < next));
        for replica in REPLICAS.map(ReplicaId::from) {
            prop_assert!(a.min_tick(&replica) <= a.min_tick_elsewhere(&replica));
            for item in universe.named.iter().chain(universe.between).map(|item| ItemId::from(*item)) {
                if singles.binary_search(&item).is_err() {
                    let elsewhere = a.min_tick_elsewhere(&replica);
                    prop_assert!(a.vectors_for_item(&item).all(|vector| vector.get(&replica) >= elsewhere), "{}", item);
                }
            }
        }
    }

    #[test]
    fn who_agrees_from_a_bound_on_knows_the_same_of_each_item((universe, [(a, _), (b, _), _], items) in three()) {
        let replicas = [ReplicaId::from(REPLICAS[0]), ReplicaId::from(REPLICAS[1])];
        prop_assert!(a.agrees_from(&a.clone(), &ItemId::default(), &replicas));
        for lower in items.iter().chain([&ItemId::default()]) {
            let same = universe.named.iter().chain(universe.between).map(|item| ItemId::from(*item)).all(|item| {
                let both = UNITS.iter().chain([&OTHER]).map(|name| unit(name));
                item < *lower || both.into_iter().all(|unit| {
                    let (ours, theirs) = (a.vector_for_change_unit(&item, &unit), b.vector_for_change_unit(&item, &unit));
                    replicas.iter().all(|replica| ours.get(replica) == theirs.get(replica))
                })
            });
            prop_assert_eq!(a.agrees_from(&b, lower, &replicas), same);
        }
    }

    #[test]
    fn selections_are_unions_of_their_parts(
        (universe, [(a, _), ..], items) in three(), units in prop::collection::vec((0_usize..6, a_unit()), 0..4)
    ) {
        let mut selection: Selection = items.iter().cloned().collect();
        let mut parts = a.project_onto_items(&items);
        let mut rest = a.clone();
        rest.exclude_items(&items);
        for (at, name) in units {
            let item = ItemId::from(universe.named[at]);
            selection.add_change_unit(item.clone(), unit(name));
            parts = parts.union(&a.project_onto_change_unit(&item, &unit(name)));
            rest.exclude_change_unit(&item, &unit(name));
        }
        prop_assert_eq!(&a.project_onto(&selection), &parts);
        let mut excluded = a.clone();
        excluded.exclude(&selection);
        prop_assert_eq!(&excluded, &rest);
        prop_assert_eq!(parts.union(&rest), a);
    }
}
