//! Dividing what is scarce.

/// What somebody would take, and how much their voice counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// In bytes.
    pub(super) amount: u64,
    /// 0 counts as least, not as nothing: what nobody else takes is theirs.
    pub(super) weight: u16,
}

/// Divides `amount` among `wishes`, one share each.
///
/// Water poured into vessels as wide as their weights: nobody gets more than they wish, and of two whose wishes are not
/// met neither has more per weight than the other. So who wishes for more than there is takes nothing from who is
/// content with less than an equal part. Shares are rounded down; together they are never more than `amount`.
pub(super) fn water_fill(amount: u64, wishes: &[Wish]) -> Vec<u64> {
    let mut shares = vec![0; wishes.len()];
    let mut order: Vec<(usize, Wish)> = wishes.iter().copied().enumerate().collect();
    // Who is full first, first: what they leave is divided among the rest.
    order.sort_by_key(|(index, wish)| (level_when_full(*wish), *index));
    let mut weights: u128 = wishes.iter().map(|wish| width(*wish)).sum();
    let mut rest = u128::from(amount);
    for (index, wish) in order {
        let part = rest * width(wish) / weights.max(1);
        let share = part.min(u128::from(wish.amount));
        shares[index] = u64::try_from(share).unwrap_or(wish.amount);
        rest -= share;
        weights -= width(wish);
    }
    shares
}

/// How high the water stands when this wish is met.
fn level_when_full(wish: Wish) -> u128 {
    // The scale keeps wishes of some bytes apart.
    (u128::from(wish.amount) << 32) / width(wish)
}

fn width(wish: Wish) -> u128 {
    u128::from(wish.weight.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(amount: u64, wishes: &[(u64, u16)]) -> Vec<u64> {
        let wishes: Vec<Wish> =
            wishes.iter().map(|(amount, weight)| Wish { amount: *amount, weight: *weight }).collect();
        water_fill(amount, &wishes)
    }

    #[test]
    fn who_is_content_with_little_gets_all_of_it() {
        assert_eq!(fill(1000, &[(100, 5000), (9_000_000, 5000)]), [100, 900]);
        assert_eq!(fill(90, &[(100, 5000), (9_000_000, 5000)]), [45, 45]);
        assert_eq!(fill(1000, &[(100, 1), (200, 1)]), [100, 200], "there is enough");
        assert_eq!(fill(0, &[(5, 1)]), [0]);
        assert_eq!(fill(7, &[]), [] as [u64; 0]);
    }

    #[test]
    fn weights_are_ratios() {
        assert_eq!(fill(900, &[(5000, 2000), (5000, 1000)]), [600, 300]);
        assert_eq!(fill(1000, &[(5000, 10_000), (5000, 0)]), [999, 1], "the least weight is not none");
        assert_eq!(fill(1000, &[(400, 10_000), (5000, 0)]), [400, 600]);
    }

    fn wishes() -> impl Strategy<Value = Vec<Wish>> {
        let wish = (0_u64..1 << 42, 0_u16..=10_000).prop_map(|(amount, weight)| Wish { amount, weight });
        proptest::collection::vec(wish, 0..12)
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice_or_left_while_somebody_wishes(amount in 0_u64..1 << 44, wishes in wishes()) {
            let shares = water_fill(amount, &wishes);
            let (given, wished) = (shares.iter().sum::<u64>(), wishes.iter().map(|wish| wish.amount).sum::<u64>());
            prop_assert!(given <= amount.min(wished));
            prop_assert!(given + wishes.len() as u64 >= amount.min(wished), "but for a byte each, all is given");
            prop_assert!(shares.iter().zip(&wishes).all(|(share, wish)| *share <= wish.amount));
        }

        #[test]
        fn more_weight_is_never_less_memory(
            amount in 0_u64..1 << 44, wishes in wishes(), who in any::<prop::sample::Index>(), more in 1_u16..5000,
        ) {
            prop_assume!(!wishes.is_empty());
            let who = who.index(wishes.len());
            let before = water_fill(amount, &wishes)[who];
            let mut heavier = wishes.clone();
            heavier[who].weight += more;
            prop_assert!(water_fill(amount, &heavier)[who] + wishes.len() as u64 >= before);
        }

        #[test]
        fn a_greedier_wish_never_hurts_who_wishes_for_less_than_an_equal_part(
            amount in 0_u64..1 << 44, wishes in wishes(), who in any::<prop::sample::Index>(),
        ) {
            prop_assume!(!wishes.is_empty());
            let who = who.index(wishes.len());
            let all: u128 = wishes.iter().map(|wish| width(*wish)).sum();
            let fair = u128::from(amount) * width(wishes[who]) / all;
            let greedy: Vec<Wish> = wishes.iter().enumerate()
                .map(|(index, wish)| if index == who { *wish } else { Wish { amount: 1 << 43, ..*wish } }).collect();
            let share = u128::from(water_fill(amount, &greedy)[who]);
            prop_assert!(share + wishes.len() as u128 >= fair.min(u128::from(wishes[who].amount)));
        }
    }
}
