//! What the policy promises, on guests that are made up.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use uuid::Uuid;

use super::simulation::{Guest, GuestSecond, Load, Second, Simulation};
use super::*;

const MIB: u64 = 1 << 20;

fn simulate(pool: u64, guests: Vec<Guest>, seconds: u32) -> Vec<Second> {
    let seconds = Simulation::new(pool, Tuning::default(), guests).run(seconds);
    seconds.iter().for_each(assert_kept);
    seconds
}

/// What holds at every tick.
fn assert_kept(second: &Second) {
    let plan = &second.plan;
    let targets: u64 = plan.decisions.iter().map(|decision| decision.target).sum();
    assert!(targets <= plan.pool.max(plan.least), "{targets} of {}: {plan:?}", plan.pool);
}

fn last(seconds: &[Second]) -> &[GuestSecond] {
    &seconds.last().expect("some").guests
}

/// How often what a guest is told to have turns from rising to falling or back.
fn turns(seconds: &[Second], index: usize) -> usize {
    let levels = seconds.iter().filter_map(|second| Some(second.plan.decisions.get(index)?.level));
    let levels: Vec<u64> = levels.collect();
    let mut directions: Vec<std::cmp::Ordering> = levels.windows(2).map(|pair| pair[1].cmp(&pair[0])).collect();
    directions.retain(|direction| direction.is_ne());
    directions.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

fn missing(seconds: &[Second]) -> u64 {
    seconds.iter().flat_map(|second| &second.guests).map(|guest| guest.missing).max().unwrap_or(0)
}

#[test]
fn a_guest_grows_with_its_need_and_has_its_buffer() {
    let guest = Guest::new(128, 256, 2048, Load::steps(&[(0, 100), (10, 1000)]));
    let seconds = simulate(4096, vec![guest], 60);
    let end = last(&seconds)[0];
    assert!((1200..1240).contains(&end.assigned), "{end:?}");
    assert_eq!(end.decision.reason, Reason::Content);
    assert_eq!(missing(&seconds), 0);
}

#[test]
fn memory_that_nobody_wants_is_kept_for_a_while_and_then_given_back() {
    let guest = Guest::new(128, 256, 2048, Load::steps(&[(0, 1000), (60, 200)]));
    let seconds = simulate(4096, vec![guest], 3600);
    assert!(seconds[300].guests[0].assigned > 1200, "{:?}", seconds[300].guests[0]);
    assert_eq!(seconds[600].guests[0].decision.reason, Reason::Reclaimed);
    let end = last(&seconds)[0];
    assert!((240..260).contains(&end.assigned), "{end:?}");
    assert!(turns(&seconds, 0) <= 1);
}

#[test]
fn of_four_guests_the_one_under_load_grows_and_the_idle_give_and_back_again() {
    let idle = || Guest::new(160, 384, 1024, Load::constant(120));
    let load = Load::steps(&[(0, 120), (60, 800), (300, 120)]);
    let busy = Guest { load, ..idle() };
    let seconds = simulate(1536, vec![busy, idle(), idle(), idle()], 900);
    let at = |second: usize, index: usize| seconds[second].guests[index].assigned;
    assert_eq!((at(59, 0), at(59, 1)), (384, 384), "nobody asks for anything");
    assert!(at(200, 0) >= 940, "{:?}", seconds[200]);
    assert!((1..4).all(|index| (160..230).contains(&at(200, index))), "{:?}", seconds[200]);
    assert_eq!(missing(&seconds), 0, "nobody was killed");
    // Nobody else wants the memory of the one that was under load; it keeps it for the time being.
    assert!(at(400, 0) >= 900);
    assert!(at(899, 0) < at(400, 0), "{:?}", seconds[899]);
}

#[test]
fn who_was_short_of_room_gets_it_back_as_soon_as_the_load_is_gone() {
    let steady = || Guest::new(160, 512, 1024, Load::constant(300));
    let load = Load { slope: 16, ..Load::steps(&[(0, 300), (60, 600), (300, 200)]) };
    let busy = Guest { load, ..steady() };
    let seconds = simulate(1280, vec![busy, steady(), steady()], 600);
    let at = |second: usize, index: usize| seconds[second].guests[index].assigned;
    assert!(at(250, 0) >= 600 && at(250, 1) < 345, "{:?}", seconds[250]);
    assert!(at(599, 1) >= 352 && at(599, 2) >= 352, "{:?}", seconds[599]);
    assert_eq!(missing(&seconds), 0);
}

#[test]
fn needs_are_met_before_any_buffer() {
    let hungry = Guest::new(128, 512, 2048, Load::steps(&[(0, 100), (5, 900)]));
    let easy = Guest::new(128, 512, 2048, Load::constant(400));
    let seconds = simulate(1420, vec![hungry, easy], 120);
    let [hungry, easy] = last(&seconds) else { panic!("two guests") };
    assert!(hungry.assigned >= 904 && easy.assigned >= 404, "{hungry:?} {easy:?}");
    assert_eq!(missing(&seconds[60..]), 0);
    assert_eq!(hungry.decision.reason, Reason::Short);
}

#[test]
fn when_not_all_needs_can_be_met_weights_decide() {
    let guest = |weight| {
        let mut guest = Guest::new(256, 512, 4096, Load::steps(&[(0, 400), (20, 2000)]));
        guest.settings.weight = weight;
        guest.swap = 4096;
        guest
    };
    let seconds = simulate(2048, vec![guest(8000), guest(2000)], 600);
    let [heavy, light] = last(&seconds) else { panic!("two guests") };
    // 2048 - 2 · 256 are divided 4 : 1.
    assert!((1440..=1500).contains(&heavy.assigned), "{heavy:?}");
    assert!((540..=600).contains(&light.assigned), "{light:?}");
}

#[test]
fn guests_that_are_short_and_swap_do_not_swing() {
    let guest = |minimum, startup, maximum, used, swap| {
        let mut guest = Guest::new(minimum, startup, maximum, Load::constant(used).with_noise(1));
        (guest.settings.buffer, guest.swap) = (5, swap);
        guest
    };
    let seconds = simulate(1522, vec![guest(216, 216, 1131, 914, 326), guest(473, 583, 1395, 1109, 214)], 600);
    assert!(last(&seconds).iter().any(|guest| guest.swapped > 0), "{:?}", last(&seconds));
    assert!((0..2).all(|index| turns(&seconds, index) <= 8), "{} {}", turns(&seconds, 0), turns(&seconds, 1));
}

#[test]
fn a_guest_that_lies_gets_its_share_and_takes_nothing_that_others_need() {
    let honest = || Guest::new(128, 256, 2048, Load::steps(&[(0, 100), (30, 450)]));
    let liar = Guest { lies: true, ..Guest::new(128, 256, 1024, Load::constant(50)) };
    let seconds = simulate(1536, vec![liar, honest(), honest()], 300);
    let [liar, one, two] = last(&seconds) else { panic!("three guests") };
    assert!(one.assigned >= 450 && two.assigned >= 450, "{one:?} {two:?}");
    assert!(liar.assigned <= 640, "{liar:?}");
    assert_eq!(missing(&seconds[150..]), 0);
    let alone = simulate(8192, vec![Guest { lies: true, ..Guest::new(128, 256, 1024, Load::constant(50)) }], 60);
    assert_eq!(last(&alone)[0].assigned, 1024, "its maximum and no more");
}

#[test]
fn a_guest_that_falls_silent_is_left_as_it_is() {
    let quiet = Guest { silent: Some((30, 600)), ..Guest::new(128, 512, 1024, Load::constant(100)) };
    let busy = Guest::new(128, 256, 2048, Load::steps(&[(0, 100), (100, 1200)]));
    let seconds = simulate(1280, vec![quiet, busy], 900);
    let at = |second: usize| &seconds[second].guests;
    assert_eq!((at(300)[0].assigned, at(300)[0].decision.reason), (512, Reason::Silent));
    assert!((740..=768).contains(&at(300)[1].assigned), "{:?}", at(300));
    assert!(at(899)[0].assigned < 180, "it speaks again: {:?}", at(899));
    assert!(at(899)[1].assigned > 1090);
}

#[test]
fn a_guest_that_never_reports_has_what_it_started_with() {
    let mute = Guest { silent: Some((0, 1000)), ..Guest::new(128, 512, 1024, Load::constant(100)) };
    let seconds = simulate(4096, vec![mute], 100);
    assert_eq!(seconds[59].guests[0].decision.reason, Reason::Starting);
    assert_eq!(seconds[60].guests[0].decision.reason, Reason::NeverReported);
    assert!(seconds.iter().all(|second| second.guests[0].assigned == 512));
}

#[test]
fn room_is_made_for_a_guest_that_starts() {
    let early = || Guest::new(128, 512, 1024, Load::constant(150));
    let late = Guest { starts: 30, ..Guest::new(128, 512, 1024, Load::constant(150)) };
    let seconds = simulate(1200, vec![early(), early(), late], 120);
    assert_eq!(seconds[30].plan.decisions[2].target, 512 * MIB, "what it starts with is kept for it");
    let assigned = |second: usize| seconds[second].guests.iter().map(|guest| guest.assigned).sum::<u64>();
    assert!(assigned(60) <= 1200, "{:?}", seconds[60]);
    assert_eq!(missing(&seconds), 0);
}

#[test]
fn minima_are_kept_even_when_there_is_not_enough_for_them() {
    let guest = || Guest::new(512, 512, 1024, Load::constant(100));
    let seconds = simulate(768, vec![guest(), guest()], 60);
    assert!(last(&seconds).iter().all(|guest| guest.assigned == 512));
    assert_eq!(seconds.last().expect("some").plan.least, 1024 * MIB);
}

#[test]
fn a_pool_that_shrinks_is_left_in_order() {
    let guest = || Guest::new(128, 512, 2048, Load::steps(&[(0, 500), (300, 250)]));
    let mut simulation = Simulation::new(4096, Tuning::default(), vec![guest(), guest(), guest()]);
    simulation.run(200);
    simulation.pool = 900;
    let seconds = simulation.run(400);
    seconds.iter().for_each(assert_kept);
    let assigned: u64 = last(&seconds).iter().map(|guest| guest.assigned).sum();
    assert!(assigned <= 900, "{:?}", last(&seconds));
}

#[test]
fn other_settings_count_from_the_next_tick() {
    let mut policy = Policy::default();
    let now = Instant::now();
    let mut vm = observation(1, 512, 1024, 5000);
    for second in 0..30 {
        tick(&mut policy, now, second, 4096, &mut [&mut vm], 500);
    }
    assert_eq!(vm.assigned / MIB, 610, "500 and a buffer of 20 %, but for a trifle");
    vm.settings.maximum = 550 * MIB;
    for second in 30..400 {
        tick(&mut policy, now, second, 4096, &mut [&mut vm], 500);
    }
    assert!(vm.assigned <= 550 * MIB, "{vm:?}");
}

#[test]
fn a_guest_that_starts_over_is_not_what_it_was() {
    let mut policy = Policy::default();
    let now = Instant::now();
    let mut vm = observation(1, 512, 4096, 5000);
    for second in 0..30 {
        tick(&mut policy, now, second, 8192, &mut [&mut vm], 2000);
    }
    let again = Observation { run: 1, assigned: 512 * MIB, sample: None, ..vm };
    let plan = policy.step(now + Duration::from_secs(30), 8192 * MIB, &[again]);
    assert_eq!((plan.decisions[0].reason, plan.decisions[0].level), (Reason::Starting, 512 * MIB));
}

#[test]
fn a_guest_cannot_do_without_a_part_of_its_memory() {
    let least = |minimum: u64, startup: u64| {
        let settings =
            MemorySettings { minimum: minimum << 20, startup: startup << 20, maximum: 1 << 40, buffer: 20, weight: 1 };
        settings.least() >> 20
    };
    assert_eq!(least(16, 256), 104);
    assert_eq!(least(200, 256), 200, "its owner wants more");
    assert_eq!([16, 64, 128, 512, 2048, 8192, 32_768].map(|ram| least(1, ram)), [16, 40, 72, 168, 360, 744, 1512]);
}

fn observation(id: u128, startup: u64, maximum: u64, weight: u16) -> Observation {
    let settings =
        MemorySettings { minimum: 64 * MIB, startup: startup * MIB, maximum: maximum * MIB, buffer: 20, weight };
    Observation {
        id: Uuid::from_u128(id),
        settings,
        run: 0,
        assigned: startup * MIB,
        phase: Phase::Running,
        grows: true,
        sample: None,
    }
}

/// A tick at which all guests use `used` MiB and take what they are given at once.
fn tick(policy: &mut Policy, began: Instant, second: u32, pool: u64, vms: &mut [&mut Observation], used: u64) -> Plan {
    let now = began + second * Duration::from_secs(1);
    for vm in vms.iter_mut() {
        let report = MemoryReport { available: vm.assigned.saturating_sub(used * MIB), ..MemoryReport::default() };
        vm.sample = Some(Sample { taken: now, report });
    }
    let observations: Vec<Observation> = vms.iter().map(|vm| **vm).collect();
    let plan = policy.step(now, pool * MIB, &observations);
    for (vm, decision) in vms.iter_mut().zip(&plan.decisions) {
        vm.assigned = decision.level;
    }
    plan
}

/// Any guest with any load, or with one that is `steady`.
fn guest(noise: std::ops::Range<u64>) -> impl Strategy<Value = Guest> {
    let sizes = (32_u64..600, 0_u64..600, 0_u64..2000);
    let load = (10_u64..1500, noise);
    (sizes, load, 5_u16..200, 0_u16..=10_000, 0_u64..2000).prop_map(
        |((minimum, above, more), load, buffer, weight, swap)| {
            let mut guest =
                Guest::new(minimum, minimum + above, minimum + above + more, Load::constant(load.0).with_noise(load.1));
            (guest.settings.buffer, guest.settings.weight, guest.swap) = (buffer, weight, swap);
            guest
        },
    )
}

fn guests(noise: std::ops::Range<u64>) -> impl Strategy<Value = Vec<Guest>> {
    proptest::collection::vec(guest(noise), 1..6)
}

/// Something that happens to one of three VMs, or to the pool.
#[derive(Debug, Clone)]
enum Op {
    Pool(u64),
    Report { vm: usize, available: u64, committed: Option<u64>, stalled: Option<f32>, swapped_in: Option<u64> },
    Obey { vm: usize, part: u64 },
    Deflate { vm: usize, mib: u64 },
    Settings { vm: usize, minimum: u64, more: u64, weight: u16, buffer: u16 },
    Still(usize),
    Run(usize),
    StartOver(usize),
    Pass(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let vm = || 0_usize..3;
    let any_amount = || prop_oneof![4 => 0_u64..4096 * MIB, 1 => any::<u64>()];
    prop_oneof![
        1 => (0_u64..8192).prop_map(Op::Pool),
        6 => (vm(), any_amount(), proptest::option::of(any_amount()), proptest::option::of(0_f32..100.0), proptest::option::of(any_amount()))
            .prop_map(|(vm, available, committed, stalled, swapped_in)| Op::Report { vm, available, committed, stalled, swapped_in }),
        6 => (vm(), 1_u64..=4).prop_map(|(vm, part)| Op::Obey { vm, part }),
        1 => (vm(), 1_u64..500).prop_map(|(vm, mib)| Op::Deflate { vm, mib }),
        1 => (vm(), 16_u64..600, 0_u64..3000, 0_u16..=10_000, 5_u16..2000)
            .prop_map(|(vm, minimum, more, weight, buffer)| Op::Settings { vm, minimum, more, weight, buffer }),
        1 => vm().prop_map(Op::Still),
        1 => vm().prop_map(Op::Run),
        1 => vm().prop_map(Op::StartOver),
        4 => (1_u32..90).prop_map(Op::Pass),
    ]
}

proptest! {
    #[test]
    fn whatever_guests_say_and_do_the_pool_and_the_limits_are_kept(
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let (mut policy, mut now, mut pool) = (Policy::default(), Instant::now(), 2048 * MIB);
        let mut vms = [observation(0, 512, 1024, 5000), observation(1, 256, 4096, 100), observation(2, 1024, 1024, 0)];
        let mut levels = vms.map(|vm| vm.assigned);
        for op in ops {
            match op {
                Op::Pool(mib) => pool = mib * MIB,
                Op::Report { vm, available, committed, stalled, swapped_in } => {
                    let report = MemoryReport { available, committed, stalled, swapped_in, ..MemoryReport::default() };
                    vms[vm].sample = Some(Sample { taken: now, report });
                }
                Op::Obey { vm, part } => {
                    let (from, to) = (vms[vm].assigned, levels[vm]);
                    vms[vm].assigned = if to > from { from + (to - from) / part } else { from - (from - to) / part };
                }
                Op::Deflate { vm, mib } => {
                    let settings = vms[vm].settings;
                    vms[vm].assigned = (vms[vm].assigned + mib * MIB).min(settings.startup.max(vms[vm].assigned));
                }
                Op::Settings { vm, minimum, more, weight, buffer } => {
                    let settings = &mut vms[vm].settings;
                    settings.minimum = (minimum * MIB).min(settings.startup);
                    settings.maximum = settings.startup + more * MIB;
                    (settings.weight, settings.buffer) = (weight, buffer);
                }
                Op::Still(vm) => vms[vm].phase = Phase::Still,
                Op::Run(vm) => vms[vm].phase = Phase::Running,
                Op::StartOver(vm) => {
                    let settings = vms[vm].settings;
                    vms[vm] = Observation { run: vms[vm].run + 1, assigned: settings.startup, sample: None, ..vms[vm] };
                    levels[vm] = settings.startup;
                }
                Op::Pass(seconds) => now += Duration::from_secs(u64::from(seconds)),
            }
            now += Duration::from_secs(1);
            let plan = policy.step(now, pool, &vms);
            let held = |levels: &[u64]| vms.iter().zip(levels).map(|(vm, level)| vm.assigned.max(*level)).sum::<u64>();
            let before = held(&levels);
            prop_assert!(plan.decisions.iter().map(|decision| decision.target).sum::<u64>() <= pool.max(plan.least));
            for ((vm, decision), level) in vms.iter().zip(&plan.decisions).zip(&mut levels) {
                let settings = vm.settings;
                prop_assert!((settings.least()..=settings.maximum).contains(&decision.target), "{decision:?} {vm:?}");
                prop_assert!(decision.level >= settings.least().min(*level).min(vm.assigned), "{decision:?} {vm:?}");
                prop_assert!(decision.level <= settings.maximum.max(*level), "{decision:?} {vm:?}");
                if vm.phase == Phase::Still || vm.sample.is_none() {
                    prop_assert_eq!(decision.level, *level, "who cannot answer is told nothing");
                }
                *level = decision.level;
            }
            prop_assert!(held(&levels) <= pool.max(before), "more is given out than there is");
        }
    }
}

proptest! {
    // Each case is many minutes of a host's life.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn steady_guests_come_to_rest(pool in 300_u64..6000, guests in guests(0..1)) {
        let count = guests.len();
        let seconds = simulate(pool, guests, 1800);
        for index in 0..count {
            prop_assert!(turns(&seconds, index) <= 8, "guest {index} turns {} times", turns(&seconds, index));
            prop_assert_eq!(turns(&seconds[1200..], index), 0, "guest {} does not come to rest", index);
        }
    }

    #[test]
    fn where_there_is_enough_noise_moves_nothing(guests in guests(1..10)) {
        let (count, pool) = (guests.len(), guests.iter().map(|guest| guest.settings.maximum).sum::<u64>() / MIB);
        let seconds = simulate(pool, guests, 600);
        for index in 0..count {
            prop_assert!(turns(&seconds, index) <= 3, "guest {index} turns {} times", turns(&seconds, index));
        }
    }

    #[test]
    fn in_want_a_little_noise_moves_little(pool in 300_u64..6000, guests in guests(1..2)) {
        let count = guests.len();
        let seconds = simulate(pool, guests, 600);
        for index in 0..count {
            prop_assert!(turns(&seconds, index) <= 30, "guest {index} turns {} times", turns(&seconds, index));
        }
    }

    #[test]
    fn in_want_much_noise_moves_memory_now_and_then(pool in 300_u64..6000, guests in guests(5..10)) {
        let count = guests.len();
        let seconds = simulate(pool, guests, 600);
        for index in 0..count {
            prop_assert!(turns(&seconds, index) <= 200, "guest {index} turns {} times", turns(&seconds, index));
        }
    }

    #[test]
    fn where_there_is_enough_everybody_has_what_they_want_within_a_minute(guests in guests(0..1)) {
        let wanted: Vec<(u64, u64)> = guests.iter().map(|guest| {
            let settings = guest.settings;
            let used = guest.load.steps[0].1 * MIB + 4 * MIB;
            let want = (used + used * u64::from(settings.buffer) / 100).clamp(settings.least(), settings.maximum);
            (want, settings.maximum)
        }).collect();
        let pool = wanted.iter().map(|(want, maximum)| (want * 2).max(*maximum)).sum::<u64>() / MIB;
        let seconds = simulate(pool, guests, 60 + 60);
        for (guest, (want, _)) in last(&seconds).iter().zip(wanted) {
            prop_assert!(guest.assigned * MIB + want / 50 + 10 * MIB >= want, "{guest:?} wants {}", want / MIB);
        }
    }
}
