//! One typed key: what it costs on the wire, and how long it takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::report::{Report, median, percentile};
use crate::world::{self, World};
use fanlight_tests::headless::{Client, Received};

const KEYS: usize = 40;
/// No frame for so long after a key means that there was none left.
const PAUSE: Duration = Duration::from_millis(150);
/// Letters whose scancodes are typed.
const LETTERS: [u8; 8] = [0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22, 0x23];

/// What one key brought.
pub(super) struct Typed {
    /// From the key's last byte written to the first frame's last byte read, in ms.
    pub(super) first_ms: f64,
    /// The same for the last frame.
    pub(super) last_ms: f64,
    frames: usize,
    message_bytes: u64,
    received: Received,
}

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("glyph");
    let world = World::start(&["one"])?;
    let mut rows = Vec::new();
    for content in ["empty screen", "screen full of text"] {
        world.wait_for_sessions(0)?;
        let mut client = world.client("one").await?;
        if content != "empty screen" {
            world::fill_with_text(&mut client).await?;
        }
        let span = world.span()?;
        let keys = type_keys(&mut client, KEYS).await?;
        let foreign = span.foreign()?;
        let stats = world.stats()?.damage_to_socket_us;
        let column = |value: fn(&Typed) -> f64| keys.iter().map(value).collect::<Vec<_>>();
        let rdp = median(&column(|key| key.received.rdp as f64));
        rows.push(vec![
            ("content", json!(content)),
            ("keys", json!(keys.len())),
            ("frames per key", json!(median(&column(|key| key.frames as f64)))),
            ("graphics B per key", json!(median(&column(|key| key.message_bytes as f64)))),
            ("RDP B per key", json!(rdp)),
            ("TCP B per key", json!(median(&column(|key| key.received.wire as f64)))),
            ("RDP B p95", json!(percentile(&column(|key| key.received.rdp as f64), 95))),
            ("key to picture ms", json!(median(&column(|key| key.first_ms)))),
            ("p95", json!(percentile(&column(|key| key.first_ms), 95))),
            ("to last frame ms", json!(median(&column(|key| key.last_ms)))),
            ("damage to socket ms", json!(stats.p50 as f64 / 1e3)),
            ("p99", json!(stats.p99 as f64 / 1e3)),
            ("max", json!(stats.max as f64 / 1e3)),
            ("of frames", json!(stats.count)),
            ("foreign cores", json!(foreign)),
        ]);
        report.at_most(format!("bytes of RDP for one key, {content}"), rdp, 200.0, "B");
        report.at_most(format!("damage to socket, median, {content}"), stats.p50 as f64 / 1e3, 2.0, "ms");
    }
    report.table(format!("One key at a time in the shell, 1920x1080, {}", world::describe_guest()?), rows);
    Ok(report)
}

/// Types `count` letters, each after the last one has been drawn.
pub(super) async fn type_keys(client: &mut Client, count: usize) -> Result<Vec<Typed>> {
    let mut typed = Vec::new();
    for (at, scancode) in LETTERS.iter().cycle().take(count).enumerate() {
        // Gaps of different lengths: nobody's timer is in step with them.
        client.until_quiet(PAUSE + Duration::from_millis(7 * (at as u64 % 8))).await?;
        let before = client.received();
        let sent = client.tap(*scancode).await?;
        let first = client.next_frame().await.context("a key is not drawn")?;
        let rest = client.until_quiet(PAUSE).await?;
        let after = client.received();
        let millis = |arrived: Instant| arrived.saturating_duration_since(sent).as_secs_f64() * 1e3;
        typed.push(Typed {
            first_ms: millis(first.arrived),
            last_ms: millis(rest.last().unwrap_or(&first).arrived),
            frames: 1 + rest.len(),
            message_bytes: first.message_bytes + rest.iter().map(|frame| frame.message_bytes).sum::<u64>(),
            received: Received { wire: after.wire - before.wire, rdp: after.rdp - before.rdp },
        });
    }
    Ok(typed)
}
