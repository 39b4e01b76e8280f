//! Places on a monitor → places on the axes of a device that covers the whole desktop.

use console::{FinePoint, Rect};
use enhanced_session::class::input::FINE;

use super::evdev::AXIS_MAX;

/// Where the monitors lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Desktop {
    monitors: Vec<Rect>,
    /// In 1/100 pixel, at least 1.
    width: i64,
    height: i64,
}

impl Desktop {
    /// A desktop as large as its monitors reach.
    pub(super) fn new(monitors: Vec<Rect>) -> Self {
        let reach = |end: fn(&Rect) -> i64| monitors.iter().map(end).max().unwrap_or(0).max(1) * i64::from(FINE);
        let width = reach(|rect| i64::from(rect.x) + i64::from(rect.width));
        let height = reach(|rect| i64::from(rect.y) + i64::from(rect.height));
        Self { monitors, width, height }
    }

    /// The place on both axes; none when there is no such monitor. What lies outside of the monitor is at its edge.
    pub(super) fn place(&self, monitor: u16, position: FinePoint) -> Option<(i32, i32)> {
        let rect = self.monitors.get(usize::from(monitor))?;
        let x = within(position.x, rect.x, rect.width);
        let y = within(position.y, rect.y, rect.height);
        Some((on_axis(x, self.width), on_axis(y, self.height)))
    }

    /// How long a width and a height, in 1/100 pixel, are on the axes.
    pub(super) fn extent(&self, width: u32, height: u32) -> (i32, i32) {
        (on_axis(i64::from(width), self.width), on_axis(i64::from(height), self.height))
    }
}

/// The place in the desktop, in 1/100 pixel.
fn within(position: i32, start: u32, length: u32) -> i64 {
    let fine = |pixels: u32| i64::from(pixels) * i64::from(FINE);
    fine(start) + i64::from(position).clamp(0, (fine(length) - 1).max(0))
}

/// Programs divide by one more than the highest value: so each pixel is found again.
fn on_axis(fine: i64, length: i64) -> i32 {
    let steps = i64::from(AXIS_MAX) + 1;
    let value = (i128::from(fine) * i128::from(steps)).checked_div(i128::from(length)).unwrap_or(0);
    i32::try_from(value).unwrap_or(AXIS_MAX).min(AXIS_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
        Rect { x, y, width, height }
    }

    #[test]
    fn monitors_share_the_axes() {
        let desktop = Desktop::new(vec![rect(0, 0, 1000, 500), rect(1000, 0, 1000, 1000)]);
        assert_eq!(desktop.place(0, FinePoint { x: 50_000, y: 50_000 }), Some((0x4000, 0x7fff)));
        assert_eq!(desktop.place(1, FinePoint { x: 50_000, y: 50_000 }), Some((0xc000, 0x8000)));
        assert_eq!(desktop.place(1, FinePoint { x: -5, y: i32::MAX }), Some((0x8000, 0xffff)));
        assert_eq!(desktop.place(2, FinePoint::default()), None);
        assert_eq!(Desktop::default().place(0, FinePoint::default()), None);
        assert_eq!(desktop.extent(100_000, 100_000), (0x8000, 0xffff));
    }

    proptest! {
        #[test]
        fn programs_find_each_pixel_again(width in 1..20_000_u32, pixel in 0..20_000_u32) {
            let pixel = pixel % width;
            let desktop = Desktop::new(vec![rect(0, 0, width, 1)]);
            let middle = i32::try_from(pixel).unwrap() * FINE + FINE / 2;
            let (x, _) = desktop.place(0, FinePoint { x: middle, y: 0 }).unwrap();
            prop_assert_eq!(i64::from(x) * i64::from(width) / 0x1_0000, i64::from(pixel));
        }

        #[test]
        fn no_layout_and_no_place_is_too_large(
            (x, y, width, height) in any::<(u32, u32, u32, u32)>(),
            (at_x, at_y) in any::<(i32, i32)>(),
        ) {
            let desktop = Desktop::new(vec![rect(x, y, width, height)]);
            let (at_x, at_y) = desktop.place(0, FinePoint { x: at_x, y: at_y }).unwrap();
            prop_assert!((0..=AXIS_MAX).contains(&at_x) && (0..=AXIS_MAX).contains(&at_y));
            let (width, height) = desktop.extent(width, height);
            prop_assert!((0..=AXIS_MAX).contains(&width) && (0..=AXIS_MAX).contains(&height));
        }
    }
}
