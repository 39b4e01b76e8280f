//! Every class of channel is opened and used by a guest: the test is its host, and a program in the guest says back what
//! it has understood.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use enhanced_session::class::Class;
use enhanced_session::control::Picture;
use enhanced_session::endpoint::Transport;
use fanlight_tests::environment::{environment, exercise_initrd};
use fanlight_tests::headless::run;
use uuid::Uuid;
use vmm::{Boot, Definition, Network, Vm};

use super::host::{OwnHost, Said, Vms};
use super::messages;
use crate::harness::journeys;
use crate::world::World;

journeys![
    a_guest_opens_and_uses_every_class,
    a_guest_that_may_use_only_rings_opens_and_uses_every_class,
    a_guest_that_may_use_only_the_stream_opens_and_uses_every_class,
];

/// How the guest is told to run that program instead of the agent.
const EXERCISE: &str = "fanlight.agent=/bin/fanlight-bus-exercise";

fn a_guest_opens_and_uses_every_class(_: &World) -> Result<()> {
    on_guest("auto", async |vm| {
        // The same guest meets a host with memory, one without, and the first again.
        use_every_class(vm, true, Transport::Ring).await.context("over rings")?;
        use_every_class(vm, false, Transport::Stream).await.context("over the stream")?;
        use_every_class(vm, true, Transport::Ring).await.context("over rings again")
    })
}

fn a_guest_that_may_use_only_rings_opens_and_uses_every_class(_: &World) -> Result<()> {
    on_guest("ring", async |vm| use_every_class(vm, true, Transport::Ring).await)
}

fn a_guest_that_may_use_only_the_stream_opens_and_uses_every_class(_: &World) -> Result<()> {
    on_guest("stream", async |vm| use_every_class(vm, true, Transport::Stream).await)
}

/// Starts a guest that uses `transport`, and that says back what it understands.
fn on_guest(transport: &str, go: impl AsyncFnOnce(&Vm) -> Result<()>) -> Result<()> {
    let under_test = environment()?;
    let boot = Boot::DirectKernel {
        kernel: under_test.kernel.clone(),
        initrd: Some(exercise_initrd()?),
        cmdline: format!("{} {EXERCISE} fanlight.transport={transport}", under_test.cmdline),
    };
    let usual = Definition::new("classes", Uuid::new_v4());
    run(async {
        let vms = Vms::open().await?;
        let vm = vms.start(Definition { memory: 256, network: Network::none(), boot, ..usual }).await?;
        go(&vm).await
    })
}

/// Opens a channel of every class as a host with or without memory; `transport` has to carry them.
async fn use_every_class(vm: &Vm, with_memory: bool, transport: Transport) -> Result<()> {
    let mut host = OwnHost::connect(vm, with_memory).await?;
    let open = host.open_all().await?;
    ensure!(open.len() == Class::ALL.len() && open.values().all(|each| *each == transport), "open are {open:?}");
    for class in Class::ALL {
        let said = BTreeMap::from([(class, messages::of(class)?)]);
        host.is_told_back(said).await.with_context(|| format!("on {class}"))?;
    }
    if transport == Transport::Ring {
        grant_a_surface(&mut host).await?;
    }
    // All of them at once, several times, and then no more.
    let mut said = BTreeMap::new();
    for class in Class::ALL {
        let messages = messages::of(class)?;
        said.insert(class, [messages.clone(), messages.clone(), messages, vec![Said::Fin]].concat());
    }
    host.is_told_back(said).await.context("all at once")
}

/// The guest gives back what it is asked for.
async fn grant_a_surface(host: &mut OwnHost) -> Result<()> {
    let picture = Picture { fourcc: u32::from_le_bytes(*b"XR24"), stride: 4 * 1920, width: 1920, height: 1080 };
    let (core, video) = host.channel(Class::Video)?;
    let surface = core.grant_surface(video, picture)?;
    core.revoke_surface(video, surface);
    host.until("the surface to come back", |host| Ok(host.returned.contains(&surface))).await
}
