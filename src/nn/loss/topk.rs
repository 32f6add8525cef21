//! Top-k selection: finds the voxels with the largest losses of the global batch, over all ranks.

use rayon::prelude::*;

/// Per-voxel losses of one rank and the top-k cutoff.
#[derive(Clone, Debug, PartialEq)]
pub struct TopKLosses {
    losses: Vec<f32>,
    cutoff: Cutoff,
}

/// Loss threshold of the top-k selection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cutoff {
    loss: f32,
    /// Weight of voxels whose loss equals the threshold. It is below 1 if there are more of them than are left to
    /// select. PyTorch selects some of them instead.
    share: f64,
}

/// Number of values per task.
const BLOCK: usize = 1 << 16;
/// Number of bits of the threshold found per round, highest bits first.
const ROUNDS: [u32; 3] = [11, 11, 10];

impl TopKLosses {
    /// Creates a selection of non-negative losses in which all voxels count.
    pub(super) fn new(losses: Vec<f32>) -> Self {
        Self { losses, cutoff: Cutoff { loss: 0.0, share: 1.0 } }
    }

    pub(super) fn losses(&self) -> &[f32] {
        &self.losses
    }

    pub(super) fn cutoff(&self) -> &Cutoff {
        &self.cutoff
    }

    /// Returns the sum of the selected losses and their number.
    pub(super) fn sums(&self) -> (f64, f64) {
        let shares = self.losses.iter().map(|loss| (f64::from(*loss), self.cutoff.share(*loss)));
        let selected = shares.filter(|(_, share)| *share > 0.0);
        selected.fold((0.0, 0.0), |(sum, count), (loss, share)| (sum + share * loss, count + share))
    }
}

impl Cutoff {
    /// Returns the weight of a voxel with this loss: 1 above the threshold, `share` at it, 0 below.
    #[inline(always)]
    pub(super) fn share(&self, loss: f32) -> f64 {
        match () {
            () if key(loss) > key(self.loss) => 1.0,
            () if key(loss) == key(self.loss) => self.share,
            () => 0.0,
        }
    }
}

/// Finds the cutoffs that select `percent` of all losses of each head, over all ranks.
///
/// `add_up` replaces values by their sums over all ranks; it is called once per round of the search.
///
/// # Errors
/// Returns any error of `add_up`.
pub(super) fn select<E>(
    heads: &mut [&mut TopKLosses],
    percent: f64,
    mut add_up: impl FnMut(&mut [f64]) -> Result<(), E>,
) -> Result<(), E> {
    let mut searches = vec![Search::default(); heads.len()];
    let mut shift = u32::BITS;
    for bits in ROUNDS {
        shift -= bits;
        let counts = heads.iter().zip(&searches).map(|(head, search)| count(&head.losses, search.prefix, shift, bits));
        let mut counts: Vec<f64> = counts.flatten().map(|count| count as f64).collect();
        add_up(&mut counts)?;
        for (search, counts) in searches.iter_mut().zip(counts.chunks_exact(1 << bits)) {
            search.extend(counts, percent, bits);
        }
    }
    for (head, search) in heads.iter_mut().zip(searches) {
        head.cutoff = Cutoff { loss: f32::from_bits(search.prefix), share: search.share };
    }
    Ok(())
}

/// Radix search for the top-k threshold, from the highest bits to the lowest.
#[derive(Clone, Default)]
struct Search {
    /// Bits of the threshold found so far.
    prefix: u32,
    /// Number of voxels to select among those with this prefix; `None` before the first round.
    wanted: Option<f64>,
    /// Fraction of the last bin's voxels to select.
    share: f64,
}

impl Search {
    /// Takes the histogram of the next bits and extends the prefix.
    fn extend(&mut self, counts: &[f64], percent: f64, bits: u32) {
        let all = || (counts.iter().sum::<f64>() * percent / 100.0).floor().max(1.0);
        let mut wanted = self.wanted.unwrap_or_else(all);
        let mut found = 0;
        for (next, &count) in counts.iter().enumerate().rev() {
            found = next;
            if count >= wanted {
                self.share = wanted / count;
                break;
            }
            wanted -= count;
        }
        self.prefix = self.prefix << bits | found as u32;
        self.wanted = Some(wanted);
    }
}

/// Counts the losses with this prefix by the value of their next bits.
fn count(losses: &[f32], prefix: u32, shift: u32, bits: u32) -> Vec<u64> {
    let blocks = losses.par_chunks(BLOCK).map(|block| {
        let mut counts = vec![0u64; 1 << bits];
        for key in block.iter().map(|loss| key(*loss) >> shift).filter(|key| key >> bits == prefix) {
            counts[(key & ((1 << bits) - 1)) as usize] += 1;
        }
        counts
    });
    let add = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    blocks.reduce(|| vec![0; 1 << bits], add)
}

/// Maps a loss to an integer with the same order. Losses slightly below 0 by rounding map to 0; NaN is the largest.
#[inline(always)]
fn key(loss: f32) -> u32 {
    match () {
        () if loss.is_nan() => f32::NAN.to_bits() & (u32::MAX >> 1),
        () if loss > 0.0 => loss.to_bits(),
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(losses: &[f32], percent: f64) -> (f64, f64, Vec<f64>) {
        let mut topk = TopKLosses::new(losses.to_vec());
        select(&mut [&mut topk], percent, |_| Ok::<_, ()>(())).unwrap();
        let (sum, count) = topk.sums();
        (sum, count, losses.iter().map(|loss| topk.cutoff.share(*loss)).collect())
    }

    #[test]
    fn the_largest_losses_are_found_to_the_last_bit() {
        let losses: Vec<f32> = (0..1000).map(|i| 1.0 + (i * 7919 % 1000) as f32 * f32::EPSILON).collect();
        let (sum, count, shares) = selected(&losses, 10.0);
        let mut sorted = losses.clone();
        sorted.sort_by(f32::total_cmp);
        let expected: f64 = sorted[900..].iter().map(|loss| f64::from(*loss)).sum();
        assert_eq!((sum, count), (expected, 100.0));
        assert_eq!(shares.iter().sum::<f64>(), 100.0);
    }

    #[test]
    fn equal_losses_share_what_is_left() {
        let (sum, count, shares) = selected(&[1.0, 3.0, 2.0, 2.0, 2.0, 0.0, 0.0, -1e-9, 0.0, 0.0], 30.0);
        assert!((sum - 7.0).abs() < 1e-12 && (count - 3.0).abs() < 1e-12, "{sum} of {count}");
        assert_eq!(shares[..5], [0.0, 1.0, 2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0]);
        // At least one voxel is selected, and zero losses too if there are not enough others.
        assert_eq!(selected(&[1.0, 4.0, 3.0], 1.0).0, 4.0);
        assert_eq!(selected(&[0.0, -1e-9, 0.0, 5.0], 50.0).1, 2.0);
        assert!(selected(&[1.0, f32::NAN], 50.0).0.is_nan());
    }
}
