//! Whether f32 may be multiplied on tensor cores, for the whole process, as PyTorch's `torch.backends.cudnn.allow_tf32`.

use std::sync::atomic::{AtomicBool, Ordering};

static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Allows convolutions in f32 to round their factors to ten binary digits, or forbids it.
pub fn allow(allowed: bool) {
    ALLOWED.store(allowed, Ordering::Relaxed);
}

/// Whether that is allowed; it is not at first.
pub fn allowed() -> bool {
    ALLOWED.load(Ordering::Relaxed)
}
