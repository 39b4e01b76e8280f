//! What `./x test` tells the tests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::text::Font;

/// The programs and images under test.
#[derive(Debug)]
pub struct Environment {
    /// The program `fanlight`.
    pub program: PathBuf,
    /// The console guest's kernel.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initrd: PathBuf,
    /// The command line of its kernel.
    pub cmdline: String,
    /// The font it writes with.
    pub font: Font,
}

/// What is under test.
///
/// # Errors
///
/// When it was not said, or is not there.
pub fn environment() -> Result<&'static Environment> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let environment = ENVIRONMENT.get_or_init(|| read().map_err(|error| format!("{error:#}")));
    environment.as_ref().map_err(|error| anyhow!("{error}"))
}

/// The console guest's initial file system with a program that answers every class of the bus's channels.
///
/// # Errors
///
/// As [`environment`].
pub fn exercise_initrd() -> Result<PathBuf> {
    file("FANLIGHT_EXERCISE_INITRD")
}

/// Whether tests may take as long as they like.
#[must_use]
pub fn may_take_long() -> bool {
    std::env::var_os("FANLIGHT_TEST_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}

fn read() -> Result<Environment> {
    let kernel = file("FANLIGHT_CONSOLE_KERNEL")?;
    Ok(Environment {
        program: file("FANLIGHT_BIN")?,
        initrd: file("FANLIGHT_CONSOLE_INITRD")?,
        cmdline: variable("FANLIGHT_CONSOLE_CMDLINE").or_else(|missing| beside(&kernel).map_err(|_| missing))?,
        font: Font::from_kernel(&kernel)?,
        kernel,
    })
}

fn file(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(variable(name)?);
    ensure!(path.is_file(), "{name} is {}, which is no file", path.display());
    std::path::absolute(&path).with_context(|| format!("{name} is {}", path.display()))
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| anyhow!("{name} is not set: run the tests with `./x test`"))
}

/// The recipe of the image leaves the command line in a file beside the kernel.
fn beside(kernel: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(kernel.with_file_name("cmdline"))?.trim().to_owned())
}
