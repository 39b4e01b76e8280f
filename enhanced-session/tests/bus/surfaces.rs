//! Memory for pictures.

use enhanced_session::class::Class;
use enhanced_session::control::{OfferFlags, Picture, Reason};
use enhanced_session::endpoint::{ChannelId, Event, MAX_SURFACES, Preference, SurfaceError, SurfaceId};
use enhanced_session::region::SharedMemory;

use crate::pair::{Habit, Pair};

const PICTURE: Picture = Picture { fourcc: 0x3432_5258, stride: 4096, width: 1024, height: 100 };

fn opened() -> (Pair, ChannelId) {
    let (mut pair, ids) = Pair::rings().with(&[Class::Video]);
    pair.take_host_events();
    pair.take_guest_events();
    (pair, ids[0])
}

fn granted(pair: &mut Pair, id: ChannelId) -> SurfaceId {
    let surface = pair.host.grant_surface(id, PICTURE).expect("there is room");
    pair.run();
    surface
}

#[test]
fn both_ends_see_a_surface_in_the_same_place() {
    let (mut pair, id) = opened();
    let surface = granted(&mut pair, id);
    let place = pair.host.surface(id, surface).expect("it was granted");
    assert!(place.length >= 4096 * 100 && place.picture == PICTURE);
    let [Event::SurfaceGranted { id: other, surface: same, place: there }] = pair.take_guest_events()[..] else {
        panic!("one surface")
    };
    assert_eq!((other, same), (id, surface));
    assert_eq!((there.offset, there.picture), (place.offset, PICTURE));
    pair.memory.clone().expect("there is memory").write(there.offset, b"picture");
    let mut copy = [0; 7];
    pair.host.memory().expect("there is memory").read(place.offset, &mut copy);
    assert_eq!(&copy, b"picture");
}

#[test]
fn a_surface_is_free_when_it_was_returned() {
    let (mut pair, id) = opened();
    let mut surfaces: Vec<SurfaceId> = Vec::new();
    while let Ok(surface) = pair.host.grant_surface(id, PICTURE) {
        surfaces.push(surface);
    }
    assert!((20..MAX_SURFACES).contains(&surfaces.len()), "{} surfaces of 400 KiB", surfaces.len());
    pair.run();
    pair.take_guest_events();
    pair.host.revoke_surface(id, surfaces[0]);
    pair.host.revoke_surface(id, surfaces[0]);
    pair.run();
    assert_eq!(pair.take_guest_events(), [Event::SurfaceRevoked { id, surface: surfaces[0] }]);
    assert_eq!(pair.host.surface(id, surfaces[0]), None);
    assert_eq!(pair.host.grant_surface(id, PICTURE), Err(SurfaceError::NoRoom));
    pair.guest.return_surface(id, surfaces[1]);
    pair.guest.return_surface(id, surfaces[0]);
    pair.run();
    assert_eq!(pair.take_host_events(), [Event::SurfaceReturned { id, surface: surfaces[0] }]);
    assert!(pair.host.grant_surface(id, PICTURE).is_ok());
}

#[test]
fn only_so_many_surfaces_are_granted() {
    let (mut pair, id) = opened();
    let small = Picture { height: 1, ..PICTURE };
    for _ in 0..MAX_SURFACES {
        assert!(pair.host.grant_surface(id, small).is_ok());
    }
    assert_eq!(pair.host.grant_surface(id, small), Err(SurfaceError::NoRoom));
}

#[test]
fn a_closed_channel_has_no_surfaces() {
    let (mut pair, id) = opened();
    let surface = granted(&mut pair, id);
    pair.take_guest_events();
    pair.guest.close(id, Reason::Done);
    pair.run();
    let revoked = Event::SurfaceRevoked { id, surface };
    assert!(pair.take_guest_events().contains(&revoked));
    assert_eq!(pair.host.grant_surface(id, PICTURE), Err(SurfaceError::NotOpen));
    pair.guest.return_surface(id, surface);
    pair.run();
    assert!(pair.take_host_events().contains(&Event::SurfaceReturned { id, surface }));
}

#[test]
fn a_withdrawn_channel_is_released_when_its_surfaces_were_returned() {
    let (mut pair, id) = opened();
    let surfaces = [granted(&mut pair, id), granted(&mut pair, id)];
    pair.take_guest_events();
    pair.host.revoke_surface(id, surfaces[0]);
    pair.run();
    pair.host.rescind(id, Reason::Done);
    pair.run();
    let revoked = |surface| Event::SurfaceRevoked { id, surface };
    let (closed, rescinded) =
        (Event::Closed { id, reason: Reason::Done }, Event::Rescinded { id, reason: Reason::Done });
    assert_eq!(pair.take_guest_events(), [revoked(surfaces[0]), closed, revoked(surfaces[1]), rescinded]);
    pair.guest.return_surface(id, surfaces[1]);
    pair.run();
    assert_ne!(pair.offer(Class::Video), id, "one surface may still be written to");
    pair.guest.return_surface(id, surfaces[0]);
    pair.run();
    assert_eq!(pair.offer(Class::Input), id);
}

#[test]
fn there_are_no_surfaces_where_they_cannot_be() {
    let (mut pair, id) = opened();
    let other = pair.host.offer(Class::Input, 0, OfferFlags::default()).expect("there is room");
    pair.run();
    assert_eq!(pair.host.grant_surface(other, PICTURE), Err(SurfaceError::NotOpen), "not offered with surfaces");
    assert_eq!(pair.host.grant_surface(ChannelId(99), PICTURE), Err(SurfaceError::NotOpen));
    for picture in [
        Picture { stride: 0, ..PICTURE },
        Picture { height: 0, ..PICTURE },
        Picture { width: 0, ..PICTURE },
        Picture { width: 4097, ..PICTURE },
    ] {
        assert_eq!(pair.host.grant_surface(id, picture), Err(SurfaceError::Picture));
    }
    let huge = Picture { stride: u32::MAX, height: u32::MAX, ..PICTURE };
    assert_eq!(pair.host.grant_surface(id, huge), Err(SurfaceError::NoRoom));

    let mut pair = Pair::rings();
    pair.habit = Habit::Nothing;
    let (mut pair, ids) = pair.with(&[Class::Video]);
    pair.guest.decline();
    pair.run();
    pair.guest.open(ids[0], Preference::Ring).expect("it is offered");
    pair.run();
    assert_eq!(pair.host.grant_surface(ids[0], PICTURE), Err(SurfaceError::Unsupported));
}
