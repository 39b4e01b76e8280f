//! Clients of ill will: they are let go in time, cost little, and keep nobody else out.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fanlight_tests::gateway::{Gateway, Person};
use fanlight_tests::tls;
use fanlight_tests::usage;
use fanlight_tests::wait::{Look, wait_until};
use fanlight_tests::wire::{self, Closed, protocol};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::journeys;
use crate::world::World;

journeys![slow_clients_are_let_go_at_every_step, thousands_of_sockets_keep_nobody_out, noise_and_nonsense_are_refused,];

/// What a machine under load may add to a deadline.
const SLACK: Duration = Duration::from_secs(4);
/// Sockets of the flood; fewer where the system allows this process fewer files.
const SOCKETS: usize = 10_000;
/// Files of this process that are not sockets of the flood.
const OTHER_FILES: usize = 200;
/// Memory that a gateway may keep after an attack, in KiB.
const KEPT: u64 = 24 * 1024;

/// The deadlines a stranger has, in seconds: `rdp_server::io` has them as constants.
const FIRST_BYTES: u64 = 5;
const REQUEST: u64 = 10;
const TLS: u64 = 10;
const CREDSSP: u64 = 20;
const LOGIN: u64 = 60;

/// What a slow client does, and how many seconds it has for that.
type Slowness = (&'static str, u64, fn(SocketAddr, Duration) -> Result<Closed>);

const SLOW: [Slowness; 11] = [
    ("says nothing", FIRST_BYTES, |address, limit| wire::drip(wire::connect(address)?, &[], limit)),
    // What it speaks is not told by the few bytes that it sends in the time for the first ones.
    ("sends its request byte by byte", FIRST_BYTES, |address, limit| {
        wire::drip(wire::connect(address)?, &request(), limit)
    }),
    ("sends a blob byte by byte", FIRST_BYTES, |address, limit| wire::drip(wire::connect(address)?, &blob(), limit)),
    ("begins its request and goes on byte by byte", REQUEST, |address, limit| drip_after(&request(), address, limit)),
    ("begins a blob and goes on byte by byte", REQUEST, |address, limit| drip_after(&blob(), address, limit)),
    ("says nothing after its request", TLS, |address, limit| wire::drip(requested(address)?, &[], limit)),
    ("begins TLS byte by byte", TLS, |address, limit| wire::drip(requested(address)?, &tls_record(), limit)),
    ("says nothing in TLS", LOGIN, |address, limit| wire::drip(tls::open(address, protocol::SSL)?, &[], limit)),
    ("joins byte by byte", LOGIN, |address, limit| {
        wire::drip(tls::open(address, protocol::SSL)?, &wire::tpkt_header(400), limit)
    }),
    ("says nothing in CredSSP", CREDSSP, |address, limit| {
        wire::drip(tls::open(address, protocol::HYBRID)?, &[], limit)
    }),
    ("sends CredSSP byte by byte", CREDSSP, |address, limit| {
        wire::drip(tls::open(address, protocol::HYBRID)?, &credssp(), limit)
    }),
];

fn slow_clients_are_let_go_at_every_step(_: &World) -> Result<()> {
    let (gateway, person) = gateway()?;
    let address = gateway.address();
    thread::scope(|scope| {
        let clients: Vec<_> = SLOW
            .iter()
            .map(|(what, seconds, go)| {
                (what, seconds, scope.spawn(move || go(address, Duration::from_secs(*seconds) + SLACK)))
            })
            .collect();
        // They wait; somebody else does not.
        ensure!(gateway.client(&person).logs_on()?, "a real user does not get in");
        for (what, seconds, client) in clients {
            let closed = client.join().map_err(|_| anyhow::anyhow!("a slow client panicked"))?;
            let closed = closed.with_context(|| format!("a client that {what} has {seconds} s"))?;
            ensure!(closed.after.as_secs() + 2 >= *seconds, "a client that {what} was let go after {:?}", closed.after);
        }
        Ok(())
    })
}

fn thousands_of_sockets_keep_nobody_out(_: &World) -> Result<()> {
    let count = allow_files(SOCKETS + OTHER_FILES)? - OTHER_FILES;
    ensure!(count >= SOCKETS / 5, "{count} sockets are no flood: see `ulimit -Hn`");
    let (gateway, person) = gateway()?;
    let pid = gateway.process().pid();
    // The first logon loads and allocates what every later one uses again.
    ensure!(gateway.client(&person).logs_on()?, "a real user does not get in");
    let (memory, files) = (usage::memory(pid)?, usage::open_files(pid)?);

    let (opened, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(gateway.address(), count, &opened, &enough));
        let result = logs_on_during(&gateway, &person, count, &opened);
        enough.store(true, Ordering::Relaxed);
        let flood = flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        result?;
        all_are_closed(flood)
    })?;

    wait_until(SLACK, "the gateway to close what the flood left", || {
        let open = usage::open_files(pid)?;
        Ok(Look::when(open <= files, || format!("{open} files are open, before it were {files}")))
    })?;
    let grown = usage::memory(pid)?.saturating_sub(memory);
    ensure!(grown < KEPT, "the gateway took {grown} KiB more and keeps them");
    Ok(())
}

