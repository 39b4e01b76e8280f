//! What strangers on the network cost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kit::{State, eventually};

/// More connections than all budgets together.
const FLOOD: usize = 3000;
/// Two busy cores need longer than the deadline of 5 s itself.
const SILENCE: Duration = Duration::from_secs(15);

#[test]
fn who_says_nothing_is_closed_on_time() {
    let state = State::new();
    let service = state.serve();
    let mut stream = TcpStream::connect(service.address()).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let start = Instant::now();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(4) && waited < SILENCE, "{waited:?} {}", service.log());
    assert!(service.log().contains("nothing said"), "{}", service.log());
}

#[test]
fn a_flood_of_silent_connections_costs_little_and_shuts_nobody_out() {
    raise_file_limit();
    let state = State::new();
    let service = state.serve();
    assert!(speaks(service.address()));
    let before = service.memory();
    let flood: Vec<_> = (0..FLOOD).map_while(|_| TcpStream::connect(service.address()).ok()).collect();
    assert!(flood.len() == FLOOD && speaks(service.address()), "somebody who speaks is heard");
    let silent = state.json("status")["door"]["silent"].as_u64().unwrap();
    assert!(silent <= 512, "{silent} silent connections are kept");
    let grown = service.memory().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more");
    assert!(service.log().lines().count() < 100, "the log is not flooded");
    drop(flood);
    eventually("all are gone", || (state.json("status")["door"]["silent"] == 0).then_some(()));
}

/// Whether the gateway answers a client of Standard RDP Security, which it refuses by a message.
fn speaks(address: SocketAddr) -> bool {
    let request = [3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0];
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let mut answer = [0; 19];
    stream.write_all(&request).and_then(|()| stream.read_exact(&mut answer)).is_ok() && answer[11] == 3
}

fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
