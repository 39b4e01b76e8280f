//! How a VM's bus stands, for `fanlight vm show`.

use crate::bus::{BusState, BusStatus, BusTransport, ChannelStatus};

/// Lines of a name and a value.
pub(super) fn describe(bus: &BusStatus) -> Vec<(&'static str, String)> {
    let state = match (bus.state, bus.transport) {
        (BusState::Off, _) => return Vec::new(),
        (BusState::Waiting, _) => "no agent is there".to_owned(),
        (BusState::Connected, Some(BusTransport::Ring)) => "connected, through shared memory".to_owned(),
        (BusState::Connected, _) => "connected, through the port alone".to_owned(),
    };
    let mut lines = vec![("bus", state)];
    lines.extend(bus.agent.iter().map(|agent| ("agent", agent.clone())));
    if bus.state == BusState::Connected {
        let micros = |micros: Option<u64>| micros.map_or("unknown".to_owned(), |micros| format!("{micros} us"));
        lines.push((
            "delays",
            format!("round trip {}, input {}", micros(bus.round_trip_us), micros(bus.input_latency_us)),
        ));
        let (received, sent) = (rate(bus.port_received_rate), rate(bus.port_sent_rate));
        lines.push(("port", format!("{received} from the guest, {sent} to it")));
    }
    if bus.faults > 0 {
        lines.push(("faults", format!("{}: the guest broke the bus's rules", bus.faults)));
    }
    lines.extend(bus.channels.iter().map(|channel| ("channel", describe_channel(channel))));
    lines
}

fn describe_channel(channel: &ChannelStatus) -> String {
    let name = if channel.index == 0 { channel.class.clone() } else { format!("{} {}", channel.class, channel.index) };
    let faults = if channel.faults == 0 { String::new() } else { format!(", {} faults", channel.faults) };
    let Some(transport) = channel.transport else { return format!("{name:<11} offered{faults}") };
    let transport = match transport {
        BusTransport::Ring => "ring",
        BusTransport::Stream => "stream",
    };
    format!(
        "{name:<11} {transport}, {} messages and {} from the guest, {} and {} to it{faults}",
        channel.received,
        rate(channel.received_rate),
        channel.sent,
        rate(channel.sent_rate),
    )
}

/// Bytes per second, for people.
fn rate(bytes: f64) -> String {
    match bytes {
        bytes if bytes < 1024.0 => format!("{bytes:.0} B/s"),
        bytes if bytes < 1024.0 * 1024.0 => format!("{:.1} KiB/s", bytes / 1024.0),
        bytes => format!("{:.1} MiB/s", bytes / (1024.0 * 1024.0)),
    }
}
