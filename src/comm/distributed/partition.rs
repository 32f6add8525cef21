//! Distribution of independent cases over ranks.

use std::cmp::Reverse;

use super::Communicator;

/// Distributes items with the given costs over `ranks`: largest first, each to the rank with the smallest load so far.
/// No rank gets more than 4/3 of the optimum (Graham 1969, "Bounds on multiprocessing timing anomalies").
///
/// Returns the items of each rank, in ascending order.
pub fn partition_by_cost(costs: &[u64], ranks: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&item| (Reverse(costs[item]), item));
    let mut loads = vec![0u64; ranks];
    let mut shares = vec![Vec::new(); ranks];
    for item in order {
        let rank = (0..ranks).min_by_key(|&rank| (loads[rank], shares[rank].len(), rank)).expect("there is a rank");
        loads[rank] += costs[item];
        shares[rank].push(item);
    }
    shares.iter_mut().for_each(|share| share.sort_unstable());
    shares
}

/// Returns this rank's items, in ascending order. All ranks must pass the same costs.
pub fn own_partition(comm: &dyn Communicator, costs: &[u64]) -> Vec<usize> {
    partition_by_cost(costs, comm.world_size()).swap_remove(comm.rank())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assigns_the_largest_items_first() {
        assert_eq!(partition_by_cost(&[1, 9, 4, 5, 2], 2), [vec![1, 4], vec![0, 2, 3]]);
        assert_eq!(partition_by_cost(&[], 3), vec![Vec::<usize>::new(); 3]);
    }

    #[test]
    fn distributes_items_of_zero_cost_evenly() {
        let lengths: Vec<_> = partition_by_cost(&[0; 5], 2).iter().map(Vec::len).collect();
        assert_eq!(lengths, [3, 2]);
    }

    proptest::proptest! {
        #[test]
        fn assigns_every_item_once_within_twice_the_lower_bound(
            costs in proptest::collection::vec(0u64..1000, 0..60),
            ranks in 1usize..9,
        ) {
            let shares = partition_by_cost(&costs, ranks);
            let mut items: Vec<usize> = shares.iter().flatten().copied().collect();
            items.sort_unstable();
            assert_eq!(items, (0..costs.len()).collect::<Vec<_>>());
            // Lower bound for any distribution.
            let total: u64 = costs.iter().sum();
            let least = total.div_ceil(ranks as u64).max(costs.iter().copied().max().unwrap_or(0));
            let most = shares.iter().map(|share| share.iter().map(|&item| costs[item]).sum::<u64>()).max();
            assert!(most <= Some(least * 2), "{most:?} where {least} may be possible");
        }
    }
}
