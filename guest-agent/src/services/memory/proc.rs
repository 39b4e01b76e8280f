//! What the kernel says about memory, in its text files. What is missing or unreadable counts as zero or as unknown:
//! kernels differ, and a report with a hole is better than none.

/// `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MemInfo {
    pub(super) total: u64,
    pub(super) available: u64,
    /// Of programs, and what the kernel holds for itself.
    pub(super) committed: u64,
    pub(super) swap_total: u64,
    pub(super) swap_free: u64,
}

/// How much of the time tasks waited for memory (`/proc/pressure/memory`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pressure {
    /// At least one task, over the last 10 s, in 1/100 percent.
    pub(super) some_10s: u16,
    /// All of them, over the last 10 s, in 1/100 percent.
    pub(super) full_10s: u16,
}

/// Pages that went to and came from swap since the start (`/proc/vmstat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Swapping {
    pub(super) pages_in: u64,
    pub(super) pages_out: u64,
}

impl MemInfo {
    pub(super) fn parse(text: &str) -> Self {
        let mut info = Self::default();
        let (mut free, mut cached, mut has_available) = (0, 0, false);
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let bytes = first_number(value).saturating_mul(1024);
            match name {
                "MemTotal" => info.total = bytes,
                "MemAvailable" => (info.available, has_available) = (bytes, true),
                "MemFree" => free = bytes,
                "Buffers" | "Cached" => cached = u64::saturating_add(cached, bytes),
                "Committed_AS" | "SUnreclaim" | "KernelStack" | "PageTables" => {
                    info.committed = info.committed.saturating_add(bytes);
                }
                "SwapTotal" => info.swap_total = bytes,
                "SwapFree" => info.swap_free = bytes,
                _ => {}
            }
        }
        // Before Linux 3.14 there is no MemAvailable.
        if !has_available {
            info.available = free.saturating_add(cached);
        }
        info
    }
}

impl Pressure {
    /// None where the kernel does not measure it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut pressure = Self::default();
        let mut found = false;
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let kind = words.next();
            let Some(average) = words.find_map(|word| word.strip_prefix("avg10=")).map(hundredths) else { continue };
            match kind {
                Some("some") => (pressure.some_10s, found) = (average, true),
                Some("full") => pressure.full_10s = average,
                _ => {}
            }
        }
        found.then_some(pressure)
    }
}

impl Swapping {
    pub(super) fn parse(text: &str) -> Self {
        let value = |wanted: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.filter(|(name, _)| *name == wanted).map(|(_, value)| first_number(value)).next().unwrap_or(0)
        };
        Self { pages_in: value("pswpin"), pages_out: value("pswpout") }
    }
}

fn first_number(text: &str) -> u64 {
    text.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// "12.34" → 1234. At most all of the time.
fn hundredths(text: &str) -> u16 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().filter(u8::is_ascii_digit).map(|digit| u16::from(digit - b'0'));
    let fraction = digits.chain([0, 0]).take(2).fold(0, |sum, digit| sum * 10 + digit);
    whole.parse().unwrap_or(0_u16).saturating_mul(100).saturating_add(fraction).min(10_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:         245132 kB\nMemFree:          180000 kB\nMemAvailable:     200000 kB\nBuffers: 1 kB\n\
                    SwapTotal:          1024 kB\nSwapFree:            512 kB\nSUnreclaim: 500 kB\nKernelStack: 40 kB\nPageTables: 60 kB\n\
                    Committed_AS:      33000 kB\nHugePages_Total: 0\n";
        let kib = |count: u64| count * 1024;
        let expected = MemInfo {
            total: kib(245_132),
            available: kib(200_000),
            committed: kib(33_600),
            swap_total: kib(1024),
            swap_free: kib(512),
        };
        assert_eq!(MemInfo::parse(text), expected);
    }

    #[test]
    fn an_old_kernel_has_available_what_is_free_or_cached() {
        let text = "MemTotal: 100 kB\nMemFree: 20 kB\nBuffers: 3 kB\nCached: 7 kB\nSwapCached: 50 kB\n";
        assert_eq!(MemInfo::parse(text).available, 30 * 1024);
    }

    #[test]
    fn pressure_is_read_in_hundredths() {
        let text =
            "some avg10=1.53 avg60=0.87 avg300=0.20 total=123456\nfull avg10=0.09 avg60=0.00 avg300=0.00 total=77\n";
        let expected = Pressure { some_10s: 153, full_10s: 9 };
        assert_eq!(Pressure::parse(text), Some(expected));
        assert_eq!(Pressure::parse(""), None);
        assert_eq!(Pressure::parse("some avg10=100.00").map(|pressure| pressure.some_10s), Some(10_000));
        assert_eq!(Pressure::parse("some avg10=99999999").map(|pressure| pressure.some_10s), Some(0));
    }

    #[test]
    fn swapping_is_found_among_the_other_counters() {
        let text = "nr_free_pages 1\npswpin 4\npswpout 9\npgpgin 100\n";
        assert_eq!(Swapping::parse(text), Swapping { pages_in: 4, pages_out: 9 });
        assert_eq!(Swapping::parse("pswpin\npswpout x\n"), Swapping::default());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "[a-zA-Z_:=. \n0-9]{0,200}") {
            MemInfo::parse(&text);
            Pressure::parse(&text);
            Swapping::parse(&text);
        }
    }
}
