use console::{DamageSet, Size};
use ironrdp_pdu::geometry::ExclusiveRectangle;
use ironrdp_pdu::surface_commands::{ExtendedBitmapDataPdu, SurfaceBitsPdu, SurfaceCommand};
use proptest::prelude::*;

use super::*;
use crate::fast_path::write_update;
use crate::graphics::shadow::to_usize;
use crate::graphics::testing::{FastPathClient, Picture, Write, writes};

/// Encodes what changed, and lets the client decode it.
fn send(remote_fx: &mut RemoteFx, shadow: &mut Shadow, client: &mut FastPathClient) -> usize {
    let (mut boxes, mut bytes) = (Vec::new(), 0);
    shadow.report(&mut boxes);
    let size = shadow.size();
    let limit = remote_fx.limit;
    remote_fx.encode(shadow, size.rect(), &boxes, |data| {
        assert!(data.len() <= limit);
        bytes += data.len();
        let [width, height] = [size.width, size.height].map(to_u16);
        let command = SurfaceCommand::SetSurfaceBits(SurfaceBitsPdu {
            destination: ExclusiveRectangle { left: 0, top: 0, right: width, bottom: height },
            extended_bitmap_data: ExtendedBitmapDataPdu { bpp: 32, codec_id: 3, width, height, header: None, data },
        });
        let mut out = Vec::new();
        let update = ironrdp_core::encode_vec(&command).unwrap();
        write_update(ironrdp_pdu::fast_path::UpdateCode::SurfaceCommands, &update, &mut out);
        client.receive(&out);
    });
    bytes
}

/// Peak signal-to-noise ratio of the client's picture, in decibels.
fn psnr(picture: &Picture, client: &FastPathClient) -> f64 {
    let sent = picture.colors().into_iter().map(|color| {
        let [blue, green, red, _] = color.to_le_bytes();
        [red, green, blue]
    });
    let errors = sent.zip(&client.colors).flat_map(|(sent, seen)| {
        (0..3).map(move |at| (f64::from(sent[at]) - f64::from(seen[at])).powi(2)).collect::<Vec<_>>()
    });
    let count = to_usize(client.size.width) * to_usize(client.size.height) * 3;
    let mean = errors.sum::<f64>() / count as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10()
}

#[test]
fn text_stays_sharp_with_both_entropy_coders() {
    let size = Size::new(700, 500);
    let picture = Picture::new(size);
    picture.draw(Write::Text { rect: size.rect(), seed: 3 });
    let mut sizes = Vec::new();
    for entropy in [EntropyBits::Rlgr1, EntropyBits::Rlgr3] {
        let mut shadow = Shadow::new(size);
        let mut client = FastPathClient::new(size);
        shadow.reload(&picture, size.rect());
        sizes.push(send(&mut RemoteFx::new(entropy, 60_000), &mut shadow, &mut client));
        let psnr = psnr(&picture, &client);
        assert!(psnr >= 40.0, "{entropy:?}: {psnr} dB");
    }
    assert!(sizes.iter().all(|bytes| *bytes < 700 * 500 * 2), "{sizes:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn pictures_arrive_nearly_as_they_are(
        (size, drawings) in (1_u32..200, 1_u32..200).prop_flat_map(|(width, height)| {
            let size = Size::new(width, height);
            (Just(size), proptest::collection::vec(writes(size), 1..5))
        }),
        rlgr3 in any::<bool>(),
    ) {
        let picture = Picture::new(size);
        let mut shadow = Shadow::new(size);
        let mut client = FastPathClient::new(size);
        let entropy = if rlgr3 { EntropyBits::Rlgr3 } else { EntropyBits::Rlgr1 };
        let mut remote_fx = RemoteFx::new(entropy, 50_000);
        shadow.reload(&picture, size.rect());
        send(&mut remote_fx, &mut shadow, &mut client);
        for write in drawings {
            picture.draw(write);
            let mut damage = DamageSet::new();
            damage.add(write.rect());
            shadow.take_from(&picture, &damage);
            send(&mut remote_fx, &mut shadow, &mut client);
        }
        let psnr = psnr(&picture, &client);
        prop_assert!(psnr >= 30.0, "{psnr} dB");
    }
}
