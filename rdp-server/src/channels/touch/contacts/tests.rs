use std::collections::{BTreeMap, BTreeSet};

use ContactPhase::{Down, Hover, Leave, LeaveCanceled, Lift, Move, Up, UpCanceled};
use proptest::prelude::*;

use super::*;

const PHASES: [ContactPhase; 8] = [Down, Move, Hover, Lift, Up, Leave, UpCanceled, LeaveCanceled];
const HERE: FinePoint = FinePoint { x: 100, y: 200 };
const THERE: FinePoint = FinePoint { x: 300, y: 400 };

/// The specification's figure: what may follow on what; none is away.
fn is_in_the_figure(before: Option<ContactPhase>, after: ContactPhase) -> bool {
    match before.filter(|phase| phase.is_in_range()) {
        None => matches!(after, Down | Hover),
        Some(Down | Move) => matches!(after, Move | Lift | Up | UpCanceled),
        Some(Hover | Lift) => matches!(after, Down | Hover | Leave | LeaveCanceled),
        Some(_) => unreachable!("not in range"),
    }
}

/// What one contact makes the guest see.
fn shown(said: &[Option<ContactPhase>]) -> Vec<ContactPhase> {
    let mut contacts = Contacts::new(1);
    let steps = said.iter().filter_map(|said| {
        contacts.begin_frame();
        contacts.step(7, *said, HERE, Duration::ZERO)
    });
    steps.map(|step| step.phase).collect()
}

#[test]
fn every_path_through_the_figure_is_passed_on_as_it_is() {
    let paths = [
        &[Down, Move, Move, Up][..],
        &[Down, Lift, Hover, Down, Up],
        &[Hover, Hover, Leave],
        &[Hover, LeaveCanceled],
        &[Down, UpCanceled],
        &[Down, Move, Lift, Leave, Down, Up, Hover, Down],
    ];
    for path in paths {
        assert_eq!(shown(&path.iter().copied().map(Some).collect::<Vec<_>>()), path);
    }
}

#[test]
fn what_freerdp_leaves_out_or_repeats_is_understood() {
    assert_eq!(shown(&[Some(Move), Some(Move), Some(Up)]), [Down, Move, Up]);
    assert_eq!(shown(&[Some(Hover), Some(Move), Some(Hover), Some(LeaveCanceled)]), [Hover, Down, Lift, LeaveCanceled]);
    assert_eq!(shown(&[Some(Down), Some(Lift), Some(Lift), Some(Lift)]), [Down, Lift, Hover, Hover]);
    assert_eq!(shown(&[Some(Up), Some(Down), Some(Up)]), [Down, Up]);
}

#[test]
fn a_contact_outside_the_figure_is_cancelled_and_refused_until_it_begins_anew() {
    assert_eq!(shown(&[Some(Down), Some(Down), Some(Move), Some(Up)]), [Down, UpCanceled]);
    assert_eq!(shown(&[Some(Down), None, Some(Move), Some(Down), Some(Move)]), [Down, UpCanceled, Down, Move]);
    assert_eq!(shown(&[Some(Hover), None, Some(Lift), Some(Hover)]), [Hover, LeaveCanceled, Hover]);
    assert_eq!(shown(&[Some(Down), Some(Leave), Some(Move)]), [Down, UpCanceled, Down]);
    assert_eq!(shown(&[Some(Hover), Some(Up), Some(Hover)]), [Hover, LeaveCanceled, Hover]);
    assert_eq!(shown(&[None, Some(Move), Some(Lift), Some(Up)]), []);
}

#[test]
fn a_contact_ends_where_it_was_and_with_the_number_it_had() {
    let mut contacts = Contacts::new(64);
    contacts.begin_frame();
    let down = contacts.step(9, Some(Down), HERE, Duration::from_micros(5)).unwrap();
    assert_eq!((down.position, down.since_previous), (HERE, Duration::ZERO));
    for end in [Lift, Leave] {
        contacts.begin_frame();
        let step = contacts.step(9, Some(end), THERE, Duration::from_micros(12)).unwrap();
        assert_eq!((step.position, step.number, step.phase), (HERE, down.number, end));
    }
}

