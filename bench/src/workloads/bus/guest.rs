//! Between this process and a guest: rings against the stream, kicks against the port alone, input behind bulk.
//!
//! Cases are interleaved: rounds where they take long, one by one where they are short.

use std::time::Duration;

use anyhow::Result;
use enhanced_session::class::Class;
use enhanced_session::endpoint::Transport;
use serde_json::json;

use super::vm::{Session, Vm};
use crate::machine::Span;
use crate::report::{Report, median, percentile};

const ROUNDS: usize = 9;
const LARGE: usize = 64 << 10;
/// Large messages per measurement.
const LARGE_MESSAGES: u32 = 256;
/// Small messages per measurement.
const PINGS: usize = 100;
/// Bytes of the port that are as many as a kick has.
const KICK: usize = 12;
/// What a bare virtio-serial port was measured to take there and back on such a machine before there was a bus.
const PORT_ALONE_MICROS: f64 = 270.0;
/// An order, which is answered.
const SMALL: usize = 12;
/// What one frame of bulk carries at most.
const BULK_FRAME: usize = 16 << 10;

/// What was measured on one transport.
#[derive(Default)]
struct Figures {
    /// MiB per second with large messages.
    to_host: Vec<f64>,
    to_guest: Vec<f64>,
    /// There and back, in µs.
    input: Vec<f64>,
    behind_bulk: Vec<f64>,
    /// What one frame of bulk takes while there is no end of them, in µs.
    frame: Vec<f64>,
    /// The port without a bus.
    raw: Vec<f64>,
}

/// Runs the comparison and adds it to the report.
pub(super) fn measure(report: &mut Report) -> Result<()> {
    eprintln!("starting a guest");
    let mut vm = Vm::start()?;
    let span = Span::start(&[vm.pid()?])?;
    let (mut rings, mut stream) = (Figures::default(), Figures::default());
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        rings.round(vm.host(Transport::Ring)?)?;
        stream.round(vm.host(Transport::Stream)?)?;
    }
    add_results(report, &rings, &stream, span.foreign()?);
    Ok(())
}

impl Figures {
    fn round(&mut self, mut session: Session<'_>) -> Result<()> {
        let rate = |time: Duration| f64::from(LARGE_MESSAGES) * LARGE as f64 / time.as_secs_f64() / f64::from(1 << 20);
        self.to_host.push(rate(session.fetch(Class::Folder, LARGE_MESSAGES, LARGE)?));
        self.to_guest.push(rate(session.give(Class::Folder, LARGE_MESSAGES, LARGE)?));
        for number in 0..PINGS {
            // Who comes second finds the guest as the first has left it.
            if number % 2 == 0 {
                self.raw.push(micros(session.echo(KICK)?));
            }
            self.input.push(micros(session.ping(Class::Input, SMALL)?));
            if number % 2 == 1 {
                self.raw.push(micros(session.echo(KICK)?));
            }
        }
        for number in 0..PINGS {
            // Gaps of different lengths: nobody's frames are in step with them.
            let pause = Duration::from_micros(5000 + 137 * (number as u64 % 16));
            let behind = session.ping_behind(Class::Folder, pause, LARGE)?;
            self.behind_bulk.push(micros(behind.input));
            self.frame.push(micros(behind.flooding) * BULK_FRAME as f64 / behind.sent as f64);
        }
        session.settle(Class::Folder)
    }

    /// How much longer input is on its way while bulk is sent without end.
    fn delay(&self) -> f64 {
        median(&self.behind_bulk) - median(&self.input)
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn add_results(report: &mut Report, rings: &Figures, stream: &Figures, foreign: f64) {
    let ways = [("rings", rings), ("stream", stream)];
    let bandwidth = ways.map(|(name, figures)| {
        vec![
            ("way", json!(name)),
            ("guest to host: MiB/s", json!(median(&figures.to_host))),
            ("host to guest: MiB/s", json!(median(&figures.to_guest))),
        ]
    });
    report.table(
        format!("64 KiB messages of a guest under TCG, median of {ROUNDS} rounds; foreign load {foreign} cores"),
        bandwidth.into(),
    );
    let raw: Vec<f64> = rings.raw.iter().chain(&stream.raw).copied().collect();
    let row = |name: &'static str, times: &[f64]| {
        vec![
            ("there and back", json!(name)),
            ("median µs", json!(median(times))),
            ("p99 µs", json!(percentile(times, 99))),
            ("fastest µs", json!(percentile(times, 0))),
            ("× port alone", json!(median(times) / median(&raw))),
        ]
    };
    let rows = vec![
        row("small message on rings, by kicks", &rings.input),
        row("small message on the stream", &stream.input),
        row("12 bytes over the port alone", &raw),
    ];
    report.table(format!("Between host and guest, one at a time, {} each", rings.input.len()), rows);
    let behind = ways.map(|(name, figures)| {
        vec![
            ("way", json!(name)),
            ("input alone µs", json!(median(&figures.input))),
            ("behind bulk µs", json!(median(&figures.behind_bulk))),
            ("p99 µs", json!(percentile(&figures.behind_bulk, 99))),
            ("longer by µs", json!(figures.delay())),
            ("16 KiB of bulk µs", json!(median(&figures.frame))),
            ("frames", json!(figures.delay() / median(&figures.frame))),
        ]
    });
    report.table(
        "Input to the guest and its answer, while 64 KiB messages are sent on the folder channel",
        behind.into(),
    );
    let faster =
        median(&rings.to_host.iter().zip(&stream.to_host).map(|(ring, stream)| ring / stream).collect::<Vec<_>>());
    report.at_least("64 KiB messages from the guest, rings against the stream", faster, 2.0, "×");
    report.at_most("a kick there and back", median(&rings.input), PORT_ALONE_MICROS, "µs");
    let late = stream.delay() / median(&stream.frame);
    report.at_most("input behind bulk on the stream is later by", late, 1.0, "bulk frames");
}
