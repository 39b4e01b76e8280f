//! Runs the journeys, a few at a time, and cleans up after them, whatever becomes of them.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use fanlight_tests::environment::environment;
use fanlight_tests::{process, scratch};
use libtest_mimic::{Arguments, Failed, Trial};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::world::World;

/// Journeys that run at the same time: most of each is waiting, and two processors translate the guests.
const AT_A_TIME: usize = 4;
/// Journeys named at the end with the time they took.
const SLOWEST: usize = 5;

type Go = Box<dyn FnOnce(&World) -> Result<()> + Send>;

/// One test.
pub(crate) struct Journey {
    name: String,
    go: Go,
}

/// The journeys of a module, by the names of their functions.
macro_rules! journeys {
    ($($name:ident),* $(,)?) => {
        pub(crate) fn journeys() -> Vec<$crate::harness::Journey> {
            vec![$($crate::harness::Journey::new(concat!(module_path!(), "::", stringify!($name)), $name)),*]
        }
    };
}
pub(crate) use journeys;

impl Journey {
    /// A journey; the name of the test program at the front of `name` is left out.
    pub(crate) fn new(name: &str, go: impl FnOnce(&World) -> Result<()> + Send + 'static) -> Self {
        Self { name: name.trim_start_matches("e2e::").to_owned(), go: Box::new(go) }
    }
}

/// Runs the journeys that the command line chooses.
pub(crate) fn run(journeys: Vec<Journey>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_A_TIME);
    if !arguments.list
        && let Err(error) = prepare()
    {
        eprintln!("the end-to-end tests cannot run: {error:#}");
        return ExitCode::FAILURE;
    }
    let world = Arc::new(World::default());
    let times = Arc::new(Mutex::new(Vec::new()));
    let trials = journeys.into_iter().map(|journey| trial(journey, world.clone(), times.clone())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(world);
    print_slowest(&times.lock().unwrap_or_else(PoisonError::into_inner));
    if conclusion.has_failed() {
        println!("logs and pictures are in {}", scratch::root().display());
        return ExitCode::FAILURE;
    }
    // Nothing was created when the tests were only listed.
    let _ = std::fs::remove_dir_all(scratch::root());
    ExitCode::SUCCESS
}

fn prepare() -> Result<()> {
    environment()?;
    scratch::clear_leftovers()?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Gateways first: a guest that dies under one is only noticed there.
            process::kill_all();
            scratch::end_guests(&scratch::root());
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn trial(journey: Journey, world: Arc<World>, times: Arc<Mutex<Vec<(Duration, String)>>>) -> Trial {
    let Journey { name, go } = journey;
    Trial::test(name.clone(), move || {
        let start = Instant::now();
        let result = go(&world);
        times.lock().unwrap_or_else(PoisonError::into_inner).push((start.elapsed(), name));
        result.map_err(|error| Failed::from(explain(&error)))
    })
}

/// The error and what led to it, without a backtrace.
fn explain(error: &anyhow::Error) -> String {
    let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    causes.join("\nbecause: ")
}

fn print_slowest(times: &[(Duration, String)]) {
    let mut slowest: Vec<_> = times.iter().collect();
    slowest.sort();
    for (time, name) in slowest.iter().rev().take(SLOWEST) {
        println!("{:6.1} s  {name}", time.as_secs_f32());
    }
}
