//! Loops compiled for the widest vectors of the machine.
//!
//! The program is built for any x86-64, whose vectors hold four values; AVX-512's hold sixteen. [`widest`] compiles the
//! loops of a closure once for each instruction set and chooses at run time. Operations are not contracted, so the
//! results are the same on all of them.

/// Runs `f` compiled for the widest vectors there are.
///
/// `f` must be one closure at one place, with everything it calls marked `#[inline(always)]`: what is not inlined into it
/// is compiled for any machine. Worth it for thousands of values, not for ten.
#[inline(always)]
pub fn widest<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the features are there.
            return unsafe { avx512(f) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(f) };
        }
    }
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_runs_once_and_its_value_comes_back() {
        let values: Vec<f32> = (0..1000).map(|value| value as f32).collect();
        let mut runs = 0;
        let sum = widest(|| {
            runs += 1;
            values.iter().sum::<f32>()
        });
        assert_eq!((runs, sum), (1, 499_500.0));
    }
}
