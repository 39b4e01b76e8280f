//! Waiting for something to become true: the one place of this package that sleeps.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// First and longest pause between two looks.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What one look found.
#[derive(Debug)]
pub enum Look<T> {
    /// It is there.
    Found(T),
    /// Not yet; how things stand, for the error when they stay so.
    NotYet(String),
}

impl<T> Look<T> {
    /// What was found, or how things stand.
    pub fn or_not_yet(found: Option<T>, standing: impl FnOnce() -> String) -> Self {
        found.map_or_else(|| Self::NotYet(standing()), Self::Found)
    }
}

impl Look<()> {
    /// Whether it is so, or how things stand.
    pub fn when(so: bool, standing: impl FnOnce() -> String) -> Self {
        if so { Self::Found(()) } else { Self::NotYet(standing()) }
    }
}

/// Looks again and again until `look` finds something.
///
/// # Errors
///
/// When `look` fails, or after `limit` with `what` was waited for and how things stood last.
pub fn wait_until<T>(limit: Duration, what: impl Display, mut look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = SHORTEST_PAUSE;
    loop {
        let standing = match look()? {
            Look::Found(found) => return Ok(found),
            Look::NotYet(standing) => standing,
        };
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            bail!("waited {} s for {what}, but {standing}", limit.as_secs_f32());
        };
        sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Looks on for all of `time` and fails when `still` does.
///
/// For what must *not* happen: nothing else proves it than to look long enough.
///
/// # Errors
///
/// The first error of `still`.
pub fn stays_so(time: Duration, mut still: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        still()?;
        sleep(LONGEST_PAUSE);
    }
    still()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_at_once_and_what_never_comes_is_named() {
        let mut looks = 0;
        let found = wait_until(Duration::from_secs(5), "three looks", || {
            looks += 1;
            Ok(Look::or_not_yet((looks == 3).then_some(looks), || format!("there were {looks}")))
        });
        assert_eq!(found.unwrap(), 3);
        let error = wait_until(Duration::ZERO, "rain", || Ok(Look::when(false, || "the sun shines".into())));
        assert_eq!(error.unwrap_err().to_string(), "waited 0 s for rain, but the sun shines");
    }
}
