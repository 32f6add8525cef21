//! Parameters of a convolution for cuDNN.

use std::fmt;

use crate::ops::{BufferDtype, Pass};

/// Parameters that determine the kernel of a convolution: cross-correlation with input `(n, z, y, x, c_in)`, weights
/// `(c_out, kz, ky, kx, c_in)` and output `(n, z, y, x, c_out)`, all contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    pub pass: Pass,
    pub n: usize,
    /// Spatial extents `(z, y, x)` of the input.
    pub input: [usize; 3],
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    /// Zero padding on either side of each axis.
    pub padding: [usize; 3],
    /// Type of input and output; accumulation is in f32.
    pub element: BufferDtype,
    /// Type of the weights. Their gradient may be f32 if the other tensors are 16-bit.
    pub weight_element: BufferDtype,
    /// Whether f32 may be multiplied on tensor cores as TF32 (10-bit mantissas).
    pub tf32: bool,
}

impl Problem {
    /// Returns the spatial extents `(z, y, x)` of the output.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|axis| {
            (self.input[axis] + 2 * self.padding[axis] - self.kernel[axis]) / self.stride[axis] + 1
        })
    }

    /// Returns the number of multiplications and additions.
    pub fn flops(&self) -> f64 {
        let volume = |extent: [usize; 3]| extent.iter().product::<usize>() as f64;
        2.0 * self.n as f64 * volume(self.output()) * volume(self.kernel) * (self.c_in * self.c_out) as f64
    }

    /// Whether the weights have another type than input and output.
    pub(super) fn is_mixed(&self) -> bool {
        self.weight_element != self.element
    }

    /// Whether the z axis is trivial, so that cuDNN's 2D kernels apply.
    pub(super) fn is_flat(&self) -> bool {
        self.input[0] == 1 && self.kernel[0] == 1 && self.stride[0] == 1 && self.padding[0] == 0
    }
}

impl fmt::Display for Problem {
    /// Formats the problem as its key in the benchmark cache.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, n, input, c_in, c_out, kernel, stride, padding, element, weight_element, tf32 } = self;
        let of = |[z, y, x]: [usize; 3]| format!("{z}x{y}x{x}");
        let (input, kernel, stride, padding) = (of(*input), of(*kernel), of(*stride), of(*padding));
        let tf32 = if *tf32 { " tf32" } else { "" };
        write!(f, "{pass:?} {n} {c_in}->{c_out} @{input} kernel {kernel} stride {stride} padding {padding} ")?;
        write!(f, "{element:?} weights {weight_element:?}{tf32}")
    }
}
