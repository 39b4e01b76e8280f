//! Agents and gateways that are killed at any moment, while clients type, point and touch.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fanlight_tests::environment::may_take_long;
use fanlight_tests::gateway::Gateway;
use fanlight_tests::guest::{Guest, Machine};
use fanlight_tests::headless::touch::pdu::{RdpeiPdu, TouchContact, TouchContactFlags, TouchEventPdu, TouchFrame};
use fanlight_tests::headless::{Client, Options, run};
use fanlight_tests::shell::Shell;
use fanlight_tests::wait::{Look, stays_so, wait_until};
use rustix::process::Pid;

use super::{headless, shell};
use crate::harness::journeys;
use crate::world::{Desk, World, echo_new_word};

journeys![agents_and_gateways_are_killed_at_any_moment];

/// Kills in a usual run.
const KILLS: u32 = 10;
/// The same, if tests may take long.
const LONG: Duration = Duration::from_secs(60);
/// The longest time between two kills.
const PAUSE: u64 = 1200;
/// How long traffic may take to come to a guest again.
const AGAIN: Duration = Duration::from_secs(120);

fn agents_and_gateways_are_killed_at_any_moment(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    let person = gateway.add_user("demo", "a-word-and-9-more", None)?;
    let usual = Machine { network: true, ..Machine::default() };
    let stream = Machine { parameters: "fanlight.transport=stream", ..usual };
    let guests = [gateway.create_guest_on("rings", usual)?, gateway.create_guest_on("stream", stream)?];
    guests.iter().try_for_each(|guest| guest.request("start"))?;
    let mut victims = Vec::new();
    for guest in &guests {
        victims.push(Victim::prepare(&Desk { guest, person: &person, gateway: &gateway })?);
    }

    let mut chance = Chance::new();
    let seed = chance.0;
    let end = Instant::now() + LONG;
    let mut kills = 0;
    while if may_take_long() { Instant::now() < end } else { kills < KILLS } {
        let moment = Duration::from_millis(chance.below(PAUSE));
        stays_so(moment, || victims.iter().try_for_each(Victim::is_unharmed))?;
        let victim = chance.below(3);
        let killed = match usize::try_from(victim).ok().and_then(|victim| victims.get_mut(victim)) {
            Some(victim) => victim.kill_agent(),
            None => {
                gateway.kill();
                gateway.start_again()
            }
        };
        kills += 1;
        let recovered = killed.and_then(|()| victims.iter_mut().try_for_each(Victim::recovers));
        recovered.with_context(|| format!("kill {kills} of victim {victim} after {moment:?}, with chance {seed}"))?;
    }

    for victim in victims {
        let faults = victim.guest.bus()?.faults();
        ensure!(faults == 0, "`{}` is told off for {faults} faults", victim.guest.name());
        victim.end()?;
    }
    for guest in &guests {
        let client = Desk { guest, person: &person, gateway: &gateway }.connect().open()?;
        echo_new_word(&client, guest)?;
        client.close()?;
    }
    Ok(())
}

/// A guest with traffic.
struct Victim {
    guest: Guest,
    qemu: Pid,
    shell: Shell,
    traffic: Traffic,
}

/// A client that does something all the time, and comes again whenever its session ends.
struct Traffic {
    stop: Arc<AtomicBool>,
    /// Counts what was done.
    done: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Victim {
    fn prepare(desk: &Desk<'_>) -> Result<Self> {
        desk.guest.wait_for_prompt()?;
        let client = desk.connect().open()?;
        let shell = shell(desk, &client)?;
        client.close()?;
        let traffic = Traffic::start(headless(desk));
        desk.guest.wait_for_agent()?;
        let mut victim = Self { qemu: desk.guest.pid()?, guest: desk.guest.clone(), shell, traffic };
        victim.recovers()?;
        Ok(victim)
    }

    fn kill_agent(&mut self) -> Result<()> {
        // It may just be gone.
        self.shell.run("kill -9 $(pidof fanlight-agent)").map(drop)
    }

    /// The agent answers, traffic comes to it again, and all else is as it was.
    fn recovers(&mut self) -> Result<()> {
        self.guest.wait_for_agent()?;
        self.guest.wait_for_pong()?;
        let (before, sent) = (self.traffic.done(), self.guest.bus()?.sent("input"));
        wait_until(AGAIN, format_args!("traffic to `{}`", self.guest.name()), || {
            let (now, bus) = (self.traffic.done(), self.guest.bus()?);
            Ok(Look::when(now > before && bus.sent("input") != sent, || format!("its bus is {bus:?}")))
        })?;
        self.is_unharmed()?;
        let alive = self.shell.run("echo $((6 * 7))")?;
        ensure!(alive == "42", "`{}` counts {alive}", self.guest.name());
        ensure!(self.guest.state()? == "running", "`{}` is {}", self.guest.name(), self.guest.state()?);
        ensure!(self.guest.pid()? == self.qemu, "`{}` has another QEMU", self.guest.name());
        Ok(())
    }

    fn is_unharmed(&self) -> Result<()> {
        rustix::process::test_kill_process(self.qemu)
            .with_context(|| format!("the QEMU of `{}` is gone", self.guest.name()))
    }

    fn end(self) -> Result<()> {
        self.traffic.stop()
    }
}

impl Traffic {
    fn start(options: Options) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (stop, done) = (stop.clone(), done.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // Gateways are killed: sessions end in every way that there is.
                    if run(use_session(&options, &stop, &done)).is_err() {
                        wait_for_gateway(options.address, &stop);
                    }
                }
            }
        });
        Self { stop, done, thread }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a client panicked"))
    }
}

/// There may be none now. One that never comes is missed by who waits for the traffic.
fn wait_for_gateway(address: SocketAddr, stop: &AtomicBool) {
    let _ = wait_until(AGAIN, "a gateway", || {
        let there = stop.load(Ordering::Relaxed) || TcpStream::connect(address).is_ok();
        Ok(Look::when(there, || "nobody listens".to_owned()))
    });
}

/// Taps Shift, and touches where the guest takes it.
async fn use_session(options: &Options, stop: &AtomicBool, done: &AtomicU64) -> Result<()> {
    const LEFT_SHIFT: u8 = 0x2a;
    let mut client = Client::connect(options).await?;
    let mut place = 0;
    while !stop.load(Ordering::Relaxed) {
        place = (place + 7) % 600;
        client.tap(LEFT_SHIFT).await?;
        if client.touch_state().server.is_some() {
            client.touch(&touch(place, TouchContactFlags::DOWN)).await?;
            client.touch(&touch(place + 1, TouchContactFlags::UPDATE)).await?;
            let up = TouchContact::new(0, place, place, TouchContactFlags::UP);
            client.touch(&RdpeiPdu::Touch(TouchEventPdu::new(0, vec![TouchFrame::new(0, vec![up])]))).await?;
        }
        client.during(Duration::from_millis(5)).await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn touch(place: i32, what: TouchContactFlags) -> RdpeiPdu {
    let flags = what | TouchContactFlags::INRANGE | TouchContactFlags::INCONTACT;
    let contact = TouchContact::new(0, place, place, flags);
    RdpeiPdu::Touch(TouchEventPdu::new(0, vec![TouchFrame::new(0, vec![contact])]))
}

/// Numbers that nobody chose, and that a number gives again (xorshift).
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let (number, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self(number.max(1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
