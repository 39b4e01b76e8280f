//! Measures Fanlight: `./x bench [name]`.

mod client;
mod machine;
mod report;
mod workloads;

fn main() -> anyhow::Result<()> {
    workloads::codecs::run()?.print();
    Ok(())
}
