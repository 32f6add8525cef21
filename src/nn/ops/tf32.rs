//! Process-wide TF32 setting, like PyTorch's `torch.backends.cudnn.allow_tf32`.

use std::sync::atomic::{AtomicBool, Ordering};

static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Enables or disables rounding the inputs of f32 convolutions to 10-bit mantissas (TF32).
pub fn allow(allowed: bool) {
    ALLOWED.store(allowed, Ordering::Relaxed);
}

/// Whether TF32 is enabled; false by default.
pub fn allowed() -> bool {
    ALLOWED.load(Ordering::Relaxed)
}
