//! The client's side is what it sent when the session became active: the same five PDUs come again.

use super::*;
use crate::accept::login::tests::Pair;
use crate::front::SecurityPolicy;
use crate::testing::ClientPlan;

fn active() -> (Handshake, Vec<Vec<u8>>) {
    let mut pair = Pair::new(ClientPlan::tls_only(), SecurityPolicy::NlaOrTls);
    let handshake = pair.run().server.unwrap();
    let five = pair.sent.split_off(pair.sent.len() - 5);
    (handshake, five)
}

fn reactivate(handshake: &mut Handshake, five: &[Vec<u8>], size: Size) {
    let (mut reactivation, start) = Reactivation::start(handshake, size).unwrap();
    assert!(!start.is_empty());
    let mut answered = Vec::new();
    for pdu in five {
        assert!(!reactivation.is_finished());
        answered.extend(reactivation.handle_pdu(pdu).unwrap());
    }
    assert!(reactivation.is_finished() && !answered.is_empty());
    assert!(reactivation.handle_pdu(&five[0]).is_err());
    reactivation.finish(handshake);
}

#[test]
fn a_desktop_changes_its_size_as_often_as_wished() {
    let (mut handshake, five) = active();
    for size in [Size::new(900, 700), Size::new(1920, 1080), Size::new(640, 480)] {
        reactivate(&mut handshake, &five, size);
        assert_eq!(handshake.desktop_size, size);
        assert!(!handshake.capabilities.is_empty());
    }
}

#[test]
fn the_new_size_is_in_the_demand_active() {
    let (mut handshake, _) = active();
    let (_, start) = Reactivation::start(&mut handshake, Size::new(0x321, 0x234)).unwrap();
    let size = [0x21, 3, 0x34, 2];
    assert!(start.windows(4).any(|bytes| bytes == size));
}

#[test]
fn only_one_runs_at_a_time() {
    let (mut handshake, _) = active();
    let (_running, _) = Reactivation::start(&mut handshake, Size::new(900, 700)).unwrap();
    assert!(Reactivation::start(&mut handshake, Size::new(800, 600)).is_err());
}

#[test]
fn each_of_the_five_is_refused_out_of_turn() {
    for due in 0..5 {
        for other in (0..5).filter(|other| *other != due) {
            let (mut handshake, five) = active();
            let (mut reactivation, _) = Reactivation::start(&mut handshake, Size::new(900, 700)).unwrap();
            five[..due].iter().for_each(|pdu| drop(reactivation.handle_pdu(pdu).unwrap()));
            assert!(reactivation.handle_pdu(&five[other]).is_err(), "{other} where {due} is due");
        }
    }
}
