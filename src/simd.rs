//! Inner loops compiled for the widest vectors of the machine the program runs on.
//!
//! The crate is built for the x86-64 of 2003, whose vectors hold four floats. A [`Kernel`] is compiled three times, for
//! AVX-512 and AVX2 too, and [`run`] takes the best that the processor has. No version may contract a product and a sum
//! into one rounding, so all give the same bits.

/// A loop worth compiling for several instruction sets.
///
/// `run` and every function of ours that it calls must be `#[inline(always)]`: what is not inlined into the compiled
/// version stays as it is.
pub trait Kernel {
    /// What the loop gives.
    type Output;

    /// The loop.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the widest vectors that this machine has.
pub fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        #[target_feature(enable = "avx2")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if has_avx512 {
            // SAFETY: the features were found just now.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was found just now.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Axpy<'a>(f32, &'a [f32], &'a [f32]);

    impl Kernel for Axpy<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run(self) -> Vec<f32> {
            self.1.iter().zip(self.2).map(|(x, y)| self.0 * x + y).collect()
        }
    }

    #[test]
    fn every_version_gives_the_same_bits() {
        let x: Vec<f32> = (0..1001).map(|i| (i as f32 * 0.37).sin()).collect();
        let y: Vec<f32> = (0..1001).map(|i| (i as f32 * 0.11).cos()).collect();
        assert_eq!(run(Axpy(1.1, &x, &y)), Axpy(1.1, &x, &y).run());
    }
}
