//! Guests that are switched off, started over, paused and put back to what they were, and what their agents make of it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use console::{KeyEvent, KeyState};
use fanlight_tests::environment::{environment, may_take_long};
use fanlight_tests::gateway::Gateway;
use fanlight_tests::guest::{Bus as GuestBus, Guest, Machine};
use fanlight_tests::headless::run;
use fanlight_tests::keys::keysym;
use fanlight_tests::shell::Shell;
use fanlight_tests::wait::{Look, stays_so, wait_until};
use gateway::bus::{Bus, Buses, GuestStatus};
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use vmm::{Boot, Definition, Disk, DiskBus, DiskFormat, Network, Vm};

use super::host::Vms;
use super::shell;
use crate::harness::journeys;
use crate::world::{Desk, World, echo_new_word, enter};

journeys![
    a_guest_goes_down_and_starts_over_by_its_agent_on_rings,
    a_guest_goes_down_and_starts_over_by_its_agent_on_the_stream,
    an_agent_comes_again_when_a_snapshot_is_loaded,
    an_agent_outlives_a_pause_and_its_clock_is_set,
    an_agent_comes_again_after_a_reset_on_the_stream,
    a_guest_without_an_agent_goes_down_by_its_power_button,
    an_agent_comes_again_after_a_reset_on_rings,
];

/// Power buttons of these do nothing: whatever goes down goes down by the agent.
const BUTTONLESS: &str = "module_blacklist=button";
const BUTTONLESS_ON_STREAM: &str = "module_blacklist=button fanlight.transport=stream";
/// How far the clock of a guest may be off.
const PRECISION: Duration = Duration::from_secs(1);
/// The kernel's clock counts nanoseconds (adjtimex(2)).
const STA_NANO: u32 = 0x2000;
/// How long a guest may take to anything.
const PATIENCE: Duration = Duration::from_secs(180);

fn a_guest_goes_down_and_starts_over_by_its_agent_on_rings(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let guest = gateway.create_guest_on("rings", Machine { parameters: BUTTONLESS, ..Machine::default() })?;
    // Asked before there is an agent: it comes late, and the guest goes down all the same.
    guest.request("start")?;
    ensure!(!guest.bus()?.is_connected(), "the agent was faster than the test");
    guest.request("shutdown")?;
    guest.wait_for_state("stopped")?;
    goes_down_and_starts_over(&gateway, &guest, "ring")
}

fn a_guest_goes_down_and_starts_over_by_its_agent_on_the_stream(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let machine = Machine { parameters: BUTTONLESS_ON_STREAM, ..Machine::default() };
    goes_down_and_starts_over(&gateway, &gateway.create_guest_on("stream", machine)?, "stream")
}

fn goes_down_and_starts_over(gateway: &Gateway, guest: &Guest, transport: &str) -> Result<()> {
    guest.request("start")?;
    let before = guest.wait_for_agent()?;
    ensure!(before.transports() == [transport], "its bus is {before:?}");
    let qemu = guest.pid()?;
    guest.request("reboot")?;
    let came_again = |bus: &GuestBus| bus.connections() > before.connections() && bus.is_complete();
    guest.wait_for_bus("the agent of the next start", came_again)?;
    ensure!(guest.pid()? == qemu && guest.state()? == "running", "it was not only started over");

    let log = gateway.log();
    guest.request("shutdown")?;
    ensure!(guest.state()? == "stopped", "it is {}", guest.state()?);
    let since = gateway.log().split_off(log.len());
    ensure!(since.contains("the guest shuts down"), "the agent did not promise it:\n{since}");
    Ok(())
}

fn a_guest_without_an_agent_goes_down_by_its_power_button(world: &World) -> Result<()> {
    world.on_hardware(|desk| {
        desk.guest.wait_for_agent()?;
        let client = desk.connect().open()?;
        enter(&client, "mv /bin/fanlight-agent /bin/away; kill -9 $(pidof fanlight-agent)")?;
        desk.guest.wait_for_bus("the end of the agent", |bus| !bus.is_connected())?;
        desk.guest.request("shutdown")?;
        ensure!(desk.guest.state()? == "stopped", "it is {}", desk.guest.state()?);
        Ok(())
    })
}

fn an_agent_outlives_a_pause_and_its_clock_is_set(world: &World) -> Result<()> {
    world.on_rings(|desk| {
        let client = desk.connect().open()?;
        let mut shell = shell(desk, &client)?;
        let before = desk.guest.wait_for_agent()?.connections();
        desk.guest.request("pause")?;
        // From 10 s on a silent end counts as dead, unless its VM is paused.
        let pause = if may_take_long() { 13 } else { 3 };
        stays_so(Duration::from_secs(pause), || {
            ensure!(desk.guest.bus()?.is_connected(), "the agent of a paused guest counts as gone");
            Ok(())
        })?;
        desk.guest.request("resume")?;
        desk.guest.wait_for_pong()?;
        wait_until(PATIENCE, "the guest's clock to be set", || {
            let off = clock_offset(&mut shell)?;
            Ok(Look::when(off < PRECISION, || format!("it is {off:?} off")))
        })?;
        ensure!(desk.guest.bus()?.connections() == before, "the agent was taken for dead");
        desk.guest.wait_for_info("health", |info| info["health"] == "healthy")?;
        echo_new_word(&client, desk.guest)?;
        client.close()
    })
}

