//! What a host can have done for a measurement, on a channel of any class. No class has these kinds.
//!
//! | kind | name | from | fields |
//! | --- | --- | --- | --- |
//! | 0x7e01 | ORDER | host | u32 `count`, u32 `length`: send so many ITEMs of so many bytes. What else comes waits meanwhile |
//! | 0x7e02 | FILLER | host | any: taken, and not answered |
//! | 0x7e81 | ITEM | guest | u32 `number` from 0, then zeros |

use enhanced_session::wire::{Malformed, Reader};

const ORDER: u16 = 0x7e01;
const FILLER: u16 = 0x7e02;
const ITEM: u16 = 0x7e81;

/// Where the number of an item is.
const NUMBER: std::ops::Range<usize> = 4..8;
/// Longest item: no class allows more.
const MAX_LENGTH: u32 = 1 << 20;

/// What the host asks for.
#[derive(Debug)]
pub(crate) enum Drill {
    Order(Order),
    Filler,
}

/// Items that are to be sent.
#[derive(Debug)]
pub(crate) struct Order {
    number: u32,
    count: u32,
    item: Vec<u8>,
}

impl Drill {
    /// None: the message is one of its class.
    ///
    /// # Errors
    ///
    /// When an order ends too early, or asks for items that cannot be.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader::new(bytes);
        match reader.u16("kind")? {
            ORDER => {
                reader.zeros(2, "flags")?;
                let (count, length) = (reader.u32("count")?, reader.u32("length")?);
                Order::new(count, length).map(|order| Some(Self::Order(order)))
            }
            FILLER => Ok(Some(Self::Filler)),
            _ => Ok(None),
        }
    }
}

impl Order {
    fn new(count: u32, length: u32) -> Result<Self, Malformed> {
        let shortest = u32::try_from(NUMBER.end).unwrap_or(u32::MAX);
        if !(shortest..=MAX_LENGTH).contains(&length) {
            return Err(Malformed::Value { what: "length", value: length.into() });
        }
        let mut item = vec![0; usize::try_from(length).unwrap_or(0)];
        item.splice(..2, ITEM.to_le_bytes());
        Ok(Self { number: 0, count, item })
    }

    /// The next item, made as a service makes its messages: written once. None: all were sent.
    pub(crate) fn item(&mut self) -> Option<Vec<u8>> {
        if self.number == self.count {
            return None;
        }
        self.item.get_mut(NUMBER)?.copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        Some(self.item.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(count: u32, length: u32) -> Vec<u8> {
        [&ORDER.to_le_bytes()[..], &[0; 2], &count.to_le_bytes(), &length.to_le_bytes()].concat()
    }

    #[test]
    fn an_order_is_so_many_items_and_no_more() {
        let Ok(Some(Drill::Order(mut order))) = Drill::decode(&order(2, 9)) else { panic!("no order") };
        assert_eq!(order.item(), Some(vec![0x81, 0x7e, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(order.item(), Some(vec![0x81, 0x7e, 0, 0, 1, 0, 0, 0, 0]));
        assert_eq!(order.item(), None);
    }

    #[test]
    fn items_that_cannot_be_are_refused_and_other_messages_left_alone() {
        assert!(Drill::decode(&order(1, 7)).is_err() && Drill::decode(&order(1, MAX_LENGTH + 1)).is_err());
        assert!(Drill::decode(&order(1, 8)[..11]).is_err() && Drill::decode(&[1]).is_err());
        assert!(matches!(Drill::decode(&FILLER.to_le_bytes()), Ok(Some(Drill::Filler))));
        assert!(matches!(Drill::decode(&[0x01, 0, 0, 0]), Ok(None)));
    }
}
