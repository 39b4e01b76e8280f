//! Sizes as people write them.

/// Reads `512M`, `20G`, `1T`, or bytes; the units are powers of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, shift) =
        match text.trim_end_matches('B').split_at_checked(text.trim_end_matches('B').len().saturating_sub(1)) {
            Some((number, "K" | "k")) => (number, 10),
            Some((number, "M" | "m")) => (number, 20),
            Some((number, "G" | "g")) => (number, 30),
            Some((number, "T" | "t")) => (number, 40),
            _ => (text, 0),
        };
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).filter(|size| *size > 0);
    size.ok_or_else(|| format!("`{text}` is not a size: write 512M, 20G, 1T or bytes"))
}

/// Reads the same for a disk, where virt-install means GiB when there is no unit.
pub(super) fn parse_disk_size(text: &str) -> Result<u64, String> {
    if text.parse::<u64>().is_ok() { parse_size(&format!("{text}G")) } else { parse_size(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("20G"), Ok(20 << 30));
        assert_eq!(parse_size("512MB"), Ok(512 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!((parse_disk_size("20"), parse_disk_size("512M")), (Ok(20 << 30), Ok(512 << 20)));
        assert!(parse_disk_size("0").is_err() && parse_disk_size("x").is_err());
        for text in ["", "G", "-1G", "0", "1.5G", "99999999999999T"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }
}
