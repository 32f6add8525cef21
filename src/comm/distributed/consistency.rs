//! Consistency checks: all ranks must have the same settings and layouts before they exchange data.

use std::time::Instant;

use super::{CommError, Communicator, Fault};

/// Checks that `bytes` (a configuration, the layout of the parameters) are the same on all ranks.
///
/// MPI does not detect ranks that reduce buffers of different lengths or orders: some ranks get wrong sums, others wait
/// forever. So the inputs that determine the buffers are compared once at the start, by length and hash. `what` names
/// the compared value in errors.
///
/// # Errors
///
/// Returns an error on every rank if any rank differs, naming the ranks that differ from the majority (from rank 0 if
/// there is no majority).
pub fn check_consistency(comm: &dyn Communicator, what: &str, bytes: &[u8]) -> Result<(), CommError> {
    let began = Instant::now();
    let odd = mismatched_ranks(comm, what, bytes)?;
    if odd.is_empty() {
        return Ok(());
    }
    Err(CommError {
        rank: comm.rank(),
        operation: format!("consistency check of {what}"),
        elapsed_s: began.elapsed().as_secs_f64(),
        fault: Fault::Disagreement,
        reason: format!(
            "{} from the other {} (start all ranks with the same binary, command line and files)",
            describe_mismatch(&odd),
            comm.world_size() - odd.len(),
        ),
    })
}

/// Returns the ranks whose `bytes` differ from the majority, or from rank 0 if there is no majority. All ranks get the
/// same result.
///
/// # Errors
/// Returns an error if the collective fails.
pub fn mismatched_ranks(comm: &dyn Communicator, what: &str, bytes: &[u8]) -> Result<Vec<usize>, CommError> {
    Ok(minority_ranks(&comm.all_gather_bytes(&digest(bytes), what)?))
}

/// Length and 64-bit FNV-1a hash (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn digest(bytes: &[u8]) -> [u8; 16] {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    digest[8..].copy_from_slice(&hash.to_le_bytes());
    digest
}

/// Returns the ranks whose digest is not the most frequent one. Ties are resolved in favor of the lowest rank.
fn minority_ranks(digests: &[Vec<u8>]) -> Vec<usize> {
    let votes = |digest: &Vec<u8>| digests.iter().filter(|other| *other == digest).count();
    // `max_by_key` returns the last of equal elements, so iterate in reverse.
    let Some(accepted) = digests.iter().rev().max_by_key(|digest| votes(digest)) else { return Vec::new() };
    (0..digests.len()).filter(|&rank| digests[rank] != *accepted).collect()
}

/// Formats ranks as `rank 3 differs` or `ranks 1, 2 differ`, listing at most 16 of them.
pub fn describe_mismatch(ranks: &[usize]) -> String {
    const NAMED: usize = 16;
    let mut names = ranks.iter().take(NAMED).map(usize::to_string).collect::<Vec<_>>().join(", ");
    if ranks.len() > NAMED {
        names += &format!(" and {} more", ranks.len() - NAMED);
    }
    if ranks.len() == 1 { format!("rank {names} differs") } else { format!("ranks {names} differ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differ(ranks: &[&[u8]]) -> Vec<usize> {
        minority_ranks(&ranks.iter().map(|bytes| digest(bytes).to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(digest(b"foobar")[8..], 0x8594_4171_f739_67e8_u64.to_le_bytes());
    }

    #[test]
    fn names_the_minority_and_rank_0_breaks_a_tie() {
        assert!(differ(&[b"a", b"a", b"a"]).is_empty());
        assert_eq!(differ(&[b"b", b"a", b"a"]), [0]);
        assert_eq!(differ(&[b"a", b"b"]), [1]);
        assert_eq!(differ(&[b"a", b"b", b"b", b"a", b"c"]), [1, 2, 4]);
    }

    #[test]
    fn lists_at_most_16_ranks_in_one_line() {
        assert_eq!(describe_mismatch(&[3]), "rank 3 differs");
        assert_eq!(describe_mismatch(&[1, 2]), "ranks 1, 2 differ");
        assert!(describe_mismatch(&(0..20).collect::<Vec<_>>()).ends_with("15 and 4 more differ"));
    }
}
