//! The forward 5/3 wavelet transform of a tile's component, three levels deep.
//!
//! MS-RDPRFX 3.1.8.1.4. Rows are worked on as a whole, so that the compiler makes vectors of them.

use super::tile::PIXELS;

/// Transforms in place. Sub-bands come in the order HL1, LH1, HH1, HL2, LH2, HH2, HL3, LH3, HH3, LL3.
pub(super) fn transform(component: &mut [i16; PIXELS], scratch: &mut [i16; PIXELS]) {
    level::<32>(component, scratch);
    level::<16>(&mut component[3072..], scratch);
    level::<8>(&mut component[3840..], scratch);
}

/// One level of sub-bands of `BAND` × `BAND`, from as many coefficients as four of them have.
fn level<const BAND: usize>(data: &mut [i16], scratch: &mut [i16]) {
    vertical::<BAND>(data, scratch);
    horizontal::<BAND>(data, scratch);
}

/// Splits rows into low (the upper half of `out`) and high (the lower half).
fn vertical<const BAND: usize>(data: &[i16], out: &mut [i16]) {
    let width = BAND * 2;
    let (low, high) = out.split_at_mut(width * BAND);
    let row = |y: usize| &data[y * width..][..width];
    for n in 0..BAND {
        let (even, odd) = (row(2 * n), row(2 * n + 1));
        let next = row((2 * n + 2).min(2 * BAND - 2));
        let (before, rest) = high.split_at_mut(n * width);
        let high_row = &mut rest[..width];
        for x in 0..width {
            high_row[x] = high_pass(even[x], odd[x], next[x]);
        }
        let previous = if n == 0 { &*high_row } else { &before[(n - 1) * width..] };
        let low_row = &mut low[n * width..][..width];
        for x in 0..width {
            low_row[x] = low_pass(even[x], previous[x], high_row[x]);
        }
    }
}

/// Splits the columns of both halves: HL and LL from the low rows, LH and HH from the high ones.
fn horizontal<const BAND: usize>(data: &mut [i16], rows: &[i16]) {
    let band = BAND * BAND;
    let (hl, rest) = data.split_at_mut(band);
    let (lh, rest) = rest.split_at_mut(band);
    let (hh, ll) = rest.split_at_mut(band);
    let (low, high) = rows.split_at(2 * band);
    for y in 0..BAND {
        let (from, to) = (y * BAND * 2, y * BAND);
        split_row::<BAND>(&low[from..], &mut ll[to..], &mut hl[to..]);
        split_row::<BAND>(&high[from..], &mut lh[to..], &mut hh[to..]);
    }
}

fn split_row<const BAND: usize>(row: &[i16], low: &mut [i16], high: &mut [i16]) {
    let (row, low, high) = (&row[..BAND * 2], &mut low[..BAND], &mut high[..BAND]);
    for n in 0..BAND {
        high[n] = high_pass(row[2 * n], row[2 * n + 1], row[(2 * n + 2).min(2 * BAND - 2)]);
    }
    for n in 0..BAND {
        low[n] = low_pass(row[2 * n], high[n.saturating_sub(1)], high[n]);
    }
}

/// What an odd sample differs from its neighbours, halved.
fn high_pass(even: i16, odd: i16, next: i16) -> i16 {
    narrow((i32::from(odd) - ((i32::from(even) + i32::from(next)) >> 1)) >> 1)
}

/// An even sample, smoothed by the differences on both sides.
fn low_pass(even: i16, previous: i16, high: i16) -> i16 {
    narrow(i32::from(even) + ((i32::from(previous) + i32::from(high)) >> 1))
}

/// Colours have 13 bits, so no coefficient comes near the limit.
const fn narrow(value: i32) -> i16 {
    value as i16
}

#[cfg(test)]
mod tests {
    use ironrdp_graphics::dwt;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_transform_agrees_with_another_and_is_undone(seed in any::<u32>(), smooth in any::<bool>()) {
            let mut state = seed | 1;
            let mut component = [0; PIXELS];
            for (at, value) in component.iter_mut().enumerate() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = i16::try_from(state >> 19).unwrap() - 4096;
                *value = if smooth { i16::try_from(at % 64 * 20).unwrap() + noise / 512 } else { noise };
            }
            let (mut expected, mut scratch, mut temp) = (component, [0; PIXELS], [0; PIXELS]);
            dwt::encode(&mut expected, &mut temp);
            let mut transformed = component;
            transform(&mut transformed, &mut scratch);
            prop_assert!(transformed == expected);
        }
    }
}