#[test]
fn a_number_is_free_again_in_the_frame_after() {
    let mut contacts = Contacts::new(2);
    let mut step = |id, phase| contacts.step(id, Some(phase), HERE, Duration::ZERO).map(|step| step.number);
    assert_eq!([step(10, Down), step(20, Down), step(30, Down)], [Some(0), Some(1), None]);
    assert_eq!([step(10, Up), step(30, Down)], [Some(0), None]);
    contacts.begin_frame();
    let mut step = |id, phase| contacts.step(id, Some(phase), HERE, Duration::ZERO).map(|step| step.number);
    assert_eq!([step(30, Move), step(40, Down), step(20, Move)], [None, Some(0), Some(1)]);
}

#[test]
fn only_a_contact_that_is_near_can_be_dismissed() {
    let mut contacts = Contacts::new(64);
    contacts.step(1, Some(Hover), HERE, Duration::ZERO);
    contacts.step(2, Some(Down), HERE, Duration::ZERO);
    assert_eq!(contacts.dismiss(1, Duration::ZERO).map(|step| (step.phase, step.position)), Some((Leave, HERE)));
    assert_eq!([1, 2, 3].map(|id| contacts.dismiss(id, Duration::ZERO)), [None; 3]);
}

#[derive(Debug, Clone)]
enum Op {
    /// A frame with what some contacts did, each once.
    Frame(BTreeMap<u8, Option<ContactPhase>>),
    Refuse(u8, Option<ContactPhase>),
    Dismiss(u8),
    CancelAll,
}

fn op() -> impl Strategy<Value = Op> {
    let said = || prop_oneof![9 => (0..8_usize).prop_map(|at| Some(PHASES[at])), 1 => Just(None)];
    prop_oneof![
        8 => proptest::collection::btree_map(0..12_u8, said(), 0..12).prop_map(Op::Frame),
        1 => (0..12_u8, said()).prop_map(|(id, said)| Op::Refuse(id, said)),
        1 => (0..12_u8).prop_map(Op::Dismiss),
        1 => Just(Op::CancelAll),
    ]
}

proptest! {
    /// Whatever the client says, the guest sees paths through the figure, few enough of them, and each ends once.
    #[test]
    fn the_guest_only_ever_sees_the_figure(limit in 1..9_usize, ops in proptest::collection::vec(op(), 0..60)) {
        let mut contacts = Contacts::new(limit);
        let mut guest: BTreeMap<u8, ContactPhase> = BTreeMap::new();
        for op in ops {
            contacts.begin_frame();
            let steps: Vec<Step> = match op {
                Op::Frame(frame) => {
                    let steps = frame.into_iter().map(|(id, said)| contacts.step(id, said, HERE, Duration::ZERO));
                    steps.flatten().collect()
                }
                Op::Refuse(id, said) => {
                    // Nobody takes: all that were shown have been cancelled before.
                    let cancelled = contacts.cancel_all();
                    contacts.refuse(id, said);
                    prop_assert_eq!(contacts.cancel_all(), vec![]);
                    cancelled
                }
                Op::Dismiss(id) => contacts.dismiss(id, Duration::ZERO).into_iter().collect(),
                Op::CancelAll => {
                    let cancelled = contacts.cancel_all();
                    let in_range = guest.values().filter(|phase| phase.is_in_range()).count();
                    prop_assert_eq!(cancelled.len(), in_range);
                    prop_assert!(cancelled.iter().all(|step| step.phase.is_canceled()));
                    cancelled
                }
            };
            let numbers: BTreeSet<_> = steps.iter().map(|step| step.number).collect();
            prop_assert_eq!(numbers.len(), steps.len(), "a number twice in a frame");
            for step in steps {
                prop_assert!(usize::from(step.number) < limit);
                let before = guest.insert(step.number, step.phase);
                prop_assert!(is_in_the_figure(before, step.phase), "{:?} after {:?}", step.phase, before);
            }
        }
    }
}