/// How far the guest's clock is off, as one of its own programs has it.
fn clock_offset(shell: &mut Shell) -> Result<Duration> {
    let host = || SystemTime::now().duration_since(UNIX_EPOCH);
    let before = host()?;
    let told = shell.run("adjtimex")?;
    let after = host()?;
    let number = |name: &str| -> Result<u32> {
        let line = told.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix(':'));
        Ok(line
            .with_context(|| format!("no {name} in {told}"))?
            .trim()
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse()?)
    };
    // What is called microseconds has another unit after the clock was set to the nanosecond.
    let fraction = number("time.tv_usec")?;
    let nanos = if number("status")? & STA_NANO == 0 { fraction * 1000 } else { fraction };
    let guest = Duration::new(number("time.tv_sec")?.into(), nanos);
    Ok(before.saturating_sub(guest).max(guest.saturating_sub(after)))
}

fn an_agent_comes_again_after_a_reset_on_rings(world: &World) -> Result<()> {
    world.on_rings(|desk| comes_again_after_a_reset(desk, "ring"))
}

fn an_agent_comes_again_after_a_reset_on_the_stream(world: &World) -> Result<()> {
    world.on_stream(|desk| comes_again_after_a_reset(desk, "stream"))
}

fn comes_again_after_a_reset(desk: &Desk<'_>, transport: &str) -> Result<()> {
    let before = desk.guest.wait_for_agent()?.connections();
    let qemu = desk.guest.pid()?;
    // Somebody holds a key meanwhile.
    let client = desk.connect().open()?;
    client.press(keysym::SHIFT)?;
    desk.guest.request("reset")?;
    let came_again = |bus: &GuestBus| bus.connections() > before && bus.is_complete();
    let bus = desk.guest.wait_for_bus("the agent of the next start", came_again)?;
    ensure!(bus.transports() == [transport] && bus.faults() == 0, "it came as {bus:?}");
    ensure!(desk.guest.pid()? == qemu, "it was not only reset");
    desk.guest.wait_for_pong()?;
    desk.guest.wait_for_prompt()?;
    client.release(keysym::SHIFT)?;
    echo_new_word(&client, desk.guest)?;
    client.close()
}

fn an_agent_comes_again_when_a_snapshot_is_loaded(_: &World) -> Result<()> {
    run(async {
        let vms = Vms::open().await?;
        let vm = vms.start(guest_with_a_disk(vms.folder())?).await?;
        let bus = Buses::default().of(&vm);
        until(&bus, "the agent to tell its name", |guest| host_name(guest) == Some("console")).await?;
        let connections = connections(&bus).await?;
        vm.save_snapshot("before".parse()?).await?;
        ensure!(bus.ping().await.is_ok(), "the agent does not go on after its state was saved");
        ensure!(self::connections(&bus).await? == connections, "the agent had to come again");

        shell_at_prompt(&vm, &bus).await?;
        until(&bus, "the agent to tell its other name", |guest| host_name(guest) == Some("later")).await?;
        vm.load_snapshot("before".parse()?).await?;
        until(&bus, "the agent to tell its first name", |guest| host_name(guest) == Some("console")).await?;
        bus.ping().await?;
        let status = bus.status().await.context("the VM is gone")?;
        ensure!(status.faults == 0 && status.connections == connections + 1, "the bus is {status:?}");
        Ok(())
    })
}

/// Gives the guest another name, as soon as its shell hears it.
async fn shell_at_prompt(vm: &Vm, bus: &Bus) -> Result<()> {
    let console = vm.console();
    let deadline = Instant::now() + PATIENCE;
    loop {
        for unit in "hostname later\n".encode_utf16() {
            while console.send_key(KeyEvent::Unicode { unit, state: KeyState::Pressed }).is_err() {
                console.input_room().await;
            }
        }
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if bus.guest().await.is_some_and(|guest| host_name(&guest) == Some("later")) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        ensure!(Instant::now() < deadline, "the guest's shell hears nothing");
    }
}

async fn until(bus: &Bus, what: &str, enough: impl Fn(&GuestStatus) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let guest = bus.guest().await;
        if guest.as_ref().is_some_and(&enough) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "waited for {what}: {guest:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn connections(bus: &Bus) -> Result<u64> {
    Ok(bus.status().await.context("the VM is gone")?.connections)
}

fn host_name(guest: &GuestStatus) -> Option<&str> {
    guest.details.as_ref().map(|details| details.host_name.as_str())
}

fn guest_with_a_disk(folder: &Path) -> Result<Definition> {
    let path = folder.join("disk.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("64M").status()?;
    ensure!(made.success(), "qemu-img ended with {made}");
    let under_test = environment()?;
    let boot = Boot::DirectKernel {
        kernel: under_test.kernel.clone(),
        initrd: Some(under_test.initrd.clone()),
        cmdline: under_test.cmdline.clone(),
    };
    let disk = Disk::new(path, DiskFormat::Qcow2, DiskBus::Virtio);
    let usual = Definition::new("snapshot", Uuid::new_v4());
    Ok(Definition { memory: 256, network: Network::none(), boot, disks: vec![disk], ..usual })
}