/// A real user, at the beginning, in the middle and at the end of a flood.
fn logs_on_during(gateway: &Gateway, person: &Person, count: usize, opened: &AtomicUsize) -> Result<()> {
    for part in [count / 10, count / 2, count] {
        wait_until(Duration::from_secs(60), format_args!("{part} sockets"), || {
            let opened = opened.load(Ordering::Relaxed);
            Ok(Look::when(opened >= part, || format!("there were {opened}")))
        })?;
        ensure!(gateway.client(person).logs_on()?, "a real user does not get in beside {part} sockets");
    }
    Ok(())
}

/// Opens sockets that say nothing, `count` of them held at a time, until it is enough.
fn flood(address: SocketAddr, count: usize, opened: &AtomicUsize, enough: &AtomicBool) -> Result<Vec<TcpStream>> {
    let mut held = std::collections::VecDeque::new();
    while !enough.load(Ordering::Relaxed) {
        if held.len() == count {
            // As a real attacker would: the ones that were closed first are replaced.
            held.pop_front();
        }
        held.push_back(wire::connect(address)?);
        opened.fetch_add(1, Ordering::Relaxed);
    }
    Ok(held.into())
}

fn all_are_closed(sockets: Vec<TcpStream>) -> Result<()> {
    let (start, limit) = (Instant::now(), Duration::from_secs(FIRST_BYTES) + SLACK);
    for mut socket in sockets {
        let closed = wire::wait_for_close(&mut socket, start, limit)?;
        ensure!(closed.answer.is_empty(), "a socket that said nothing was answered {:02x?}", closed.answer);
    }
    Ok(())
}

fn noise_and_nonsense_are_refused(_: &World) -> Result<()> {
    let (gateway, person) = gateway()?;
    let address = gateway.address();
    let at_once = SLACK;
    // What might be the beginning of something is waited for.
    let waited_for = Duration::from_secs(REQUEST) + SLACK;
    for length in 0..=4 {
        let nonsense = [wire::tpkt_header(length), vec![0; 60]].concat();
        wire::send_and_wait(address, &nonsense, at_once).with_context(|| format!("a first PDU of length {length}"))?;
        let stream = tls::open(address, protocol::SSL)?;
        wire::send_in(stream, &nonsense, at_once).with_context(|| format!("a PDU of length {length} in TLS"))?;
    }
    thread::scope(|scope| {
        let clients: Vec<_> = (0..64u64)
            .map(|seed| {
                let length = 1 << (seed % 16);
                scope.spawn(move || {
                    let closed = wire::send_and_wait(address, &wire::noise(seed, length), waited_for);
                    closed.with_context(|| format!("{length} bytes of noise of seed {seed}"))
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| match client.join() {
            Ok(closed) => closed.map(drop),
            Err(_) => bail!("a client panicked"),
        })
    })?;
    for security in [protocol::SSL, protocol::HYBRID] {
        let stream = tls::open(address, security)?;
        wire::send_in(stream, &wire::noise(99, 1 << 20), at_once).context("a megabyte of noise in TLS")?;
    }
    ensure!(gateway.client(&person).logs_on()?, "a real user does not get in afterwards");
    let log = gateway.log();
    ensure!(!log.contains("panicked"), "something panicked:\n{log}");
    Ok(())
}

fn gateway() -> Result<(Gateway, Person)> {
    let gateway = Gateway::start()?;
    let person = gateway.add_user("demo", "right-and-long-enough", None)?;
    gateway.create_guest("only")?;
    Ok((gateway, person))
}

fn request() -> Vec<u8> {
    wire::connection_request(protocol::SSL | protocol::HYBRID, "somebody")
}

/// The first bytes at once, which tell what the client speaks, and the rest byte by byte.
fn drip_after(bytes: &[u8], address: SocketAddr, limit: Duration) -> Result<Closed> {
    let mut stream = wire::connect(address)?;
    let (first, rest) = bytes.split_at(12);
    stream.write_all(first)?;
    wire::drip(stream, rest, limit)
}

/// A connection whose request was granted: TLS comes next.
fn requested(address: SocketAddr) -> Result<TcpStream> {
    tls::request(address, protocol::SSL)
}

/// A pre-connection blob of the second version (MS-RDPEPS 2.2.1.2) with a long name.
fn blob() -> Vec<u8> {
    let name: Vec<u8> = "a".repeat(100).encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let length = u32::try_from(18 + name.len()).unwrap_or(u32::MAX);
    let fixed = [length.to_le_bytes(), [0; 4], 2u32.to_le_bytes(), [0; 4]].concat();
    [fixed, 101u16.to_le_bytes().to_vec(), name].concat()
}

/// The head of a TLS record with a client's hello, and some of it.
fn tls_record() -> Vec<u8> {
    [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 200]].concat()
}

/// The head of a TSRequest (MS-CSSP 2.2.1) of 1024 bytes, and some of it.
fn credssp() -> Vec<u8> {
    [&[0x30, 0x82, 4, 0, 0xa0, 3, 2, 1, 6][..], &[0xa1; 200]].concat()
}

/// Lets this process open as many files.
/// Allows this process `wanted` open files, or as many as it may have. Returns how many those are.
fn allow_files(wanted: usize) -> Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum.unwrap_or(u64::MAX).min(u64::try_from(wanted)?);
    if limit.current.is_some_and(|current| current < allowed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum })?;
    }
    Ok(usize::try_from(allowed)?)
}
