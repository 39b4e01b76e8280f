use console::{DamageSet, Size};
use ironrdp_graphics::rle;
use proptest::prelude::*;

use super::*;
use crate::graphics::testing::{FastPathClient, Picture, Write, writes};

/// What a depth leaves of a colour.
fn seen(depth: ColorDepth, color: u32) -> [u8; 3] {
    use ironrdp_graphics::color_conversion::{rdp_15bit_to_rgb, rdp_16bit_to_rgb};
    let reduced = reduce(depth, &color.to_le_bytes());
    let [blue, green, red, _] = color.to_le_bytes();
    match depth {
        ColorDepth::Bpp15 => rdp_15bit_to_rgb(u16::try_from(reduced).unwrap()),
        ColorDepth::Bpp16 => rdp_16bit_to_rgb(u16::try_from(reduced).unwrap()),
        ColorDepth::Bpp24 | ColorDepth::Bpp32 => [red, green, blue],
    }
}

fn depths() -> impl Strategy<Value = ColorDepth> {
    prop_oneof![Just(ColorDepth::Bpp15), Just(ColorDepth::Bpp16), Just(ColorDepth::Bpp24), Just(ColorDepth::Bpp32)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_client_shows_the_guests_colours_in_its_depth(
        depth in depths(),
        header in prop_oneof![Just(BitmapHeader::Present), Just(BitmapHeader::Omitted)],
        (size, drawings) in (1_u32..150, 1_u32..150).prop_flat_map(|(width, height)| {
            let size = Size::new(width, height);
            (Just(size), proptest::collection::vec(writes(size), 1..5))
        }),
    ) {
        let picture = Picture::new(size);
        let mut shadow = Shadow::new(size);
        let mut encoder = BitmapEncoder::new(depth, header);
        let mut client = FastPathClient::new(size);
        shadow.reload(&picture, size.rect());
        for write in std::iter::once(None).chain(drawings.into_iter().map(Some)) {
            if let Some(write) = write {
                picture.draw(write);
                let mut damage = DamageSet::new();
                damage.add(write.rect());
                shadow.take_from(&picture, &damage);
            }
            let mut boxes = Vec::new();
            shadow.report(&mut boxes);
            client.receive(&encoder.encode(&shadow, size.rect(), &boxes));
            prop_assert!(client.longest <= MAX_FRAGMENT);
            let expected = picture.colors().into_iter().map(|color| seen(depth, color));
            prop_assert!(expected.eq(client.colors.iter().copied()));
        }
    }

    #[test]
    fn run_length_encoding_is_undone_by_its_decoder(
        width in (1_usize..17).prop_map(|width| width * 4),
        colors in proptest::collection::vec((0_usize..6, 1_usize..300), 1..60),
    ) {
        let palette = [0, 0xffff, 0x1234, 0x8410, 0x8411, 0xfffe];
        let mut pixels: Vec<u32> = Vec::new();
        for (color, length) in colors {
            // Some runs alternate, as the columns of letters do.
            (0..length).for_each(|at| pixels.push(palette[if length % 3 == 0 { at % 2 * color } else { color }]));
        }
        pixels.resize(pixels.len().next_multiple_of(width).max(width), 7);
        let (mut data, mut decoded) = (Vec::new(), Vec::new());
        interleaved::encode(&pixels, width, 2, 0xffff, &mut data);
        rle::decompress_16_bpp(&data, &mut decoded, width, pixels.len() / width).unwrap();
        let decoded: Vec<u32> = decoded.chunks_exact(2).map(|p| u16::from_le_bytes([p[0], p[1]]).into()).collect();
        prop_assert_eq!(decoded, pixels);
    }
}

#[test]
fn text_is_much_smaller_than_its_pixels() {
    let size = Size::new(640, 480);
    let picture = Picture::new(size);
    picture.draw(Write::Text { rect: size.rect(), seed: 4 });
    let mut shadow = Shadow::new(size);
    let mut boxes = Vec::new();
    shadow.reload(&picture, size.rect());
    shadow.report(&mut boxes);
    let pixels = 640 * 480;
    for (depth, most) in
        [(ColorDepth::Bpp16, pixels), (ColorDepth::Bpp24, pixels * 3 / 2), (ColorDepth::Bpp32, pixels * 3 / 2)]
    {
        let bytes = BitmapEncoder::new(depth, BitmapHeader::Omitted).encode(&shadow, size.rect(), &boxes).len();
        assert!(bytes < most, "{depth:?}: {bytes} bytes");
    }
}
