//! Measures Fanlight: `./x bench [name]`. What the numbers mean is in `bench/README.md`.

#![forbid(unsafe_code)]

mod machine;
mod report;
mod workloads;
mod world;

use std::process::ExitCode;

use anyhow::{Result, bail};

use report::Report;
use workloads::{boot, bus, codecs, dynamic_memory, first_picture, glyph, idle, memory, stalled, vmm};

/// Every workload, in the order in which they run.
const NAMES: [&str; 10] =
    ["codecs", "bus", "first-picture", "glyph", "idle", "memory", "stalled", "dynamic-memory", "vmm", "boot"];

fn main() -> ExitCode {
    if let Some(ended) = bus::serve_if_peer() {
        return ended;
    }
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    match run(&chosen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a figure is missed");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("fanlight-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the chosen workloads, or all; returns whether every figure is met.
fn run(chosen: &[String]) -> Result<bool> {
    if let Some(unknown) = chosen.iter().find(|name| !NAMES.contains(&name.as_str())) {
        bail!("there is no workload `{unknown}`; there are {}", NAMES.join(", "));
    }
    println!("# Benchmarks on {}\n", machine::describe());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut met = true;
    for name in NAMES.into_iter().filter(|name| chosen.is_empty() || chosen.iter().any(|one| one == name)) {
        let report = runtime.block_on(measure(name))?;
        report.print();
        met &= report.is_met();
    }
    Ok(met)
}

async fn measure(name: &str) -> Result<Report> {
    match name {
        "codecs" => codecs::run(),
        "bus" => bus::run().await,
        "first-picture" => first_picture::run().await,
        "glyph" => glyph::run().await,
        "idle" => idle::run().await,
        "memory" => memory::run().await,
        "dynamic-memory" => dynamic_memory::run().await,
        "stalled" => stalled::run().await,
        "vmm" => vmm::run().await,
        _ => boot::run().await,
    }
}
